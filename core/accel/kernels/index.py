"""Kernels that follow indices: gather, scatter_add, segment_reduce and sort.

Invariant: a unit owns every element that it writes, and visits the indices in their order. So there are no atomics,
duplicates add up in index order, and the result has the same bits for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.accel.step import Step, View, contiguous
from core.engine.dtypes import BY_NAME, DType, bool_

FEATURES = 64
"""Elements of the innermost axis that one unit of a scatter owns: four cache lines of float32."""
_RUN = 1024
"""Elements that one unit of a gather writes at most."""


def element_name(dtype: DType) -> str:
    """The name in `core.accel.pointer` of the type that holds an element."""
    return "b8" if dtype is bool_ else dtype.short


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


def _single_stride(view: View, axes: slice, name: str) -> int:
    """The stride that walks `axes` of a view in row-major order."""
    sizes, (strides,) = merge_axes(view.shape[axes], view.strides[axes])
    if len(sizes) > 1:
        raise ValueError(f"{name}: {view.shape} with strides {view.strides} has no single stride; copy it first")
    return strides[0]


def _offset(d: Any, at: int, rank: int, operand: int, row: int) -> int:
    """Offset of a row in an operand: ``d[at:]`` holds the sizes of `rank` axes, then every operand's strides."""
    total = 0
    for axis in range(rank - 1, -1, -1):
        size = d[at + axis]
        upper = row // size
        total += (row - upper * size) * d[at + rank * (operand + 1) + axis]
        row = upper
    return total


def _rows(sizes: list[int], strides: list[list[int]]) -> tuple[int, tuple[int, ...]]:
    """How many rows the axes but the last make, and their numbers for `_offset`."""
    rows = math.prod(sizes[:-1])
    return rows, (len(sizes) - 1, *sizes[:-1], *(step for stride in strides for step in stride[:-1]))


def _import(maker: str, *arguments: str) -> str:
    listed = ", ".join(f'"{argument}"' for argument in arguments)
    return f"from core.accel.kernels.index import {maker}\n\nkernel = {maker}({listed})\n"


def make_gather(element: str, index: str) -> Any:
    """Kernel of `gather`; a unit is a run of at most 1024 elements of a row of the output."""
    from core.accel import pointer
    from core.accel.kernels.vectormath import inlined

    values, integers = getattr(pointer, element), getattr(pointer, index)
    offset, zero = inlined(_offset), storage_type(element)(0)

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


