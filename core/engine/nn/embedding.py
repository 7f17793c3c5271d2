"""Embedding: rows of a table by number.

Invariant: a number outside the table reads zeros and has no gradient, so padding needs no mask.
"""

from __future__ import annotations

from typing import Self

from core.engine import random
from core.engine.array import Array
from core.engine.module import Module
from core.engine.ops import gather


class Embedding(Module):
    """A learned vector for each of a number of kinds.

    Attributes
    ----------
    table : f32[count, width]
    """

    table: Array

    @classmethod
    def init(cls, key: Array, count: int, width: int) -> Self:
        """A table of standard normal numbers."""
        return cls(random.normal(key, (count, width)))

    def __call__(self, ids: Array) -> Array:
        """i32[...] to f32[..., width]."""
        return gather(self.table, ids, axis=0)
