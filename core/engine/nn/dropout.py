"""Dropout.

Invariant: the expected output equals the input, and without a key the output is the input.
"""

from __future__ import annotations

from core.engine import random
from core.engine.array import Array
from core.engine.errors import ConfigError
from core.engine.module import Module, static
from core.engine.ops import select


class Dropout(Module):
    """Sets elements to 0 at random and scales the others by 1 / (1 - rate) (Srivastava et al. 2014).

    Attributes
    ----------
    rate : probability that an element is dropped, 0 <= rate < 1

    Raises
    ------
    ConfigError
        If the rate is outside its range.
    """

    rate: float = static()

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ConfigError(f"a dropout rate lies in 0 <= rate < 1, found {self.rate}")

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """x with elements dropped by the key (training), or x itself without one (inference)."""
        if key is None or self.rate == 0.0:
            return x
        kept = random.uniform(key, x.shape) >= self.rate
        return select(kept, x * (1.0 / (1.0 - self.rate)), 0.0)
