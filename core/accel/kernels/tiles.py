"""Tiles of a convolution with three taps along one to three axes, and what they meet of its input.

Invariant: tiles cover every pixel of the output, and each pixel is written by one of them: an odd extent ends with a
tile that lies one pixel back and owns only the last one. Nothing is padded: zeros are read from elsewhere in place of
what a tile meets beyond the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from core.accel.chips import WAY, Block
from core.accel.kernels.pad import Padding
from core.accel.step import View
from core.engine import dtypes

PIXELS, TAPS, POINTS = 2, 3, 4
"""Pixels of out, taps, and products of a tile along each axis; it meets as many pixels of x as it has products."""
AXIS_NUMBERS = 7
"""Numbers of an axis of `Tiles`."""
TRANSFORM = 6
"""Products that take as long as the transforms of one channel at one point of a tile."""
WORTHWHILE = 0.85
"""Share of the work of the sum over taps up to which tiles are taken."""
MOST_AT_ONCE = 256
"""Most tiles that are transformed at once."""
LINE = 64
"""Bytes of a cache line."""


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


def can_be_tiled(x: View, w: View, out: View, stride: Sequence[int], padding: Padding, dilation: Sequence[int],
                 groups: int) -> bool:
    """Whether a convolution has one or three taps along each axis and no other settings than padding."""
    taps = w.shape[:-2]
    return (x.dtype is w.dtype is out.dtype is dtypes.float32 and groups == max(stride) == max(dilation) == 1
            and set(taps) <= {1, TAPS} and TAPS in taps and x.strides[-1] == out.strides[-1] == 1
            and all(low == high == 0 for count, (low, high) in zip(taps, padding, strict=True) if count == 1)
            and all(extent >= PIXELS for count, extent in zip(taps, out.shape[1:], strict=False) if count == TAPS))


def up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return ceil(number / multiple) * multiple


def odd_lines(elements: int) -> int:
    """At least so many elements in an odd number of cache lines: points so far apart do not meet in the cache."""
    return (ceil(4 * elements / LINE) | 1) * LINE // 4


def row_pitch(elements: int) -> int:
    """At least so many elements: rows so far apart do not all meet in the cache."""
    return elements if 4 * elements % WAY else elements + LINE // 4


def slots_of(tiles: Tiles, count: int) -> int:
    """Most pixels of lines that a number of successive tiles meet."""
    lines = min(count, ceil((count - 1) / tiles.axes[-1][0]) + 1)
    return PIXELS * (count + lines)


def walk(block: Block, axes: int) -> tuple[Any, Any, Any]:
    """Functions for kernels that go over lines of tiles: `prepare`, `locate` and `transform_lines`.

    A line is the tiles that follow each other along the last axis; the axes before it are its outer ones. The functions
    share a table of ``3 * axes`` numbers: the first pixel of out along each axis, then the strides of x and of out.
    `axis_dims` are the axes of `Tiles`.
    """
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer, winograd

    at, strided, tile_of_x = pointer.at, pointer.strided, winograd.tile_of_x(block, axes - 1)
    zeros_on_stack = pointer.stack(types.float32, block.lanes)
    lanes, points, pixels = block.lanes, POINTS ** (axes - 1), PIXELS ** (axes - 1)

    @register_jitable
    def prepare(axis_dims: Any, table: Any) -> int:
        """Fill in the strides; gives the lines of an image."""
        lines = 1
        for axis in range(axes):
            dim = at(axis_dims, AXIS_NUMBERS * axis)
            table[axes + axis], table[2 * axes + axis] = dim[4], dim[5]
            if axis < axes - 1:
                lines *= dim[0]
        return lines

    @register_jitable
    def locate(axis_dims: Any, line: int, table: Any) -> tuple[int, int, int, int]:
        """Where a line is: its offsets in x and out, pixels of its outer tile in x, and those of out that it owns.

        The pixels come as bits, in row-major order.
        """
        source, place, inside, valid = 0, 0, (1 << points) - 1, (1 << pixels) - 1
        for axis in range(axes - 2, -1, -1):
            dim, shift = at(axis_dims, AXIS_NUMBERS * axis), axes - 2 - axis
            number = line % dim[0]
            line //= dim[0]
            start = min(number * PIXELS, dim[1] - PIXELS)
            table[axis] = start
            source += (start - dim[3]) * dim[4]
            place += start * dim[5]
            for point in range(points):
                if not 0 <= start + point // POINTS ** shift % POINTS - dim[3] < dim[2]:
                    inside &= ~(1 << point)
            if start < number * PIXELS:
                for pixel in range(pixels):
                    if pixel >> shift & 1 == 0:
                        valid &= ~(1 << pixel)
        return source, place, inside, valid

    @register_jitable
    def transform_lines(x: Any, plain: Any, rank: int, axis_dims: Any, lines: int, first: int, count: int,
                        channels: int, table: Any, target: Any, pitch: int, point_stride: int, slots: Any) -> None:
        """Transform what some tiles meet of x along the outer axes, once for each pixel of a line.

        Pixels are `pitch` apart, points further; ``slots[i]`` becomes the number of the first pixel of tile i.
        """
        zeros = zeros_on_stack()
        for lane in range(lanes):
            zeros[lane] = 0
        last = at(axis_dims, AXIS_NUMBERS * (axes - 1))
        tile, stop, slot = first, first + count, 0
        while tile < stop:
            line, number = tile // last[0], tile % last[0]
            end = min(number + stop - tile, last[0])
            start = min(number * PIXELS, last[1] - PIXELS)
            for index in range(number, end):
                slots[tile - first + index - number] = slot + min(index * PIXELS, last[1] - PIXELS) - start
            source, _, inside, _ = locate(axis_dims, line % lines, table)
            seen = at(x, strided(plain, rank, 3, 1, line // lines) + source)
            position, beyond = start - last[3], min((end - 1) * PIXELS, last[1] - PIXELS) + POINTS - last[3]
            while position < beyond:
                inside_here = inside if 0 <= position < last[2] else 0
                for channel in range(0, channels, lanes):
                    tile_of_x(at(seen, position * last[4] + channel), at(table, axes), inside_here, zeros,
                              at(target, slot * pitch + channel), point_stride, channels - channel)
                position += 1
                slot += 1
            tile += end - number

    return prepare, locate, transform_lines
