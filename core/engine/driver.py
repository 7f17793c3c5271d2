"""Drivers: loops that call a program themselves, compiled as a whole where the device can.

A driver is a function in a file of its own. It and the functions beside it work on flat arrays with plain arithmetic,
import nothing but names of this file, and run the program with `call`. The types of arguments are told by annotations
with the names below, `int` and `float`; results go into arrays. A device that compiles takes the whole file; the others
run it as the Python that it is. See `core.engine.jit.Program.drive`.

Invariant: a driver does the same either way. So it allocates nothing, and no index leaves its array: compiled code does
not look.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

Network = Callable[[], None]
"""The program, as the first argument of a driver."""


def call(network: Network) -> None:
    """Run the program once: it reads the inputs and writes the outputs that were given with the driver."""
    network()
