"""What tests of models and backends need: gradients against finite differences, and random graphs.

Invariant: everything here follows from its arguments; nothing is drawn from hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.engine import dtypes, ops, tree
from core.engine.array import Array, as_array
from core.engine.grad import grad
from core.engine.random_graph import random_graph

__all__ = ["check_grads", "random_graph"]

_STEP = 1e-4


def check_grads(function: Callable[..., Any], arguments: Sequence[Any], order: int = 1,
                tolerance: float = 1e-6) -> None:
    """Compare derivatives with finite differences along one random direction, in f64.

    The results are weighted at random and summed, so that every element of every output counts. Differences are central
    ones of fourth order (Fornberg, Math. Comp. 51, 1988).

    Parameters
    ----------
    function : smooth near the arguments; takes and gives trees of arrays
    arguments : of any float type, converted to f64; other leaves stay as they are
    order : 1 for the gradient, 2 for the gradient of its directional derivative as well
    tolerance : largest difference, relative to the derivative or to 1 if that is more

    Raises
    ------
    AssertionError
        If a derivative differs.
    """
    generator = np.random.default_rng(0)
    point = tree.map(lambda leaf: _double(as_array(leaf)), tuple(arguments))
    weights = [as_array(generator.normal(size=leaf.shape)) for leaf in _floats(function(*point))]

    def weighted(point: Any) -> Array:
        return _dot(_floats(function(*point)), weights)

    scalar: Callable[[Any], Array] = weighted
    for number in range(1, order + 1):
        direction = tree.map(lambda leaf: as_array(generator.normal(size=leaf.shape)), point)
        slope = _directional(scalar, direction)
        exact, numeric = slope(point).item(), _difference(scalar, point, direction)
        assert abs(exact - numeric) <= tolerance * max(1.0, abs(numeric)), \
            f"derivative {number} is {exact!r}, finite differences give {numeric!r}"
        scalar = slope


def _double(leaf: Array) -> Array:
    return leaf.astype(dtypes.float64) if leaf.dtype.is_float else leaf


def _floats(node: Any) -> list[Array]:
    return [leaf for leaf in map(as_array, tree.leaves(node)) if leaf.dtype.is_float]


def _dot(left: Sequence[Array], right: Sequence[Array]) -> Array:
    total = as_array(np.float64(0))
    for a, b in zip(left, right, strict=True):
        total = total + ops.sum(a * b)
    return total


def _directional(function: Callable[[Any], Array], direction: Any) -> Callable[[Any], Array]:
    """The derivative of a scalar function along a direction."""
    def slope(point: Any) -> Array:
        gradient = tree.leaves(grad(function)(point))
        pairs = [pair for pair in zip(gradient, tree.leaves(direction), strict=True) if pair[0].dtype.is_float]
        return _dot([leaf for leaf, _ in pairs], [along for _, along in pairs])

    return slope


def _difference(function: Callable[[Any], Array], point: Any, direction: Any) -> float:
    def at(step: float) -> float:
        moved = tree.map(lambda leaf, along: leaf + along * step if leaf.dtype.is_float else leaf, point, direction)
        return float(function(moved))

    return (8 * (at(_STEP) - at(-_STEP)) - (at(2 * _STEP) - at(-2 * _STEP))) / (12 * _STEP)
