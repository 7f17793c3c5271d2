"""Kernels that find where along an axis the first extreme is.

Invariant: among equals the first wins, and not-a-number is more extreme than any number, whatever the order of the
comparisons. An axis that is not the last is a window over all of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.accel.kernels.text import pointer_type, text_of
from core.accel.kernels.window import canonical, positions
from core.accel.step import Step, View, contiguous
from core.engine.dtypes import int32

_LANES = 64


def _above(a: Any, b: Any) -> Any:
    """Whether a takes the place of b as maximum: greater, or the first not-a-number."""
    return a > b if a == a else b == b


def _below(a: Any, b: Any) -> Any:
    """Whether a takes the place of b as minimum: lesser, or the first not-a-number."""
    return a < b if a == a else b == b


_BETTER = {"max": _above, "min": _below}


def make_row_extreme(kind: str, element: str) -> Any:
    """Kernel that finds the index of the extreme of contiguous elements; a unit is a row.

    Lane i goes through elements i, i + 64, ... and keeps its first extreme; then the first of the best lanes wins.
    """
    from core.accel import pointer
    from core.accel.kernels.vectormath import inlined

    values, i32, better = getattr(pointer, element), pointer.i32, inlined(_BETTER[kind])

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, best, places, out = values(p, 0), values(p, 1), i32(p, 2), i32(p, 3)
        count = d[0]
        for unit in range(begin, end):
            row, lane = unit * count, unit * _LANES
            for c in range(min(count, _LANES)):
                best[lane + c] = x[row + c]
                places[lane + c] = np.int32(c)
            for first in range(_LANES, count, _LANES):
                for c in range(min(count - first, _LANES)):
                    take = better(x[row + first + c], best[lane + c])
                    best[lane + c] = x[row + first + c] if take else best[lane + c]
                    places[lane + c] = np.int32(first + c) if take else places[lane + c]
            winner = lane
            for c in range(lane + 1, lane + min(count, _LANES)):
                equal = not better(best[winner], best[c])
                if better(best[c], best[winner]) or (equal and places[c] < places[winner]):
                    winner = c
            out[unit] = places[winner]

    return kernel


def argreduce(x: View, out: View, axis: int, kind: str) -> list[Step]:
    """Index of the extreme along an axis, the first among equals; not-a-number is the most extreme.

    Parameters
    ----------
    x : f32, f64, i32 or i64, contiguous, at least one element along `axis`
    out : i32, contiguous, shape of `x` without `axis` or with extent 1 there
    axis : 0 .. rank-1
    kind : ``max`` or ``min``
    """
    count = x.shape[axis]
    if math.prod(x.shape[axis + 1:]) == 1:
        best = contiguous(x.dtype, (out.size, _LANES), f"arg{kind} best")
        places = contiguous(int32, (out.size, _LANES), f"arg{kind} places")
        text = text_of(make_row_extreme, kind, pointer_type(x.dtype))
        return [Step(text, (x, best, places, out), (1, 2, 3), (count,), out.size, name=f"arg{kind}",
                     nbytes=x.size * x.dtype.itemsize)]
    size = tuple(extent if i == axis else 1 for i, extent in enumerate(x.shape))
    dims = canonical(x, size, (1,) * len(size), ((0, 0),) * len(size))
    return [positions(x, out, kind, dims, f"arg{kind}")]
