"""Losses: a prediction and a target to a float scalar.

Invariant: a loss is the weighted mean ``sum(w l) / max(sum(w), 1)``; where the weight is 0 the target may be anything,
NaN too, and the gradient is 0.
"""

from __future__ import annotations

import math
from typing import Any

from core.engine.array import Array, as_array
from core.engine.nn.activation import log_softmax, negative_magnitude, relu
from core.engine.ops import abs as abs_
from core.engine.ops import arange, broadcast_to, exp, log1p, maximum, mean, select
from core.engine.ops import sum as sum_


def mse(prediction: Array, target: Any, weight: Any = None) -> Array:
    """Mean squared error.

    Parameters
    ----------
    prediction, target : f32[...] of one shape
    weight : f32 or bool, broadcast to the shape; None for 1 everywhere. The other losses take it alike
    """
    return weighted_mean(_squared(prediction - known(target, weight)), weight)


def mae(prediction: Array, target: Any, weight: Any = None) -> Array:
    """Mean absolute error."""
    return weighted_mean(abs_(prediction - known(target, weight)), weight)


def huber(prediction: Array, target: Any, weight: Any = None, *, delta: float = 1.0) -> Array:
    """Squared (halved) up to a difference of `delta`, linear beyond (Huber 1964)."""
    difference = prediction - known(target, weight)
    size = abs_(difference)
    return weighted_mean(select(size <= delta, 0.5 * _squared(difference), delta * (size - 0.5 * delta)), weight)


def binary_cross_entropy(logits: Array, target: Any, weight: Any = None) -> Array:
    """-t log(p) - (1 - t) log(1 - p) with p = sigmoid(logits), without overflow.

    Parameters
    ----------
    logits : f32[...], log odds
    target : f32[...] in 0..1
    """
    # Exactly 0 plus a small term where the logit is large and right, so that the small term is not lost.
    linear = relu(logits) - logits * known(target, weight)
    return weighted_mean(linear + log1p(exp(negative_magnitude(logits))), weight)


def cross_entropy(logits: Array, label: Any, weight: Any = None) -> Array:
    """-log softmax(logits)[label].

    Parameters
    ----------
    logits : f32[..., class]
    label : i32[...] in 0..class-1; another number has loss 0, give it the weight 0
    weight : broadcast to the shape of `label`
    """
    hit = as_array(label).reshape(*logits.shape[:-1], 1) == arange(logits.shape[-1])
    return weighted_mean(-sum_(select(hit, log_softmax(logits), 0.0), axis=-1), weight)


def gaussian_nll(prediction: Array, log_variance: Array, target: Any, weight: Any = None) -> Array:
    """Negative log likelihood of a normal distribution with a predicted mean and a predicted log variance."""
    squared = _squared(prediction - known(target, weight))
    return weighted_mean(0.5 * (math.log(2 * math.pi) + log_variance + squared * exp(-log_variance)), weight)


def known(target: Any, weight: Any) -> Array:
    """The target with 0 where the weight is 0: a NaN times 0 would still be NaN, in the gradient too."""
    if weight is None:
        return as_array(target)
    return select(as_array(weight) != 0, target, 0.0)


def weighted_mean(losses: Array, weight: Any = None) -> Array:
    """``sum(w l) / max(sum(w), 1)``: a batch with no weight at all has loss 0.

    Parameters
    ----------
    losses : f32[...]
    weight : f32 or bool, broadcast to the shape of the losses; None for 1 everywhere
    """
    if weight is None:
        return mean(losses)
    weight = broadcast_to(as_array(weight).astype(losses.dtype), losses.shape)
    total = sum_(weight)
    return sum_(weight * losses) / maximum(total, 1.0)


def _squared(x: Array) -> Array:
    return x * x
