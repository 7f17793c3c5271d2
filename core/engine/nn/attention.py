"""Attention: scaled dot products, and the layer with several heads.

Invariant: arrays are batch-first; a query that may attend to nothing gets zeros.
"""

from __future__ import annotations

import math
from typing import Self

from core.engine import random
from core.engine.array import Array
from core.engine.errors import ConfigError
from core.engine.module import Module, static
from core.engine.nn.activation import softmax
from core.engine.nn.init import glorot_uniform
from core.engine.nn.linear import Linear
from core.engine.ops import dot, expand, select, transpose

# Finite, so that a row without any key has a finite softmax; exp of it is 0 beside any real score.
_MASKED = -1e30


def attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """softmax(query . key / sqrt(d)) value in each head (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Parameters
    ----------
    query : f32[batch, query, head, d]
    key : f32[batch, key, head, d]
    value : f32[batch, key, head, e]
    mask : bool, broadcast to [batch, head, query, key]; True where the query may attend to the key

    Returns
    -------
    f32[batch, query, head, e]
    """
    scores = dot(query * (1.0 / math.sqrt(query.shape[-1])), key, contract=((3,), (3,)), batch=((0, 2), (0, 2)))
    weights = softmax(scores) if mask is None else select(mask, softmax(select(mask, scores, _MASKED)), 0.0)
    mixed = dot(weights, value, contract=((3,), (1,)), batch=((0, 1), (0, 2)))
    return transpose(mixed, axes=(0, 2, 1, 3))


class MultiHeadAttention(Module):
    """Attention in several heads between projections of one width (Vaswani et al. 2017, section 3.2.2).

    Attributes
    ----------
    query, key, value, output : linear layers of one width
    heads : number of heads, which divide the width
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int = static()

    @classmethod
    def init(cls, key: Array, width: int, heads: int) -> Self:
        """A layer with drawn projections; raises `ConfigError` unless the heads divide the width."""
        if width % heads:
            raise ConfigError(f"heads divide the width, found {heads} heads and a width of {width}")
        query, keys, value, output = (Linear.init(one, width, width, initialiser=glorot_uniform)
                                      for one in random.split(key, 4))
        return cls(query, keys, value, output, heads)

    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        """Attend from x to the context, or to x itself without one.

        Parameters
        ----------
        x : f32[batch, query, width]
        context : f32[batch, key, width]
        mask : bool, broadcast to [batch, query, key]; True where the query may attend to the key

        Returns
        -------
        f32[batch, query, width]
        """
        context = x if context is None else context
        mixed = attention(self._heads(self.query(x)), self._heads(self.key(context)), self._heads(self.value(context)),
                          None if mask is None else expand(mask, -3))
        return self.output(mixed.reshape(x.shape))

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)
