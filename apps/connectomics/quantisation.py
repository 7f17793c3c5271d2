"""Quantisation of a trained network: products of 8 bits between its first and its last layer.

Weights are symmetric integers with a step for each output channel, activations integers from 0 with one step a layer,
as ReLU comes before each of these layers; sums are exact (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", arXiv:1712.05877). The first layer, which sees images and
logits of any sign, the last one, and what is added from block to block stay in f32.

Invariant: a layer's step covers the largest activation of all fields of view that were looked at, so that none of them
is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apps.connectomics.model import FloodFillingNetwork
from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.jit import jit
from core.engine.module import Module, replace
from core.engine.nn import Conv
from core.engine.nn.conv import window_padding

_LARGEST_WEIGHT, _LARGEST_ACTIVATION = 127.0, 255.0
_SIDE = 2
"""Fields of view along each axis that are looked at, evenly spread."""
_MOVES = 2
"""Times that the network is run at each, so that it sees a mask that has begun to grow."""


class QuantisedConv(Module):
    """A convolution of 3-D space in 8 bits, "same" padding, stride 1.

    Attributes
    ----------
    kernel : i8[z, y, x, in, out]
    scale : f32[out], what one unit of a sum stands for
    bias : f32[out]
    per_step : f32[], units of the input in 1
    """

    kernel: Array
    scale: Array
    bias: Array
    per_step: Array

    @classmethod
    def of(cls, conv: Conv, largest: float) -> Self:
        """The layer that takes the place of another one, whose inputs lie in 0..largest."""
        kernel = conv.kernel.numpy()
        heaviest = np.abs(kernel).max(axis=(0, 1, 2, 3))
        weight_step = np.where(heaviest > 0, heaviest, 1) / _LARGEST_WEIGHT
        step = (largest or 1.0) / _LARGEST_ACTIVATION
        bias = np.zeros(kernel.shape[-1], np.float32) if conv.bias is None else conv.bias.numpy()
        return cls(as_array(np.rint(kernel / weight_step).astype(np.int8)), as_array(np.float32(weight_step * step)),
                   as_array(bias), as_array(np.float32(1 / step)))

    def __call__(self, x: Array) -> Array:
        """f32[batch, z, y, x, in], from 0, to f32[batch, z, y, x, out]."""
        units = ops.round(x * self.per_step).astype("u8")  # which cuts at 0 and 255
        ones = (1, 1, 1)
        padding = window_padding("same", x.shape[1:-1], self.kernel.shape[:-2], ones, ones)
        sums = ops.conv(units, self.kernel, stride=ones, padding=padding, dilation=ones, input_dilation=ones, groups=1)
        return sums.astype("f32") * self.scale + self.bias


def quantised(network: FloodFillingNetwork, largest: Sequence[float]) -> FloodFillingNetwork:
    """The network with its inner layers in 8 bits.

    Parameters
    ----------
    network : f32
    largest : see `largest_activations`
    """
    bounds = iter(largest)
    return _with_inner_layers(network, lambda conv: QuantisedConv.of(conv, next(bounds)))


def largest_activations(network: FloodFillingNetwork, image: NDArray[np.float32], field: tuple[int, int, int],
                        start: float, pad: float, device: str) -> NDArray[np.float32]:
    """The largest input of each inner layer in some fields of view of an image, in the order of the layers.

    Parameters
    ----------
    network : f32
    image : f32[z, y, x], normalised, no smaller than a field of view
    field : voxels of the field of view, z y x, odd
    start, pad : logits of a mask that begins, in the middle and elsewhere
    """
    program = jit(_observe, device=device).bind(network)
    largest = np.zeros(2 * len(network.blocks) + 1, np.float32)
    for seen in _fields_of_view(image, field):
        logits = np.full((1, *field), pad, np.float32)
        logits[(0, *(size // 2 for size in field))] = start
        for _ in range(_MOVES):
            found, activations = program(as_array(seen[np.newaxis]), as_array(logits))
            logits = found.numpy()
            largest = np.maximum(largest, activations.numpy())
    return largest


def _observe(network: FloodFillingNetwork, image: Array, logits: Array) -> tuple[Array, Array]:
    """New logits, and the largest input of each inner layer."""
    largest: list[Array] = []

    def watched(conv: Conv) -> Callable[[Array], Array]:
        def call(x: Array) -> Array:
            largest.append(ops.amax(x))
            return conv(x)

        return call

    found = _with_inner_layers(network, watched)(image, logits)
    return found, ops.stack(largest)


def _with_inner_layers(network: FloodFillingNetwork, change: Callable[[Conv], Any]) -> FloodFillingNetwork:
    """The network with all convolutions changed but the first and the last, in the order in which they are run."""
    first_b = change(network.first_b)
    blocks = tuple(replace(block, a=change(block.a), b=change(block.b)) for block in network.blocks)
    changed: FloodFillingNetwork = replace(network, first_b=first_b, blocks=blocks)
    return changed


def _fields_of_view(image: NDArray[np.float32], field: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Fields of view that are spread over an image."""
    for place in np.ndindex(_SIDE, _SIDE, _SIDE):
        corner = [(size - extent) * (2 * index + 1) // (2 * _SIDE)
                  for size, extent, index in zip(image.shape, field, place, strict=True)]
        yield image[tuple(slice(first, first + extent) for first, extent in zip(corner, field, strict=True))]
