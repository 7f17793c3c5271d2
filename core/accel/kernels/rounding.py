"""Rounding of float32 sums to bfloat16, for kernels that cannot do it themselves.

Invariant: each element is rounded once, to nearest and ties to even. Planning needs no compiler: numba is imported by
the kernel factory only.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from core.accel.step import Step, View

ROUNDED = 1024
"""Elements that a unit of rounding takes."""


def rounding(sums: View, out: View) -> Step:
    """The step that rounds f32 `sums` to bf16 `out`; both are contiguous."""
    text = "from core.accel.kernels.rounding import rounding_kernel\nkernel = rounding_kernel()\n"
    return Step(text, (sums, out), (1,), (out.size,), ceil(out.size / ROUNDED), name="round",
                nbytes=sums.buffer.nbytes + out.buffer.nbytes)


def rounding_kernel() -> Any:
    """Kernel of `rounding`; units are runs of elements; p = sums, out; d = elements."""
    from core.accel import pointer
    from core.accel.kernels.scalar import encode_bf16

    f32, bf16 = pointer.f32, pointer.bf16

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        sums, out = f32(p, 0), bf16(p, 1)
        for index in range(begin * ROUNDED, min(end * ROUNDED, d[0])):
            out[index] = encode_bf16(sums[index])

    return kernel
