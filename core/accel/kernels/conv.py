"""Convolutions over channels-last arrays, and their weight gradients, as sums of matrix products over taps.

Invariant: loops never test for borders. An input that needs padding or dilation is first copied into scratch that has
both; after that a kernel position is an offset from an output pixel's first input element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product as every
from math import prod
from typing import Any

from core.accel.chips import host
from core.accel.kernels import narrow, panels
from core.accel.kernels.gemm import Product, pack
from core.accel.step import Buffer, Step, View, contiguous
from core.engine import dtypes

Padding = Sequence[tuple[int, int]]
STRIPS_FROM = 2 << 20
"""Bytes of padded input, of narrow elements, that are padded at once."""


def conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         input_dilation: Sequence[int], groups: int) -> list[Step]:
    """Steps of a cross-correlation, as XLA's conv_general_dilated has it.

    ``out[n, o, c] = sum over k, i of x'[n, o * stride + k * dilation, i] * w[k, i, c]``, where x' is x with
    ``input_dilation - 1`` zeros between pixels, then padded, and i runs over the channels of c's group.

    Parameters
    ----------
    x : f32, f64, bf16, i8 or u8 [batch, *space, in], any strides
    w : same dtype (i8 for u8) [*kernel, in / groups, out], any strides
    out : f32, f64, bf16 or i32 (for 8 bits) [batch, *out space, out], contiguous
    stride, dilation, input_dilation : one number for each space dim, at least 1
    padding : (low, high) for each space dim; negative numbers crop
    groups : divides both channel counts
    """
    if not out.is_contiguous:
        raise ValueError(f"a convolution writes a contiguous array; out {out.shape} has strides {out.strides}")
    if out.size == 0:
        return []
    if x.dtype in narrow.DTYPES and not _needs_loop(w, groups):
        return _narrow_conv(x, w, out, stride, padding, dilation, input_dilation, groups)
    x, steps = _padded(x, padding, input_dilation)
    group_in, group_out = w.shape[-2], w.shape[-1] // groups
    if _needs_loop(w, groups):
        total = contiguous(dtypes.float32, out.shape, "sums") if out.dtype is dtypes.bfloat16 else out
        steps.append(_grouped_step("grouped_kernel", x, w, total, stride, dilation, groups))
        return steps if total is out else [*steps, narrow.rounding(total, out)]
    by_group, depth, taps = _by_group(x, w, dilation, groups)
    packed, pack_steps = pack(by_group, shared=False)
    convolution = Product(
        x, packed, out, rows=_pixels(x, out, stride), row_stride=out.shape[-1], columns=group_out,
        depth=(depth, x.strides[-1]), batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out),),
        taps=taps, tap_stride=prod(packed.shape[-3:]))
    return [*steps, *pack_steps, convolution.step("conv")]


def _narrow_conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
                 input_dilation: Sequence[int], groups: int) -> list[Step]:
    """Steps of `conv` for narrow elements, where padding costs as much as the sums do.

    A large padded input is never whole: strips of out are done one after the other, and what one strip needs of it lies
    in scratch that stays in the cache.
    """
    whole, steps = _padded(x, padding, input_dilation)
    by_group, depth, taps = _by_group(whole, w, dilation, groups)
    packed, pack_steps = panels.pack(by_group, x.dtype, taps=len(by_group.shape) - 3, shared=False)
    group_in, group_out = w.shape[-2], w.shape[-1] // groups

    def product(x: View, out: View) -> Step:
        return narrow.Product(
            x, packed, out, rows=_pixels(x, out, stride), row_stride=out.shape[-1], columns=group_out,
            depth=(depth, x.strides[-1]), batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out),),
            taps=taps).step("conv")

    pads_inside = max(map(max, padding[1:]), default=0) > 0  # so that all strips are copies, of the same strides
    if not pads_inside or whole.buffer.nbytes <= STRIPS_FROM:
        return [*steps, *pack_steps, product(whole, out)]
    steps = pack_steps
    line_size = whole.strides[1] * whole.dtype.itemsize
    reach = (w.shape[0] - 1) * dilation[0] + 1
    lines = max(1, (STRIPS_FROM // line_size - reach) // stride[0] + 1, reach // stride[0])
    size = (x.shape[1] - 1) * input_dilation[0] + 1
    scratch = Buffer(0, "padded strip")
    for image, first in every(range(out.shape[0]), range(0, out.shape[1], lines)):
        count = min(lines, out.shape[1] - first)
        low = padding[0][0] - first * stride[0]
        window = ((low, (count - 1) * stride[0] + reach - low - size), *padding[1:])
        one = replace(x, shape=(1, *x.shape[1:]), offset=x.offset + image * x.strides[0])
        strip, pad_steps = _padded(one, window, input_dilation, scratch)
        place = out.offset + image * out.strides[0] + first * out.strides[1]
        part = replace(out, shape=(1, count, *out.shape[2:]), offset=place)
        steps += [*pad_steps, product(strip, part)]
    return steps


def _by_group(x: View, w: View, dilation: Sequence[int], groups: int) -> tuple[View, int, tuple[int, ...]]:
    """w as [group, tap..., depth, out of group], the depth, and the taps' offsets in x."""
    kernel, tap_strides = w.shape[:-2], _tap_strides(x, dilation)
    depth, w_strides = w.shape[-2], w.strides
    if _runs_on(x, w, dilation, groups):
        kernel, depth = kernel[:-1], kernel[-1] * depth
        w_strides = (*w.strides[:-3], *w.strides[-2:])
    group_out = w.shape[-1] // groups
    by_group = replace(w, shape=(groups, *kernel, depth, group_out), strides=(group_out * w.strides[-1], *w_strides))
    return by_group, depth, _offsets(kernel, tap_strides)


