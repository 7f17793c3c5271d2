"""Optimisers: frozen settings with pure `init` and `update`, and the clipping of gradients.

Invariant: formulas are those of PyTorch 2 (torch.optim); only leaves of a float type change, and each keeps its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from core.engine import tree
from core.engine.array import Array, as_array
from core.engine.errors import ConfigError
from core.engine.module import Module
from core.engine.ops import full_like, minimum, sqrt, tanh
from core.engine.ops import sum as sum_


class SGDState(Module):
    """What SGD remembers: the step count (i32) and, with momentum, a velocity like the parameters."""

    step: Array
    velocity: Any


class RMSPropState(Module):
    """What RMSProp remembers: the step count (i32), the mean squared gradient and, with momentum, a velocity."""

    step: Array
    square: Any
    velocity: Any


class AdamState(Module):
    """What Adam remembers: the step count (i32) and the mean gradient and squared gradient, like the parameters."""

    step: Array
    mean: Any
    square: Any


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum, plain or Nesterov's (Sutskever et al. 2013, as in torch.optim.SGD).

    Attributes
    ----------
    momentum : 0 <= momentum < 1
    nesterov : look ahead by one step of momentum
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_fractions(momentum=self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("Nesterov's method needs a momentum above 0")

    def init(self, parameters: Any) -> SGDState:
        """The state before the first step."""
        return SGDState(as_array(0), _zeros(parameters) if self.momentum else None)

    def update(self, gradients: Any, state: SGDState, parameters: Any, rate: Any) -> tuple[Any, SGDState]:
        """New parameters and state.

        Parameters
        ----------
        gradients, parameters : trees of one structure
        rate : learning rate, f32 scalar
        """

        def rule(parameter: Array, gradient: Array, *velocity: Array) -> tuple[Array, ...]:
            if not velocity:
                return (parameter - _like(rate, parameter) * gradient,)
            moved = velocity[0] * self.momentum + gradient
            step = gradient + moved * self.momentum if self.nesterov else moved
            return parameter - _like(rate, parameter) * step, moved

        slots = (state.velocity,) if self.momentum else ()
        new, *velocity = _each_float(rule, parameters, gradients, *slots)
        return new, SGDState(state.step + 1, velocity[0] if velocity else None)


@dataclass(frozen=True)
class RMSProp:
    """Steps divided by the root of a running mean of squared gradients (Hinton 2012, as in torch.optim.RMSprop).

    Attributes
    ----------
    decay : of the mean of squares, 0 <= decay < 1
    epsilon : added to the root
    momentum : 0 <= momentum < 1
    """

    decay: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_fractions(decay=self.decay, momentum=self.momentum)

    def init(self, parameters: Any) -> RMSPropState:
        """The state before the first step."""
        return RMSPropState(as_array(0), _zeros(parameters), _zeros(parameters) if self.momentum else None)

    def update(self, gradients: Any, state: RMSPropState, parameters: Any, rate: Any) -> tuple[Any, RMSPropState]:
        """New parameters and state; arguments as in `SGD.update`."""

        def rule(parameter: Array, gradient: Array, square: Array, *velocity: Array) -> tuple[Array, ...]:
            square = square * self.decay + gradient * gradient * (1.0 - self.decay)
            step = gradient / (sqrt(square) + self.epsilon)
            if not velocity:
                return parameter - _like(rate, parameter) * step, square
            moved = velocity[0] * self.momentum + step
            return parameter - _like(rate, parameter) * moved, square, moved

        slots = (state.square, state.velocity) if self.momentum else (state.square,)
        new, square, *velocity = _each_float(rule, parameters, gradients, *slots)
        return new, RMSPropState(state.step + 1, square, velocity[0] if velocity else None)


@dataclass(frozen=True)
class Adam:
    """Steps by the running mean of gradients over the root of that of their squares (Kingma and Ba, arXiv 1412.6980).

    Attributes
    ----------
    beta1, beta2 : decay of the means, 0 <= beta < 1
    epsilon : added to the root, after the correction of the bias (as in torch.optim.Adam)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_fractions(beta1=self.beta1, beta2=self.beta2)

    def init(self, parameters: Any) -> AdamState:
        """The state before the first step."""
        return AdamState(as_array(0), _zeros(parameters), _zeros(parameters))

    def update(self, gradients: Any, state: AdamState, parameters: Any, rate: Any) -> tuple[Any, AdamState]:
        """New parameters and state; arguments as in `SGD.update`."""
        step, rate = state.step + 1, as_array(rate)
        size = rate / _one_minus_power(self.beta1, step.astype(rate.dtype))
        per_spread = 1.0 / sqrt(_one_minus_power(self.beta2, step.astype(rate.dtype)))

        def rule(parameter: Array, gradient: Array, mean: Array, square: Array) -> tuple[Array, ...]:
            mean = mean * self.beta1 + gradient * (1.0 - self.beta1)
            square = square * self.beta2 + gradient * gradient * (1.0 - self.beta2)
            root = sqrt(square) * _like(per_spread, parameter) + self.epsilon
            return self._decayed(parameter, rate) - _like(size, parameter) * mean / root, mean, square

        new, mean, square = _each_float(rule, parameters, gradients, state.mean, state.square)
        return new, AdamState(step, mean, square)

    def _decayed(self, parameter: Array, rate: Array) -> Array:
        return parameter


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Weights shrink by 1 - rate * weight_decay before the step. Only leaves of two or more axes decay: biases,
    scales of norms and their running statistics have one.

    Attributes
    ----------
    weight_decay : at least 0
    """

    weight_decay: float = 0.01

    def _decayed(self, parameter: Array, rate: Array) -> Array:
        return parameter * (1.0 - _like(rate, parameter) * self.weight_decay) if parameter.ndim >= 2 else parameter


def clip_by_global_norm(gradients: Any, limit: float) -> tuple[Any, Array]:
    """Gradients scaled so that their common Euclidean norm is at most `limit`, and the norm before.

    The scale is min(1, limit / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_. A norm that is not finite means
    that the gradients are not: look at it before using them.
    """
    floats = [leaf for leaf in tree.leaves(gradients) if leaf.dtype.is_float]
    norm = sqrt(reduce(lambda total, leaf: total + sum_(leaf * leaf), floats, as_array(0.0)))
    scale = minimum(limit / (norm + 1e-6), 1.0)
    clipped = tree.map(lambda leaf: leaf * _like(scale, leaf) if leaf.dtype.is_float else leaf, gradients)
    return clipped, norm


def _one_minus_power(base: float, exponent: Array) -> Array:
    """1 - base^exponent without cancellation, by expm1(y) = 2 tanh(y/2) / (1 - tanh(y/2)) at y = exponent log(base)."""
    if base == 0.0:
        return full_like(exponent, 1.0)
    half = tanh(exponent * (0.5 * math.log(base)))
    return -2.0 * half / (1.0 - half)


def _each_float(rule: Callable[..., tuple[Array, ...]], parameters: Any, gradients: Any, *slots: Any) -> list[Any]:
    """Trees of what ``rule(parameter, gradient, *slots)`` gives: the new parameter, then its slots.

    Leaves that are not of a float type keep their parameter and slots.
    """
    leaves, structure = tree.flatten(parameters)
    columns: list[Sequence[Array]] = [tree.leaves(part) for part in (gradients, *slots)]
    rows = [rule(leaf, *row) if leaf.dtype.is_float else (leaf, *row[1:])
            for leaf, *row in zip(map(as_array, leaves), *columns, strict=True)]
    return [tree.unflatten(structure, [row[number] for row in rows]) for number in range(1 + len(slots))]


def _zeros(parameters: Any) -> Any:
    return tree.map(lambda leaf: full_like(as_array(leaf), 0), parameters)


def _like(scalar: Any, leaf: Array) -> Array:
    """A scalar in the dtype of a leaf, so that the leaf keeps it."""
    return as_array(scalar).astype(leaf.dtype)


def _check_fractions(**settings: float) -> None:
    for name, value in settings.items():
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"{name} lies in 0 <= {name} < 1, found {value}")
