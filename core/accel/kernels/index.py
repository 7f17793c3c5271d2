"""Kernels that follow indices: gather and sort; and how kernels walk strided arrays row by row.

Invariant: a unit owns every element that it writes, so that the result has the same bits for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.accel.chips import host
from core.accel.kernels.text import pointer_type, text_of
from core.accel.step import Step, View, contiguous
from core.engine.dtypes import BY_NAME

_RUN = 1024
"""Elements that one unit of a gather writes at most, where it does not copy whole rows."""
_MANY_ROWS = 64
"""So many rows keep all threads busy, without being cut."""


def storage_type(name: str) -> Any:
    """The numpy scalar type behind a name in `core.accel.pointer`."""
    return np.uint8 if name == "b8" else BY_NAME[name].storage.type


def identity(kind: str, name: str) -> Any:
    """What leaves every element unchanged: 0 for a sum, the least (greatest) value of the type for max (min)."""
    number = storage_type(name)
    if kind == "sum":
        return number(0)
    if np.issubdtype(number, np.floating):
        return number(-math.inf if kind == "max" else math.inf)
    limits = np.iinfo(number)
    return number(limits.min if kind == "max" else limits.max)


def merge_axes(shape: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The fewest axes that walk several arrays of one shape: neighbours that lie end to end in all become one.

    Returns
    -------
    sizes, and for every array its strides; at least one axis.
    """
    sizes, merged = [1], [[0] for _ in strides]
    for axis, size in enumerate(shape):
        steps = [stride[axis] for stride in strides]
        if size == 1:
            continue
        if sizes[-1] == 1 or all(last[-1] == step * size for last, step in zip(merged, steps, strict=True)):
            sizes[-1] *= size
            for last, step in zip(merged, steps, strict=True):
                last[-1] = step
        else:
            sizes.append(size)
            for last, step in zip(merged, steps, strict=True):
                last.append(step)
    return sizes, merged


def single_stride(view: View, axes: slice, name: str) -> int:
    """The stride that walks `axes` of a view in row-major order."""
    sizes, (strides,) = merge_axes(view.shape[axes], view.strides[axes])
    if len(sizes) > 1:
        raise ValueError(f"{name}: {view.shape} with strides {view.strides} has no single stride; copy it first")
    return strides[0]


def offset_of_row(d: Any, at: int, rank: int, operand: int, row: int) -> int:
    """Offset of a row in an operand: ``d[at:]`` holds the sizes of `rank` axes, then every operand's strides."""
    total = 0
    for axis in range(rank - 1, -1, -1):
        size = d[at + axis]
        upper = row // size
        total += (row - upper * size) * d[at + rank * (operand + 1) + axis]
        row = upper
    return total


def _rows(sizes: list[int], strides: list[list[int]]) -> tuple[int, tuple[int, ...]]:
    """How many rows the axes but the last make, and their numbers for `offset_of_row`."""
    rows = math.prod(sizes[:-1])
    return rows, (len(sizes) - 1, *sizes[:-1], *(step for stride in strides for step in stride[:-1]))


def make_gather(element: str, index: str) -> Any:
    """Kernel of `gather`; a unit is a run of at most 1024 elements of a row of the output."""
    from core.accel import pointer
    from core.accel.kernels.vectormath import inlined

    values, integers = getattr(pointer, element), getattr(pointer, index)
    offset, zero = inlined(offset_of_row), storage_type(element)(0)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, indices, out = values(p, 0), integers(p, 1), values(p, 2)
        count, stride, width, x_step, index_step, rank = d[0], d[1], d[2], d[3], d[4], d[5]
        runs = (width + _RUN - 1) // _RUN
        for unit in range(begin, end):
            row = unit // runs
            first = (unit - row * runs) * _RUN
            length = min(width - first, _RUN)
            source = offset(d, 6, rank, 0, row) + first * x_step
            which = offset(d, 6, rank, 1, row) + first * index_step
            target = row * width + first
            if index_step == 0:
                at = np.int64(indices[which])
                inside = 0 <= at < count
                for j in range(length):
                    out[target + j] = x[source + at * stride + j * x_step] if inside else zero
            else:
                for j in range(length):
                    at = np.int64(indices[which + j * index_step])
                    out[target + j] = x[source + at * stride + j * x_step] if 0 <= at < count else zero

    return kernel