def _pixels(x: View, out: View, stride: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(extent, stride in x) of the batch and of the pixels of out."""
    pixels = [(extent, step * along)
              for extent, step, along in zip(out.shape[1:-1], stride, x.strides[1:], strict=False)]
    return ((x.shape[0], x.strides[0]), *pixels)


def conv_dw(x: View, ct: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
            input_dilation: Sequence[int], groups: int) -> list[Step]:
    """Steps of the gradient of `conv` with respect to its kernel.

    ``out[k, i, c] = sum over n, o of x'[n, o * stride + k * dilation, i] * ct[n, o, c]``

    Parameters
    ----------
    x : f32, f64 or bf16 [batch, *space, in], any strides
    ct : same dtype [batch, *out space, out], the gradient of the convolution's output, any strides
    out : f32 or f64 [*kernel, in / groups, out], contiguous

    The others are as in `conv`.
    """
    if not out.is_contiguous:
        raise ValueError(f"a convolution writes a contiguous array; out {out.shape} has strides {out.strides}")
    if out.size == 0:
        return []
    x, steps = _padded(x, padding, input_dilation)
    group_in, group_out = out.shape[-2], out.shape[-1] // groups
    if _needs_loop(out, groups):
        return [*steps, _grouped_step("grouped_dw_kernel", x, out, ct, stride, dilation, groups)]
    kernel, tap_strides = out.shape[:-2], _tap_strides(x, dilation)
    rows = group_in
    out_strides = out.strides[:-2]
    if _runs_on(x, out, dilation, groups):
        kernel, rows, out_strides = kernel[:-1], kernel[-1] * rows, out_strides[:-1]
    by_group = replace(ct, shape=(groups, *ct.shape[:-1], group_out),
                       strides=(group_out * ct.strides[-1], *ct.strides))
    packed, pack_steps = pack(by_group, shared=False)
    pixel_strides = (x.strides[0], *(step * along for step, along in zip(stride, x.strides[1:], strict=False)))
    kernel_batch = [(extent, along, 0, to) for extent, along, to in zip(kernel, tap_strides, out_strides, strict=False)]
    gradient = Product(
        x, packed, out, rows=((rows, x.strides[-1]),), row_stride=out.shape[-1], columns=group_out,
        depth=(ct.shape[-2], pixel_strides[-1]),
        batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out), *kernel_batch),
        taps=_offsets(ct.shape[:-2], pixel_strides), tap_stride=prod(packed.shape[-3:]))
    return [*steps, *pack_steps, gradient.step("conv_dw")]


def _tap_strides(x: View, dilation: Sequence[int]) -> tuple[int, ...]:
    """Elements of x from one kernel position to the next, for each space dim."""
    return tuple(step * along for step, along in zip(dilation, x.strides[1:], strict=False))


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Offsets of all indices of a shape, in row-major order."""
    return tuple(sum(index * along for index, along in zip(indices, strides, strict=False))
                 for indices in every(*map(range, shape)))


def _runs_on(x: View, w: View, dilation: Sequence[int], groups: int) -> bool:
    """Whether the last kernel dim and the channels are one run of elements, in x and in w."""
    return (groups == 1 and dilation[-1] == 1 and x.strides[-2] == x.shape[-1] * x.strides[-1]
            and w.strides[-3] == w.shape[-2] * w.strides[-2])


def _needs_loop(w: View, groups: int) -> bool:
    """Whether groups have too few output channels to fill half a vector."""
    return groups > 1 and 2 * w.shape[-1] // groups <= host().lanes


def _padded(x: View, padding: Padding, input_dilation: Sequence[int],
            scratch: Buffer | None = None) -> tuple[View, list[Step]]:
    """x with its zeros in place: the view itself, a part of it, or scratch and the step that fills it."""
    sizes = [(size - 1) * spread + 1 + low + high if size else low + high
             for size, spread, (low, high) in zip(x.shape[1:-1], input_dilation, padding, strict=True)]
    shape = (x.shape[0], *sizes, x.shape[-1])
    if max(input_dilation) == 1 and max(map(max, padding)) <= 0:
        skipped = sum(-low * along for (low, _), along in zip(padding, x.strides[1:], strict=False))
        return replace(x, shape=shape, offset=x.offset + skipped), []
    padded = contiguous(x.dtype, shape, "padded")
    if scratch is not None:
        scratch.nbytes = max(scratch.nbytes, padded.buffer.nbytes)
        padded = replace(padded, buffer=scratch)
    dims = [shape[-1], x.strides[-1], len(shape) - 1, shape[0], 0, 1, x.shape[0], x.strides[0]]
    for size, low_high, spread, extent, along in zip(sizes, padding, input_dilation, x.shape[1:], x.strides[1:],
                                                     strict=False):
        dims += [size, low_high[0], spread, extent, along]
    kernel = "pad_kernel"
    if (x.dtype in narrow.DTYPES and input_dilation[-1] == 1 and min(padding[-1]) >= 0 and x.strides[-1] == 1
            and x.strides[-2] == x.shape[-1]):
        kernel = "pad_lines_kernel"
    text = f"from core.accel.kernels.conv import {kernel}\nkernel = {kernel}({x.dtype.short!r})\n"
    step = Step(text, (x, padded), (1,), tuple(dims), prod(shape[:-2]), name="pad", nbytes=2 * padded.buffer.nbytes)
    return padded, [step]


def _grouped_step(factory: str, x: View, w: View, out: View, stride: Sequence[int], dilation: Sequence[int],
                  groups: int) -> Step:
    """A step over groups of few channels; `w` and `out` are the kernel-shaped and the output-shaped operand."""
    writes_w = factory == "grouped_dw_kernel"
    kernel, taps = w.shape[:-2], prod(w.shape[:-2])
    pixels = [(x.shape[0], x.strides[0], out.strides[0])]
    pixels += [(extent, step * along, to) for extent, step, along, to
               in zip(out.shape[1:-1], stride, x.strides[1:], out.strides[1:], strict=False)]
    dims = (groups, w.shape[-2], w.shape[-1] // groups, x.strides[-1], *w.strides[-2:], out.strides[-1], taps,
            len(pixels), *sum(pixels, ()), *_offsets(kernel, _tap_strides(x, dilation)),
            *_offsets(kernel, w.strides))
    names = [view.dtype.short for view in ((x, w) if writes_w else (x, out))]
    if x.dtype is dtypes.uint8:
        names.append(w.dtype.short)
    text = (f"from core.accel.kernels.conv import {factory}\n"
            f"kernel = {factory}({', '.join(map(repr, names))})\n")
    extent = taps * w.shape[-2] if writes_w else prod(out.shape[:-1])
    return Step(text, (x, w, out), (1,) if writes_w else (2,), dims, extent, name="conv_dw" if writes_w else "conv",
                flops=2 * taps * w.shape[-2] * out.size, nbytes=sum(view.buffer.nbytes for view in (x, w, out)))


def pad_kernel(element: str) -> Any:
    """Kernel of padding and input dilation; units are lines of the last space dim; p = x, padded.

    d = channels, their stride in x, dims, then (extent, low padding, input dilation, extent in x, stride in x) of each
    dim: batch and space.
    """
    from core.accel import pointer, simd

    typed, at = getattr(pointer, element), simd.at

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        channels, channel_stride, rank = d[0], d[1], d[2]
        line = at(d, 3 + 5 * (rank - 1))
        for unit in range(begin, end):
            left, inside, offset = unit, True, 0
            for dim in range(rank - 2, -1, -1):
                numbers = at(d, 3 + 5 * dim)
                position = left % numbers[0] - numbers[1]
                left //= numbers[0]
                inside = inside and position % numbers[2] == 0 and 0 <= position // numbers[2] < numbers[3]
                offset += position // numbers[2] * numbers[4]
            for index in range(line[0]):
                target = at(typed(p, 1), (unit * line[0] + index) * channels)
                position = index - line[1]
                if inside and position % line[2] == 0 and 0 <= position // line[2] < line[3]:
                    source = at(typed(p, 0), offset + position // line[2] * line[4])
                    for channel in range(channels):
                        target[channel] = source[channel * channel_stride]
                else:
                    for channel in range(channels):
                        target[channel] = 0

    return kernel


def pad_lines_kernel(element: str) -> Any:
    """As `pad_kernel`, where the lines of x are runs of elements that are copied whole."""
    from core.accel import pointer, simd

    typed, at = getattr(pointer, element), simd.at

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        channels, rank = d[0], d[2]
        line = at(d, 3 + 5 * (rank - 1))
        size, low = line[0] * channels, line[1] * channels
        stop = low + line[3] * channels
        for unit in range(begin, end):
            left, inside, offset = unit, True, 0
            for dim in range(rank - 2, -1, -1):
                numbers = at(d, 3 + 5 * dim)
                position = left % numbers[0] - numbers[1]
                left //= numbers[0]
                inside = inside and position % numbers[2] == 0 and 0 <= position // numbers[2] < numbers[3]
                offset += position // numbers[2] * numbers[4]
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


def grouped_kernel(source: str, element: str, weight: str = "") -> Any:
    """Kernel of a convolution in small groups; units are output pixels; p = x, w, out; w is of x's type by default.

    d = groups, channels in and out of a group, strides of x's channels, of w's in and out channels and of out's
    channels, taps, dims, then (extent, stride in x, stride in out) of each dim, the taps' offsets in x and those in w.
    """
    from core.accel import pointer, simd

    read, write, read_w = (getattr(pointer, name) for name in (source, element, weight or source))
    at, strided, widen = simd.at, simd.strided, simd.widen

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
    from core.accel import pointer, simd

    read, write = getattr(pointer, source), getattr(pointer, element)
    at, strided, widen = simd.at, simd.strided, simd.widen

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
