"""Linear layers: one, and a stack of them with an activation between.

Invariant: the last axis is the features'; all axes before it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from core.engine import random
from core.engine.array import Array
from core.engine.module import Module, static
from core.engine.nn.activation import Activation, relu
from core.engine.nn.init import Initialiser, fan_in_uniform
from core.engine.ops import zeros


class Linear(Module):
    """x W + b.

    Attributes
    ----------
    weight : f32[in, out]
    bias : f32[out], or None
    """

    weight: Array
    bias: Array | None

    @classmethod
    def init(cls, key: Array, inputs: int, outputs: int, *, bias: bool = True,
             initialiser: Initialiser = fan_in_uniform) -> Self:
        """A layer with a drawn weight and, unless `bias` is False, a bias of 0."""
        return cls(initialiser(key, (inputs, outputs)), zeros((outputs,)) if bias else None)

    def __call__(self, x: Array) -> Array:
        """f32[..., in] to f32[..., out]."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class MLP(Module):
    """Linear layers with an activation after each but the last (multilayer perceptron).

    Attributes
    ----------
    layers : the linear layers, in order
    activation : elementwise function
    """

    layers: tuple[Linear, ...]
    activation: Activation = static()

    @classmethod
    def init(cls, key: Array, sizes: Sequence[int], *, activation: Activation = relu,
             initialiser: Initialiser = fan_in_uniform) -> Self:
        """Layers of these widths: ``sizes`` lists the input, the hidden layers and the output."""
        keys = random.split(key, len(sizes) - 1)
        return cls(tuple(Linear.init(one, inputs, outputs, initialiser=initialiser)
                         for one, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)), activation)

    def __call__(self, x: Array) -> Array:
        """f32[..., sizes[0]] to f32[..., sizes[-1]]."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
