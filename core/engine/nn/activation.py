"""Activations: functions of one array, elementwise except softmax and log_softmax.

Invariant: finite input gives finite output and gradient at any size, and NaN stays NaN so that it can be found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from core.engine.array import Array
from core.engine.ops import amax, erf, exp, floor, log, log1p, logistic, select
from core.engine.ops import sum as sum_

Activation = Callable[[Array], Array]

# Klambauer et al. 2017 (arXiv 1706.02515), equation 14: the fixed point of mean 0 and variance 1.
_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


def relu(x: Array) -> Array:
    """max(x, 0), with gradient 0 at 0."""
    return select(x <= 0, 0.0, x)


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """x where positive, slope * x elsewhere, with gradient `slope` at 0."""
    return select(x <= 0, x * slope, x)


def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where positive, alpha (exp(x) - 1) elsewhere (Clevert et al. 2016, arXiv 1511.07289)."""
    # The branch that is not taken must stay finite, or its gradient would be 0 * inf.
    negative = select(x <= 0, x, 0.0)
    return select(x <= 0, (exp(negative) - 1.0) * alpha, x)


def selu(x: Array) -> Array:
    """The self-normalising elu of Klambauer et al. 2017 (arXiv 1706.02515)."""
    return elu(x, _SELU_ALPHA) * _SELU_SCALE


def gelu(x: Array) -> Array:
    """x Phi(x) with the normal distribution function Phi, exact by erf (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return x * 0.5 * (1.0 + erf(x * math.sqrt(0.5)))


def silu(x: Array) -> Array:
    """x / (1 + exp(-x)), also called swish."""
    return x * logistic(x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return relu(x) + log1p(exp(negative_magnitude(x)))


def negative_magnitude(x: Array) -> Array:
    """-|x|, with gradient 1 at 0, as `softplus` needs beside a relu whose gradient there is 0."""
    return select(x > 0, -x, x)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) normalised to sum 1 along an axis."""
    weights = exp(_shifted(x, axis))
    return weights * (1.0 / sum_(weights, axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """log(softmax(x)), exact where softmax underflows."""
    shifted = _shifted(x, axis)
    return shifted - log(sum_(exp(shifted), axis, keepdims=True))


def _shifted(x: Array, axis: int) -> Array:
    """x less a constant of each row, so that the largest element lies in 0..1."""
    # Any shift cancels in softmax; floor has no gradient, so that none is computed through the maximum.
    return x - floor(amax(x, axis, keepdims=True))
