"""Tiles of a convolution with three taps along one to three axes, and what they meet of its input.

Invariant: tiles cover every pixel of the output, and each pixel is written by one of them: an odd extent ends with a
tile that lies one pixel back and owns only the last one. Nothing is padded: what a tile meets beyond the border is
gathered with its zeros first.
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


def walk(block: Block, axes: int) -> tuple[Any, Any, Any]:
    """Functions for kernels that go over tiles of a number of axes: `prepare`, `locate` and `transform_x`.

    They share a table of ``4 * axes`` numbers: the tile's first pixel of out along each axis, then the strides of x,
    those of a gathered tile, and those of out. `axis_dims` are the axes of `Tiles`.
    """
    from numba.extending import register_jitable

    from core.accel import pointer, winograd

    at, strided, tile_of_x = pointer.at, pointer.strided, winograd.tile_of_x(block, axes)
    lanes, points, pixels = block.lanes, POINTS ** axes, PIXELS ** axes

    @register_jitable
    def prepare(axis_dims: Any, pitch: int, table: Any) -> int:
        """Fill in the strides; gives the tiles of an image. `pitch` elements are between pixels of a gathered tile."""
        tiles, step = 1, pitch
        for axis in range(axes - 1, -1, -1):
            dim = at(axis_dims, AXIS_NUMBERS * axis)
            tiles *= dim[0]
            table[axes + axis], table[2 * axes + axis], table[3 * axes + axis] = dim[4], step, dim[5]
            step *= POINTS
        return tiles

    @register_jitable
    def locate(axis_dims: Any, tile: int, table: Any) -> tuple[int, int, int]:
        """Where a tile is: its offset in out, the pixels that it owns as bits, and whether all it meets is in x."""
        place, valid, inside = 0, (1 << pixels) - 1, True
        for axis in range(axes - 1, -1, -1):
            dim = at(axis_dims, AXIS_NUMBERS * axis)
            number = tile % dim[0]
            tile //= dim[0]
            start = min(number * PIXELS, dim[1] - PIXELS)
            table[axis] = start
            place += start * dim[5]
            inside = inside and dim[3] <= start <= dim[2] + dim[3] - POINTS
            if start < number * PIXELS:
                for pixel in range(pixels):
                    if pixel >> (axes - 1 - axis) & 1 == 0:
                        valid &= ~(1 << pixel)
        return place, valid, int(inside)

    @register_jitable
    def gather(x: Any, axis_dims: Any, table: Any, channels: int, target: Any, pitch: int) -> None:
        """Copy what a tile meets of x, and zeros for what lies beyond its borders, row-major."""
        for point in range(points):
            left, inside, offset = point, True, 0
            for axis in range(axes - 1, -1, -1):
                dim = at(axis_dims, AXIS_NUMBERS * axis)
                position = table[axis] + left % POINTS - dim[3]
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
    def transform_x(x: Any, plain: Any, rank: int, axis_dims: Any, tiles_of_image: int, first: int, count: int,
                    channels: int, table: Any, gathered: Any, target: Any, pitch: int, point_stride: int) -> None:
        """Transform what some tiles meet of x: channels of tile i at ``target + i * pitch``, points further apart."""
        for number in range(count):
            image, tile = (first + number) // tiles_of_image, (first + number) % tiles_of_image
            seen, strides = at(x, strided(plain, rank, 3, 1, image)), at(table, axes)
            _, _, inside = locate(axis_dims, tile, table)
            if inside != 0:
                for axis in range(axes):
                    seen = at(seen, (table[axis] - axis_dims[AXIS_NUMBERS * axis + 3]) * strides[axis])
            else:
                gather(seen, axis_dims, table, channels, gathered, pitch)
                seen, strides = gathered, at(table, 2 * axes)
            for channel in range(0, channels, lanes):
                tile_of_x(at(seen, channel), strides, at(target, number * pitch + channel), point_stride,
                          channels - channel)

    return prepare, locate, transform_x
