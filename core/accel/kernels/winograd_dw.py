"""Weight gradients of convolutions with three taps at stride 1, by Winograd's tiles: fewer products than taps.

Invariant: every element comes out of one order of operations that the shapes alone decide. An element that is not
finite is computed again as a sum over pixels.

Two steps: units of the first one take a run of tiles and some of the output's channels, transform what the tiles meet
of x and of the output's gradient, and sum the products of all tiles at each point. The second step adds what the runs
have found and transforms it into taps.
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
from core.accel.step import Step, View, contiguous
from core.engine import dtypes

UNITS = 16
"""About so many units the first step has, if there are tiles enough."""
COLUMNS = 128
"""Channels of the output's gradient of a unit; all transform x again."""
LEAST_AT_ONCE = 48
"""Tiles that are transformed before their products are summed."""
SUMS_LIMIT = 16 << 20
"""Bytes of sums of all units, beyond which there are fewer runs."""
_SUM = 40
"""Products that take as long as it takes to clear and add an element of the sums."""


def fits(x: View, w: View, ct: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
         groups: int) -> bool:
    """Whether a gradient can be done this way, and is quicker so by a rough count of its work."""
    if not can_be_tiled(x, w, ct, stride, padding, dilation, groups):
        return False
    tiles, (inputs, outputs) = Tiles.over(x, w, ct, padding), w.shape[-2:]
    if not tiles.count:
        return False
    block = block_for(host(), "f32", outputs)
    columns, (groups, runs, _) = up(outputs, block.columns), _units(tiles, block, inputs, outputs)
    direct = prod(ct.shape[:-1]) * prod(w.shape)
    ours = tiles.points * (tiles.count * (inputs * columns + TRANSFORM * (inputs * groups + columns))
                           + runs * _SUM * inputs * columns)
    return ours <= WORTHWHILE * direct


