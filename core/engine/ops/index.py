"""Ops that move elements by index: gather, scatter_add, segment_reduce and sort.

Invariant: an index outside 0..n-1 reads zero in gather and is dropped in scatter_add and segment_reduce, so that the
three are exact adjoints and padding needs no mask.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array
from core.engine.dtypes import as_dtype
from core.engine.errors import ShapeError
from core.engine.graph import Aval
from core.engine.ops.elementwise import exp, logical_and, select
from core.engine.ops.reduce import identity
from core.engine.ops.shape import arange, full_like, moveaxis, normalised_axis, ones, reshape, slice
from core.engine.ops.table import MultipleOp, Op, Sample, register, register_multiple, require

_python_slice = builtins.slice


def _normal(*shape: int) -> Any:
    return np.random.default_rng(math.prod(shape)).normal(size=shape)


def _indices(*values: int) -> Any:
    return np.array(values, np.int32)


# --- gather, scatter_add ---------------------------------------------------------------------------------------------

def _gather_shape(x: Aval, indices: Aval, *, axis: int) -> Aval:
    require(0 <= axis < x.ndim and indices.dtype in (dtypes.int32, dtypes.int64), "gather",
            "axis is an axis of x, indices are i32 or i64", x=x, indices=indices, axis=axis)
    return Aval(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1:]))


def _gather_numpy(x: Any, indices: Any, *, axis: int) -> Any:
    extent = x.shape[axis]
    inside = (indices >= 0) & (indices < extent)
    if extent == 0:
        return np.zeros((*x.shape[:axis], *indices.shape, *x.shape[axis + 1:]), x.dtype)
    taken = np.take(x, np.where(inside, indices, 0), axis)
    mask = inside.reshape((1,) * axis + indices.shape + (1,) * (x.ndim - axis - 1))
    return np.where(mask, taken, x.dtype.type(0))


def _gather_grad(ct: Array, out: Array, x: Array, indices: Array, *, axis: int) -> tuple[Array, None]:
    return scatter_add(full_like(x, 0.0), indices, ct, axis=axis), None


gather: Op = register(Op(
    "gather", "index", _gather_shape, _gather_numpy, _gather_grad,
    samples=lambda: [Sample((_normal(5, 3), _indices(4, 0, 0, -1, 5, 2)), {"axis": 0}),
                     Sample((_normal(2, 5, 3), _indices(4, 1, 1).reshape(3, 1)), {"axis": 1}),
                     Sample((_normal(6), np.array(3, np.int32)), {"axis": 0})],
    prepare=lambda x, indices: (as_array(x), as_array(indices)),
    doc="x at the indices along one axis; the axes of the indices replace it."))


def _scatter_shape(x: Aval, indices: Aval, updates: Aval, *, axis: int) -> Aval:
    expected = _gather_shape(x, indices, axis=axis)
    require(updates == expected, "scatter_add", f"updates are what gather would give, {expected}", x=x, indices=indices,
            updates=updates)
    return x


def _scatter_numpy(x: Any, indices: Any, updates: Any, *, axis: int) -> Any:
    out = np.moveaxis(x, axis, 0).copy()
    flat = indices.reshape(-1)
    rows = updates.reshape((*x.shape[:axis], flat.size, *x.shape[axis + 1:]))
    inside = (flat >= 0) & (flat < x.shape[axis])
    np.add.at(out, flat[inside], np.moveaxis(rows, axis, 0)[inside])
    return np.moveaxis(out, 0, axis)


def _scatter_grad(ct: Array, out: Array, x: Array, indices: Array, updates: Array, *, axis: int) -> tuple[Any, ...]:
    return ct, None, gather(ct, indices, axis=axis)


scatter_add: Op = register(Op(
    "scatter_add", "index", _scatter_shape, _scatter_numpy, _scatter_grad,
    lambda inputs, outputs, params: inputs[2].size,
    lambda: [Sample((_normal(5, 3), _indices(4, 0, 0, -1, 5, 2), _normal(6, 3)), {"axis": 0}),
             Sample((_normal(2, 5, 3), _indices(4, 1, 1).reshape(3, 1), _normal(2, 3, 1, 3)), {"axis": 1})],
    lambda x, indices, updates: (as_array(x), as_array(indices), as_array(updates)),
    doc="x plus the updates added at the indices along one axis, in index order."))


def one_hot(indices: Any, count: int, dtype: Any = dtypes.float32) -> Array:
    """[..., count] with 1 at the index; an index outside gives zeros."""
    indices = as_array(indices)
    indices = indices if indices.dtype.itemsize >= 4 else indices.astype(dtypes.int32)
    classes = arange(count, indices.dtype)
    hit = reshape(indices, shape=(*indices.shape, 1)) == classes
    return hit.astype(dtype)


def take_along(x: Array, indices: Array, axis: int = -1) -> Array:
    """out[..., i, ...] = x[..., indices[..., i, ...], ...] along one axis, indices of x's rank; 0 for one outside."""
    axis = normalised_axis("take_along", axis, x.ndim)
    moved, chosen = moveaxis(x, axis, -1), moveaxis(indices, axis, -1)
    rows = math.prod(moved.shape[:-1])
    extent = moved.shape[-1]
    chosen = select(logical_and(chosen >= 0, chosen < extent), chosen, full_like(chosen, -rows * extent))
    flat = reshape(chosen, shape=(rows, chosen.shape[-1])) + reshape(arange(rows) * extent, shape=(rows, 1))
    taken = gather(reshape(moved, shape=(rows * extent,)), flat, axis=0)
    return moveaxis(reshape(taken, shape=chosen.shape), -1, axis)


