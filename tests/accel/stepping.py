"""Running the steps of a kernel on numpy arrays, whole and in pieces, without a plan.

Invariant: outputs and scratch memory begin as garbage between guards, and the guards must survive.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel import store
from core.accel.step import Buffer, Step, View
from core.engine.dtypes import as_dtype

GARBAGE = 0xA5
GUARD = 256
"""Bytes of garbage in front of and behind a guarded array."""

_Kernel = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                           ctypes.c_int64, ctypes.c_int64)


class Memory:
    """Where the buffers of some steps lie."""

    def __init__(self) -> None:
        self._address: dict[int, int] = {}
        self._kept: list[Any] = []
        self._guarded: list[NDArray[np.uint8]] = []

    def view(self, array: NDArray[Any]) -> View:
        """A view of a numpy array with its strides."""
        buffer = Buffer(array.nbytes)
        self._address[id(buffer)] = array.ctypes.data
        self._kept += [array, buffer]
        return View(buffer, as_dtype(array.dtype), array.shape, tuple(s // array.itemsize for s in array.strides))

    def garbage(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """A contiguous array of garbage between guards."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * GUARD, GARBAGE, np.uint8)
        self._guarded.append(raw)
        return raw[GUARD:GUARD + size].view(dtype).reshape(shape)

    def run(self, steps: Sequence[Step], pieces: int) -> None:
        """Do every step in so many pieces, the last piece first."""
        for step in steps:
            pointers = (ctypes.c_void_p * len(step.operands))(*(self._place(view) for view in step.operands))
            dims = (ctypes.c_int64 * len(step.dims))(*step.dims)
            scratch = (ctypes.c_void_p * 2)()
            kernel = _Kernel(store.address(step.kernel))
            cuts = [step.extent * piece // pieces for piece in range(pieces + 1)]
            for begin, end in reversed(list(itertools.pairwise(cuts))):
                status = kernel(ctypes.addressof(scratch), ctypes.addressof(scratch) + 8, ctypes.addressof(pointers),
                                ctypes.addressof(dims), begin, end)
                assert status == 0
        for raw in self._guarded:
            assert (raw[:GUARD] == GARBAGE).all() and (raw[-GUARD:] == GARBAGE).all(), "a kernel wrote out of bounds"

    def _place(self, view: View) -> int:
        if id(view.buffer) not in self._address:
            scratch = self.garbage((view.buffer.nbytes,), np.uint8)
            self._address[id(view.buffer)] = scratch.ctypes.data
            self._kept += [scratch, view.buffer]
        return self._address[id(view.buffer)] + view.offset * view.dtype.itemsize


def evaluate(build: Callable[..., list[Step]], inputs: Sequence[NDArray[Any] | None],
             outputs: Sequence[tuple[Sequence[int], Any]]) -> list[NDArray[Any]]:
    """The outputs of ``build(*input views, *output views)``; the same bits whole, in two and in seven pieces."""
    results = []
    for pieces in (1, 2, 7):
        memory = Memory()
        arrays = [memory.garbage(shape, dtype) for shape, dtype in outputs]
        views = [None if array is None else memory.view(array) for array in inputs]
        memory.run(build(*views, *map(memory.view, arrays)), pieces)
        results.append(arrays)
    for other in results[1:]:
        for array, same in zip(results[0], other, strict=True):
            assert array.tobytes() == same.tobytes()
    return results[0]
