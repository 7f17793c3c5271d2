"""Ops that combine elements along axes: reduce, argreduce, cumsum, and windows with their adjoint.

Invariant: reduced axes disappear; a window op keeps all axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array
from core.engine.dtypes import DType
from core.engine.graph import Aval
from core.engine.ops.elementwise import select
from core.engine.ops.shape import broadcast, full_like, normalised_axis, reshape
from core.engine.ops.table import Op, Sample, register, require


def _normal(*shape: int) -> Any:
    return np.random.default_rng(math.prod(shape)).normal(size=shape)


def identity(kind: str, dtype: DType) -> Any:
    """The element that leaves a reduction of this kind unchanged, as a scalar of the storage type."""
    if kind == "sum":
        return dtype.storage.type(0)
    sign = -1 if kind == "max" else 1
    if dtype.is_float:
        return np.float64(sign * math.inf) if dtype is dtypes.float64 else np.float32(sign * math.inf)
    if dtype.kind == "bool":
        return np.bool_(kind == "min")
    limits = np.iinfo(dtype.storage)
    return dtype.storage.type(limits.min if kind == "max" else limits.max)


# --- reduce ----------------------------------------------------------------------------------------------------------

def _reduce_shape(x: Aval, *, axes: tuple[int, ...], kind: str) -> Aval:
    require(kind in ("sum", "max", "min"), "reduce", "kind is sum, max or min", kind=kind)
    require(len(axes) > 0 and list(axes) == sorted(set(axes)) and axes[0] >= 0 and axes[-1] < x.ndim, "reduce",
            "axes are increasing axes of x", x=x, axes=axes)
    require(kind != "sum" or x.dtype is not dtypes.bool_, "reduce", "bool has no sum", "convert it to i32 first", x=x)
    return Aval(x.dtype, tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes))


def _reduce_numpy(x: Any, *, axes: tuple[int, ...], kind: str) -> Any:
    if kind == "sum":
        return np.sum(x, axis=axes, dtype=x.dtype)
    rule = np.max if kind == "max" else np.min
    return rule(x, axis=axes, initial=identity(kind, dtypes.as_dtype(x.dtype)))


def _spread(y: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """Repeat a reduced array over the axes that were reduced."""
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return broadcast(y, shape=x.shape, axes=kept)


def _reduce_grad(ct: Array, out: Array, x: Array, *, axes: tuple[int, ...], kind: str) -> tuple[Array]:
    if kind == "sum":
        return (_spread(ct, x, axes),)
    chosen = select(x == _spread(out, x, axes), full_like(x, 1.0), full_like(x, 0.0))
    share = ct / reduce(chosen, axes=axes, kind="sum")
    return (chosen * _spread(share, x, axes),)


reduce: Op = register(Op(
    "reduce", "reduce", _reduce_shape, _reduce_numpy, _reduce_grad, lambda inputs, outputs, params: inputs[0].size,
    lambda: [Sample((_normal(*shape),), {"axes": axes, "kind": kind}) for kind in ("sum", "max", "min")
             for shape, axes in (((3, 4), (1,)), ((3, 4), (0,)), ((3, 4), (0, 1)), ((2, 3, 5), (0, 2)),
                                 ((2, 3, 5), (1,)), ((1,), (0,)))],
    lambda x: (as_array(x),), doc="max and min share the cotangent among ties."))


def _axes(x: Array, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    given = [axis] if hasattr(axis, "__index__") else axis
    return tuple(sorted({normalised_axis("reduce", index, x.ndim) for index in given}))


def _reduced(x: Any, axis: Any, keepdims: bool, kind: str) -> Array:
    x = as_array(x)
    axes = _axes(x, axis)
    out = reduce(x, axes=axes, kind=kind) if axes else x
    if keepdims:
        out = reshape(out, shape=tuple(1 if index in axes else extent for index, extent in enumerate(x.shape)))
    return out


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Array:
    """Sum over one axis, several, or all."""
    return _reduced(x, axis, keepdims, "sum")


def amax(x: Any, axis: Any = None, keepdims: bool = False) -> Array:
    """Maximum over one axis, several, or all."""
    return _reduced(x, axis, keepdims, "max")


def amin(x: Any, axis: Any = None, keepdims: bool = False) -> Array:
    """Minimum over one axis, several, or all."""
    return _reduced(x, axis, keepdims, "min")


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Array:
    """Mean over one axis, several, or all; of integers in f32."""
    x = as_array(x)
    x = x if x.dtype.is_float else x.astype(dtypes.float32)
    count: int = math.prod(x.shape[index] for index in _axes(x, axis))
    return sum(x, axis, keepdims) * (1.0 / max(count, 1))


# --- argreduce, cumsum -----------------------------------------------------------------------------------------------

def _argreduce_shape(x: Aval, *, axis: int, kind: str) -> Aval:
    require(kind in ("max", "min") and 0 <= axis < x.ndim and x.shape[axis] > 0, "argreduce",
            "kind is max or min, axis is an axis of x with at least one element", x=x, axis=axis, kind=kind)
    return Aval(dtypes.int32, (*x.shape[:axis], *x.shape[axis + 1:]))


argreduce: Op = register(Op(
    "argreduce", "reduce", _argreduce_shape,
    lambda x, *, axis, kind: (np.argmax if kind == "max" else np.argmin)(x, axis), None,
    lambda inputs, outputs, params: inputs[0].size,
    lambda: [Sample((_normal(3, 5),), {"axis": axis, "kind": kind}) for axis in (0, 1) for kind in ("max", "min")],
    lambda x: (as_array(x),), doc="Index (i32) of the first extreme; NaN counts as extreme."))


def argmax(x: Any, axis: int = -1) -> Array:
    """Index of the largest element along an axis."""
    x = as_array(x)
    return argreduce(x, axis=normalised_axis("argmax", axis, x.ndim), kind="max")


def _cumsum_shape(x: Aval, *, axis: int, reverse: bool) -> Aval:
    require(0 <= axis < x.ndim, "cumsum", "axis is an axis of x", x=x, axis=axis)
    return x


def _cumsum_numpy(x: Any, *, axis: int, reverse: bool) -> Any:
    if reverse:
        return np.flip(np.cumsum(np.flip(x, axis), axis, dtype=x.dtype), axis)
    return np.cumsum(x, axis, dtype=x.dtype)


cumsum: Op = register(Op(
    "cumsum", "reduce", _cumsum_shape, _cumsum_numpy,
    lambda ct, out, x, *, axis, reverse: (cumsum(ct, axis=axis, reverse=not reverse),),
    lambda inputs, outputs, params: inputs[0].size,
    lambda: [Sample((_normal(3, 5),), {"axis": axis, "reverse": reverse})
             for axis in (0, 1) for reverse in (False, True)],
    lambda x: (as_array(x),)))


# --- windows ---------------------------------------------------------------------------------------------------------

Padding = tuple[tuple[int, int], ...]


def window_extent(extent: int, size: int, stride: int, padding: tuple[int, int], dilation: int = 1) -> int:
    """Number of positions of a window of `size` taps `dilation` apart."""
    return (extent + padding[0] + padding[1] - (size - 1) * dilation - 1) // stride + 1


def _window_out(op: str, x: Aval, size: tuple[int, ...], stride: tuple[int, ...], padding: Padding) -> tuple[int, ...]:
    require(len(size) == len(stride) == len(padding) == x.ndim and all(s > 0 for s in (*size, *stride))
            and all(0 <= low < n and 0 <= high < n for (low, high), n in zip(padding, size, strict=True)), op,
            "one size > 0, stride > 0 and (low, high) padding smaller than the size for every axis", x=x, size=size,
            stride=stride, padding=padding)
    out = tuple(map(window_extent, x.shape, size, stride, padding))
    require(all(extent > 0 or n == 0 for extent, n in zip(out, x.shape, strict=True)), op,
            "the padded input holds at least one window", x=x, size=size, padding=padding)
    return out


def _window_shape(x: Aval, *of: Aval, kind: str, size: tuple[int, ...], stride: tuple[int, ...],
                  padding: Padding) -> Aval:
    require(kind in ("sum", "max", "min") and len(of) == (kind != "sum") and all(y.shape == x.shape for y in of),
            "window", "kind sum takes x; max and min take x and an array of the same shape to pick from", x=x,
            kind=kind, **{f"of {index}": y for index, y in enumerate(of)})
    return Aval(of[0].dtype if of else x.dtype, _window_out("window", x, size, stride, padding))


def _taps(out: Sequence[int], x: Sequence[int], size: Sequence[int], stride: Sequence[int],
          padding: Padding) -> Iterator[tuple[Any, Any]]:
    """For each tap, the output positions where it falls into x, and the elements of x there; in row-major tap order."""
    for tap in itertools.product(*map(range, size)):
        target, source = [], []
        for n_out, n, t, s, (low, _) in zip(out, x, tap, stride, padding, strict=True):
            first = max(0, -(-(low - t) // s))
            last = min(n_out - 1, (n - 1 + low - t) // s)
            target.append(np.s_[first:max(last + 1, first)])
            begin = first * s + t - low
            source.append(np.s_[begin:max((last - first) * s + begin + 1, begin):s])
        yield tuple(target), tuple(source)


def _extremes(x: Any, out: Sequence[int], kind: str, size: Any, stride: Any, padding: Padding) -> Any:
    """Flat index into x of the first extreme of each window."""
    best = np.full(out, -np.inf if kind == "max" else np.inf)
    where = np.full(out, -1, np.int64)
    flat = np.arange(x.size).reshape(x.shape)
    for target, source in _taps(out, x.shape, size, stride, padding):
        value, known = x[source].astype(np.float64), best[target]
        better = value > known if kind == "max" else value < known
        better |= (where[target] < 0) | (np.isnan(value) & ~np.isnan(known))
        best[target] = np.where(better, value, known)
        where[target] = np.where(better, flat[source], where[target])
    return where


def _window_numpy(x: Any, *of: Any, kind: str, size: Any, stride: Any, padding: Padding) -> Any:
    out_shape = tuple(map(window_extent, x.shape, size, stride, padding))
    if kind != "sum":
        return of[0].reshape(-1)[_extremes(x, out_shape, kind, size, stride, padding)]
    out = np.zeros(out_shape, x.dtype)
    for target, source in _taps(out_shape, x.shape, size, stride, padding):
        out[target] += x[source]
    return out


def _window_vjp(ct: Array, out: Array, x: Array, *of: Array, **params: Any) -> tuple[Any, ...]:
    if params["kind"] == "sum":
        return (window_grad(x, ct, **params),)
    return None, window_grad(x, ct, **params)


def _window_samples() -> list[Sample]:
    plain = {"size": (1, 2, 2, 1), "stride": (1, 2, 2, 1), "padding": ((0, 0),) * 4}
    overlapping = {"size": (1, 3, 2, 1), "stride": (1, 2, 1, 1), "padding": ((0, 0), (1, 1), (0, 1), (0, 0))}
    samples = []
    for params in (plain, overlapping):
        x = _normal(2, 5, 4, 3)
        samples.append(Sample((x,), {"kind": "sum", **params}))
        samples += [Sample((x, _normal(2, 5, 4, 3) + 1), {"kind": kind, **params}) for kind in ("max", "min")]
    samples.append(Sample((_normal(7),), {"kind": "sum", "size": (3,), "stride": (1,), "padding": ((2, 0),)}))
    return samples


window: Op = register(Op(
    "window", "reduce", _window_shape, _window_numpy, _window_vjp,
    lambda inputs, outputs, params: outputs[0].size * math.prod(params["size"]), _window_samples,
    lambda *operands: tuple(as_array(operand) for operand in operands),
    doc="Sum of a sliding window, or the element of a second array where x is extreme (the first of ties, NaN first of "
        "all); padding is left out."))


def _window_grad_shape(x: Aval, ct: Aval, *, kind: str, size: Any, stride: Any, padding: Padding) -> Aval:
    out = _window_out("window_grad", x, size, stride, padding)
    require(ct.shape == out, "window_grad", f"the cotangent has the shape of the windows, {out}", x=x, ct=ct)
    return Aval(ct.dtype, x.shape)


def _window_grad_numpy(x: Any, ct: Any, *, kind: str, size: Any, stride: Any, padding: Padding) -> Any:
    out = np.zeros(x.shape, ct.dtype)
    if kind != "sum":
        np.add.at(out.reshape(-1), _extremes(x, ct.shape, kind, size, stride, padding), ct)
        return out
    for target, source in _taps(ct.shape, x.shape, size, stride, padding):
        out[source] += ct[target]
    return out


def _window_grad_vjp(g: Array, out: Array, x: Array, ct: Array, **params: Any) -> tuple[Any, ...]:
    return None, window(g, **params) if params["kind"] == "sum" else window(x, g, **params)


def _window_grad_samples() -> list[Sample]:
    samples = []
    for sample in _window_samples():
        shape = _window_out("window", Aval(dtypes.float64, sample.inputs[0].shape), sample.params["size"],
                            sample.params["stride"], sample.params["padding"])
        samples.append(Sample((sample.inputs[0], _normal(*shape)), sample.params))
    return samples


window_grad: Op = register(Op(
    "window_grad", "reduce", _window_grad_shape, _window_grad_numpy, _window_grad_vjp,
    lambda inputs, outputs, params: inputs[1].size * math.prod(params["size"]), _window_grad_samples,
    doc="Adjoint of window in the array that is summed or picked from."))
