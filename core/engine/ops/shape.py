"""Ops that move elements and compute none: broadcast, reshape, transpose, slice, pad, concat, iota, dynamic slices.

Invariant: no element is changed; each gradient is another op of this file or a sum.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array
from core.engine.dtypes import DType, as_dtype
from core.engine.graph import Aval
from core.engine.ops.table import Op, Sample, register, require

_python_slice = builtins.slice

def _normal(*shape: int) -> Any:
    return np.random.default_rng(math.prod(shape)).normal(size=shape)


def normalised_axis(op: str, axis: Any, ndim: int) -> int:
    """An axis that may be counted from the end, counted from the front; raises `ShapeError` if there is none."""
    place = operator.index(axis)
    require(-ndim <= place < ndim, op, f"axis lies in {-ndim} <= axis < {ndim}", axis=axis)
    return place % ndim


# --- broadcast -------------------------------------------------------------------------------------------------------

def _broadcast_shape(x: Aval, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Aval:
    require(len(axes) == x.ndim and list(axes) == sorted(set(axes)) and all(0 <= axis < len(shape) for axis in axes),
            "broadcast", "axes name one increasing output axis for each axis of x", x=x, shape=shape, axes=axes)
    require(all(extent in (1, shape[axis]) for extent, axis in zip(x.shape, axes, strict=True)), "broadcast",
            "each axis of x is 1 or equals its output axis", x=x, shape=shape, axes=axes)
    return Aval(x.dtype, shape)


def _broadcast_numpy(x: Any, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    aligned = [1] * len(shape)
    for extent, axis in zip(x.shape, axes, strict=True):
        aligned[axis] = extent
    return np.ascontiguousarray(np.broadcast_to(x.reshape(aligned), shape))


def _broadcast_grad(ct: Array, out: Array, x: Array, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Array]:
    from core.engine.ops.reduce import reduce

    kept = {axis for extent, axis in zip(x.shape, axes, strict=True) if extent == shape[axis]}
    summed = tuple(axis for axis in range(len(shape)) if axis not in kept)
    total = reduce(ct, axes=summed, kind="sum") if summed else ct
    return (reshape(total, shape=x.shape),)


broadcast: Op = register(Op(
    "broadcast", "shape", _broadcast_shape, _broadcast_numpy, _broadcast_grad,
    samples=lambda: [Sample((_normal(3),), {"shape": (2, 3), "axes": (1,)}),
                     Sample((_normal(3, 1),), {"shape": (3, 4), "axes": (0, 1)}),
                     Sample((_normal(),), {"shape": (2, 2), "axes": ()}),
                     Sample((_normal(2, 1, 3),), {"shape": (2, 5, 4, 3), "axes": (0, 2, 3)})],
    prepare=lambda x: (as_array(x),), doc="Axis i of x becomes axis axes[i]; axes of 1 and new axes repeat."))


def broadcast_to(x: Any, shape: Sequence[int]) -> Array:
    """Broadcast as numpy does: axes are aligned at the end."""
    given, shape = as_array(x), tuple(int(extent) for extent in shape)
    if given.shape == shape:
        return given
    return broadcast(given, shape=shape, axes=tuple(range(len(shape) - given.ndim, len(shape))))


def broadcast_together(*arrays: Array) -> tuple[Array, ...]:
    """Broadcast arrays to their common shape."""
    shapes = [array.shape for array in arrays]
    if all(shape == shapes[0] for shape in shapes):
        return arrays
    try:
        shape = _common(*shapes)
    except ValueError:
        require(False, "broadcast", "axes, aligned at the end, are equal or 1",
                **{f"operand {index}": array.aval for index, array in enumerate(arrays)})
    return tuple(broadcast_to(array, shape) for array in arrays)


_common = functools.lru_cache(np.broadcast_shapes)


def full(shape: Sequence[int], value: bool | int | float, dtype: Any = dtypes.float32) -> Array:
    """An array filled with one value."""
    return broadcast_to(as_array(value, dtype), tuple(shape))


def zeros(shape: Sequence[int], dtype: Any = dtypes.float32) -> Array:
    return full(shape, 0, dtype)


def ones(shape: Sequence[int], dtype: Any = dtypes.float32) -> Array:
    return full(shape, 1, dtype)


def full_like(x: Array, value: bool | int | float) -> Array:
    return full(x.shape, value, x.dtype)


# --- reshape, transpose ----------------------------------------------------------------------------------------------

def _reshape_shape(x: Aval, *, shape: tuple[int, ...]) -> Aval:
    require(math.prod(shape) == x.size and all(extent >= 0 for extent in shape), "reshape",
            f"the new shape holds {x.size} elements", x=x, shape=shape)
    return Aval(x.dtype, tuple(shape))


reshape: Op = register(Op(
    "reshape", "shape", _reshape_shape, lambda x, *, shape: x.reshape(shape),
    lambda ct, out, x, *, shape: (reshape(ct, shape=x.shape),),
    samples=lambda: [Sample((_normal(3, 4),), {"shape": (2, 6)}), Sample((_normal(6),), {"shape": (1, 6, 1)}),
                     Sample((_normal(),), {"shape": (1,)})],
    prepare=lambda x: (as_array(x),), doc="Row-major order is kept."))


def _transpose_shape(x: Aval, *, axes: tuple[int, ...]) -> Aval:
    require(sorted(axes) == list(range(x.ndim)), "transpose", "axes are a permutation of the axes of x", x=x, axes=axes)
    return Aval(x.dtype, tuple(x.shape[axis] for axis in axes))


transpose: Op = register(Op(
    "transpose", "shape", _transpose_shape, lambda x, *, axes: np.ascontiguousarray(np.transpose(x, axes)),
    lambda ct, out, x, *, axes: (transpose(ct, axes=tuple(int(axis) for axis in np.argsort(axes))),),
    samples=lambda: [Sample((_normal(3, 4),), {"axes": (1, 0)}), Sample((_normal(2, 3, 4),), {"axes": (2, 0, 1)}),
                     Sample((_normal(5),), {"axes": (0,)})],
    prepare=lambda x: (as_array(x),), doc="Axis axes[i] of x becomes axis i."))


def moveaxis(x: Array, source: int, destination: int) -> Array:
    """Move one axis, the others keep their order."""
    source, destination = (normalised_axis("moveaxis", axis, x.ndim) for axis in (source, destination))
    order = [axis for axis in range(x.ndim) if axis != source]
    order.insert(destination, source)
    return transpose(x, axes=tuple(order))


# --- slice, pad, concat ----------------------------------------------------------------------------------------------

def _slice_shape(x: Aval, *, start: tuple[int, ...], stop: tuple[int, ...], step: tuple[int, ...]) -> Aval:
    require(len(start) == len(stop) == len(step) == x.ndim
            and all(0 <= a <= b <= n and s > 0 for a, b, s, n in zip(start, stop, step, x.shape, strict=True)),
            "slice", "0 <= start <= stop <= extent and step > 0 on every axis", x=x, start=start, stop=stop, step=step)
    return Aval(x.dtype, tuple(-(-(b - a) // s) for a, b, s in zip(start, stop, step, strict=True)))


def _slice_grad(ct: Array, out: Array, x: Array, *, start: tuple[int, ...], stop: tuple[int, ...],
                step: tuple[int, ...]) -> tuple[Array]:
    spans = [(n - 1) * s + 1 if n else 0 for n, s in zip(ct.shape, step, strict=True)]
    high = tuple(n - a - span for n, a, span in zip(x.shape, start, spans, strict=True))
    return (pad(ct, 0.0, low=tuple(start), high=high, interior=tuple(s - 1 for s in step)),)


slice: Op = register(Op(
    "slice", "shape", _slice_shape,
    lambda x, *, start, stop, step: np.ascontiguousarray(x[tuple(map(_python_slice, start, stop, step))]),
    _slice_grad,
    samples=lambda: [Sample((_normal(5, 6),), {"start": (1, 0), "stop": (4, 6), "step": (1, 1)}),
                     Sample((_normal(7,),), {"start": (1,), "stop": (7,), "step": (3,)}),
                     Sample((_normal(4, 3),), {"start": (0, 2), "stop": (4, 3), "step": (2, 1)})],
    prepare=lambda x: (as_array(x),)))


def _pad_shape(x: Aval, value: Aval, *, low: tuple[int, ...], high: tuple[int, ...],
               interior: tuple[int, ...]) -> Aval:
    require(len(low) == len(high) == len(interior) == x.ndim and all(gap >= 0 for gap in interior)
            and value == Aval(x.dtype, ()), "pad",
            "low, high and interior >= 0 for every axis, and a scalar of x's dtype", x=x, value=value, low=low,
            high=high, interior=interior)
    shape = tuple(n + max(n - 1, 0) * gap + a + b for n, a, b, gap in zip(x.shape, low, high, interior, strict=True))
    require(all(extent >= 0 for extent in shape), "pad", "negative padding leaves an extent >= 0", x=x, low=low,
            high=high)
    return Aval(x.dtype, shape)


def _pad_numpy(x: Any, value: Any, *, low: tuple[int, ...], high: tuple[int, ...], interior: tuple[int, ...]) -> Any:
    inner = tuple(n + max(n - 1, 0) * gap for n, gap in zip(x.shape, interior, strict=True))
    spread = np.full(inner, value, x.dtype)
    spread[tuple(_python_slice(None, None, gap + 1) for gap in interior)] = x
    out = np.full(tuple(n + a + b for n, a, b in zip(inner, low, high, strict=True)), value, x.dtype)
    target = tuple(_python_slice(max(a, 0), max(n - max(b, 0), 0))
                   for n, a, b in zip(out.shape, low, high, strict=True))
    source = tuple(_python_slice(max(-a, 0), max(n - max(-b, 0), 0))
                   for n, a, b in zip(inner, low, high, strict=True))
    out[target] = spread[source]
    return out


def _pad_grad(ct: Array, out: Array, x: Array, value: Array, *, low: tuple[int, ...], high: tuple[int, ...],
              interior: tuple[int, ...]) -> tuple[Array, Array]:
    from core.engine.ops.reduce import reduce

    axes = tuple(range(x.ndim))
    none = tuple(0 for _ in axes)
    inner = pad(ct, 0.0, low=tuple(-a for a in low), high=tuple(-b for b in high), interior=none)
    into = slice(inner, start=none, stop=inner.shape, step=tuple(gap + 1 for gap in interior))
    total = reduce(ct, axes=axes, kind="sum") if axes else ct
    return into, total - (reduce(into, axes=axes, kind="sum") if axes else into)


def _pad_prepare(x: Any, value: Any) -> tuple[Array, Array]:
    x = as_array(x)
    return x, as_array(value, x.dtype)


pad: Op = register(Op(
    "pad", "shape", _pad_shape, _pad_numpy, _pad_grad,
    samples=lambda: [Sample((_normal(3, 2), np.array(0.5)), {"low": (1, 0), "high": (2, 3), "interior": (0, 0)}),
                     Sample((_normal(4), np.array(0.0)), {"low": (2,), "high": (1,), "interior": (2,)}),
                     Sample((_normal(5, 4), np.array(1.5)), {"low": (-1, 1), "high": (2, -2), "interior": (0, 1)})],
    prepare=_pad_prepare, doc="`interior` elements go between neighbours; negative low or high cut."))


def _concat_shape(*parts: Aval, axis: int) -> Aval:
    shown = {f"part {index}": part for index, part in enumerate(parts)}
    require(len(parts) > 0 and 0 <= axis < parts[0].ndim, "concat", "at least one part, 0 <= axis < ndim", axis=axis,
            **shown)
    rests = {(part.dtype, part.shape[:axis], part.shape[axis + 1:]) for part in parts}
    require(len(rests) == 1, "concat", "parts agree in dtype and in every axis but the joined one", axis=axis, **shown)
    first = parts[0].shape
    return Aval(parts[0].dtype, (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1:]))


def _concat_grad(ct: Array, out: Array, *parts: Array, axis: int) -> tuple[Array, ...]:
    grads, begin = [], 0
    for part in parts:
        end = begin + part.shape[axis]
        grads.append(take_range(ct, axis, begin, end))
        begin = end
    return tuple(grads)


concat: Op = register(Op(
    "concat", "shape", _concat_shape, lambda *parts, axis: np.concatenate(parts, axis), _concat_grad,
    samples=lambda: [Sample((_normal(2, 3), _normal(1, 3), _normal(4, 3)), {"axis": 0}),
                     Sample((_normal(2, 3), _normal(2, 1)), {"axis": 1}), Sample((_normal(2),), {"axis": 0})]))


def concatenate(parts: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays along an existing axis."""
    return concat(*parts, axis=normalised_axis("concatenate", axis, parts[0].ndim))


