"""Flood filling written plainly, with numpy, sets and a deque: what the compiled loop is tested against.

Invariant: shares no code with the application.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logit

Position = tuple[int, int, int]
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Plainly:
    """A volume on which objects are filled in; see section 2 of the algorithm in ``canvas``."""

    image: np.ndarray
    labels: np.ndarray
    network: Network
    field: Position
    deltas: Position
    pad: float = 0.05
    move: float = 0.9
    segment_from: float = 0.6
    disco: float = 0.0
    least: int = 1000
    distance: Position = (1, 1, 1)

    def around(self, position: Position, radius: Sequence[int]) -> tuple[slice, ...]:
        return tuple(slice(max(p - r, 0), p + r + 1) for p, r in zip(position, radius, strict=True))

    @property
    def radius(self) -> list[int]:
        return [size // 2 for size in self.field]

    def inside(self, position: Position) -> bool:
        return all(p - r >= 0 and p + r < size
                   for p, r, size in zip(position, self.radius, self.image.shape, strict=True))

    def cell(self, position: Position, start: Position) -> Position:
        z, y, x = ((p - s + d // 2) // max(d, 1) for p, s, d in zip(position, start, self.deltas, strict=True))
        return z, y, x

    def moves(self, prediction: np.ndarray) -> list[tuple[float, Position]]:
        box = prediction[tuple(slice(r - d, r + d + 1) for r, d in zip(self.radius, self.deltas, strict=True))]
        found = set()
        for axis, delta in enumerate(self.deltas):
            for side in (-delta, delta) if delta else ():
                face = np.take(box, side + delta, axis=axis)
                place = list(np.unravel_index(face.argmax(), face.shape))
                score = face[tuple(place)]
                place.insert(axis, side + delta)
                z, y, x = (int(p) - d for p, d in zip(place, self.deltas, strict=True))
                if score >= np.float32(logit(self.move)):
                    found.add((float(score), (z, y, x)))
        return sorted(found, reverse=True)

    def grow(self, start: Position) -> tuple[np.ndarray, list[tuple[Position, int]]]:
        """Logits of the object at a seed, NaN where nothing was predicted, and each move with the voxels it deleted."""
        threshold = np.float32(logit(self.move))
        logits = np.full(self.image.shape, np.nan, np.float32)
        logits[start] = logit(0.95)
        queue, done = deque([start]), set()
        moves: list[tuple[Position, int]] = []
        while queue:
            position = queue.popleft()
            if self.cell(position, start) in done or logits[position] < threshold:
                continue
            if not self.inside(position) or self.labels[position] > 0:
                continue
            if logits[start] < threshold:
                break
            box = self.around(position, self.radius)
            old = logits[box].copy()
            seen = np.where(np.isnan(old), np.float32(logit(self.pad)), old)
            new = self.network(self.image[box], seen)
            moves.append((position, int(np.count_nonzero((old >= np.float32(logit(0.8))) & (new < 0)))))
            if self.disco >= 0 and np.mean(new >= threshold) > self.disco:
                held = (old < 0) & (new > old)
                new[held] = old[held]
            logits[box] = new
            done.add(self.cell(position, start))
            for _, (z, y, x) in self.moves(new):
                queue.append((position[0] + z, position[1] + y, position[2] + x))
        return logits, moves

    def segment(self, seeds: Sequence[Position]) -> list[tuple[int, Position, int, int]]:
        """Fill in objects; gives id, seed, moves and voxels of each."""
        origins = []
        for seed in seeds:
            if not self.inside(seed) or self.labels[seed] > 0:
                continue
            if (self.labels[self.around(seed, self.distance)] > 0).any():
                self.labels[seed] = -1
                continue
            logits, moves = self.grow(seed)
            mask = (logits >= np.float32(logit(self.segment_from))) & (self.labels <= 0)
            if logits[seed] < np.float32(logit(self.move)) or mask.sum() < self.least:
                if self.labels[seed] == 0:
                    self.labels[seed] = -1
                continue
            number = max(self.labels.max(), 0) + 1
            self.labels[mask] = number
            origins.append((int(number), seed, len(moves), int(mask.sum())))
        return origins