def gather(x: View, indices: View, out: View, axis: int) -> list[Step]:
    """Take elements along an axis: ``out[a..., i..., b...] = x[a..., indices[i...], b...]``.

    Parameters
    ----------
    x : any type, any strides
    indices : i32 or i64, any strides; an index outside ``0 .. x.shape[axis]-1`` reads 0
    out : type of `x`, contiguous, the axes of `indices` in the place of `axis`
    axis : 0 .. rank-1
    """
    none = (0,) * len(indices.shape)
    before, after = x.strides[:axis], x.strides[axis + 1:]
    sizes, strides = merge_axes(out.shape, (*before, *none, *after),
                                ((0,) * len(before) + indices.strides + (0,) * len(after)))
    rows, numbers = _rows(sizes, strides)
    text = _import("make_gather", element_name(x.dtype), indices.dtype.short)
    dims = (x.shape[axis], x.strides[axis], sizes[-1], strides[0][-1], strides[1][-1], *numbers)
    return [Step(text, (x, indices, out), (2,), dims, rows * -(-sizes[-1] // _RUN), name="gather",
                 nbytes=2 * out.size * x.dtype.itemsize)]


def _add(a: Any, b: Any) -> Any:
    return a + b


def _greater(a: Any, b: Any) -> Any:
    """The greater of two, not-a-number if either is."""
    return b if b > a else (a if b == b else b)


def _lesser(a: Any, b: Any) -> Any:
    """The lesser of two, not-a-number if either is."""
    return b if b < a else (a if b == b else b)


_COMBINE = {"sum": _add, "max": _greater, "min": _lesser}


def make_scatter(kind: str, element: str, index: str, start: str) -> Any:
    """Kernel of `scatter_add` and `segment_reduce`; a unit is a block of features with all of its destinations.

    It starts from the operand x (``x``) or from the identity of `kind` (``identity``).
    """
    from core.accel import pointer
    from core.accel.kernels.vectormath import inlined

    values, integers = getattr(pointer, element), getattr(pointer, index)
    offset, combine = inlined(_offset), inlined(_COMBINE[kind])
    copies, fill = start == "x", identity(kind, element)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        x, indices, updates, out = values(p, 0), integers(p, 1), values(p, 2), values(p, 3)
        places, count, width = d[0], d[1], d[2]
        x_stride, index_stride, update_stride, out_stride = d[3], d[4], d[5], d[6]
        x_step, update_step, out_step, rank = d[7], d[8], d[9], d[10]
        blocks = (width + FEATURES - 1) // FEATURES
        for unit in range(begin, end):
            row = unit // blocks
            first = (unit - row * blocks) * FEATURES
            length = min(width - first, FEATURES)
            source = offset(d, 11, rank, 0, row) + first * x_step
            update = offset(d, 11, rank, 1, row) + first * update_step
            target = offset(d, 11, rank, 2, row) + first * out_step
            for place in range(places):
                a, b = source + place * x_stride, target + place * out_stride
                for j in range(length):
                    out[b + j * out_step] = x[a + j * x_step] if copies else fill
            for i in range(count):
                chosen = np.int64(indices[i * index_stride])
                if 0 <= chosen < places:
                    a, b = update + i * update_stride, target + chosen * out_stride
                    if update_step == 1 and out_step == 1:
                        for j in range(length):
                            out[b + j] = combine(out[b + j], updates[a + j])
                    else:
                        for j in range(length):
                            out[b + j * out_step] = combine(out[b + j * out_step], updates[a + j * update_step])

    return kernel


def scatter_add(x: View, indices: View, updates: View, out: View, axis: int) -> list[Step]:
    """``out = x``, then ``out[a..., indices[i...], b...] += updates[a..., i..., b...]`` in the order of i.

    Parameters
    ----------
    x : any numeric type, any strides
    indices : i32 or i64, contiguous; an index outside ``0 .. x.shape[axis]-1`` drops its updates
    updates : type of `x`, the axes of `indices` in the place of `axis`; those axes contiguous among themselves
    out : type and shape of `x`, contiguous
    axis : 0 .. rank-1

    Raises
    ------
    ValueError
        If several axes of indices are not contiguous among themselves.
    """
    return _scatter("scatter_add", ("sum", "x"), (x, indices, updates, out), axis)


def segment_reduce(data: View, ids: View, out: View, kind: str) -> list[Step]:
    """Reduce the rows of each segment: ``out[s] = reduce of data[i] over all i with ids[i] = s``.

    Parameters
    ----------
    data : [row, feature...], any numeric type, any strides
    ids : i32 or i64[row], in any order; an id outside ``0 .. segment-1`` drops its row
    out : type of `data`, [segment, feature...], contiguous; an empty segment gets 0 for a sum, and the least (greatest)
        value of the type, which is an infinity for floats, for max (min)
    kind : ``sum``, ``max`` or ``min``; max and min are not-a-number where any element is
    """
    return _scatter("segment_reduce", (kind, "identity"), (out, ids, data, out), 0)


def _scatter(name: str, variant: tuple[str, str], operands: tuple[View, View, View, View], axis: int) -> list[Step]:
    x, indices, updates, out = operands
    inner = axis + len(indices.shape)

    def without_axis(numbers: Sequence[int]) -> tuple[int, ...]:
        return (*numbers[:axis], *numbers[axis + 1:])

    update_strides = (*updates.strides[:axis], *updates.strides[inner:])
    sizes, strides = merge_axes(without_axis(out.shape), without_axis(x.strides), update_strides,
                                without_axis(out.strides))
    rows, numbers = _rows(sizes, strides)
    dims = (out.shape[axis], indices.size, sizes[-1], x.strides[axis],
            _single_stride(indices, slice(None), f"{name} indices"),
            _single_stride(updates, slice(axis, inner), f"{name} updates"),
            out.strides[axis], *(stride[-1] for stride in strides), *numbers)
    kind, start = variant
    text = _import("make_scatter", kind, element_name(out.dtype), indices.dtype.short, start)
    return [Step(text, operands, (3,), dims, rows * -(-sizes[-1] // FEATURES), name=name, flops=updates.size,
                 nbytes=(updates.size + 2 * out.size) * out.dtype.itemsize)]


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

    values, i32, offset, merge = getattr(pointer, element), pointer.i32, inlined(_offset), inlined(_merge)

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
    return [Step(_import("make_sort", element_name(x.dtype)), (x, values_out, indices_out, keys, order), (1, 2, 3, 4),
                 (count, x.strides[axis], values_out.strides[axis], *numbers), rows, name="sort",
                 nbytes=x.size * (2 * x.dtype.itemsize + 4))]
