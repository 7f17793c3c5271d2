"""A volume on which objects are filled in one after the other, each from a seed, or masks grown for a closer look.

The rules are those of ``Canvas.segment_all`` and ``segment_at`` in google/ffn (Januszewski et al. 2018, Nature Methods
15:605).

Invariant: a voxel that has an object keeps it; a new object takes empty voxels only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from apps.connectomics import flooding as f
from core.engine.jit import Program

MOVES_AT_ONCE = 64
"""Moves between two looks at what the outside wants, about a second."""

SURE = 0.8
"""Mask of a voxel that counts as deleted once it falls below one half."""


def logit(probability: float) -> float:
    """log(p / (1 - p)), rounded to f32, in which masks are kept."""
    return float(np.float32(math.log(probability / (1.0 - probability))))


@dataclass(frozen=True, kw_only=True)
class FloodOptions:
    """Options of flood filling, by the names of google/ffn; probabilities lie between 0 and 1.

    Attributes
    ----------
    init_activation : what the mask begins with at the seed
    pad_value : what the network sees where nothing was predicted yet
    move_threshold : from which on the field of view moves
    segment_threshold : from which on a voxel belongs to the object
    disco_seed_threshold : share of a prediction above the move threshold from which on no voxel may rise that was below
        one half; negative for never
    min_segment_size : voxels of the smallest object that is kept
    min_boundary_dist : voxels, z y x, between a seed and other objects
    deltas : voxels, z y x, of a step
    """

    init_activation: float = 0.95
    pad_value: float = 0.05
    move_threshold: float = 0.9
    segment_threshold: float = 0.6
    disco_seed_threshold: float = 0.0
    min_segment_size: int = 1000
    min_boundary_dist: tuple[int, int, int] = (1, 1, 1)
    deltas: tuple[int, int, int] = (8, 8, 8)


@dataclass(frozen=True)
class Origin:
    """How an object came to be.

    Attributes
    ----------
    seed : voxel, z y x
    moves : positions of the field of view
    voxels : that are its own
    overlap : voxels of its mask that other objects had before
    """

    id: int
    seed: tuple[int, int, int]
    moves: int
    voxels: int
    overlap: int


@dataclass(frozen=True)
class Mask:
    """What grows from a seed, before it is an object.

    Attributes
    ----------
    seed : voxel, z y x
    logits : f32[z, y, x], NaN where nothing was predicted
    history : i64[move, zyx], where the field of view was
    history_deleted : i64[move], voxels that fell from `SURE` to below one half
    """

    seed: tuple[int, int, int]
    logits: NDArray[np.float32]
    history: NDArray[np.int64]
    history_deleted: NDArray[np.int64]


@dataclass(frozen=True)
class Counters:
    """What was done so far.

    Attributes
    ----------
    moves : calls of the network
    tried : seeds from which an object was grown
    too_weak : objects whose mask left the seed
    too_small : objects below the least size
    below_threshold, outside, occupied : positions that were not visited, and why
    """

    moves: int = 0
    tried: int = 0
    too_weak: int = 0
    too_small: int = 0
    below_threshold: int = 0
    outside: int = 0
    occupied: int = 0


@dataclass
class Canvas:
    """Image, masks and labels of one volume.

    Attributes
    ----------
    image : f32[z, y, x], normalised as the network was trained
    labels : i32[z, y, x], of objects from 1 on; 0 where there is none, -1 at seeds that gave none
    program : takes image and logits, f32[1, z, y, x] of the field of view, and gives logits
    field_of_view : voxels, z y x, odd
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    program: Program
    field_of_view: tuple[int, int, int]
    options: FloodOptions
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.image = np.ascontiguousarray(self.image, np.float32)
        self.labels = np.ascontiguousarray(self.labels, np.int32)
        self.logits = np.full(self.image.shape, np.nan, np.float32)
        self._last = int(self.labels.max(initial=0))
        options = self.options
        self._geometry = np.array([*self.image.shape, *self.field_of_view, *options.deltas], np.int64)
        depth, height, width = self.field_of_view
        z, y = np.indices((depth, height), np.int64)
        _, lines, columns = self.image.shape
        self._rows = (((z - depth // 2) * lines + y - height // 2) * columns - width // 2).reshape(-1)
        self._thresholds = np.array([logit(options.pad_value), logit(options.move_threshold),
                                     options.disco_seed_threshold, logit(SURE)], np.float32)
        cells = math.prod(size // max(delta, 1) + 2
                          for size, delta in zip(self.image.shape, options.deltas, strict=True))
        self._cells = np.zeros(cells, np.int32)
        self._queue = np.zeros(6 * cells + 1, np.int64)
        self._seen_image, self._seen_logits, self._found = (
            np.zeros((1, *self.field_of_view), np.float32) for _ in range(3))
        self._scores, self._targets = np.zeros(6, np.float32), np.zeros(6, np.int64)
        self._history, self._history_deleted = np.zeros(cells, np.int64), np.zeros(cells, np.int64)
        self._state = np.zeros(f.STATE_WORDS, np.int64)

    def segment(self, seeds: Sequence[tuple[int, int, int]]) -> Iterator[Origin | None]:
        """Grow an object from each seed in turn; gives the object or None, and None again while an object grows.

        Parameters
        ----------
        seeds : voxels, z y x
        """
        for seed in seeds:
            if self._is_valid(seed):
                yield from self._grow(seed)
                box = self._box()
                yield self._accept(seed, box)
                self.logits[box] = np.nan

    def segment_at(self, seed: tuple[int, int, int]) -> Mask:
        """Grow a mask from a seed and leave the labels as they are; it may cover what has labels already.

        Parameters
        ----------
        seed : voxel, z y x; where no field of view fits, or another object is, the mask stays the seed alone
        """
        for _ in self._grow(seed):
            pass
        box, moves = self._box(), int(self._state[f.MOVES])
        logits = self.logits.copy()
        self.logits[box] = np.nan
        history = np.unravel_index(self._history[:moves], logits.shape)
        return Mask(seed, logits, np.stack(history, axis=1), self._history_deleted[:moves].copy())

    def _is_valid(self, seed: tuple[int, int, int]) -> bool:
        """Whether an object may begin at a seed; one beside another object is marked."""
        radius = [size // 2 for size in self.field_of_view]
        if not all(r <= place < size - r for place, r, size in zip(seed, radius, self.image.shape, strict=True)):
            return False
        if self.labels[seed] > 0:
            return False
        around = tuple(slice(max(place - distance, 0), place + distance + 1)
                       for place, distance in zip(seed, self.options.min_boundary_dist, strict=True))
        if (self.labels[around] > 0).any():
            self.labels[seed] = -1
            return False
        return True

    def _grow(self, seed: tuple[int, int, int]) -> Iterator[None]:
        """Make the logits those of the mask of a seed, with a pause now and then."""
        state = self._start(seed)
        while state[f.STATUS] == f.MOVING:
            before = int(state[f.MOVES])
            self.program.drive(
                f.flood, [self._seen_image, self._seen_logits], [self._found], self.image.reshape(-1),
                self.logits.reshape(-1), self.labels.reshape(-1), self._geometry, self._rows, self._thresholds,
                self._seen_image.reshape(-1), self._seen_logits.reshape(-1), self._found.reshape(-1), self._queue,
                self._cells, self._scores, self._targets, self._history, self._history_deleted, state, MOVES_AT_ONCE)
            self.counters = replace(self.counters, moves=self.counters.moves + int(state[f.MOVES]) - before)
            if state[f.STATUS] == f.MOVING:
                yield None
        self._count(state)

    def _box(self) -> tuple[slice, ...]:
        """Where the last mask has logits."""
        lowest, highest = (self._state[first:first + 3].tolist() for first in (f.LOWEST, f.HIGHEST))
        return tuple(slice(max(low - size // 2, 0), high + size // 2 + 1)  # a seed at a face has no room for a field
                     for low, high, size in zip(lowest, highest, self.field_of_view, strict=True))

    def _start(self, seed: tuple[int, int, int]) -> NDArray[np.int64]:
        """The state of an object that consists of its seed."""
        self.counters = replace(self.counters, tried=self.counters.tried + 1)
        start = int(np.ravel_multi_index(seed, self.image.shape))
        state = self._state
        state[:] = 0
        state[f.START], state[f.TAIL], state[f.MARK] = start, 1, self.counters.tried
        state[f.LOWEST:f.LOWEST + 3] = state[f.HIGHEST:f.HIGHEST + 3] = seed
        self._queue[0] = start
        self.logits[seed] = logit(self.options.init_activation)
        return state

    def _count(self, state: NDArray[np.int64]) -> None:
        old = self.counters
        self.counters = replace(
            old, below_threshold=old.below_threshold + int(state[f.BELOW_THRESHOLD]),
            outside=old.outside + int(state[f.OUTSIDE]), occupied=old.occupied + int(state[f.OCCUPIED]))

    def _accept(self, seed: tuple[int, int, int], box: tuple[slice, ...]) -> Origin | None:
        """Make an object of the mask in a box, if it holds its seed and is large enough."""
        if self.logits[seed] < logit(self.options.move_threshold):
            self.counters = replace(self.counters, too_weak=self.counters.too_weak + 1)
            self._refuse(seed)
            return None
        mask = self.logits[box] >= logit(self.options.segment_threshold)
        whole = int(np.count_nonzero(mask))
        mask &= self.labels[box] <= 0
        voxels = int(np.count_nonzero(mask))
        if voxels < self.options.min_segment_size:
            self.counters = replace(self.counters, too_small=self.counters.too_small + 1)
            self._refuse(seed)
            return None
        self._last += 1
        self.labels[box][mask] = self._last
        return Origin(self._last, seed, int(self._state[f.MOVES]), voxels, whole - voxels)

    def _refuse(self, seed: tuple[int, int, int]) -> None:
        if self.labels[seed] == 0:
            self.labels[seed] = -1