# --- segment_reduce --------------------------------------------------------------------------------------------------

def _segment_shape(data: Aval, ids: Aval, *, count: int, kind: str) -> Aval:
    require(kind in ("sum", "max", "min"), "segment_reduce", "kind is sum, max or min", kind=kind)
    require(data.ndim >= 1 and ids.shape == data.shape[:1] and ids.dtype in (dtypes.int32, dtypes.int64),
            "segment_reduce", "one i32 or i64 segment id for each row of data", data=data, ids=ids)
    return Aval(data.dtype, (count, *data.shape[1:]))


def _segment_numpy(data: Any, ids: Any, *, count: int, kind: str) -> Any:
    inside = (ids >= 0) & (ids < count)
    out = np.full((count, *data.shape[1:]), identity(kind, as_dtype(data.dtype)), data.dtype)
    rule = {"sum": np.add, "max": np.maximum, "min": np.minimum}[kind]
    rule.at(out, ids[inside], data[inside])
    return out


def _segment_grad(ct: Array, out: Array, data: Array, ids: Array, *, count: int, kind: str) -> tuple[Array, None]:
    if kind == "sum":
        return gather(ct, ids, axis=0), None
    chosen = select(data == gather(out, ids, axis=0), full_like(data, 1.0), full_like(data, 0.0))
    ties = segment_reduce(chosen, ids, count=count, kind="sum")
    share = ct / select(ties > 0, ties, full_like(ties, 1.0))
    return chosen * gather(share, ids, axis=0), None


segment_reduce: Op = register(Op(
    "segment_reduce", "index", _segment_shape, _segment_numpy, _segment_grad,
    lambda inputs, outputs, params: inputs[0].size,
    lambda: [Sample((_normal(7, 3), _indices(0, 0, 2, 1, 2, 9, -1)), {"count": 3, "kind": kind})
             for kind in ("sum", "max", "min")]
    + [Sample((_normal(4), _indices(1, 0, 1, 1)), {"count": 2, "kind": "sum"})],
    lambda data, ids: (as_array(data), as_array(ids)),
    doc="Reduce the rows that share a segment id; an empty segment gives the identity (0, -inf, inf)."))


def segment_sum(data: Any, ids: Any, count: int) -> Array:
    """Sum of the rows of each segment."""
    return segment_reduce(data, ids, count=count, kind="sum")


def segment_mean(data: Any, ids: Any, count: int) -> Array:
    """Mean of the rows of each segment; 0 where it is empty."""
    data = as_array(data)
    sizes = segment_sum(ones((data.shape[0],) + (1,) * (data.ndim - 1), data.dtype), ids, count)
    return segment_sum(data, ids, count) / select(sizes > 0, sizes, full_like(sizes, 1.0))


def segment_softmax(scores: Any, ids: Any, count: int) -> Array:
    """exp(score) normalised within each segment; rows without a segment give 0."""
    scores = as_array(scores)
    top = segment_reduce(scores, ids, count=count, kind="max")
    top = select(top > -1e30, top, full_like(top, 0.0))
    inside = gather(ones((count,) + (1,) * (scores.ndim - 1), scores.dtype), ids, axis=0)
    weights = exp(select(inside > 0, scores - gather(top, ids, axis=0), full_like(scores, 0.0))) * inside
    total = segment_sum(weights, ids, count)
    total = select(total > 0, total, full_like(total, 1.0))
    spread = gather(total, ids, axis=0)
    return weights / select(spread > 0, spread, full_like(spread, 1.0))


