"""Rounding of float32 sums to the type of a product, for kernels that cannot do it themselves.

Invariant: each element is rounded once, to nearest and ties to even; sums for int32 are whole numbers. Planning needs
no compiler: numba is imported by the kernel factory only.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from core.accel.kernels.text import text_of
from core.accel.step import Step, View

ROUNDED = 1024
"""Elements that a unit of rounding takes."""


def rounding(sums: View, out: View) -> Step:
    """The step that rounds f32 `sums` to bf16 or i32 `out`; both are contiguous."""
    return Step(text_of(rounding_kernel, out.dtype.short), (sums, out), (1,), (out.size,), ceil(out.size / ROUNDED),
                name="round", nbytes=sums.buffer.nbytes + out.buffer.nbytes)


def rounding_kernel(target: str) -> Any:
    """Kernel of `rounding`; units are runs of elements; p = sums, out; d = elements."""
    import numpy as np
    from numba.extending import register_jitable

    from core.accel import pointer
    from core.accel.kernels.scalar import encode_bf16

    @register_jitable
    def whole(number: Any) -> Any:
        return np.int32(number)

    f32, typed, rounded = pointer.f32, getattr(pointer, target), encode_bf16 if target == "bf16" else whole

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        sums, out = f32(p, 0), typed(p, 1)
        for index in range(begin * ROUNDED, min(end * ROUNDED, d[0])):
            out[index] = rounded(sums[index])

    return kernel
