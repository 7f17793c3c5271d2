"""Padding of channels-last arrays in space: zeros around the pixels, or pixels cut off.

Invariant: what needs no zeros is a view and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from core.accel.kernels.text import text_of
from core.accel.step import Buffer, Step, View, contiguous

Padding = Sequence[tuple[int, int]]
"""(low, high) for each space dim; negative numbers crop."""


def padded(x: View, padding: Padding, scratch: Buffer | None = None) -> tuple[View, list[Step]]:
    """x with its zeros in place: the view itself, a part of it, or scratch and the step that fills it.

    Parameters
    ----------
    x : any dtype [batch, *space, channel], any strides
    scratch : grows to what is needed; by default a buffer of its own
    """
    sizes = [size + low + high for size, (low, high) in zip(x.shape[1:-1], padding, strict=True)]
    shape = (x.shape[0], *sizes, x.shape[-1])
    if max(map(max, padding)) <= 0:
        skipped = sum(-low * along for (low, _), along in zip(padding, x.strides[1:], strict=False))
        return replace(x, shape=shape, offset=x.offset + skipped), []
    out = contiguous(x.dtype, shape, "padded")
    if scratch is not None:
        scratch.nbytes = max(scratch.nbytes, out.buffer.nbytes)
        out = replace(out, buffer=scratch)
    dims = [shape[-1], x.strides[-1], len(shape) - 1, shape[0], 0, x.shape[0], x.strides[0]]
    for size, (low, _), extent, along in zip(sizes, padding, x.shape[1:], x.strides[1:], strict=False):
        dims += [size, low, extent, along]
    runs = min(padding[-1]) >= 0 and x.strides[-1] == 1 and x.strides[-2] == x.shape[-1]
    text = text_of(pad_lines_kernel if runs else pad_kernel, x.dtype.short)
    step = Step(text, (x, out), (1,), tuple(dims), prod(shape[:-2]), name="pad", nbytes=2 * out.buffer.nbytes)
    return out, [step]


def pad_kernel(element: str) -> Any:
    """Kernel of `padded`; units are lines of the last space dim; p = x, padded.

    d = channels, their stride in x, dims, then (extent, low padding, extent in x, stride in x) of each dim: batch and
    space.
    """
    from core.accel import pointer

    typed, at = getattr(pointer, element), pointer.at

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        channels, channel_stride, rank = d[0], d[1], d[2]
        line = at(d, 3 + 4 * (rank - 1))
        for unit in range(begin, end):
            left, inside, offset = unit, True, 0
            for dim in range(rank - 2, -1, -1):
                numbers = at(d, 3 + 4 * dim)
                position = left % numbers[0] - numbers[1]
                left //= numbers[0]
                inside = inside and 0 <= position < numbers[2]
                offset += position * numbers[3]
            for index in range(line[0]):
                target = at(typed(p, 1), (unit * line[0] + index) * channels)
                position = index - line[1]
                if inside and 0 <= position < line[2]:
                    source = at(typed(p, 0), offset + position * line[3])
                    for channel in range(channels):
                        target[channel] = source[channel * channel_stride]
                else:
                    for channel in range(channels):
                        target[channel] = 0

    return kernel


def pad_lines_kernel(element: str) -> Any:
    """As `pad_kernel`, where the lines of x are runs of elements that are copied whole."""
    from core.accel import pointer

    typed, at = getattr(pointer, element), pointer.at

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        channels, rank = d[0], d[2]
        line = at(d, 3 + 4 * (rank - 1))
        size, low = line[0] * channels, line[1] * channels
        stop = low + line[2] * channels
        for unit in range(begin, end):
            left, inside, offset = unit, True, 0
            for dim in range(rank - 2, -1, -1):
                numbers = at(d, 3 + 4 * dim)
                position = left % numbers[0] - numbers[1]
                left //= numbers[0]
                inside = inside and 0 <= position < numbers[2]
                offset += position * numbers[3]
            target = at(typed(p, 1), unit * size)
            first = low if inside else size
            for index in range(first):
                target[index] = 0
            if inside:
                source, place = at(typed(p, 0), offset), at(target, low)
                for index in range(stop - low):
                    place[index] = source[index]
                for index in range(stop, size):
                    target[index] = 0

    return kernel
