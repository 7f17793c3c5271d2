"""Initial values of weights, drawn from a key.

Invariant: input axes come before the last axis, as in f32[in, out] and f32[space..., in, out], so that the shape alone
tells how many inputs feed an output (fan-in) and how many outputs an input feeds (fan-out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from core.engine import random
from core.engine.array import Array

Initialiser = Callable[[Array, Sequence[int]], Array]
"""Takes a key and a shape, gives f32 of the shape."""


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out of a weight of at least two axes."""
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def fan_in_uniform(key: Array, shape: Sequence[int]) -> Array:
    """Uniform in +-1 / sqrt(fan-in): what PyTorch's linear and convolution layers start from."""
    bound = 1.0 / math.sqrt(fans(shape)[0])
    return random.uniform(key, shape, -bound, bound)


def glorot_uniform(key: Array, shape: Sequence[int]) -> Array:
    """Uniform in +-sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio 2010, equation 16)."""
    bound = math.sqrt(6.0 / sum(fans(shape)))
    return random.uniform(key, shape, -bound, bound)


def glorot_normal(key: Array, shape: Sequence[int]) -> Array:
    """Normal with variance 2 / (fan-in + fan-out) (Glorot and Bengio 2010, equation 12)."""
    return random.normal(key, shape) * math.sqrt(2.0 / sum(fans(shape)))


def he_normal(key: Array, shape: Sequence[int]) -> Array:
    """Normal with variance 2 / fan-in, for layers followed by relu (He et al. 2015, arXiv 1502.01852, equation 10)."""
    return random.normal(key, shape) * math.sqrt(2.0 / fans(shape)[0])
