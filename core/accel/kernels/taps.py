"""Taps and pixels of a convolution over a channels-last array, as offsets and strides of memory.

Invariant: offsets count from the first element that an output pixel meets; they are the same for every pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as every

from core.accel.step import View


def tap_strides(x: View, dilation: Sequence[int]) -> tuple[int, ...]:
    """Elements of x from one kernel position to the next, for each space dim."""
    return tuple(step * along for step, along in zip(dilation, x.strides[1:], strict=False))


def offsets(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Offsets of all indices of a shape, in row-major order."""
    return tuple(sum(index * along for index, along in zip(indices, strides, strict=False))
                 for indices in every(*map(range, shape)))


def pixel_dims(x: View, out: View, stride: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(extent, stride in x, stride in out) of the batch and of the pixels of out."""
    pixels = [(extent, step * along, to)
              for extent, step, along, to in zip(out.shape[1:-1], stride, x.strides[1:], out.strides[1:], strict=False)]
    return ((x.shape[0], x.strides[0], out.strides[0]), *pixels)


def runs_on(x: View, dilation: Sequence[int], groups: int) -> bool:
    """Whether what the last kernel dim and the channels meet of x is one run of elements."""
    return groups == 1 and dilation[-1] == 1 and x.strides[-2] == x.shape[-1] * x.strides[-1]


def is_run(w: View) -> bool:
    """Whether the last kernel dim and the channels of w lie end to end."""
    return w.strides[-3] == w.shape[-2] * w.strides[-2]
