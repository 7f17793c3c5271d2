"""Convolutions with three taps along one to three axes, at stride 1: Winograd's, with fewer products than taps.

Invariant: every element comes out of one order of operations that the shapes alone decide. A pixel with a result that
is not finite is computed again as a sum over taps, so that an infinity reaches those pixels only that meet it.

A unit takes a run of tiles, some at a time. What they meet of x is transformed along all axes but the last, once for
each pixel of a line, although neighbouring tiles share half of them. Then, for each point of those axes, the last axis
is transformed, its points are multiplied by the transformed kernel, and the sums transformed back along it: all that
stays in the first cache. What is left of the sums' transform gives pixels. Lines and pixels stay in the second cache.
Errors are relative to the largest of what a tile meets, not of what a pixel meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from core.accel.chips import Block, block_for, host
from core.accel.kernels.pad import Padding
from core.accel.kernels.text import text_of
from core.accel.kernels.tiles import (
    AXIS_NUMBERS,
    MOST_AT_ONCE,
    PIXELS,
    POINTS,
    TAPS,
    TRANSFORM,
    WORTHWHILE,
    Tiles,
    can_be_tiled,
    odd_lines,
    row_pitch,
    slots_of,
    up,
    walk,
)
from core.accel.kernels.winograd_panels import transformed
from core.accel.step import Epilogue, Step, View, contiguous
from core.engine import dtypes

RUNS = 32
"""Most runs of tiles; each has scratch of its own."""
_TRANSFORM_OF_KERNEL = 16
"""Products that take as long as the transform of the kernel to one point, for one input and output."""
LEAST_AT_ONCE = 28
"""Tiles that are transformed before their products are summed, if there are so many."""
LEAST_UNITS = 6
"""Below so many runs of tiles, units share the outputs of a run."""


def fits(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         groups: int, is_fixed: bool = False) -> bool:
    """Whether a convolution can be done this way, and is quicker so by a rough count of its work.

    A kernel that `is_fixed` is transformed once, which does not count.
    """
    if not can_be_tiled(x, w, out, stride, padding, dilation, groups):
        return False
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    columns = up(outputs, block_for(host(), "f32", outputs).columns)
    direct = prod(out.shape[:-1]) * prod(w.shape)
    of_kernel = 0 if is_fixed else _TRANSFORM_OF_KERNEL * inputs * columns
    ours = tiles.points * (tiles.count * (inputs * columns + TRANSFORM * (inputs + columns)) + of_kernel)
    return ours <= WORTHWHILE * direct


def conv(x: View, w: View, out: View, padding: Padding, epilogue: Epilogue | None) -> list[Step]:
    """Steps of a convolution that `fits`; arguments as in `kernels.conv.conv`."""
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    block = block_for(host(), "f32", outputs)
    packed, steps = transformed(w, block)
    at_once = _tiles_at_once(tiles, block, inputs, outputs)
    run = up(ceil(tiles.count / RUNS), at_once)
    runs = ceil(tiles.count / run)
    share = block.columns * ceil(ceil(outputs / block.columns) / ceil(LEAST_UNITS / runs))
    units = runs * ceil(outputs / share)
    pitch, columns = row_pitch(up(inputs, block.lanes)), row_pitch(min(up(outputs, block.columns), share))
    lines_point, pixels_point = odd_lines(slots_of(tiles, at_once) * pitch), odd_lines(PIXELS * at_once * columns)
    x_point, sums_point = (odd_lines(at_once * extent) for extent in (pitch, columns))
    size = tiles.points // POINTS * (lines_point + pixels_point) + POINTS * (x_point + sums_point)
    scratch = contiguous(dtypes.float32, (units, size), "tiles")
    dims = (inputs, outputs, tiles.count, run, at_once, share, pitch, columns, lines_point, x_point, sums_point,
            pixels_point, size, *w.strides[-2:], len(tiles.plain), *sum(tiles.plain, ()), *sum(tiles.axes, ()))
    text = text_of(conv_kernel, block, len(tiles.axes))
    step = Step(text, (x, packed, out, scratch, w), (2, 3), dims, units, name="winograd conv",
                flops=2 * prod(w.shape[:-1]) * out.size, nbytes=sum(view.buffer.nbytes for view in (x, packed, out)))
    return [*steps, step if epilogue is None else epilogue.attach(step, min(outputs, share), in_place=True)]


def _tiles_at_once(tiles: Tiles, block: Block, inputs: int, outputs: int) -> int:
    """Tiles, in whole blocks, that fill an eighth of the second cache.

    More where the kernel is large, for each lot of tiles reads all of it; fewer where units would be too few.
    """
    size = 4 * (tiles.points // POINTS * PIXELS + POINTS) * (inputs + outputs)
    cached, kernel = host().second_cache // 8 // size, 4 * tiles.points * inputs * outputs
    wanted = max(LEAST_AT_ONCE, cached, kernel // host().second_cache * block.rows)
    return up(min(wanted, ceil(tiles.count / 4), MOST_AT_ONCE - block.rows), block.rows)


def conv_kernel(block: Block, axes: int, epilogue: Any = None) -> Any:
    """Kernel of `conv`; p = x, packed, out, scratch, w, and the operands of the epilogue.

    Units are (run of tiles, share of the outputs).
    d = inputs, outputs, tiles, tiles of a run and at once, outputs of a unit, elements between pixels of x and of out
    in scratch, between points of lines, x, sums and pixels of out, and between units of scratch, strides of w's inputs
    and outputs, plain dims, then those and the axes of `Tiles`.
    """
    import numpy as np
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer, winograd
    from core.accel.kernels.scalar import leave

    f32, at, strided = pointer.f32, pointer.at, pointer.strided
    prepare, locate, transform_lines = walk(block, axes)
    line_of_x, line_of_out = winograd.line_of_x(block), winograd.line_of_out(block)
    tile_of_out, products = winograd.tile_of_out(block, axes - 1), winograd.products(block)
    table_on_stack, zeros_on_stack = pointer.stack(types.int64, 3 * axes), pointer.stack(types.float32, block.lanes)
    slots_on_stack = pointer.stack(types.int64, MOST_AT_ONCE)
    lanes, width, height = block.lanes, block.columns, block.rows
    outer_points, outer_pixels, taps = POINTS ** (axes - 1), PIXELS ** (axes - 1), TAPS ** axes
    (fetch, finish), fused, largest = epilogue or (leave, leave), epilogue is not None, np.finfo(np.float32).max

    @register_jitable
    def sum_over_taps(x: Any, w: Any, d: Any, axis_dims: Any, starts: Any, pixel: int, outputs: int, out: Any) -> None:
        """Some outputs of one pixel, by definition."""
        inputs, w_in, w_out = d[0], d[13], d[14]
        for column in range(outputs):
            out[column] = 0
        for tap in range(taps):
            left, inside, x_offset, w_offset = tap, True, 0, 0
            for axis in range(axes - 1, -1, -1):
                dim = at(axis_dims, AXIS_NUMBERS * axis)
                position = starts[axis] + left % TAPS - dim[3]
                if axis < axes - 1:
                    position += pixel >> (axes - 2 - axis) & 1
                inside = inside and 0 <= position < dim[2]
                x_offset += position * dim[4]
                w_offset += left % TAPS * dim[6]
                left //= TAPS
            for channel in range(inputs):
                factor = x[x_offset + channel] if inside else np.float32(0)
                weights = at(w, w_offset + channel * w_in)
                if w_out == 1:
                    for column in range(outputs):
                        out[column] += factor * weights[column]
                else:
                    for column in range(outputs):
                        out[column] += factor * weights[column * w_out]

    @register_jitable
    def offset_of(pixel: int, strides: Any) -> int:
        """Offset of a pixel of the outer tile in out."""
        offset = 0
        for axis in range(axes - 1):
            offset += (pixel >> (axes - 2 - axis) & 1) * strides[axis]
        return offset

    @register_jitable
    def all_zero(vector: Any) -> bool:
        """Whether no lane is NaN or another number than 0."""
        found = True
        for lane in range(lanes):
            found = found and vector[lane] == 0
        return found

    @register_jitable
    def all_finite(row: Any, count: int) -> bool:
        """Whether so many elements are all numbers and finite."""
        found = True
        for column in range(count):
            found = found and abs(row[column]) <= largest  # false of NaN
        return found

    @register_jitable
    def multiply(packed: Any, d: Any, count: int, outputs: int, lines: Any, slots: Any, of_x: Any, sums: Any,
                 pixels: Any) -> None:
        """Transform lines along the last axis, multiply each point by the kernel, and transform the sums back."""
        inputs, pitch, columns = d[0], d[6], d[7]
        lines_point, x_point, sums_point, pixels_point = d[8], d[9], d[10], d[11]
        point_of_kernel = (d[1] + width - 1) // width * width * inputs
        for outer in range(outer_points):
            for tile in range(count):
                source, target = at(lines, outer * lines_point + slots[tile] * pitch), at(of_x, tile * pitch)
                for channel in range(0, inputs, lanes):
                    line_of_x(at(source, channel), pitch, at(target, channel), x_point)
            for point in range(POINTS):
                for column in range(0, outputs, width):
                    b = at(packed, (outer * POINTS + point) * point_of_kernel + column * inputs)
                    for row in range(0, count, height):
                        products(at(of_x, point * x_point + row * pitch), pitch, b, inputs,
                                 at(sums, point * sums_point + row * columns + column), columns, count - row)
            for tile in range(count):
                source = at(sums, tile * columns)
                target = at(pixels, outer * pixels_point + PIXELS * tile * columns)
                for channel in range(0, outputs, lanes):
                    line_of_out(at(source, channel), sums_point, at(target, channel), columns)

    @register_jitable
    def complete(p: Any, d: Any, plain: Any, axis_dims: Any, line: int, number: int, stop: int, lines: int, table: Any,
                 pixels: Any, first_output: int) -> None:
        """Transform sums of tiles `number` to `stop` of a line into pixels of out, and do what follows."""
        length, share, columns, pixels_point = d[1], d[5], d[7], d[11]
        outputs, zeros, strides = min(length - first_output, share), zeros_on_stack(), at(table, 2 * axes)
        last, image = at(axis_dims, AXIS_NUMBERS * (axes - 1)), line // lines
        _, place, _, valid = locate(axis_dims, line % lines, table)
        place += strided(plain, d[15], 3, 2, image) + first_output
        for lane in range(lanes):
            zeros[lane] = 0
        for position in range(PIXELS * number, min(PIXELS * stop, last[1])):
            offset = place + position * last[5]
            if fused:
                for pixel in range(outer_pixels):
                    if valid >> pixel & 1 != 0:
                        own = offset + offset_of(pixel, strides)
                        fetch(at(p, 5), at(f32(p, 2), own), own, first_output, length, outputs)
            slot = position - PIXELS * number
            if position == last[1] - 1:  # the last of an odd number is its tile's second
                slot += last[1] % PIXELS
            for channel in range(0, outputs, lanes):
                tile_of_out(at(pixels, slot * columns + channel), pixels_point, at(f32(p, 2), offset + channel),
                            strides, valid, outputs - channel, zeros)
        finite = all_zero(zeros)
        for position in range(PIXELS * number, min(PIXELS * stop, last[1])):
            table[axes - 1] = position
            for pixel in range(outer_pixels):
                if valid >> pixel & 1 != 0:
                    offset = place + position * last[5] + offset_of(pixel, strides)
                    out = at(f32(p, 2), offset)
                    if not finite and not all_finite(out, outputs):
                        x, w = at(f32(p, 0), strided(plain, d[15], 3, 1, image)), at(f32(p, 4), first_output * d[14])
                        sum_over_taps(x, w, d, axis_dims, table, pixel, outputs, out)
                    if fused:
                        finish(at(p, 5), out, offset, first_output, length, outputs)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, length, tiles, run, at_once, share, pitch = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        columns, lines_point, x_point, sums_point = d[7], d[8], d[9], d[10]
        plain, axis_dims, shares = at(d, 16), at(d, 16 + 3 * d[15]), (length + share - 1) // share
        table, slots = table_on_stack(), slots_on_stack()
        lines_of_image, tiles_of_line = prepare(axis_dims, table), axis_dims[AXIS_NUMBERS * (axes - 1)]
        lines = at(f32(p, 3), begin * d[12])  # what is done by one call shares scratch, which stays in the cache
        of_x = at(lines, outer_points * lines_point)
        sums = at(of_x, POINTS * x_point)
        pixels = at(sums, POINTS * sums_point)
        for unit in range(begin, end):
            first_output, begin_tile = unit % shares * share, unit // shares * run
            packed, outputs = at(f32(p, 1), first_output * inputs), min(length - first_output, share)
            for first in range(begin_tile, min(tiles, begin_tile + run), at_once):
                count = min(at_once, min(tiles, begin_tile + run) - first)
                transform_lines(f32(p, 0), plain, d[15], axis_dims, lines_of_image, first, count, inputs, table, lines,
                                pitch, lines_point, slots)
                multiply(packed, d, count, outputs, lines, slots, of_x, sums, pixels)
                tile = first
                while tile < first + count:
                    line, number = tile // tiles_of_line, tile % tiles_of_line
                    stop = min(number + first + count - tile, tiles_of_line)
                    complete(p, d, plain, axis_dims, line, number, stop, lines_of_image, table,
                             at(pixels, PIXELS * (tile - first) * columns), first_output)
                    tile += stop - number

    return kernel
