"""Convolutions with three taps along one to three axes, at stride 1: Winograd's, with fewer products than taps.

Invariant: every element comes out of one order of operations that the shapes alone decide. Where a result is not finite
its tile is computed again as a sum over taps, so that an infinity reaches those pixels only that meet it.

A unit takes a run of tiles, some at a time: it transforms what they meet of x, multiplies each point of them by the
transformed kernel, and transforms the sums into pixels. What lies between stays in the second cache. Errors are
relative to the largest of what a tile meets, not of what a pixel meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from core.accel.chips import Block, block_for, host
from core.accel.kernels.pad import Padding
from core.accel.kernels.tiles import (
    AXIS_NUMBERS,
    PIXELS,
    POINTS,
    TAPS,
    TRANSFORM,
    WORTHWHILE,
    Tiles,
    can_be_tiled,
    odd_lines,
    row_pitch,
    up,
    walk,
)
from core.accel.step import Epilogue, Step, View, contiguous
from core.engine import dtypes

UNITS = 32
"""Most units of a step; each has scratch of its own."""
_TRANSFORM_OF_KERNEL = 16
"""Products that take as long as the transform of the kernel to one point, for one input and output."""


def fits(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         groups: int) -> bool:
    """Whether a convolution can be done this way, and is quicker so by a rough count of its work."""
    if not can_be_tiled(x, w, out, stride, padding, dilation, groups):
        return False
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    columns = up(outputs, block_for(host(), "f32", outputs).columns)
    direct = prod(out.shape[:-1]) * prod(w.shape)
    ours = tiles.points * (tiles.count * (inputs * columns + TRANSFORM * (inputs + columns))
                           + _TRANSFORM_OF_KERNEL * inputs * columns)
    return ours <= WORTHWHILE * direct


def conv(x: View, w: View, out: View, padding: Padding, epilogue: Epilogue | None) -> list[Step]:
    """Steps of a convolution that `fits`; arguments as in `kernels.conv.conv`."""
    tiles, (inputs, outputs) = Tiles.over(x, w, out, padding), w.shape[-2:]
    block = block_for(host(), "f32", outputs)
    packed, steps = transformed(w, block)
    at_once = _tiles_at_once(tiles, block, inputs, outputs)
    run = up(ceil(tiles.count / UNITS), at_once)
    units = ceil(tiles.count / run)
    pitch, columns = row_pitch(up(inputs, block.lanes)), up(outputs, block.columns)
    x_point, sums_point = (odd_lines(at_once * extent) for extent in (pitch, columns))
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
    return min(blocks * block.rows, up(tiles.count, block.rows))


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

    from core.accel import pointer

    f32, at, half = pointer.f32, pointer.at, np.float32(0.5)
    on_stack = pointer.stack(types.float32, POINTS ** axes * width)
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

    from core.accel import pointer, winograd
    from core.accel.kernels.scalar import leave

    f32, at, strided = pointer.f32, pointer.at, pointer.strided
    (prepare, locate, transform_x), tile_of_out = walk(block, axes), winograd.tile_of_out(block, axes)
    products = winograd.products(block)
    table_on_stack, zeros_on_stack = pointer.stack(types.int64, 4 * axes), pointer.stack(types.float32, block.lanes)
    lanes, width, rows = block.lanes, block.columns, block.rows
    points, pixels, taps = POINTS ** axes, PIXELS ** axes, TAPS ** axes
    (fetch, finish), fused = epilogue or (leave, leave), epilogue is not None

    @register_jitable
    def sum_over_taps(x: Any, w: Any, d: Any, axis_dims: Any, starts: Any, pixel: int, out: Any) -> None:
        """One pixel of out, by definition."""
        inputs, outputs, w_in, w_out = d[0], d[1], d[10], d[11]
        for column in range(outputs):
            out[column] = 0
        for tap in range(taps):
            left, inside, x_offset, w_offset = tap, True, 0, 0
            for axis in range(axes - 1, -1, -1):
                dim = at(axis_dims, AXIS_NUMBERS * axis)
                position = starts[axis] + (pixel >> (axes - 1 - axis) & 1) + left % TAPS - dim[3]
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
        table, zeros = table_on_stack(), zeros_on_stack()
        tiles_of_image, out_strides = prepare(axis_dims, pitch, table), at(table, 3 * axes)
        for unit in range(begin, end):
            of_x = at(f32(p, 3), unit * scratch_size)
            sums = at(of_x, points * x_point)
            gathered = at(sums, points * sums_point)
            stop = min(tiles, (unit + 1) * run)
            for first in range(unit * run, stop, at_once):
                count = min(at_once, stop - first)
                transform_x(f32(p, 0), plain, rank, axis_dims, tiles_of_image, first, count, inputs, table, gathered,
                            of_x, pitch, x_point)
                for point in range(points):
                    for column in range(0, columns, width):
                        b = at(f32(p, 1), (point * columns + column) * inputs)
                        for row in range(0, count, rows):
                            products(at(of_x, point * x_point + row * pitch), pitch, b, inputs,
                                     at(sums, point * sums_point + row * columns + column), columns)
                for number in range(count):
                    image, tile = (first + number) // tiles_of_image, (first + number) % tiles_of_image
                    place, valid, _ = locate(axis_dims, tile, table)
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
                                sum_over_taps(x, f32(p, 4), d, axis_dims, table, pixel, at(out, offset))
                            if fused:
                                finish(at(p, 5), at(out, offset), place + offset, (place + offset) % length, length,
                                       outputs)

    return kernel
