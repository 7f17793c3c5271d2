"""Reconcile: the local labels of overlapping blocks become global ids, and the blocks one volume.

What neighbouring blocks say about the voxels that they share is compared piece by piece; a piece is a part of a
segment that is connected, by faces, inside the overlap. Two segments are one if a piece of one and a piece of the
other are each other's best partner (share the most voxels) and share at least a fraction of the smaller one. This is
then continued: the global segments are the connected components of all that was found to be one (Rastogi et al.,
"Finding connected components in map-reduce in logarithmic rounds", arXiv:1203.5387, do it on many machines).

Theorem. Let each block's labels be the connected components (by faces, edges or corners) of one foreground inside the
block. Then for every fraction in 0..1 the assembled volume holds the connected components of the whole foreground, up
to renaming.
Proof. Inside an overlap both blocks see the same foreground, and two foreground voxels that touch by a face are one
segment in either. So both have the same pieces there, each its own best partner with all its voxels, and segments that
share a voxel in an overlap are joined. Segments that share a voxel are parts of one component, so nothing is joined
wrongly. Two voxels that touch lie together in some block (see `blocks`) and are one segment there; at each voxel of a
path through a component, the segments of all blocks that hold the voxel are joined, along neighbours. So a component is
joined as a whole, however often blocks cut it and wherever it closes.

Why pieces. A neurite that crosses an overlap twice, and whose bend lies in one of the two blocks, is one segment there
and two in the other: each crossing is compared by itself and both are joined. It is another matter if the blocks
contradict each other inside the overlap, one piece against two: then only the best partners are joined, because a split
can be mended by agglomeration and a merger hardly ever. Voxels are counted against the smaller piece because a field of
view lies wholly inside its block: within half of it from a block's end, objects are often missing in part. Overlaps
should therefore be at least one field of view wide.

Invariant: the ids depend on the blocks' labels alone, not on who computed them, when or in which order.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage import measure
from skimage.util import map_array

from apps.connectomics.blocks import Grid, Triple, shared
from core.engine.errors import ConfigError

FRACTION = 0.5
"""Of the voxels of the smaller of two pieces, how many both must have for their segments to be one."""


class Results(Protocol):
    """Where the blocks' results are kept, such as a `Ledger`."""

    def load(self, number: int, name: str) -> NDArray[Any]:
        """One of the results of a block, such as its ``labels`` u32[z, y, x]."""


class Target(Protocol):
    """Where the assembled volume goes."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def write(self, start: Triple, array: NDArray[Any]) -> None: ...


@dataclass(frozen=True)
class GlobalIds:
    """The global ids of the segments of all blocks: 1..count, in the order of first block and local label.

    Segments that lie wholly outside the core of their block have ids too, so that the assembled volume may lack some.

    Attributes
    ----------
    count : number of global segments
    labels : for each block its labels, u32[segment], ascending
    ids : for each block their global ids, i64[segment]
    """

    count: int
    labels: Sequence[NDArray[np.uint32]]
    ids: Sequence[NDArray[np.int64]]

    def of(self, number: int, labels: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The ids of an array of labels of a block; 0 stays 0."""
        return map_array(labels, self.labels[number], self.ids[number])


def reconcile(grid: Grid, results: Results, fraction: float = FRACTION) -> GlobalIds:
    """Find which segments of the blocks are one.

    Parameters
    ----------
    results : of all blocks
    fraction : see `agreements`
    """
    load = functools.lru_cache(maxsize=1)(lambda number: results.load(number, "labels"))  # the next along x comes next
    labels, found = [], []
    for block in grid:
        here = load(block.number)
        labels.append(_foreground(here))
        for other in map(grid.__getitem__, grid.following(block.number)):
            overlap = shared(block, other)
            mine = here[block.box(*overlap)]
            if mine.any():  # most of a large volume may lie outside of what was imaged
                pairs = agreements(mine, load(other.number)[other.box(*overlap)], fraction)
                found.append((block.number, other.number, pairs))
    offsets = np.cumsum([0, *map(len, labels)])
    sets = DisjointSets(int(offsets[-1]))
    for first, second, pairs in found:
        sets.join(offsets[first] + np.searchsorted(labels[first], pairs[:, 0]),
                  offsets[second] + np.searchsorted(labels[second], pairs[:, 1]))
    roots, numbers = np.unique(sets.roots(), return_inverse=True)
    return GlobalIds(len(roots), labels, np.split(numbers + 1, offsets[1:-1]))


