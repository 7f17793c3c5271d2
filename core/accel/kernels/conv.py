"""Convolutions over channels-last arrays, and their weight gradients, as sums of matrix products over taps.

Invariant: loops never test for borders. An input that needs padding is first copied into scratch that has it; after
that a kernel position is an offset from an output pixel's first input element. The zeros of an input dilation are never
stored: output pixels that meet the same part of the kernel are a plain convolution with that part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product as every
from math import ceil, gcd, prod

from core.accel.chips import block_for, host
from core.accel.kernels import depthwise, grouped, narrow, narrow_panels, winograd, winograd_dw
from core.accel.kernels.float_panels import in_place, pack
from core.accel.kernels.gemm import Product, matmul
from core.accel.kernels.grouped import needs_loop
from core.accel.kernels.pad import Padding, padded
from core.accel.kernels.rounding import rounding
from core.accel.kernels.taps import is_run, offsets, pixel_dims, runs_on, tap_strides
from core.accel.kernels.thin import is_short, short_sums, suits_dots, suits_outer
from core.accel.step import Buffer, Epilogue, Step, View, contiguous, followed, row_major
from core.engine import dtypes

FEW_BLOCKS = 16
"""With fewer blocks of rows than this a weight gradient reads the output's gradient where it lies."""
STRIPS_FROM = 1 << 19
"""Bytes of padded input, of narrow elements, that are padded at once: the second cache keeps them until they are read,
with the kernel and what is written."""


def conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         input_dilation: Sequence[int], groups: int, epilogue: Epilogue | None = None,
         is_fixed: bool = False) -> list[Step]:
    """Steps of a cross-correlation, as XLA's conv_general_dilated has it, or of what the epilogue makes of it.

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
    is_fixed : whether w serves many calls, so that it does not count what is made of it once
    """
    if not out.is_contiguous:
        raise ValueError(f"a convolution writes a contiguous array; out {out.shape} has strides {out.strides}")
    if out.size == 0:
        return []
    if not needs_loop(w.shape[-1], groups):
        plain = partial(_plain_conv, epilogue=epilogue, is_fixed=is_fixed)
        return _by_phase(plain, x, w, out, stride, padding, dilation, input_dilation, groups)
    total = contiguous(dtypes.float32, out.shape, "sums") if out.dtype is dtypes.bfloat16 else out
    steps = _by_phase(_plain_conv, x, w, total, stride, padding, dilation, input_dilation, groups)
    steps += [] if total is out else [rounding(total, out)]
    return followed(steps, epilogue, out)


def _plain_conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
                groups: int, epilogue: Epilogue | None = None, is_fixed: bool = False) -> list[Step]:
    """Steps of `conv` without input dilation; out may have gaps between its pixels."""
    if out.size == 0:
        return []
    if x.is_contiguous and out.is_contiguous and is_pointwise(w.shape[:-2], stride, padding, groups):
        matrices = _flat(x), replace(w, shape=w.shape[-2:], strides=w.strides[-2:]), _flat(out)
        if suits_dots(*matrices) or (x.dtype not in narrow.DTYPES and suits_outer(*matrices)):
            return matmul(*matrices, epilogue)
    if x.dtype in narrow.DTYPES and not needs_loop(w.shape[-1], groups):
        return _narrow_conv(x, w, out, stride, padding, dilation, groups, epilogue)
    if depthwise.fits(x, w, out, groups):
        return depthwise.conv(x, w, out, stride, padding, dilation)
    if winograd.fits(x, w, out, stride, padding, dilation, groups, is_fixed):
        return winograd.conv(x, w, out, padding, epilogue)
    x, steps = padded(x, padding)
    if needs_loop(w.shape[-1], groups):
        return [*steps, grouped.conv(x, w, out, stride, dilation, groups)]
    group_in, group_out = w.shape[-2], w.shape[-1] // groups
    joined = runs_on(x, dilation, groups)
    packed, pack_steps = pack(_by_group(w, groups), shared=False, joined=joined)
    taps = offsets(w.shape[:-3] if joined else w.shape[:-2], tap_strides(x, dilation))
    pixels, depth, tap_stride = pixel_dims(x, out, stride), packed.shape[-2], prod(packed.shape[-3:])
    if groups == 1 and x.dtype is out.dtype and is_short(len(taps) * depth, group_out, out):
        a_offsets = [tap + k * x.strides[-1] for tap in taps for k in range(depth)]
        b_offsets = [tap * tap_stride + k * packed.shape[-1] for tap in range(len(taps)) for k in range(depth)]
        lines = [(extent, along, 0, to) for extent, along, to in pixels[:-1]]
        return [*steps, *pack_steps, short_sums(x, packed, out, pixels[-1], lines, a_offsets, b_offsets,
                                                packed.strides[-3], "conv", epilogue)]
    convolution = Product(
        x, packed, out, rows=pixels, columns=group_out, depth=(depth, x.strides[-1]),
        batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out),),
        taps=taps, tap_stride=tap_stride, epilogue=epilogue)
    return [*steps, *pack_steps, convolution.step("conv")]


