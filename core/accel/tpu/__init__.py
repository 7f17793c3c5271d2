"""Emulated TPUs: the chips' numbers, their time, and the first one's instructions."""
