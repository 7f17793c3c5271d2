"""Blocks: a volume cut into cores that divide it, each with a margin in which it overlaps its neighbours.

Invariant: every voxel lies in the core of exactly one block, and two voxels that touch (by face, edge or corner) lie
together in at least one block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from core.engine.errors import ConfigError, compose

Triple = tuple[int, int, int]
"""Voxels along z, y, x."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Block:
    """One subvolume; positions are voxels of the whole volume, z y x, and stops lie one behind the last voxel.

    Attributes
    ----------
    number : from 0, in raster order: x runs fastest
    start, stop : the box that is computed
    core_start, core_stop : the box inside it that the assembled volume takes from this block
    """

    number: int
    start: Triple
    stop: Triple
    core_start: Triple
    core_stop: Triple

    @property
    def shape(self) -> Triple:
        """Voxels of the box that is computed."""
        return triple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    def box(self, start: Triple, stop: Triple) -> Box:
        """Where a part of the volume lies in the arrays of this block."""
        z, y, x = (slice(low - origin, high - origin)
                   for low, high, origin in zip(start, stop, self.start, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Grid:
    """The blocks of a volume, by number.

    Along each axis there are as few cores of at most `core` voxels as cover the volume, and they are equal but for one
    voxel, so that no block at the end is too small for a network's field of view.

    Attributes
    ----------
    shape : voxels of the volume, z y x
    core : largest core
    overlap : voxels that neighbours along an axis share, unless the volume ends before; at least 1

    Raises
    ------
    ConfigError
        If a number is below 1.
    """

    shape: Triple
    core: Triple
    overlap: Triple

    def __post_init__(self) -> None:
        for item in fields(self):
            if min(sizes := getattr(self, item.name)) < 1:
                raise ConfigError(compose("the volume cannot be cut into blocks", [
                    ("found", f"{item.name} {' x '.join(map(str, sizes))} voxels (z y x)"),
                    ("expected", "at least 1 along each axis"),
                    ("hint", "blocks that share no voxel could not be joined")]))

    @property
    def counts(self) -> Triple:
        """Blocks along z, y, x."""
        return triple(-(-size // core) for size, core in zip(self.shape, self.core, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Block]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Block:
        _, rows, columns = self.counts
        place = (number // (rows * columns), number // columns % rows, number % columns)
        spans = [_span(*axis) for axis in zip(place, self.counts, self.shape, self.overlap, strict=True)]
        start, stop, core_start, core_stop = map(triple, zip(*spans, strict=True))
        return Block(number, start, stop, core_start, core_stop)

    def following(self, number: int) -> Iterator[int]:
        """The next blocks along z, y, x, where there are such.

        Whatever voxel blocks farther apart share, the blocks between them have it too.
        """
        _, rows, columns = self.counts
        for stride, count in zip((rows * columns, columns, 1), self.counts, strict=True):
            if number // stride % count + 1 < count:
                yield number + stride


def shared(first: Block, second: Block) -> tuple[Triple, Triple]:
    """Start and stop of the box that two neighbours share."""
    return triple(map(max, first.start, second.start)), triple(map(min, first.stop, second.stop))


def _span(index: int, count: int, size: int, overlap: int) -> tuple[int, int, int, int]:
    """Along one axis: start and stop of a block, start and stop of its core."""
    core_start, core_stop = index * size // count, (index + 1) * size // count
    return max(0, core_start - overlap // 2), min(size, core_stop + (overlap + 1) // 2), core_start, core_stop


def boxes(low: Sequence[int], high: Sequence[int], side: int) -> Iterator[tuple[Triple, Triple]]:
    """First voxel, and the one behind the last, of the cubes that a region is cut into.

    They begin at multiples of their side, so that no chunk is read twice.
    """
    spans = [[(max(edge, first), min(edge + side, last)) for edge in range(first // side * side, last, side)]
             for first, last in zip(low, high, strict=True)]
    for box in itertools.product(*spans):
        start, stop = map(triple, zip(*box, strict=True))
        yield start, stop


def triple(numbers: Iterable[int]) -> Triple:
    """Three numbers, z y x."""
    z, y, x = numbers
    return z, y, x