def _narrow_conv(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
                 groups: int, epilogue: Epilogue | None) -> list[Step]:
    """Steps of `_plain_conv` for narrow elements, where padding costs as much as the sums do.

    A large padded input is never whole: strips of out are done one after the other, and what one strip needs of it lies
    in scratch that stays in the cache.
    """
    whole, steps = padded(x, padding)
    group_in, group_out = w.shape[-2], w.shape[-1] // groups
    kernel, depth, by_group = w.shape[:-2], group_in, _by_group(w, groups)
    if runs_on(whole, dilation, groups) and is_run(w):
        kernel, depth = kernel[:-1], kernel[-1] * depth
        by_group = replace(by_group, shape=(groups, *kernel, depth, group_out),
                           strides=(*by_group.strides[:-3], *by_group.strides[-2:]))
    taps = offsets(kernel, tap_strides(whole, dilation))
    packed, pack_steps = narrow_panels.pack(by_group, x.dtype, taps=len(kernel), shared=False)

    def product(x: View, out: View) -> Step:
        pixels = pixel_dims(x, out, stride)
        outer = 0 if out.is_contiguous else len(pixels) - 1  # dims that rows do not count, for out has gaps there
        lines = ((extent, along, 0, to) for extent, along, to in pixels[:outer])
        return narrow.Product(
            x, packed, out, rows=tuple(dim[:2] for dim in pixels[outer:]), row_stride=pixels[-1][2], columns=group_out,
            depth=(depth, x.strides[-1]),
            batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out), *lines), taps=taps,
            epilogue=epilogue).step("conv")

    pads_inside = max(map(max, padding[1:]), default=0) > 0  # so that all strips are copies, of the same strides
    if not pads_inside or whole.buffer.nbytes <= STRIPS_FROM:
        return [*steps, *pack_steps, product(whole, out)]
    steps = pack_steps
    line_size = whole.strides[1] * whole.dtype.itemsize
    reach = (w.shape[0] - 1) * dilation[0] + 1
    lines = max(1, (STRIPS_FROM // line_size - reach) // stride[0] + 1, reach // stride[0])
    scratch = Buffer(0, "padded strip")
    for image, first in every(range(out.shape[0]), range(0, out.shape[1], lines)):
        count = min(lines, out.shape[1] - first)
        low = padding[0][0] - first * stride[0]
        window = ((low, (count - 1) * stride[0] + reach - low - x.shape[1]), *padding[1:])
        one = replace(x, shape=(1, *x.shape[1:]), offset=x.offset + image * x.strides[0])
        strip, pad_steps = padded(one, window, scratch)
        place = out.offset + image * out.strides[0] + first * out.strides[1]
        part = replace(out, shape=(1, count, *out.shape[2:]), offset=place)
        steps += [*pad_steps, product(strip, part)]
    return steps


def is_pointwise(taps: Sequence[int], stride: Sequence[int], padding: Padding, groups: int) -> bool:
    """Whether a convolution takes each pixel for itself, so that it is a product of matrices."""
    return prod(taps) == max(stride) == groups == 1 and not any(low or high for low, high in padding)


def _flat(view: View) -> View:
    """A contiguous [batch, *space, channel] as [pixel, channel]."""
    shape = (prod(view.shape[:-1]), view.shape[-1])
    return replace(view, shape=shape, strides=row_major(shape))


def _by_group(w: View, groups: int) -> View:
    """w as [group, tap..., in, out], channels of a group each."""
    group_out = w.shape[-1] // groups
    return replace(w, shape=(groups, *w.shape[:-1], group_out), strides=(group_out * w.strides[-1], *w.strides))


@dataclass(frozen=True)
class _Phase:
    """Along one axis, pixels of out that meet the same part of the kernel, where x has zeros between its pixels.

    Attributes
    ----------
    pixels, taps : the pixels of out and the kernel positions, which meet pixels of x and none of its zeros
    padding : (low, high) of x without its zeros, with which it covers just what they meet
    """

    pixels: range
    taps: range
    padding: tuple[int, int]


def _phases(size: int, extent: int, kernel: int, stride: int, low: int, dilation: int, spread: int) -> list[_Phase]:
    """Phases of an axis with `size` pixels in x and `extent` in out.

    Pixel o and tap t meet at ``(o * stride + t * dilation - low) / spread``, if that is a whole number: what is true
    of o and t is true of ``o + spread / gcd(spread, stride)`` and ``t + spread / gcd(spread, dilation)``.
    """
    step, tap_step = spread // gcd(spread, stride), spread // gcd(spread, dilation)
    phases, left = [], set(range(tap_step))
    for first in range(step):
        met = {tap for tap in left if (first * stride + tap * dilation - low) % spread == 0}
        left -= met
        pixels, taps = range(first, extent, step), range(min(met, default=kernel), kernel, tap_step)
        padding = (-size, 0)
        if pixels and taps:
            begin = (first * stride + taps[0] * dilation - low) // spread
            end = (pixels[-1] * stride + taps[-1] * dilation - low) // spread
            padding = (-begin, end + 1 - size)
        phases.append(_Phase(pixels, taps, padding))
    return [*phases, *(_Phase(range(0), range(tap, kernel, tap_step), (-size, 0)) for tap in sorted(left))]


def _by_phase(plain: Callable[..., list[Step]], x: View, w: View, out: View, stride: Sequence[int], padding: Padding,
              dilation: Sequence[int], input_dilation: Sequence[int], groups: int) -> list[Step]:
    """Steps of a convolution, or of its gradient with respect to w: one that is plain for each part of w and of out."""
    if max(input_dilation) == 1:
        return plain(x, w, out, stride, padding, dilation, groups)
    axes = [_phases(size, extent, kernel, step, low, apart, spread)
            for size, extent, kernel, step, (low, _), apart, spread
            in zip(x.shape[1:-1], out.shape[1:-1], w.shape, stride, padding, dilation, input_dilation, strict=False)]
    edges = [(max(phase.padding[0] for phase in phases), max(phase.padding[1] for phase in phases)) for phases in axes]
    if depthwise.fits(x, w, out, groups):
        edges = [(0, 0)] * len(axes)  # its kernels need no padding
    x, steps = padded(x, edges)
    stride, dilation = ([number // gcd(number, spread) for number, spread in zip(numbers, input_dilation, strict=True)]
                        for numbers in (stride, dilation))
    for phases in every(*axes):
        cropped = [(phase.padding[0] - low, phase.padding[1] - high)
                   for phase, (low, high) in zip(phases, edges, strict=True)]
        taps, pixels = ([phase.taps for phase in phases], [phase.pixels for phase in phases])
        steps += plain(x, _part(w, 0, taps), _part(out, 1, pixels), stride, cropped, dilation, groups)
    return steps


def _part(view: View, axis: int, ranges: Sequence[range]) -> View:
    """The elements of a view that lie in ranges of its axes from `axis` on."""
    behind = axis + len(ranges)
    along = view.strides[axis:behind]
    return replace(
        view, shape=(*view.shape[:axis], *map(len, ranges), *view.shape[behind:]),
        strides=(*view.strides[:axis], *(part.step * step for part, step in zip(ranges, along, strict=True)),
                 *view.strides[behind:]),
        offset=view.offset + sum(part[0] * step for part, step in zip(ranges, along, strict=True) if part)).normal()


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
    return _by_phase(_plain_dw, x, out, ct, stride, padding, dilation, input_dilation, groups)


def _plain_dw(x: View, out: View, ct: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
              groups: int) -> list[Step]:
    """Steps of `conv_dw` without input dilation; out may have gaps between its taps."""
    if out.size == 0:
        return []
    if depthwise.fits(x, out, ct, groups):
        return depthwise.conv_dw(x, out, ct, stride, padding, dilation)
    if out.strides[-1] == 1 and winograd_dw.fits(x, out, ct, stride, padding, dilation, groups):
        return winograd_dw.conv_dw(x, out, ct, padding)
    x, steps = padded(x, padding)
    group_in, group_out = out.shape[-2], out.shape[-1] // groups
    if needs_loop(out.shape[-1], groups):
        return [*steps, grouped.conv_dw(x, out, ct, stride, dilation, groups)]
    kernel, along_taps = out.shape[:-2], tap_strides(x, dilation)
    rows = group_in
    out_strides = out.strides[:-2]
    if runs_on(x, dilation, groups) and is_run(out):
        kernel, rows, out_strides = kernel[:-1], kernel[-1] * rows, out_strides[:-1]
    pixel_strides = (x.strides[0], *(step * along for step, along in zip(stride, x.strides[1:], strict=False)))
    ct, pixel_strides = _end_to_end(ct, pixel_strides)
    kernel_batch = [(extent, along, 0, to) for extent, along, to in zip(kernel, along_taps, out_strides, strict=False)]
    whole = ct.is_contiguous
    flat = replace(ct, shape=(prod(ct.shape[:-1]), ct.shape[-1]), strides=ct.strides[-2:]) if whole else ct
    blocks = ceil(rows / block_for(host(), out.dtype.short, group_out).rows) * prod(kernel)
    few = whole and blocks < FEW_BLOCKS and x.dtype is out.dtype
    by_group = _by_group(flat, groups)
    packed, pack_steps = (in_place(by_group), []) if few else pack(by_group, shared=False)
    gradient = Product(
        x, packed, out, rows=((rows, x.strides[-1], out.strides[-2]),), columns=group_out,
        depth=(ct.shape[-2], pixel_strides[-1]),
        batch=((groups, group_in * x.strides[-1], packed.strides[0], group_out), *kernel_batch),
        taps=offsets(ct.shape[:-2], pixel_strides),
        tap_stride=ct.shape[-2] * packed.strides[-2] if whole else prod(packed.shape[-3:]), ends_early=few)
    return [*steps, *pack_steps, gradient.step("conv_dw")]


def _end_to_end(ct: View, along: Sequence[int]) -> tuple[View, tuple[int, ...]]:
    """ct and the strides of its pixels in x, where dims of pixels that lie end to end in both count as one."""
    pixels = [(ct.shape[-2], ct.strides[-2], along[-1])]
    for extent, stride, step in reversed(list(zip(ct.shape[:-2], ct.strides[:-2], along[:-1], strict=True))):
        inner, inner_stride, inner_step = pixels[0]
        if extent == 1 or (stride, step) == (inner * inner_stride, inner * inner_step):
            pixels[0] = (extent * inner, inner_stride, inner_step)
        else:
            pixels.insert(0, (extent, stride, step))
    shape, strides, steps = zip(*pixels, strict=True)
    return replace(ct, shape=(*shape, ct.shape[-1]), strides=(*strides, ct.strides[-1])), steps