def _units(tiles: Tiles, block: Block, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Groups of columns, runs of tiles, and tiles of a run."""
    groups = ceil(outputs / COLUMNS)
    size = 4 * tiles.points * inputs * up(outputs, block.columns)
    at_once = _tiles_at_once(tiles, inputs, outputs)
    runs = max(1, min(ceil(UNITS / groups), SUMS_LIMIT // size, ceil(tiles.count / at_once)))
    run = up(ceil(tiles.count / runs), at_once)
    return groups, ceil(tiles.count / run), run


def _tiles_at_once(tiles: Tiles, inputs: int, outputs: int) -> int:
    """Tiles whose points fill half of the second cache, and no few: the sums come and go with each lot of them."""
    size = 4 * tiles.points * (inputs + min(outputs, COLUMNS))
    return min(max(LEAST_AT_ONCE, host().second_cache // 2 // size), MOST_AT_ONCE)


def conv_dw(x: View, w: View, ct: View, padding: Padding) -> list[Step]:
    """Steps of a gradient that `fits`; w, which is written, and the others as in `kernels.conv.conv_dw`."""
    tiles, (inputs, outputs) = Tiles.over(x, w, ct, padding), w.shape[-2:]
    block = block_for(host(), "f32", outputs)
    groups, runs, run = _units(tiles, block, inputs, outputs)
    at_once = _tiles_at_once(tiles, inputs, outputs)
    pitch, width = row_pitch(up(inputs, max(block.lanes, block.rows))), min(up(outputs, block.columns), COLUMNS)
    x_point, ct_point = (odd_lines(at_once * extent) for extent in (pitch, width))
    x_lines, ct_lines = odd_lines(slots_of(tiles, at_once) * pitch), odd_lines(PIXELS * at_once * width)
    size = tiles.points // POINTS * (x_lines + ct_lines) + POINTS * (x_point + ct_point)
    panels, rows = ceil(outputs / block.columns), up(inputs, block.rows)
    sums = contiguous(dtypes.float32, (runs, tiles.points, panels, rows, block.columns), "sums of tiles")
    scratch = contiguous(dtypes.float32, (groups * runs, size), "tiles")
    along = (len(tiles.plain), *sum(tiles.plain, ()), *sum(tiles.axes, ()))
    dims = (inputs, outputs, tiles.count, run, at_once, runs, pitch, width, x_lines, ct_lines, x_point, ct_point,
            size, panels, rows, *along)
    flops = 2 * prod(w.shape) * prod(ct.shape[:-1])
    summing = Step(text_of(sums_kernel, block, len(tiles.axes)), (x, ct, sums, scratch), (2, 3), dims, groups * runs,
                   name="winograd sums", flops=flops, nbytes=sum(view.buffer.nbytes for view in (x, ct, sums)))
    dims = (inputs, outputs, runs, panels, rows, w.strides[-2], prod(extent for extent, *_ in tiles.plain), *along)
    taps = Step(text_of(taps_kernel, block, len(tiles.axes)), (x, ct, sums, w), (3,), dims, panels * inputs,
                name="winograd conv_dw", nbytes=sums.buffer.nbytes + w.buffer.nbytes)
    return [summing, taps]


def sums_kernel(block: Block, axes: int) -> Any:
    """Kernel of the first step; units are (group of columns, run of tiles); p = x, ct, sums, scratch.

    d = inputs, outputs, tiles, tiles of a run and at once, runs, channels between pixels of x and of ct in scratch,
    elements between points of their lines, of their tiles, and between units of scratch, panels, rows of a panel of
    sums, plain dims, those, and the axes of `Tiles`.
    """
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer, winograd

    f32, at, strided = pointer.f32, pointer.at, pointer.strided
    (prepare, locate, transform_lines), tile_of_ct = walk(block, axes), winograd.tile_of_ct(block, axes - 1)
    line_of_x, line_of_ct = winograd.line_of_x(block), winograd.line_of_ct(block)
    add_products, table_on_stack = winograd.add_products(block), pointer.stack(types.int64, 3 * axes)
    slots_on_stack = pointer.stack(types.int64, MOST_AT_ONCE)
    lanes, columns, height, outer_points = block.lanes, block.columns, block.rows, POINTS ** (axes - 1)

    @register_jitable
    def transform_lines_of_ct(ct: Any, plain: Any, rank: int, axis_dims: Any, lines: int, first: int, count: int,
                              channels: int, table: Any, target: Any, width: int, point_stride: int) -> None:
        """Transform pixels of some tiles along the outer axes; a pixel that is another tile's counts as zero."""
        last = at(axis_dims, AXIS_NUMBERS * (axes - 1))
        for tile in range(count):
            line, number = (first + tile) // last[0], (first + tile) % last[0]
            start = min(number * PIXELS, last[1] - PIXELS)
            _, place, _, valid = locate(axis_dims, line % lines, table)
            place += strided(plain, rank, 3, 2, line // lines)
            for pixel in range(PIXELS):
                source = at(ct, place + (start + pixel) * last[5])
                valid_here = valid if start + pixel >= number * PIXELS else 0
                for channel in range(0, channels, lanes):
                    tile_of_ct(at(source, channel), at(table, 2 * axes), valid_here,
                               at(target, (PIXELS * tile + pixel) * width + channel), point_stride, channels - channel)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, outputs, tiles, run, at_once, runs, pitch, width = d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]
        x_lines, ct_lines, x_point, ct_point, panels, rows, rank = d[8], d[9], d[10], d[11], d[13], d[14], d[15]
        plain, axis_dims = at(d, 16), at(d, 16 + 3 * rank)
        table, slots = table_on_stack(), slots_on_stack()
        lines = prepare(axis_dims, table)
        lines_of_x = at(f32(p, 3), begin * d[12])  # what is done by one call shares scratch, which stays in the cache
        lines_of_ct = at(lines_of_x, outer_points * x_lines)
        of_x = at(lines_of_ct, outer_points * ct_lines)
        of_ct = at(of_x, POINTS * x_point)
        for unit in range(begin, end):
            begin_tile, first_column = unit % runs * run, unit // runs * width
            stop, channels = min(tiles, begin_tile + run), min(outputs - first_column, width)
            for first in range(begin_tile, stop, at_once):
                count = min(at_once, stop - first)
                transform_lines(f32(p, 0), plain, rank, axis_dims, lines, first, count, inputs, table, lines_of_x,
                                pitch, x_lines, slots)
                transform_lines_of_ct(at(f32(p, 1), first_column), plain, rank, axis_dims, lines, first, count,
                                      channels, table, lines_of_ct, width, ct_lines)
                for outer in range(outer_points):
                    for tile in range(count):
                        source = at(lines_of_x, outer * x_lines + slots[tile] * pitch)
                        for channel in range(0, inputs, lanes):
                            line_of_x(at(source, channel), pitch, at(of_x, tile * pitch + channel), x_point)
                        source = at(lines_of_ct, outer * ct_lines + PIXELS * tile * width)
                        for channel in range(0, channels, lanes):
                            line_of_ct(at(source, channel), width, at(of_ct, tile * width + channel), ct_point)
                    for point in range(POINTS):
                        for column in range(0, channels, columns):
                            panel = ((unit % runs * outer_points + outer) * POINTS + point) * panels + (
                                first_column + column) // columns
                            b = at(of_ct, point * ct_point + column)
                            for row in range(0, inputs, height):
                                add_products(at(of_x, point * x_point + row), pitch, b, width, count,
                                             at(f32(p, 2), (panel * rows + row) * columns), inputs - row,
                                             int(first == begin_tile))

    return kernel


def taps_kernel(block: Block, axes: int) -> Any:
    """Kernel of the second step; units are (panel, input); p = x, ct, sums, w.

    d = inputs, outputs, runs, panels, rows of a panel of sums, stride of w's inputs, images, plain dims, those, and the
    axes of `Tiles`.
    """
    import numpy as np
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer

    f32, at, strided = pointer.f32, pointer.at, pointer.strided
    half, largest = np.float32(0.5), np.finfo(np.float32).max
    columns, points, taps = block.columns, POINTS ** axes, TAPS ** axes
    grid_on_stack = pointer.stack(types.float32, points * columns)

    @register_jitable
    def sum_over_pixels(x: Any, ct: Any, plain: Any, rank: int, images: int, axis_dims: Any, tap: int, valid: int,
                        w: Any) -> None:
        """Some columns of one tap for one input, by definition."""
        for j in range(valid):
            w[j] = 0
        pixels = images
        for axis in range(axes):
            pixels *= axis_dims[AXIS_NUMBERS * axis + 1]
        for pixel in range(pixels):
            left, left_tap, inside, x_offset, ct_offset = pixel, tap, True, 0, 0
            for axis in range(axes - 1, -1, -1):
                dim = at(axis_dims, AXIS_NUMBERS * axis)
                position = left % dim[1] + left_tap % TAPS - dim[3]
                inside = inside and 0 <= position < dim[2]
                x_offset += position * dim[4]
                ct_offset += left % dim[1] * dim[5]
                left //= dim[1]
                left_tap //= TAPS
            factor = np.float32(0)
            if inside:
                factor = x[x_offset + strided(plain, rank, 3, 1, left)]
            line = at(ct, ct_offset + strided(plain, rank, 3, 2, left))
            for j in range(valid):
                w[j] += factor * line[j]

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, outputs, runs, panels, rows, w_in, images, rank = d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]
        plain, axis_dims, grid = at(d, 8), at(d, 8 + 3 * rank), grid_on_stack()
        for unit in range(begin, end):
            panel, i = unit // inputs, unit % inputs
            valid = min(columns, outputs - panel * columns)
            for point in range(points):
                target = at(grid, point * columns)
                for run in range(runs):
                    source = at(f32(p, 2), (((run * points + point) * panels + panel) * rows + i) * columns)
                    for j in range(columns):
                        target[j] = source[j] if run == 0 else target[j] + source[j]
            for axis in range(axes):
                step = POINTS ** axis
                for line in range(points // POINTS):
                    first = at(grid, (line // step * POINTS * step + line % step) * columns)
                    second, third = at(first, step * columns), at(first, 2 * step * columns)
                    fourth = at(first, 3 * step * columns)
                    for j in range(columns):
                        outer, inner = half * (second[j] + third[j]), half * (second[j] - third[j])
                        first[j], second[j], third[j] = first[j] + outer, inner, outer + fourth[j]
            for tap in range(taps):
                place, left, offset = 0, tap, 0
                for axis in range(axes - 1, -1, -1):
                    place += left % TAPS * POINTS ** (axes - 1 - axis)
                    offset += left % TAPS * axis_dims[AXIS_NUMBERS * axis + 6]
                    left //= TAPS
                source, w = at(grid, place * columns), at(f32(p, 3), offset + i * w_in + panel * columns)
                finite = True
                for j in range(valid):
                    w[j] = source[j]
                    finite = finite and abs(source[j]) <= largest  # false of NaN
                if not finite:
                    sum_over_pixels(at(f32(p, 0), i), at(f32(p, 1), panel * columns), plain, rank, images, axis_dims,
                                    tap, valid, w)

    return kernel
