"""Kernels that add up what indices send to one place: scatter_add and segment_reduce.

Invariant: a unit owns the elements that it writes, and meets the indices that lead to them in their order. So there are
no atomics, duplicates add up in index order, and the result has the same bits for any number of threads.

A first step links what leads to each place into a list, in one walk over the indices; the second goes along the lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.accel.chips import host
from core.accel.kernels.index import identity, merge_axes, offset_of_row, single_stride
from core.accel.kernels.text import pointer_type, text_of
from core.accel.step import Step, View, contiguous
from core.engine.dtypes import int32

FEATURES = 64
"""Elements of a row that a unit owns where there are few rows: four cache lines of float32."""
_MANY_PLACES = 64
"""So many places keep all threads busy, without rows being cut."""


@dataclass(frozen=True)
class Links:
    """For each place the list of the indices that lead to it, in their order.

    Attributes
    ----------
    first : i32[place], position of the first index, -1 if there is none
    following : i32[index], position of the next index of the same place, -1 behind the last
    """

    first: View
    following: View


def link(indices: View, places: int) -> tuple[Links, list[Step]]:
    """The lists of so many places, and the step that makes them.

    Parameters
    ----------
    indices : i32 or i64, fewer than 2^31, in any order, contiguous; one outside ``0 .. places-1`` is in no list

    Raises
    ------
    ValueError
        If several axes of indices are not contiguous among themselves.
    """
    links = Links(contiguous(int32, (places,), "first of place"), contiguous(int32, (indices.size,), "next of place"))
    dims = (places, indices.size, single_stride(indices, slice(None), "indices"))
    return links, [Step(text_of(make_link, indices.dtype.short),
                        (indices, links.first, links.following), (1, 2), dims, 1, name="link",
                        nbytes=indices.size * (indices.dtype.itemsize + 4) + 4 * places)]


def make_link(index: str) -> Any:
    """Kernel of `link`, one unit: it walks the indices backwards and puts each in front of its list."""
    from core.accel import pointer

    integers, i32 = getattr(pointer, index), pointer.i32

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        indices, first, following = integers(p, 0), i32(p, 1), i32(p, 2)
        places, count, stride = d[0], d[1], d[2]
        for _ in range(begin, end):
            for place in range(places):
                first[place] = np.int32(-1)
            for i in range(count - 1, -1, -1):
                chosen = np.int64(indices[i * stride])
                if 0 <= chosen < places:
                    following[i] = first[chosen]
                    first[chosen] = np.int32(i)

    return kernel


def scatter_add(x: View, links: Links, updates: View, out: View, axis: int) -> list[Step]:
    """``out = x``, then ``out[a..., indices[i...], b...] += updates[a..., i..., b...]`` in the order of i.

    Parameters
    ----------
    x : any numeric type, any strides
    links : of the indices, to the places along `axis` of x
    updates : type of `x`, the axes of indices in the place of `axis`; those axes contiguous among themselves
    out : type and shape of `x`, contiguous
    axis : 0 .. rank-1
    """
    return _along_links("scatter_add", ("sum", "x"), (x, links, updates, out), axis)


def segment_reduce(data: View, links: Links, out: View, kind: str) -> list[Step]:
    """Reduce the rows of each segment: ``out[s] = reduce of data[i] over all i with ids[i] = s``.

    Parameters
    ----------
    data : [row, feature...], any numeric type, any strides
    links : of the ids, to the segments
    out : type of `data`, [segment, feature...], contiguous; an empty segment gets 0 for a sum, and the least (greatest)
        value of the type, which is an infinity for floats, for max (min)
    kind : ``sum``, ``max`` or ``min``; max and min are not-a-number where any element is
    """
    return _along_links("segment_reduce", (kind, "identity"), (out, links, data, out), 0)


def _along_links(name: str, variant: tuple[str, str], operands: tuple[View, Links, View, View],
                 axis: int) -> list[Step]:
    x, links, updates, out = operands
    places, behind = out.shape[axis], axis + len(updates.shape) - len(out.shape) + 1
    outer, outer_strides = merge_axes(out.shape[:axis], x.strides[:axis], updates.strides[:axis], out.strides[:axis])
    inner, inner_strides = merge_axes(out.shape[axis + 1:], x.strides[axis + 1:], updates.strides[behind:],
                                      out.strides[axis + 1:])
    axes, width, steps = [*outer, *inner[:-1]], inner[-1], [strides[-1] for strides in inner_strides]
    rows = math.prod(axes)
    columns = width if rows * places >= _MANY_PLACES else FEATURES
    numbers = [stride for far, near in zip(outer_strides, inner_strides, strict=True) for stride in (*far, *near[:-1])]
    dims = (places, width, columns, x.strides[axis], single_stride(updates, slice(axis, behind), f"{name} updates"),
            out.strides[axis], *steps[:2], len(axes), *axes, *numbers)
    kind, start = variant
    form = "spans" if width == 1 or steps == [1, 1, 1] else "strides"
    text = text_of(make_reduce, kind, pointer_type(out.dtype), start, form, host().vector_bytes)
    units = rows * -(-width // columns) * places if out.size else 0
    return [Step(text, (x, links.first, links.following, updates, out), (4,), dims, units, name=name,
                 flops=updates.size, nbytes=(updates.size + out.size) * out.dtype.itemsize)]


def make_reduce(kind: str, element: str, start: str, form: str, nbytes: int) -> Any:
    """Kernel of `scatter_add` and `segment_reduce`; a unit is a place in a row, or in a block of its columns.

    It starts from the operand x (``x``) or from the identity of `kind` (``identity``). Rows are ``spans``, or their
    elements lie apart by ``strides``; vectors have `nbytes` bytes.
    """
    from core.accel import pointer
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    values, i32, at, offset = getattr(pointer, element), pointer.i32, pointer.at, inlined(offset_of_row)
    fill, (copy, combine) = spans.filling(element, nbytes), _row_functions(kind, element, form, nbytes)
    starts_from_x, nothing = start == "x", identity(kind, element)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, first, following, updates, out = values(p, 0), i32(p, 1), i32(p, 2), values(p, 3), values(p, 4)
        places, width, columns, x_stride, stride, out_stride = d[0], d[1], d[2], d[3], d[4], d[5]
        x_step, step, rank = d[6], d[7], d[8]
        blocks = (width + columns - 1) // columns
        for part in range(begin // places, (end - 1) // places + 1):
            row = part // blocks
            column = (part - row * blocks) * columns
            length = min(width - column, columns)
            source = at(x, offset(d, 9, rank, 0, row) + column * x_step)
            update = at(updates, offset(d, 9, rank, 1, row) + column * step)
            target = at(out, offset(d, 9, rank, 2, row) + column)
            for place in range(max(begin - part * places, 0), min(end - part * places, places)):
                total, i = at(target, place * out_stride), np.int64(first[place])
                if starts_from_x:
                    so_far, so_far_step = at(source, place * x_stride), x_step
                elif i >= 0:
                    so_far, so_far_step = at(update, i * stride), step
                    i = np.int64(following[i])
                else:
                    fill(total, nothing, length)
                    continue
                if i < 0:
                    copy(total, so_far, so_far_step, length)
                while i >= 0:
                    combine(total, so_far, so_far_step, at(update, i * stride), step, length)
                    so_far, so_far_step, i = total, 1, np.int64(following[i])

    return kernel


def _row_functions(kind: str, element: str, form: str, nbytes: int) -> tuple[Any, Any]:
    """``copy(target, a, a_step, length)`` and ``combine(target, a, a_step, b, b_step, length)`` of rows; the target is
    contiguous."""
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    if form == "spans":
        copy_span, combine_spans = spans.copying(element, nbytes), spans.combining(kind, element, nbytes)

        @inlined
        def copy(target: Any, a: Any, a_step: int, length: int) -> None:
            copy_span(target, a, length)

        @inlined
        def combine(target: Any, a: Any, a_step: int, b: Any, b_step: int, length: int) -> None:
            combine_spans(target, a, b, length)

        return copy, combine
    combine_elements = inlined(_COMBINE[kind])

    @inlined
    def copy_strided(target: Any, a: Any, a_step: int, length: int) -> None:
        for j in range(length):
            target[j] = a[j * a_step]

    @inlined
    def combine_strided(target: Any, a: Any, a_step: int, b: Any, b_step: int, length: int) -> None:
        for j in range(length):
            target[j] = combine_elements(a[j * a_step], b[j * b_step])

    return copy_strided, combine_strided


def _add(a: Any, b: Any) -> Any:
    return a + b


def _greater(a: Any, b: Any) -> Any:
    """The greater of two, not-a-number if either is."""
    return b if b > a else (a if b == b else b)


def _lesser(a: Any, b: Any) -> Any:
    """The lesser of two, not-a-number if either is."""
    return b if b < a else (a if b == b else b)


_COMBINE = {"sum": _add, "max": _greater, "min": _lesser}
