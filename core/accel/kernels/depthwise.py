"""Depthwise convolutions over channels-last arrays, and their weight gradients: every channel has a kernel of its own.

Invariant: nothing is padded or copied. A pixel at the border meets only those taps whose pixel of x exists; only whole
lines of them are looked at, so that inner loops never test.

There is little arithmetic for each element, so memory decides: some neighbouring pixels are done for all channels, in
the order of memory, before the next ones. A register block is a few pixels (taps, in the gradient) of a few vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from core.accel.chips import Block, block_for, host
from core.accel.kernels.pad import Padding
from core.accel.kernels.text import text_of
from core.accel.step import Step, View
from core.engine import dtypes

_ELEMENTS = {dtypes.float32: "f32", dtypes.float64: "f64"}
_DIMS = 3
_NUMBERS = 9
_PIXELS = (6, 3, 1)
"""Pixels of a line that are done at once; each is half the one before, or one."""
_TAPS = (5, 3, 1)
"""Taps of a line that are summed at once in the gradient."""
_RUN = 16
"""Pixels that are summed before the next channels."""


def fits(x: View, w: View, out: View, groups: int) -> bool:
    """Whether the kernels take a convolution: one channel in and out of each group, in float, channels side by side."""
    return (1 < groups == w.shape[-1] and w.shape[-2] == 1 and x.dtype in _ELEMENTS
            and x.dtype is w.dtype is out.dtype and len(x.shape) <= _DIMS + 2
            and x.strides[-1] == w.strides[-1] == out.strides[-1] == 1)


def conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int]) -> list[Step]:
    """Steps of ``out[n, o, c] = sum over k of x'[n, o * stride + k * dilation, c] * w[k, 0, c]``, x' padded with zeros.

    Parameters
    ----------
    x : f32 or f64 [batch, *space, channel], one to three space dims
    w : same dtype [*kernel, 1, channel]
    out : same dtype [batch, *out space, channel]
    stride, padding, dilation : as in `kernels.conv.conv`

    Strides of channels are 1, others any.
    """
    block = _block(x, _PIXELS)
    dims = _dims(x, w, out, stride, padding, dilation)
    return [Step(text_of(conv_kernel, block), (x, w, out), (2,), dims, prod(out.shape[:-2]), name="depthwise conv",
                 flops=2 * prod(w.shape[:-2]) * out.size, nbytes=(x.size + w.size + out.size) * x.dtype.itemsize)]


def conv_dw(x: View, w: View, ct: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int]) -> list[Step]:
    """Steps of the gradient of `conv` with respect to w, which is written; ct, in the place of out, is given."""
    block = _block(x, _TAPS)
    dims = _dims(x, w, ct, stride, padding, dilation)
    return [Step(text_of(dw_kernel, block), (x, w, ct), (1,), dims, -(-w.shape[-1] // block.lanes),
                 name="depthwise conv_dw", flops=2 * prod(w.shape[:-2]) * ct.size,
                 nbytes=(x.size + w.size + ct.size) * x.dtype.itemsize)]


def _block(x: View, heights: tuple[int, ...]) -> Block:
    """A block of two vectors of channels, or as many as give no more accumulators than that of products has."""
    block = block_for(host(), _ELEMENTS[x.dtype], x.shape[-1])
    return replace(block, heights=heights, vectors=max(block.rows * block.vectors // _PIXELS[0], 2))


def _dims(x: View, w: View, out: View, stride: Sequence[int], padding: Padding,
          dilation: Sequence[int]) -> tuple[int, ...]:
    """The numbers of the kernels: channels, batch, its strides in x and out, and those of three axes.

    An axis has the extents of out, x and w, stride, padding in front, dilation, and its strides in x, w and out; axes
    of one pixel and one tap go in front.
    """
    axes = [(1, 1, 1, 1, 0, 1, 0, 0, 0)] * (_DIMS + 2 - len(x.shape))
    for axis, (step, (low, _), apart) in enumerate(zip(stride, padding, dilation, strict=True)):
        axes.append((out.shape[axis + 1], x.shape[axis + 1], w.shape[axis], step, low, apart, x.strides[axis + 1],
                     w.strides[axis], out.strides[axis + 1]))
    return (x.shape[-1], x.shape[0], x.strides[0], out.strides[0], *sum(axes, ()))


def _met(axis: Any, pixel: int) -> tuple[int, int]:
    """The taps, first and one past the last, that meet a pixel of x from a pixel of out."""
    size, taps, dilation = axis[1], axis[2], axis[5]
    position = pixel * axis[3] - axis[4]
    first = min(max((dilation - 1 - position) // dilation, 0), taps)
    return first, max(min((size - position + dilation - 1) // dilation, taps), first)


def _whole(axis: Any) -> tuple[int, int]:
    """The pixels of out, first and one past the last, that all taps meet."""
    extent, stride, low = axis[0], axis[3], axis[4]
    reach = (axis[2] - 1) * axis[5] + 1
    first = min(max((low + stride - 1) // stride, 0), extent)
    return first, max(min((axis[1] - reach + low) // stride + 1, extent), first)


def _start(axis: Any, pixel: int, tap: int) -> int:
    """Offset in x of what a pixel of out meets with a tap."""
    offset: int = (pixel * axis[3] - axis[4] + tap * axis[5]) * axis[6]
    return offset


def conv_kernel(block: Block) -> Any:
    """Kernel of `conv`; units are lines of out along the last axis; p = x, w, out; d as `_dims` has it."""
    from core.accel import depthwise, pointer
    from core.accel.kernels.vectormath import inlined

    typed, at, pixels = getattr(pointer, block.element), pointer.at, depthwise.pixels(block)
    met, whole, start, width = inlined(_met), inlined(_whole), inlined(_start), depthwise.width(block)
    columns, rows, few = block.columns, block.rows, block.heights[1]

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        channels, a, b, c = d[0], at(d, 4), at(d, 4 + _NUMBERS), at(d, 4 + 2 * _NUMBERS)
        first, stop = whole(c)
        most = rows if channels >= columns else 2 * rows
        for unit in range(begin, end):
            upper = unit // b[0]
            i, j, image = upper % a[0], unit % b[0], upper // a[0]
            (s, s_stop), (t, t_stop) = met(a, i), met(b, j)
            x = at(typed(p, 0), image * d[2] + start(a, i, s) + start(b, j, t))
            w = at(typed(p, 1), s * a[7] + t * b[7])
            out = at(typed(p, 2), image * d[3] + i * a[8] + j * b[8])
            k = 0
            while k < c[0]:
                u, u_stop = met(c, k)
                count = 1
                if first <= k < stop and stop - first >= few:
                    count = most
                    while count > few and count > stop - k:
                        count //= 2
                    k = min(k, stop - count)  # some pixels again, which is quicker than one after the other
                x_k, w_k, out_k = at(x, start(c, k, u)), at(w, u * c[7]), at(out, k * c[8])
                channel = 0
                while channel < channels:
                    some = width(channels - channel)
                    pixels(at(x_k, channel), c[3] * c[6], a[5] * a[6], b[5] * b[6], c[5] * c[6],
                           at(w_k, channel), a[7], b[7], c[7], s_stop - s, t_stop - t, u_stop - u,
                           at(out_k, channel), c[8], count, some)
                    channel += some
                k += count

    return kernel


def dw_kernel(block: Block) -> Any:
    """Kernel of `conv_dw`; units are vectors of channels; p = x, w, ct; d as `_dims` has it, with ct for out.

    The sums of a run of pixels are added to those of the runs before it.
    """
    from core.accel import depthwise, pointer
    from core.accel.kernels.vectormath import inlined

    typed, at, taps = getattr(pointer, block.element), pointer.at, depthwise.taps(block)
    met, whole, start, width = inlined(_met), inlined(_whole), inlined(_start), depthwise.width(block)
    lanes, (most, few, _) = block.lanes, block.heights

    def clear(w: Any, axes: Any, channels: int) -> None:
        a, b, c = axes, at(axes, _NUMBERS), at(axes, 2 * _NUMBERS)
        for s in range(a[2]):
            for t in range(b[2]):
                for u in range(c[2]):
                    line = at(w, s * a[7] + t * b[7] + u * c[7])
                    for channel in range(channels):
                        line[channel] = 0

    clear = inlined(clear)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        a, b, c = at(d, 4), at(d, 4 + _NUMBERS), at(d, 4 + 2 * _NUMBERS)
        first, stop = begin * lanes, min(end * lanes, d[0])
        whole_first, whole_stop = whole(c)
        clear(at(typed(p, 1), first), a, stop - first)
        for line in range(d[1] * a[0] * b[0]):
            upper = line // b[0]
            i, j, image = upper % a[0], line % b[0], upper // a[0]
            (s_first, s_stop), (t_first, t_stop) = met(a, i), met(b, j)
            k = 0
            while k < c[0]:
                pixels = min(whole_stop - k, _RUN) if whole_first <= k < whole_stop else 1
                u_first, u_stop = met(c, k)
                channel = first
                while channel < stop:
                    some = width(stop - channel)
                    ct = at(typed(p, 2), image * d[3] + i * a[8] + j * b[8] + k * c[8] + channel)
                    for s in range(s_first, s_stop):
                        for t in range(t_first, t_stop):
                            x = at(typed(p, 0), image * d[2] + start(a, i, s) + start(b, j, t) + channel)
                            w = at(typed(p, 1), s * a[7] + t * b[7] + channel)
                            u = u_first
                            while u < u_stop:
                                count = most if u_stop - u >= most else (few if u_stop - u >= few else 1)
                                taps(at(x, start(c, k, u)), c[3] * c[6], c[5] * c[6], ct, c[8], pixels,
                                     at(w, u * c[7]), c[7], count, some)
                                u += count
                    channel += some
                k += pixels

    return kernel
