"""Tilework's engine (`core.engine`) and the machines it runs on (`core.accel`)."""
