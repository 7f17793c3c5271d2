"""Random walks: computations of values as they grow, from which random graphs are made.

Invariant: what a walk does depends on its seed, its entries and the steps it is given, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.engine import ops
from core.engine.array import Array
from core.engine.dtypes import DType

LARGEST = 3000
"""Elements of a value."""


@dataclass(frozen=True)
class Entry:
    """A value; `exact` if every backend has the same bits for it."""

    array: Array
    exact: bool


class Walk:
    """A random computation as it grows: each step reads some entries and adds others."""

    def __init__(self, seed: int, entries: Sequence[Entry], palette: Sequence[DType],
                 key: Array | None = None) -> None:
        self.generator = np.random.default_rng([seed, 1])
        self.entries = list(entries)
        self.palette = palette
        self.key = key

    @property
    def smooth(self) -> bool:
        """Whether the computation will be differentiated; a walk with a key will not."""
        return self.key is None

    def run(self, steps: Sequence[Callable[[Walk], None]], length: int) -> None:
        """Take so many steps, each any one of these."""
        for _ in range(length):
            steps[self.integer(len(steps))](self)

    def integer(self, low: int, high: int | None = None) -> int:
        return int(self.generator.integers(low, high))

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self.integer(len(options))]

    def pick(self, *kinds: str, exact: bool = False, ndim: int = 0) -> Entry | None:
        """An entry of these kinds of dtype (by default float), likely a late one."""
        found = [entry for entry in self.entries if entry.array.dtype.kind in (kinds or ("float",))
                 and (entry.exact or not exact) and entry.array.ndim >= ndim]
        return found[max(self.integer(len(found)), self.integer(len(found)))] if found else None

    def kinked(self, **options: Any) -> Entry | None:
        """A float entry for an op whose derivative jumps."""
        return self.pick(exact=self.smooth, **options)

    def partner(self, first: Entry) -> Entry:
        """An entry of a kind like the first, which broadcasts with it."""
        found = [entry for entry in self.entries if entry.array.dtype.kind == first.array.dtype.kind
                 and fits(entry.array.shape, first.array.shape)]
        chosen: Entry = self.choice(found)
        return chosen

    def shaped(self, shape: tuple[int, ...]) -> Entry:
        """Elements of a float entry, repeated to fill a shape."""
        entry = self.pick()
        assert entry is not None
        flat = entry.array.reshape(-1)
        places = (np.arange(math.prod(shape)) % flat.size).astype(np.int32)
        return Entry(ops.gather(flat, places, axis=0).reshape(shape), entry.exact)

    def add(self, array: Array, exact: bool) -> None:
        if 0 < array.size <= LARGEST:
            self.entries.append(Entry(array, exact))

    def places(self, extent: int, shape: tuple[int, ...]) -> Any:
        """Indices with duplicates, some of them outside."""
        return self.generator.integers(-2, extent + 2, shape).astype(np.int32)


def fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast to one that is not too large."""
    try:
        return math.prod(np.broadcast_shapes(a, b)) <= LARGEST
    except ValueError:
        return False