def stack(parts: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays of one shape along a new axis."""
    return concatenate([expand(part, axis) for part in parts], axis)


def expand(x: Array, axis: int) -> Array:
    """Put an axis of 1 at a position."""
    axis = normalised_axis("expand", axis, x.ndim + 1)
    return reshape(x, shape=(*x.shape[:axis], 1, *x.shape[axis:]))


def take_range(x: Array, axis: int, begin: int, end: int) -> Array:
    """The part begin..end-1 of one axis."""
    start = tuple(begin if index == axis else 0 for index in range(x.ndim))
    stop = tuple(end if index == axis else extent for index, extent in enumerate(x.shape))
    return slice(x, start=start, stop=stop, step=(1,) * x.ndim)


# --- iota ------------------------------------------------------------------------------------------------------------

def _iota_numpy(*, shape: tuple[int, ...], axis: int, dtype: DType) -> Any:
    aligned = tuple(extent if index == axis else 1 for index, extent in enumerate(shape))
    return np.ascontiguousarray(np.broadcast_to(np.arange(shape[axis]).astype(dtype.storage).reshape(aligned), shape))


iota: Op = register(Op(
    "iota", "shape", lambda *, shape, axis, dtype: Aval(dtype, tuple(shape)), _iota_numpy,
    samples=lambda: [Sample((), {"shape": (3, 4), "axis": axis, "dtype": dtype})
                     for axis in (0, 1) for dtype in (dtypes.int32, dtypes.float32)],
    doc="The index along one axis."))


def arange(count: int, dtype: Any = dtypes.int32) -> Array:
    """0, 1, ..., count-1."""
    return iota(shape=(count,), axis=0, dtype=as_dtype(dtype))


# --- dynamic ---------------------------------------------------------------------------------------------------------

def _dynamic_slice_shape(x: Aval, *starts: Aval, sizes: tuple[int, ...]) -> Aval:
    require(len(starts) == x.ndim == len(sizes) and all(start == Aval(dtypes.int32, ()) for start in starts)
            and all(0 <= size <= extent for size, extent in zip(sizes, x.shape, strict=True)), "dynamic_slice",
            "one i32 scalar start and one size <= extent an axis", x=x, sizes=sizes,
            **{f"start {index}": start for index, start in enumerate(starts)})
    return Aval(x.dtype, tuple(sizes))


def _window(shape: tuple[int, ...], starts: Sequence[Any], sizes: Sequence[int]) -> tuple[Any, ...]:
    begins = [min(max(int(start), 0), extent - size) for start, extent, size in zip(starts, shape, sizes, strict=True)]
    return tuple(_python_slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def _dynamic_slice_grad(ct: Array, out: Array, x: Array, *starts: Array, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    return dynamic_update(full_like(x, 0.0), ct, *starts), *(None for _ in starts)


def _index(value: int) -> Any:
    return np.array(value, np.int32)


dynamic_slice: Op = register(Op(
    "dynamic_slice", "dynamic", _dynamic_slice_shape,
    lambda x, *starts, sizes: np.ascontiguousarray(x[_window(x.shape, starts, sizes)]), _dynamic_slice_grad,
    samples=lambda: [Sample((_normal(5, 4), _index(begin), _index(1)), {"sizes": (2, 3)}) for begin in (0, 2, 9, -4)],
    doc="A window of static size at traced starts; starts are clamped so that the window fits."))


def _dynamic_update_shape(x: Aval, update: Aval, *starts: Aval) -> Aval:
    require(len(starts) == x.ndim == update.ndim and update.dtype is x.dtype
            and all(start == Aval(dtypes.int32, ()) for start in starts)
            and all(small <= large for small, large in zip(update.shape, x.shape, strict=True)), "dynamic_update",
            "an update no larger than x and one i32 scalar start an axis", x=x, update=update,
            **{f"start {index}": start for index, start in enumerate(starts)})
    return x


def _dynamic_update_numpy(x: Any, update: Any, *starts: Any) -> Any:
    out = x.copy()
    out[_window(x.shape, starts, update.shape)] = update
    return out


def _dynamic_update_grad(ct: Array, out: Array, x: Array, update: Array, *starts: Array) -> tuple[Any, ...]:
    nones = tuple(None for _ in starts)
    return (dynamic_update(ct, full_like(update, 0.0), *starts), dynamic_slice(ct, *starts, sizes=update.shape), *nones)


dynamic_update: Op = register(Op(
    "dynamic_update", "dynamic", _dynamic_update_shape, _dynamic_update_numpy, _dynamic_update_grad,
    samples=lambda: [Sample((_normal(5, 4), _normal(2, 3), _index(begin), _index(1))) for begin in (0, 2, 9, -4)],
    doc="x with a window replaced; starts are clamped so that the update fits."))
