"""Random numbers from keys: the same key gives the same numbers on every backend.

Invariant: no hidden state; a key is u32[2], and new keys come from `split` and `fold_in`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array
from core.engine.graph import Aval
from core.engine.ops import concatenate, convert, log, minimum, random_bits, sin, sqrt


def key(seed: int) -> Array:
    """A key from an integer of at most 64 bits."""
    words = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint32)
    return Array(Aval(dtypes.uint32, (2,)), words)


def split(parent: Array, count: int = 2) -> list[Array]:
    """Independent new keys."""
    words = random_bits(parent, shape=(count, 2))
    return [words[number] for number in range(count)]


def fold_in(parent: Array, number: Any) -> Array:
    """The key for a step, a layer or an item: distinct numbers give independent keys."""
    number = as_array(number).astype(dtypes.uint32).reshape(1)
    mixed = concatenate([parent[:1] + number, parent[1:]])
    return random_bits(mixed, shape=(2,))


def uniform(parent: Array, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Array:
    """f32 in low <= x < high."""
    bits = random_bits(parent, shape=tuple(shape))
    # The largest words round up to 1 in float32.
    unit = minimum(convert(bits, dtype=dtypes.float32) * 2.0**-32, 1 - 2.0**-24)
    return unit * (high - low) + low if (low, high) != (0.0, 1.0) else unit


def normal(parent: Array, shape: Sequence[int]) -> Array:
    """f32 standard normal (Box and Muller, 1958)."""
    first, second = split(parent)
    radius = sqrt(log(1.0 - uniform(first, shape)) * -2.0)
    return radius * sin(uniform(second, shape) * (2 * math.pi))


def permutation(parent: Array, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A concrete random order of 0..count-1, by sorting random words; ties keep their order."""
    return np.argsort(random_bits(parent, shape=(count,)).numpy(), kind="stable")
