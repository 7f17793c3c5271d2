"""Convolutions in groups of few channels, and their weight gradients: loops over channels that LLVM vectorises.

Invariant: each unit owns what it writes and sums in the order of the taps. Inputs that need padding have it already.
Planning needs no compiler: numba is imported by the kernel factories only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from core.accel.chips import host
from core.accel.kernels.taps import offsets, pixel_dims, tap_strides
from core.accel.kernels.text import text_of
from core.accel.step import Step, View
from core.engine import dtypes


def needs_loop(outputs: int, groups: int) -> bool:
    """Whether groups have too few of the output channels to fill half a vector."""
    return groups > 1 and 2 * outputs // groups <= host().lanes


def conv(x: View, w: View, out: View, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Step:
    """The step of a convolution that `needs_loop`; arguments as in `kernels.conv.conv`, x padded."""
    return _step(grouped_kernel, x, w, out, stride, dilation, groups)


def conv_dw(x: View, w: View, ct: View, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Step:
    """The step of its weight gradient; w, which is written, and the others as in `kernels.conv.conv_dw`, x padded."""
    return _step(grouped_dw_kernel, x, w, ct, stride, dilation, groups)


def _step(factory: Callable[..., Any], x: View, w: View, out: View, stride: Sequence[int], dilation: Sequence[int],
          groups: int) -> Step:
    """A step over groups of few channels; `w` and `out` are the kernel-shaped and the output-shaped operand."""
    writes_w = factory is grouped_dw_kernel
    kernel, taps, pixels = w.shape[:-2], prod(w.shape[:-2]), pixel_dims(x, out, stride)
    dims = (groups, w.shape[-2], w.shape[-1] // groups, x.strides[-1], *w.strides[-2:], out.strides[-1], taps,
            len(pixels), *sum(pixels, ()), *offsets(kernel, tap_strides(x, dilation)),
            *offsets(kernel, w.strides))
    names = [view.dtype.short for view in ((x, w) if writes_w else (x, out))]
    if x.dtype is dtypes.uint8:
        names.append(w.dtype.short)
    extent = taps * w.shape[-2] if writes_w else prod(out.shape[:-1])
    return Step(text_of(factory, *names), (x, w, out), (1,) if writes_w else (2,), dims, extent,
                name="conv_dw" if writes_w else "conv", flops=2 * taps * w.shape[-2] * out.size,
                nbytes=sum(view.buffer.nbytes for view in (x, w, out)))


def grouped_kernel(source: str, element: str, weight: str = "") -> Any:
    """Kernel of a convolution in small groups; units are output pixels; p = x, w, out; w is of x's type by default.

    d = groups, channels in and out of a group, strides of x's channels, of w's in and out channels and of out's
    channels, taps, dims, then (extent, stride in x, stride in out) of each dim, the taps' offsets in x and those in w.
    """
    from core.accel import pointer
    from core.accel.kernels.scalar import widen

    read, write, read_w = (getattr(pointer, name) for name in (source, element, weight or source))
    at, strided = pointer.at, pointer.strided

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        groups, group_in, group_out, x_channel, w_in, w_out = d[0], d[1], d[2], d[3], d[4], d[5]
        out_channel, taps, rank, pixels = d[6], d[7], d[8], at(d, 9)
        x_taps = at(pixels, 3 * rank)
        w_taps = at(x_taps, taps)
        plain = group_in == 1 and group_out == 1 and x_channel == 1 and w_out == 1 and out_channel == 1
        for unit in range(begin, end):
            x_pixel = at(read(p, 0), strided(pixels, rank, 3, 1, unit))
            out = at(write(p, 2), strided(pixels, rank, 3, 2, unit))
            for channel in range(groups * group_out):
                out[channel * out_channel] = 0
            for tap in range(taps):
                for i in range(group_in):
                    x = at(x_pixel, x_taps[tap] + i * x_channel)
                    w = at(read_w(p, 1), w_taps[tap] + i * w_in)
                    if plain:
                        for channel in range(groups):
                            out[channel] += widen(x[channel]) * widen(w[channel])
                        continue
                    for j in range(group_out):
                        for group in range(groups):
                            channel = group * group_out + j
                            out[channel * out_channel] += (widen(x[group * group_in * x_channel])
                                                           * widen(w[channel * w_out]))

    return kernel


def grouped_dw_kernel(source: str, element: str) -> Any:
    """Kernel of the weight gradient in small groups; units are (tap, channel of a group); p = x, w, ct; d as above."""
    from core.accel import pointer
    from core.accel.kernels.scalar import widen

    read, write = getattr(pointer, source), getattr(pointer, element)
    at, strided = pointer.at, pointer.strided

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        groups, group_in, group_out, x_channel, w_in, w_out = d[0], d[1], d[2], d[3], d[4], d[5]
        ct_channel, taps, rank, pixels = d[6], d[7], d[8], at(d, 9)
        x_taps = at(pixels, 3 * rank)
        w_taps = at(x_taps, taps)
        plain = group_in == 1 and group_out == 1 and x_channel == 1 and w_out == 1 and ct_channel == 1
        count = 1
        for dim in range(rank):
            count *= pixels[3 * dim]
        for unit in range(begin, end):
            tap, i = unit // group_in, unit % group_in
            w = at(write(p, 1), w_taps[tap] + i * w_in)
            for channel in range(groups * group_out):
                w[channel * w_out] = 0
            for pixel in range(count):
                x = at(read(p, 0), strided(pixels, rank, 3, 1, pixel) + x_taps[tap] + i * x_channel)
                ct = at(read(p, 2), strided(pixels, rank, 3, 2, pixel))
                if plain:
                    for channel in range(groups):
                        w[channel] += widen(x[channel]) * widen(ct[channel])
                    continue
                for j in range(group_out):
                    for group in range(groups):
                        channel = group * group_out + j
                        w[channel * w_out] += widen(x[group * group_in * x_channel]) * widen(ct[channel * ct_channel])

    return kernel