def mirror(x: Array, axes: Sequence[int]) -> Array:
    """Reverse the order along some axes."""
    for axis in axes:
        if x.shape[axis] > 1:
            x = gather(x, np.arange(x.shape[axis])[::-1].astype(np.int32), axis=axis)
    return x


# --- sort ------------------------------------------------------------------------------------------------------------

def _sort_shape(x: Aval, *, axis: int) -> tuple[Aval, Aval]:
    require(0 <= axis < x.ndim, "sort", "axis is an axis of x", x=x, axis=axis)
    return x, Aval(dtypes.int32, x.shape)


def _sort_numpy(x: Any, *, axis: int) -> tuple[Any, Any]:
    order = np.argsort(x, axis, kind="stable")
    return np.take_along_axis(x, order, axis), order


def _sort_grad(cts: tuple[Array, Any], outs: tuple[Array, Array], x: Array, *, axis: int) -> tuple[Array]:
    _, order = outs
    _, inverse = sort(order, axis=axis)
    return (take_along(cts[0], inverse, axis),)


sort: MultipleOp = register_multiple(Op(
    "sort", "index", _sort_shape, _sort_numpy, _sort_grad,
    lambda inputs, outputs, params: inputs[0].size * max(inputs[0].shape[params["axis"]].bit_length(), 1),
    lambda: [Sample((_normal(4, 5),), {"axis": axis}) for axis in (0, 1)] + [Sample((_normal(1),), {"axis": 0})],
    lambda x: (as_array(x),), multiple=True,
    doc="Ascending and stable, NaN last; gives the values and their indices (i32)."))


# --- numpy indexing --------------------------------------------------------------------------------------------------

def _filled(x: Array, key: Any) -> list[Any]:
    """The entries of a key, with slices of whole axes for those that it does not name."""
    keys = list(key) if isinstance(key, tuple) else [key]
    places = [number for number, entry in enumerate(keys) if entry is Ellipsis] or [len(keys)]
    named = sum(entry is not None and entry is not Ellipsis for entry in keys)
    if len(places) > 1:
        raise ShapeError(f"ShapeError in indexing: more than one ellipsis in the index {key!r}")
    if named > x.ndim:
        raise ShapeError(f"ShapeError in indexing: {x.aval} has fewer axes than the index {key!r}")
    keys[places[0]:places[0] + 1] = [np.s_[:]] * (x.ndim - named)
    return keys


def _span(x: Array, axis: int, entry: Any) -> tuple[int, int, int]:
    """Start, stop and step of what an integer or a slice takes of an axis."""
    extent = x.shape[axis]
    if isinstance(entry, _python_slice):
        start, stop, step = entry.indices(extent)
        if step <= 0:
            raise ShapeError("ShapeError in indexing: a slice has a positive step; mirror an axis with ops.mirror")
        return start, max(start, stop), step
    if not isinstance(entry, int | np.integer) or isinstance(entry, bool):
        raise ShapeError(f"ShapeError in indexing: {entry!r} is no index of axis {axis} of {x.aval}; take an integer, "
                         "a slice, None, Ellipsis or an array of integers")
    if not -extent <= entry < extent:
        raise ShapeError(f"ShapeError in indexing: {entry} is outside axis {axis} of {x.aval}")
    first = int(entry) % extent
    return first, first + 1, 1


def index(x: Array, key: Any) -> Array:
    """``x[key]`` for integers, slices with positive steps, None, Ellipsis and one integer array.

    Raises
    ------
    ShapeError
        If the key is of another kind or out of range.
    """
    spans: list[tuple[int, int, int]] = []
    shape: list[int] = []
    arrays: list[tuple[int, Array]] = []
    for entry in _filled(x, key):
        if entry is None:
            shape.append(1)
            continue
        if isinstance(entry, Array | np.ndarray | list):
            arrays.append((len(shape), as_array(entry)))
            entry = np.s_[:]
        span = _span(x, len(spans), entry)
        if isinstance(entry, _python_slice):
            shape.append(-(-(span[1] - span[0]) // span[2]))
        spans.append(span)
    if len(arrays) > 1:
        raise ShapeError("ShapeError in indexing: one integer array at a time")
    out = x
    if spans != [(0, extent, 1) for extent in x.shape]:
        start, stop, step = zip(*spans, strict=True)
        out = slice(x, start=start, stop=stop, step=step)
    out = reshape(out, shape=tuple(shape)) if tuple(shape) != out.shape else out
    for position, chosen in arrays:
        out = gather(out, chosen, axis=position)
    return out


