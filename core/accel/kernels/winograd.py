"""Convolutions with three taps along one to three axes, at stride 1: Winograd's, with fewer products than taps.

Invariant: every element comes out of one order of operations that the shapes alone decide. Where a result is not finite
its tile is computed again as a sum over taps, so that an infinity reaches those pixels only that meet it.

A unit takes a run of tiles, some at a time: it transforms what they meet of x, multiplies each point of them by the
transformed kernel, and transforms the sums into pixels. What lies between stays in the second cache. Nothing is padded:
what a tile meets beyond the border is gathered with its zeros first. An odd extent ends with a tile that lies one pixel
back and writes only the last one. Errors are relative to the largest of what a tile meets, not of what a pixel meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from core.accel.chips import Block, block_for, host
from core.accel.kernels.pad import Padding
from core.accel.step import Epilogue, Step, View, contiguous
from core.engine import dtypes

PIXELS, TAPS, POINTS = 2, 3, 4
"""Of a tile along an axis; see `core.accel.winograd`."""
UNITS = 32
"""Most units of a step; each has scratch of its own."""
LINE = 64
"""Bytes of a cache line."""
_TRANSFORM = 6
"""Products that take as long as the transforms of one channel at one point of a tile."""
_TRANSFORM_OF_KERNEL = 16
"""The same for one element of the transformed kernel."""
_WORTHWHILE = 0.85
"""Share of the work of the sum over taps up to which this way is taken."""


@dataclass(frozen=True)
class Tiles:
    """How tiles cover the pixels of out.

    Attributes
    ----------
    plain : (extent, stride in x, stride in out) of the batch and of axes with one tap
    axes : (tiles, extent of out, extent of x, zeros before x, strides in x, out and w) of axes with three taps
    """

    plain: tuple[tuple[int, ...], ...]
    axes: tuple[tuple[int, ...], ...]

    @staticmethod
    def over(x: View, w: View, out: View, padding: Padding) -> Tiles:
        """Tiles of a convolution with one or three taps along each axis."""
        plain, axes = [(x.shape[0], x.strides[0], out.strides[0])], []
        for axis, (low, _) in enumerate(padding):
            extent, along, to = out.shape[axis + 1], x.strides[axis + 1], out.strides[axis + 1]
            if w.shape[axis] == 1:
                plain.append((extent, along, to))
            else:
                axes.append((ceil(extent / PIXELS), extent, x.shape[axis + 1], low, along, to, w.strides[axis]))
        return Tiles(tuple(plain), tuple(axes))

    @property
    def count(self) -> int:
        return prod(dim[0] for dim in (*self.plain, *self.axes))

    @property
    def points(self) -> int:
        return POINTS ** len(self.axes)


def fits(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         groups: int) -> bool:
    """Whether a convolution can be done this way, and is quicker so by a rough count of its work."""
    taps = w.shape[:-2]
    if not (x.dtype is w.dtype is out.dtype is dtypes.float32 and groups == max(stride) == max(dilation) == 1
            and set(taps) <= {1, TAPS} and TAPS in taps and x.strides[-1] == out.strides[-1] == 1
            and all(low == high == 0 for count, (low, high) in zip(taps, padding, strict=True) if count == 1)
            and all(extent >= PIXELS for count, extent in zip(taps, out.shape[1:], strict=False) if count == TAPS)):
        return False
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    width = block_for(host(), "f32", outputs).columns
    direct = prod(out.shape[:-1]) * prod(taps) * inputs * outputs
    padded = ceil(outputs / width) * width
    ours = tiles.points * (tiles.count * (inputs * padded + _TRANSFORM * (inputs + padded))
                           + _TRANSFORM_OF_KERNEL * inputs * padded)
    return ours <= _WORTHWHILE * direct


def conv(x: View, w: View, out: View, padding: Padding, epilogue: Epilogue | None) -> list[Step]:
    """Steps of a convolution that `fits`; arguments as in `kernels.conv.conv`."""
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    block = block_for(host(), "f32", outputs)
    packed, steps = transformed(w, block)
    at_once = _tiles_at_once(tiles, block, inputs, outputs)
    run = _up(ceil(tiles.count / UNITS), at_once)
    units = ceil(tiles.count / run)
    pitch, columns = _up(inputs, block.lanes), _up(outputs, block.columns)
    x_point, sums_point = (_odd_lines(at_once * extent) for extent in (pitch, columns))
    scratch = contiguous(dtypes.float32, (units, tiles.points * (x_point + sums_point + pitch)), "tiles")
    dims = (inputs, outputs, tiles.count, run, at_once, pitch, columns, x_point, sums_point, scratch.strides[0],
            *w.strides[-2:], outputs, len(tiles.plain), *sum(tiles.plain, ()), *sum(tiles.axes, ()))
    text = ("from core.accel.chips import Block\nfrom core.accel.kernels.winograd import conv_kernel\n"
            f"kernel = conv_kernel({block!r}, {len(tiles.axes)})\n")
    step = Step(text, (x, packed, out, scratch, w), (2, 3), dims, units, name="winograd conv",
                flops=2 * prod(w.shape[:-1]) * out.size, nbytes=sum(view.buffer.nbytes for view in (x, packed, out)))
    return [*steps, step if epilogue is None else epilogue.attach(step, outputs, in_place=True)]


def _tiles_at_once(tiles: Tiles, block: Block, inputs: int, outputs: int) -> int:
    """Tiles whose points fill half of the second cache, in whole blocks; several blocks, for each reads the kernel."""
    size = 4 * tiles.points * (inputs + outputs)
    blocks = min(max(host().second_cache // 2 // (size * block.rows), 4), 16)
    return min(blocks * block.rows, _up(tiles.count, block.rows))


def _up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple


def _odd_lines(elements: int) -> int:
    """At least so many elements in an odd number of cache lines: points so far apart do not meet in the cache."""
    return (ceil(4 * elements / LINE) | 1) * LINE // 4


def transformed(w: View, block: Block) -> tuple[View, list[Step]]:
    """The kernel at each point, ``G g``, in panels, and the step that fills them.

    Returns
    -------
    f32[point, panel, in, column], zeros in columns beyond the last output
    """
    axes = tuple(along for taps, along in zip(w.shape[:-2], w.strides, strict=False) if taps == TAPS)
    inputs, outputs = w.shape[-2:]
    panels = ceil(outputs / block.columns)
    packed = contiguous(dtypes.float32, (POINTS ** len(axes), panels, inputs, block.columns), "transformed")
    text = ("from core.accel.kernels.winograd import transform_kernel\n"
            f"kernel = transform_kernel({block.columns}, {len(axes)})\n")
    step = Step(text, (w, packed), (1,), (inputs, outputs, panels, *w.strides[-2:], *axes), panels * inputs,
                name="pack", nbytes=w.buffer.nbytes + packed.buffer.nbytes)
    return packed, [step]


def transform_kernel(width: int, axes: int) -> Any:
    """Kernel of `transformed`; units are (panel, input); p = w, packed.

    d = inputs, outputs, panels, strides of inputs, of outputs and of the taps along each axis in w.
    """
    import numpy as np
    from numba import types

    from core.accel import pointer, simd

    f32, at, on_stack, half = pointer.f32, simd.at, simd.stack(types.float32, POINTS ** axes * width), np.float32(0.5)
    taps, points = TAPS ** axes, POINTS ** axes

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, outputs, panels, w_in, w_out = d[0], d[1], d[2], d[3], d[4]
        grid = on_stack()
        for unit in range(begin, end):
            panel, i = unit // inputs, unit % inputs
            valid = min(width, outputs - panel * width)
            w = at(f32(p, 0), i * w_in + panel * width * w_out)
            for tap in range(taps):
                place, left, offset = 0, tap, 0
                for axis in range(axes - 1, -1, -1):
                    number = left % TAPS
                    left //= TAPS
                    place += number * POINTS ** (axes - 1 - axis)
                    offset += number * d[5 + axis]
                source, target = at(w, offset), at(grid, place * width)
                for j in range(valid):
                    target[j] = source[j * w_out]
                for j in range(valid, width):
                    target[j] = 0
            for axis in range(axes):
                step = POINTS ** axis
                for line in range(points // POINTS):
                    first = at(grid, (line // step * POINTS * step + line % step) * width)
                    second, third = at(first, step * width), at(first, 2 * step * width)
                    fourth = at(first, 3 * step * width)
                    for j in range(width):
                        outer, middle = first[j] + third[j], second[j]
                        fourth[j] = third[j]
                        second[j], third[j] = half * (outer + middle), half * (outer - middle)
            for point in range(points):
                source = at(grid, point * width)
                target = at(f32(p, 1), ((point * panels + panel) * inputs + i) * width)
                for j in range(width):
                    target[j] = source[j]

    return kernel


def conv_kernel(block: Block, axes: int, epilogue: Any = None) -> Any:
    """Kernel of `conv`; units are runs of tiles; p = x, packed, out, scratch, w, and the operands of the epilogue.

    d = inputs, outputs, tiles, tiles of a unit and tiles at once, elements between tiles of x and of sums, between
    points of x and of sums, and between units of scratch, strides of w's inputs and outputs, elements of a row of out,
    plain dims, then those and the axes of `Tiles`.
    """
    import numpy as np
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer, simd, winograd
    from core.accel.kernels.scalar import leave

    f32, at, strided = pointer.f32, simd.at, simd.strided
    tile_of_x, tile_of_out = winograd.tile_of_x(block, axes), winograd.tile_of_out(block, axes)
    products = winograd.products(block)
    table_on_stack, zeros_on_stack = simd.stack(types.int64, 4 * axes), simd.stack(types.float32, block.lanes)
    lanes, width, rows = block.lanes, block.columns, block.rows
    points, pixels, taps, numbers = POINTS ** axes, PIXELS ** axes, TAPS ** axes, 7
    (fetch, finish), fused = epilogue or (leave, leave), epilogue is not None

    @register_jitable
    def locate(axis_dims: Any, tile: int, starts: Any) -> tuple[int, int, int]:
        """Where a tile is: its offset in out, the pixels that it writes as bits, and whether all it meets is in x.

        `starts` gets its first pixel of out along each axis.
        """
        place, valid, inside = 0, (1 << pixels) - 1, True
        for axis in range(axes - 1, -1, -1):
            dim = at(axis_dims, numbers * axis)
            number = tile % dim[0]
            tile //= dim[0]
            start = min(number * PIXELS, dim[1] - PIXELS)
            starts[axis] = start
            place += start * dim[5]
            inside = inside and dim[3] <= start <= dim[2] + dim[3] - POINTS
            if start < number * PIXELS:
                for pixel in range(pixels):
                    if pixel >> (axes - 1 - axis) & 1 == 0:
                        valid &= ~(1 << pixel)
        return place, valid, int(inside)

    @register_jitable
    def gather(x: Any, axis_dims: Any, starts: Any, channels: int, target: Any, pitch: int) -> None:
        """Copy what a tile meets of x, and zeros for what lies beyond its borders, row-major."""
        for point in range(points):
            left, inside, offset = point, True, 0
            for axis in range(axes - 1, -1, -1):
                dim = at(axis_dims, numbers * axis)
                position = starts[axis] + left % POINTS - dim[3]
                left //= POINTS
                inside = inside and 0 <= position < dim[2]
                offset += position * dim[4]
            line = at(target, point * pitch)
            if inside:
                source = at(x, offset)
                for channel in range(channels):
                    line[channel] = source[channel]
            else:
                for channel in range(channels):
                    line[channel] = 0

    @register_jitable
    def sum_over_taps(x: Any, w: Any, d: Any, axis_dims: Any, starts: Any, pixel: int, out: Any) -> None:
        """One pixel of out, by definition."""
        for column in range(d[1]):
            total = np.float32(0)
            for tap in range(taps):
                left, inside, x_offset, w_offset = tap, True, 0, 0
                for axis in range(axes - 1, -1, -1):
                    dim = at(axis_dims, numbers * axis)
                    position = starts[axis] + (pixel >> (axes - 1 - axis) & 1) + left % TAPS - dim[3]
                    inside = inside and 0 <= position < dim[2]
                    x_offset += position * dim[4]
                    w_offset += left % TAPS * dim[6]
                    left //= TAPS
                for channel in range(d[0]):
                    factor = x[x_offset + channel] if inside else np.float32(0)
                    total += factor * w[w_offset + channel * d[10] + column * d[11]]
            out[column] = total

    @register_jitable
    def offset_of(pixel: int, strides: Any) -> int:
        """Offset of a tile's pixel in out."""
        offset = 0
        for axis in range(axes):
            offset += (pixel >> (axes - 1 - axis) & 1) * strides[axis]
        return offset

    @register_jitable
    def all_zero(vector: Any) -> bool:
        """Whether no lane is NaN or another number than 0."""
        found = True
        for lane in range(lanes):
            found = found and vector[lane] == 0
        return found

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, outputs, tiles, run, at_once, pitch, columns = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        x_point, sums_point, scratch_size, length, rank = d[7], d[8], d[9], d[12], d[13]
        plain, axis_dims = at(d, 14), at(d, 14 + 3 * rank)
        starts, zeros = table_on_stack(), zeros_on_stack()
        x_strides, out_strides, gathered_strides = at(starts, axes), at(starts, 2 * axes), at(starts, 3 * axes)
        tiles_of_image, step = 1, pitch
        for axis in range(axes - 1, -1, -1):
            dim = at(axis_dims, numbers * axis)
            tiles_of_image *= dim[0]
            x_strides[axis], out_strides[axis], gathered_strides[axis] = dim[4], dim[5], step
            step *= POINTS
        for unit in range(begin, end):
            of_x = at(f32(p, 3), unit * scratch_size)
            sums = at(of_x, points * x_point)
            gathered = at(sums, points * sums_point)
            stop = min(tiles, (unit + 1) * run)
            for first in range(unit * run, stop, at_once):
                count = min(at_once, stop - first)
                for number in range(count):
                    image, tile = (first + number) // tiles_of_image, (first + number) % tiles_of_image
                    x, strides = at(f32(p, 0), strided(plain, rank, 3, 1, image)), x_strides
                    _, _, inside = locate(axis_dims, tile, starts)
                    if inside != 0:
                        for axis in range(axes):
                            x = at(x, (starts[axis] - axis_dims[numbers * axis + 3]) * x_strides[axis])
                    else:
                        gather(x, axis_dims, starts, inputs, gathered, pitch)
                        x, strides = gathered, gathered_strides
                    for channel in range(0, inputs, lanes):
                        tile_of_x(at(x, channel), strides, at(of_x, number * pitch + channel), x_point,
                                  inputs - channel)
                for point in range(points):
                    for column in range(0, columns, width):
                        b = at(f32(p, 1), (point * columns + column) * inputs)
                        for row in range(0, count, rows):
                            products(at(of_x, point * x_point + row * pitch), pitch, b, inputs,
                                     at(sums, point * sums_point + row * columns + column), columns)
                for number in range(count):
                    image, tile = (first + number) // tiles_of_image, (first + number) % tiles_of_image
                    place, valid, _ = locate(axis_dims, tile, starts)
                    place += strided(plain, rank, 3, 2, image)
                    out = at(f32(p, 2), place)
                    if fused:
                        for pixel in range(pixels):
                            if valid >> pixel & 1 != 0:
                                offset = offset_of(pixel, out_strides)
                                fetch(at(p, 5), at(out, offset), place + offset, 0, length, outputs)
                    for lane in range(lanes):
                        zeros[lane] = 0
                    for channel in range(0, outputs, lanes):
                        tile_of_out(at(sums, number * columns + channel), sums_point, at(out, channel), out_strides,
                                    valid, outputs - channel, zeros)
                    finite = all_zero(zeros)
                    for pixel in range(pixels):
                        if valid >> pixel & 1 != 0:
                            offset = offset_of(pixel, out_strides)
                            if not finite:
                                x = at(f32(p, 0), strided(plain, rank, 3, 1, image))
                                sum_over_taps(x, f32(p, 4), d, axis_dims, starts, pixel, at(out, offset))
                            if fused:
                                finish(at(p, 5), at(out, offset), place + offset, (place + offset) % length, length,
                                       outputs)

    return kernel
