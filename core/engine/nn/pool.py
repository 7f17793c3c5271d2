"""Pooling: the maximum or mean of sliding windows, or of all of space.

Invariant: arrays are f32[batch, space..., channel]; padding is never counted, neither as a maximum nor in a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.engine.array import Array, as_array
from core.engine.nn.conv import Padding, Pairs, checked_padding, per_axis, window_padding
from core.engine.ops import window


def max_pool(x: Array, size: Sequence[int], *, stride: int | Sequence[int] | None = None,
             padding: Padding = "valid") -> Array:
    """The maximum of each window; the gradient goes to the first of equal elements.

    Parameters
    ----------
    x : f32[batch, space..., channel]
    size : one extent an axis of space
    stride : of the windows; None for `size`
    padding : as for `Conv`
    """
    strides, pairs = _windows(x, size, stride, padding)
    return window(x, x, kind="max", **_all_axes(size, strides, pairs))


def avg_pool(x: Array, size: Sequence[int], *, stride: int | Sequence[int] | None = None,
             padding: Padding = "valid") -> Array:
    """The mean of each window over the elements that are not padding; parameters as for `max_pool`."""
    strides, pairs = _windows(x, size, stride, padding)
    total: Array = window(x, kind="sum", **_all_axes(size, strides, pairs))
    return total * as_array(1.0 / _counts(x.shape[1:-1], size, strides, pairs), x.dtype)


def global_max_pool(x: Array) -> Array:
    """f32[batch, space..., channel] to the maxima f32[batch, channel]; equal maxima share the gradient."""
    return x.max(tuple(range(1, x.ndim - 1)))


def global_avg_pool(x: Array) -> Array:
    """f32[batch, space..., channel] to the means f32[batch, channel]."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def _windows(x: Array, size: Sequence[int], stride: int | Sequence[int] | None,
             padding: Padding) -> tuple[tuple[int, ...], Pairs]:
    strides = tuple(size) if stride is None else per_axis(stride, len(size))
    checked = checked_padding(padding, len(size))
    return strides, window_padding(checked, x.shape[1:-1], size, strides, (1,) * len(size))


def _all_axes(size: Sequence[int], stride: Sequence[int], padding: Pairs) -> dict[str, tuple[object, ...]]:
    """Parameters of the window op, which has one a batch and channel axis too."""
    return {"size": (1, *size, 1), "stride": (1, *stride, 1), "padding": ((0, 0), *padding, (0, 0))}


def _counts(space: Sequence[int], size: Sequence[int], stride: Sequence[int], padding: Pairs) -> NDArray[np.float64]:
    """Elements that are not padding in each window, [1, space..., 1]."""
    counts = np.ones((1,) * (len(space) + 2))
    for axis, (n, k, s, (low, high)) in enumerate(zip(space, size, stride, padding, strict=True), start=1):
        first = np.arange(0, n + low + high - k + 1, s) - low
        inside = np.minimum(first + k, n) - np.maximum(first, 0)
        counts = counts * inside.reshape((-1,) + (1,) * (len(space) + 1 - axis))
    return counts
