"""Kernel of running sums along an axis.

Invariant: a sum is one chain in the order of the axis, so that any split into threads gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any

from core.accel.kernels.segment import FEATURES
from core.accel.kernels.text import pointer_type, text_of
from core.accel.step import Step, View


def make_cumsum(element: str, backwards: bool) -> Any:
    """Kernel of `cumsum`; a unit is a block of the elements behind the axis."""
    from core.accel import pointer

    values = getattr(pointer, element)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, out = values(p, 0), values(p, 1)
        count, inner = d[0], d[1]
        blocks = (inner + FEATURES - 1) // FEATURES
        for unit in range(begin, end):
            row = unit // blocks
            first = (unit - row * blocks) * FEATURES
            length = min(inner - first, FEATURES)
            step = -inner if backwards else inner
            at = row * count * inner + first + ((count - 1) * inner if backwards else 0)
            for j in range(length):
                out[at + j] = x[at + j]
            for _ in range(1, count):
                at += step
                for j in range(length):
                    out[at + j] = out[at - step + j] + x[at + j]

    return kernel


def cumsum(x: View, out: View, axis: int, reverse: bool) -> list[Step]:
    """Running sums along an axis, in the element's own precision.

    Parameters
    ----------
    x : f32, f64, i32 or i64, contiguous
    out : type and shape of `x`, contiguous
    axis : 0 .. rank-1
    reverse : from the last element to the first
    """
    count, inner = x.shape[axis], math.prod(x.shape[axis + 1:])
    units = math.prod(x.shape[:axis]) * -(-inner // FEATURES) if x.size else 0
    text = text_of(make_cumsum, pointer_type(x.dtype), reverse)
    return [Step(text, (x, out), (1,), (count, inner), units, name="cumsum", flops=x.size,
                 nbytes=2 * x.size * x.dtype.itemsize)]
