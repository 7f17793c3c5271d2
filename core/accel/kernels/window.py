"""Kernels over windows, and their adjoints: window and window_grad.

Invariant: an adjoint gathers, it never scatters: each element of the result adds up, in row-major order, the windows
that cover it. So every unit writes only its own row, and any split into threads gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.accel.chips import host
from core.accel.kernels.index import identity, storage_type
from core.accel.kernels.text import pointer_type, text_of
from core.accel.step import Step, View, contiguous
from core.engine.dtypes import int32

Padding = Sequence[tuple[int, int]]
"""Positions in front of and behind each axis."""

_AXES = 4
_NUMBERS = 5


def canonical(x: View, size: Sequence[int], stride: Sequence[int], padding: Padding) -> tuple[int, ...]:
    """The numbers of a window in the form that the kernels take: four axes and channels.

    Neighbouring axes without a window become one; a last one of them becomes the channels; ones go in front.

    Returns
    -------
    channels, then for each of the four axes: input extent, output extent, size, stride, padding in front
    """
    channels, axes = _merged(x.shape, size, stride, padding)
    axes = [(1, 1, 1, 1, 0)] * (_AXES - len(axes)) + axes
    return (channels, *(number for axis in axes for number in axis))


def fits(shape: Sequence[int], size: Sequence[int], stride: Sequence[int], padding: Padding) -> bool:
    """Whether the kernels take a window: it slides along at most four axes, gaps between them counting too."""
    return len(_merged(shape, size, stride, padding)[1]) <= _AXES


def _merged(shape: Sequence[int], size: Sequence[int], stride: Sequence[int],
            padding: Padding) -> tuple[int, list[tuple[int, int, int, int, int]]]:
    """Channels, and the axes before them, neighbours without a window counting as one."""
    axes: list[tuple[int, int, int, int, int]] = []
    previous_slides = True
    for extent, window, step, (front, behind) in zip(shape, size, stride, padding, strict=True):
        slides = (window, step, front, behind) != (1, 1, 0, 0)
        if not slides and not previous_slides:
            extent *= axes.pop()[0]
        axes.append((extent, (extent + front + behind - window) // step + 1, window, step, front))
        previous_slides = slides
    channels = 1 if previous_slides else axes.pop()[0]
    return channels, axes


def _forward(d: Any, axis: int, position: int) -> tuple[int, int]:
    """The inputs, first and one past the last, that the window of an output covers along an axis."""
    at = 1 + axis * _NUMBERS
    extent, size, stride, front = d[at], d[at + 2], d[at + 3], d[at + 4]
    first = position * stride - front
    return max(first, 0), min(first + size, extent)


def _adjoint(d: Any, axis: int, position: int) -> tuple[int, int]:
    """The outputs, first and one past the last, whose windows cover an input along an axis."""
    at = 1 + axis * _NUMBERS
    extent, size, stride, front = d[at + 1], d[at + 2], d[at + 3], d[at + 4]
    padded = position + front
    return (padded - size) // stride + 1 if padded >= size else 0, min(padded // stride + 1, extent)


def _place(d: Any, which: int, i0: int, i1: int, i2: int, i3: int) -> int:
    """Row-major position among the inputs (which = 0), the outputs (1) or within a window (2)."""
    position: int = ((i0 * d[6 + which] + i1) * d[11 + which] + i2) * d[16 + which] + i3
    return position


def _code(d: Any, i0: int, i1: int, i2: int, i3: int, o0: int, o1: int, o2: int, o3: int) -> np.int32:
    """Row-major position of an input in the window of an output."""
    w0, w1, w2, w3 = o0 * d[4] - d[5], o1 * d[9] - d[10], o2 * d[14] - d[15], o3 * d[19] - d[20]
    return np.int32((((i0 - w0) * d[8] + i1 - w1) * d[13] + i2 - w2) * d[18] + i3 - w3)


def _split(d: Any, which: int, unit: int) -> tuple[int, int, int]:
    """Positions along the first three axes of a unit."""
    upper = unit // d[11 + which]
    return upper // d[6 + which], upper % d[6 + which], unit % d[11 + which]


def _units(dims: tuple[int, ...], which: int) -> int:
    return math.prod(dims[1 + which:1 + which + 3 * _NUMBERS:_NUMBERS])


def make_reduce(kind: str, element: str, direction: str, nbytes: int) -> Any:
    """Kernel of sum, max or min (`kind`) over windows (``forward``) and of the adjoint of sums (``adjoint``).

    A unit is a row of the output along the fourth axis; vectors have `nbytes` bytes.
    """
    from core.accel import pointer
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    values, at, nothing = getattr(pointer, element), pointer.at, identity(kind, element)
    place, split = inlined(_place), inlined(_split)
    fill, copy = spans.filling(element, nbytes), spans.copying(element, nbytes)
    combine, combine_three = spans.combining(kind, element, nbytes), spans.combining(kind, element, nbytes, 3)
    reach, source, target = (inlined(_forward), 0, 1) if direction == "forward" else (inlined(_adjoint), 1, 0)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, out = values(p, 0), values(p, 1)
        channels, length = d[0], d[16 + target]
        for unit in range(begin, end):
            i0, i1, i2 = split(d, target, unit)
            (a0, b0), (a1, b1), (a2, b2) = reach(d, 0, i0), reach(d, 1, i1), reach(d, 2, i2)
            for i3 in range(length):
                total = at(out, (unit * length + i3) * channels)
                a3, b3 = reach(d, 3, i3)
                so_far, terms = total, 0
                for j0 in range(a0, b0):
                    for j1 in range(a1, b1):
                        for j2 in range(a2, b2):
                            row, j3 = place(d, source, j0, j1, j2, 0), a3
                            if terms == 0 and j3 < b3:
                                so_far, j3 = at(x, (row + j3) * channels), j3 + 1
                            while j3 < b3:
                                term = at(x, (row + j3) * channels)
                                if j3 + 1 < b3:  # two at once, so that the total is stored half as often
                                    combine_three(total, so_far, term, at(term, channels), channels)
                                else:
                                    combine(total, so_far, term, channels)
                                so_far, j3 = total, j3 + 2
                            terms += max(b3 - a3, 0)
                if terms == 0:
                    fill(total, nothing, channels)
                elif terms == 1:
                    copy(total, so_far, channels)

    return kernel


def make_positions(kind: str, element: str, nbytes: int) -> Any:
    """Kernel that finds where in each window the first extreme is, -1 if the window covers no input.

    A unit is a row of the output along the fourth axis; vectors have `nbytes` bytes.
    """
    from core.accel import pointer
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    values, i32, at = getattr(pointer, element), pointer.i32, pointer.at
    reach, place, split = inlined(_forward), inlined(_place), inlined(_split)
    fill, copy = spans.filling("i32", nbytes), spans.copying(element, nbytes)
    improve = spans.improving(kind, element, nbytes)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, extremes, out = values(p, 0), values(p, 1), i32(p, 2)
        channels, length = d[0], d[17]
        for unit in range(begin, end):
            i0, i1, i2 = split(d, 1, unit)
            (a0, b0), (a1, b1), (a2, b2) = reach(d, 0, i0), reach(d, 1, i1), reach(d, 2, i2)
            w0, w1, w2 = i0 * d[4] - d[5], i1 * d[9] - d[10], i2 * d[14] - d[15]
            best = at(extremes, unit * channels)
            for i3 in range(length):
                codes = at(out, (unit * length + i3) * channels)
                a3, b3 = reach(d, 3, i3)
                w3 = i3 * d[19] - d[20]
                fresh = True
                for j0 in range(a0, b0):
                    for j1 in range(a1, b1):
                        for j2 in range(a2, b2):
                            row, code = place(d, 0, j0, j1, j2, 0), place(d, 2, j0 - w0, j1 - w1, j2 - w2, -w3)
                            for j3 in range(a3, b3):
                                term = at(x, (row + j3) * channels)
                                if fresh:
                                    copy(best, term, channels)
                                    fill(codes, np.int32(code + j3), channels)
                                    fresh = False
                                else:
                                    improve(best, codes, term, np.int32(code + j3), channels)
                if fresh:
                    fill(codes, np.int32(-1), channels)

    return kernel


def make_chosen(kind: str, element: str, direction: str, nbytes: int) -> Any:
    """Kernel that takes the elements at known positions in the windows of max or min (`kind`).

    It gives the element of each window (``forward``), or for each input the sum of what its windows have for it
    (``adjoint``). A unit is a row of the output along the fourth axis; vectors have `nbytes` bytes.
    """
    from core.accel import pointer
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    values, i32, at, forward = getattr(pointer, element), pointer.i32, pointer.at, direction == "forward"
    reach, source, target = (inlined(_forward), 0, 1) if forward else (inlined(_adjoint), 1, 0)
    nothing = identity(kind, element) if forward else storage_type(element)(0)
    place, split, code_of = inlined(_place), inlined(_split), inlined(_code)
    fill, choose = spans.filling(element, nbytes), spans.choosing(element, not forward, nbytes)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        positions, terms, out = i32(p, 0), values(p, 1), values(p, 2)
        channels, length = d[0], d[16 + target]
        for unit in range(begin, end):
            i0, i1, i2 = split(d, target, unit)
            (a0, b0), (a1, b1), (a2, b2) = reach(d, 0, i0), reach(d, 1, i1), reach(d, 2, i2)
            for i3 in range(length):
                here = unit * length + i3
                total = at(out, here * channels)
                fill(total, nothing, channels)
                a3, b3 = reach(d, 3, i3)
                for j0 in range(a0, b0):
                    for j1 in range(a1, b1):
                        for j2 in range(a2, b2):
                            for j3 in range(a3, b3):
                                there = place(d, source, j0, j1, j2, j3)
                                if forward:
                                    code, window = code_of(d, j0, j1, j2, j3, i0, i1, i2, i3), here
                                else:
                                    code, window = code_of(d, i0, i1, i2, i3, j0, j1, j2, j3), there
                                choose(total, at(terms, there * channels), at(positions, window * channels), code,
                                       channels)

    return kernel


def positions(x: View, out: View, kind: str, dims: tuple[int, ...], name: str) -> Step:
    """The step that finds where in each window the first extreme is; `dims` are `canonical`."""
    units = _units(dims, 1)
    best = contiguous(x.dtype, (units, dims[0]), f"{name} best")
    text = text_of(make_positions, kind, pointer_type(x.dtype), host().vector_bytes)
    return Step(text, (x, best, out), (1, 2), dims, units, name=name,
                nbytes=x.size * x.dtype.itemsize + out.size * out.dtype.itemsize)


def _reduce(x: View, out: View, kind: str, direction: str, dims: tuple[int, ...], name: str) -> Step:
    text = text_of(make_reduce, kind, pointer_type(x.dtype), direction, host().vector_bytes)
    windows, which = (out, 1) if direction == "forward" else (x, 0)
    size = math.prod(dims[3:3 + _AXES * _NUMBERS:_NUMBERS])
    return Step(text, (x, out), (1,), dims, _units(dims, which), name=name, flops=windows.size * size,
                nbytes=(x.size + out.size) * x.dtype.itemsize)


def _chosen(places: View, terms: View, out: View, kind: str, direction: str, dims: tuple[int, ...],
            name: str) -> Step:
    text = text_of(make_chosen, kind, pointer_type(out.dtype), direction, host().vector_bytes)
    return Step(text, (places, terms, out), (2,), dims, _units(dims, 1 if direction == "forward" else 0), name=name,
                nbytes=(terms.size + out.size) * out.dtype.itemsize + 4 * places.size)


def window(x: View, y: View | None, out: View, kind: str, size: Sequence[int], stride: Sequence[int],
           padding: Padding) -> list[Step]:
    """Reduce windows that slide over all axes; positions in the padding do not count.

    Parameters
    ----------
    x : f32, f64, i32 or i64, contiguous
    y : type and shape of `x`, contiguous, or None for `x` itself; sums take none
    out : type of `x`, contiguous; extents ``(extent + front + behind - size) // stride + 1``
    kind : ``sum``; ``max`` or ``min``: the element of `y` where `x` is extreme in the window, the first in row-major
        order among equals, not-a-number being more extreme than any number. A window wholly in the padding gives the
        identity of `kind` (0, the least or the greatest value of the type)
    size, stride, padding : one entry per axis of `x`; ``1, 1, (0, 0)`` where no window slides; see `fits`
    """
    dims = canonical(x, size, stride, padding)
    if kind == "sum" or y is None:
        return [_reduce(x, out, kind, "forward", dims, f"window_{kind}")]
    places = contiguous(int32, out.shape, "window positions")
    return [positions(x, places, kind, dims, f"window_{kind}_positions"),
            _chosen(places, y, out, kind, "forward", dims, f"window_{kind}")]


def window_grad(x: View, ct: View, out: View, kind: str, size: Sequence[int], stride: Sequence[int],
                padding: Padding) -> list[Step]:
    """The adjoint of `window` with respect to y: what each element of y adds to all windows.

    Parameters
    ----------
    x : operand of `window`, contiguous; a sum uses its shape only
    ct : cotangent, shape of the output of `window`, contiguous
    out : type of `ct`, shape of `x`, contiguous
    kind, size, stride, padding : as in `window`
    """
    dims = canonical(x, size, stride, padding)
    if kind == "sum":
        return [_reduce(ct, out, kind, "adjoint", dims, "window_sum_grad")]
    places = contiguous(int32, ct.shape, "window positions")
    return [positions(x, places, kind, dims, f"window_{kind}_positions"),
            _chosen(places, ct, out, kind, "adjoint", dims, f"window_{kind}_grad")]
