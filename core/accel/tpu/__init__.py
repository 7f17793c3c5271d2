"""The emulated TPU: the chip's time, and beside it the chip's numbers."""