def make_row_gather(element: str, index: str, nbytes: int) -> Any:
    """Kernel of `gather` of contiguous rows; a unit is a row of the output, or a run of one that is cut.

    Vectors have `nbytes` bytes.
    """
    from core.accel import pointer
    from core.accel.kernels import spans
    from core.accel.kernels.vectormath import inlined

    values, integers, at = getattr(pointer, element), getattr(pointer, index), pointer.at
    offset, zero = inlined(offset_of_row), storage_type(element)(0)
    copy, fill = spans.copying(element, nbytes), spans.filling(element, nbytes)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, indices, out = values(p, 0), integers(p, 1), values(p, 2)
        count, stride, taken, index_stride, width, run, rank = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        runs = (width + run - 1) // run
        for part in range(begin // taken, (end - 1) // taken + 1):
            outer = part // runs
            column = (part - outer * runs) * run
            length = min(width - column, run)
            source = at(x, offset(d, 7, rank, 0, outer) + column)
            target = at(out, outer * taken * width + column)
            for i in range(max(begin - part * taken, 0), min(end - part * taken, taken)):
                chosen = np.int64(indices[i * index_stride])
                if 0 <= chosen < count:
                    copy(at(target, i * width), at(source, chosen * stride), length)
                else:
                    fill(at(target, i * width), zero, length)

    return kernel


def gather(x: View, indices: View, out: View, axis: int) -> list[Step]:
    """Take elements along an axis: ``out[a..., i..., b...] = x[a..., indices[i...], b...]``.

    Parameters
    ----------
    x : any type, any strides
    indices : i32 or i64, any strides; an index outside ``0 .. x.shape[axis]-1`` reads 0
    out : type of `x`, contiguous, the axes of `indices` in the place of `axis`
    axis : 0 .. rank-1
    """
    inner, (inner_strides,) = merge_axes(x.shape[axis + 1:], x.strides[axis + 1:])
    chosen, (index_strides,) = merge_axes(indices.shape, indices.strides)
    if len(inner) == len(chosen) == 1 and inner[0] > 1 and inner_strides[0] == 1:
        return [_row_gather(x, indices, out, axis, index_strides[0])]
    none = (0,) * len(indices.shape)
    before, after = x.strides[:axis], x.strides[axis + 1:]
    sizes, strides = merge_axes(out.shape, (*before, *none, *after),
                                ((0,) * len(before) + indices.strides + (0,) * len(after)))
    rows, numbers = _rows(sizes, strides)
    text = text_of(make_gather, pointer_type(x.dtype), indices.dtype.short)
    dims = (x.shape[axis], x.strides[axis], sizes[-1], strides[0][-1], strides[1][-1], *numbers)
    return [Step(text, (x, indices, out), (2,), dims, rows * -(-sizes[-1] // _RUN), name="gather",
                 nbytes=2 * out.size * x.dtype.itemsize)]


def _row_gather(x: View, indices: View, out: View, axis: int, index_stride: int) -> Step:
    """The step of a gather whose rows, the elements behind the axis, are contiguous in x."""
    outer, (strides,) = merge_axes(x.shape[:axis], x.strides[:axis])
    width, rows = math.prod(x.shape[axis + 1:]), math.prod(outer) * indices.size
    run = width if rows >= _MANY_ROWS else _RUN
    text = text_of(make_row_gather, pointer_type(x.dtype), indices.dtype.short, host().vector_bytes)
    dims = (x.shape[axis], x.strides[axis], indices.size, index_stride, width, run, len(outer), *outer, *strides)
    return Step(text, (x, indices, out), (2,), dims, rows * -(-width // run), name="gather",
                nbytes=2 * out.size * x.dtype.itemsize)


def make_gathered_pair(kind: str, element: str, index: str, nbytes: int) -> Any:
    """Kernel of `gathered_pair`; a unit is a row of the output, vectors have `nbytes` bytes."""
    from core.accel import pointer
    from core.accel.kernels import spans

    values, integers, at = getattr(pointer, element), getattr(pointer, index), pointer.at
    zero = storage_type(element)(0)
    combine, fill = spans.combining(kind, element, nbytes), spans.filling(element, nbytes)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        a, a_indices, b, b_indices, out = values(p, 0), integers(p, 1), values(p, 2), integers(p, 3), values(p, 4)
        width, a_count, a_stride, a_index_stride = d[0], d[1], d[2], d[3]
        b_count, b_stride, b_index_stride = d[4], d[5], d[6]
        for unit in range(begin, end):
            target = at(out, unit * width)
            from_a, from_b = np.int64(a_indices[unit * a_index_stride]), np.int64(b_indices[unit * b_index_stride])
            a_inside, b_inside = 0 <= from_a < a_count, 0 <= from_b < b_count
            if not (a_inside and b_inside):
                fill(target, zero, width)
            left = at(a, from_a * a_stride) if a_inside else target
            right = at(b, from_b * b_stride) if b_inside else target
            combine(target, left, right, width)

    return kernel


def gathered_pair(kind: str, first: tuple[View, View], second: tuple[View, View], out: View) -> list[Step]:
    """The sum or difference (`kind`) of rows of two matrices: ``out[i] = a[a_indices[i]] ± b[b_indices[i]]``.

    Parameters
    ----------
    first, second : a matrix of f32, f64, i32 or i64, its rows contiguous, and i32 or i64[row] indices, both of one
        type; an index outside the matrix reads 0
    out : type of the matrices, [row, column], contiguous
    """
    (a, a_indices), (b, b_indices) = first, second
    text = text_of(make_gathered_pair, kind, pointer_type(a.dtype), a_indices.dtype.short,
                     host().vector_bytes)
    dims = (out.shape[1], a.shape[0], a.strides[0], a_indices.strides[0],
            b.shape[0], b.strides[0], b_indices.strides[0])
    return [Step(text, (a, a_indices, b, b_indices, out), (4,), dims, out.shape[0], name=f"gathered {kind}",
                 flops=out.size, nbytes=3 * out.size * out.dtype.itemsize)]


def _merge(keys: Any, order: Any, source: int, target: int, left: int, middle: int, right: int) -> None:
    """Merge sorted left..middle and middle..right: the left one first among equals, not-a-number last."""
    i, j = left, middle
    for k in range(left, right):
        from_right = j < right
        if i < middle and j < right:
            a, b = keys[source + i], keys[source + j]
            from_right = b < a or (a != a and b == b)
        if from_right:
            taken = j
            j += 1
        else:
            taken = i
            i += 1
        keys[target + k] = keys[source + taken]
        order[target + k] = order[source + taken]


def make_sort(element: str) -> Any:
    """Kernel of `sort`: a bottom-up merge sort; a unit is a row along the sorted axis."""
    from core.accel import pointer
    from core.accel.kernels.vectormath import inlined

    values, i32, offset, merge = getattr(pointer, element), pointer.i32, inlined(offset_of_row), inlined(_merge)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, sorted_values, sorted_indices, keys, order = values(p, 0), values(p, 1), i32(p, 2), values(p, 3), i32(p, 4)
        count, x_stride, out_stride, rank = d[0], d[1], d[2], d[3]
        for unit in range(begin, end):
            source = offset(d, 4, rank, 0, unit)
            base, other = 2 * count * unit, 2 * count * unit + count
            for i in range(count):
                keys[base + i] = x[source + i * x_stride]
                order[base + i] = np.int32(i)
            width = 1
            while width < count:
                for left in range(0, count, 2 * width):
                    merge(keys, order, base, other, left, min(left + width, count), min(left + 2 * width, count))
                base, other = other, base
                width *= 2
            target = offset(d, 4, rank, 1, unit)
            for i in range(count):
                sorted_values[target + i * out_stride] = keys[base + i]
                sorted_indices[target + i * out_stride] = order[base + i]

    return kernel


def sort(x: View, values_out: View, indices_out: View, axis: int) -> list[Step]:
    """Stable ascending sort along an axis, not-a-number last.

    Parameters
    ----------
    x : any type but bf16, any strides, fewer than 2^31 elements along `axis`
    values_out : type and shape of `x`, contiguous
    indices_out : i32, shape of `x`, contiguous; where along `axis` each value was
    axis : 0 .. rank-1
    """
    count = x.shape[axis]
    others = [i for i in range(len(x.shape)) if i != axis]
    shape = [x.shape[i] for i in others]
    rows = math.prod(shape)
    numbers = (len(shape), *shape, *(x.strides[i] for i in others), *(values_out.strides[i] for i in others))
    keys = contiguous(x.dtype, (rows, 2, count), "sort keys")
    order = contiguous(indices_out.dtype, (rows, 2, count), "sort order")
    return [Step(text_of(make_sort, pointer_type(x.dtype)),
                 (x, values_out, indices_out, keys, order), (1, 2, 3, 4),
                 (count, x.strides[axis], values_out.strides[axis], *numbers), rows, name="sort",
                 nbytes=x.size * (2 * x.dtype.itemsize + 4))]