def _foreground(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The labels that occur, ascending, without 0."""
    return np.unique(labels[labels > 0])


def agreements(first: NDArray[np.uint32], second: NDArray[np.uint32], fraction: float = FRACTION) -> NDArray[np.uint32]:
    """Which labels of two blocks are one segment.

    Parameters
    ----------
    first, second : u32[z, y, x], what either block says about the box that they share, 0 for nothing
    fraction : of the voxels of the smaller of two pieces that both must have, 0..1

    Returns
    -------
    u32[pair, 2], a label of either block each, ascending
    """
    pieces = [measure.label(labels, connectivity=1) for labels in (first, second)]
    sizes = [np.bincount(piece.ravel()) for piece in pieces]
    table = _contingency(pieces[0], pieces[1])
    (a, b), voxels = table.coords, table.data
    enough = voxels >= fraction * np.minimum(sizes[0][a], sizes[1][b])
    one = enough & _best(a, b, voxels) & _best(b, a, voxels)
    labels = np.stack([_labels_of(pieces[0], first)[a[one]], _labels_of(pieces[1], second)[b[one]]], axis=1)
    return np.unique(labels, axis=0)


def _contingency(first: NDArray[np.int64], second: NDArray[np.int64]) -> sparse.coo_array:
    """How many voxels each two pieces share, where they share any."""
    both = (first > 0) & (second > 0)
    entries = np.ones(np.count_nonzero(both), np.int64), (first[both], second[both])
    return sparse.coo_array(entries, (first.max(initial=0) + 1, second.max(initial=0) + 1)).tocsr().tocoo()


def _best(pieces: NDArray[np.int64], partners: NDArray[np.int64], voxels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each pair, whether the piece has no better partner; of partners with as many voxels the first is best."""
    order = np.lexsort((partners, -voxels, pieces))
    _, firsts = np.unique(pieces[order], return_index=True)
    best = np.zeros(len(pieces), np.bool_)
    best[order[firsts]] = True
    return best


def _labels_of(pieces: NDArray[np.int64], labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The label that each piece is a part of."""
    found = np.zeros(pieces.max(initial=0) + 1, labels.dtype)
    found[pieces] = labels
    return found


class DisjointSets:
    """Sets of the numbers below `count`, at first each by itself (union-find with path halving, Tarjan and van Leeuwen,
    "Worst-case analysis of set union algorithms", J. ACM 31, 1984).

    The root of a set is its smallest member, so that it does not matter in which order sets are joined.
    """

    def __init__(self, count: int) -> None:
        self._parents = array("q", range(count))

    def join(self, first: Iterable[int], second: Iterable[int]) -> None:
        """Make one set of the two sets of each pair."""
        for a, b in zip(first, second, strict=True):
            root, other = sorted((self._root(int(a)), self._root(int(b))))
            self._parents[other] = root

    def roots(self) -> NDArray[np.int64]:
        """The smallest member of the set of each number."""
        return np.array([self._root(number) for number in range(len(self._parents))], np.int64)

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number


def assemble(grid: Grid, results: Results, ids: GlobalIds, out: Target) -> None:
    """Write the volume of global ids, core by core; memory is that of a block.

    Raises
    ------
    ConfigError
        If the volume cannot hold so many ids.
    """
    if ids.count > np.iinfo(out.dtype).max:
        raise ConfigError(f"the volume of ids is of the type {out.dtype}, which cannot number {ids.count} segments; "
                          "choose a larger type")
    for block in grid:
        core = results.load(block.number, "labels")[block.box(block.core_start, block.core_stop)]
        out.write(block.core_start, ids.of(block.number, core).astype(out.dtype))
