"""Tilework's engine (`core.engine`) and the machines it runs on (`core.accel`).

Invariant: `STARTED` is earlier than the moment at which any other file of the program was read.
"""

import time

STARTED = time.time()
"""Seconds since 1970."""
