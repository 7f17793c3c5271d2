"""Training with few bits in mind: layers that compute in whole numbers, held in floats that gradients pass through.

The forward pass is that of the quantised layer, bit by bit: products of whole numbers and their sums are exact in
floats. The backward pass takes every rounding for the identity (straight-through; Bengio et al. 2013, arXiv 1308.3432;
Jacob et al. 2018, arXiv 1712.05877, section 3), and an activation outside its range for a constant.

Invariant: `converted` of a module gives what the module gave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.module import Module, map_modules, static
from core.engine.nn import Linear
from core.engine.nn.conv import window_padding
from core.engine.precision import rules
from core.engine.precision.layered import layered
from core.engine.precision.quantised import (
    Quantised,
    Range,
    fitted_scales,
    quantisable,
    surrounded,
    twin,
    whole_bias,
)
from core.engine.precision.weights import whole_numbers

EXACT_TERMS = (1 << 24) // (128 * 127)
"""Products of 8-bit numbers whose sum a f32 holds whatever they are; longer sums are of f64."""
_LARGE = 2.0 ** 60


def straight_through(value: Array, x: Array) -> Array:
    """The value, with the gradient of x.

    What is added to the value is 0: beside 2^60 an f32 has no room for x. The gradient of a conversion is a conversion,
    so that of x passes.

    Parameters
    ----------
    value : floats that have no gradient of their own, such as rounded ones
    x : of the same shape, below 2^36
    """
    zero: Array = ((x.astype("f64") + _LARGE).astype("f32") - _LARGE).astype(value.dtype)
    return value + zero


class Trainable(Module):
    """A layer that computes as its quantised form will, and can be trained.

    Attributes
    ----------
    layer : a Linear or Conv of f32
    taken : range of its input
    bits : of a weight
    """

    layer: Any
    taken: Range = static()
    bits: int = static()

    def __call__(self, x: Array) -> Array:
        """As the layer's own."""
        layer, affine = self.layer, rules.activation(*self.taken)
        weight = layer.weight if isinstance(layer, Linear) else layer.kernel
        scales = fitted_scales(weight, layer.bias, affine.scale, self.bits)
        numbers = straight_through(whole_numbers(weight, scales, self.bits), weight / scales)
        wide = "f32" if math.prod(weight.shape[:-1]) <= EXACT_TERMS else "f64"
        sums = self._products(_taken(x, affine).astype(wide), numbers.astype(wide), affine.zero_point)
        # Of whole numbers too, and beyond what a f32 holds.
        rest = numbers.astype("f64").reshape(-1, weight.shape[-1]).sum(0) * -float(affine.zero_point)
        if layer.bias is not None:
            exact = layer.bias.astype("f64") / (scales * affine.scale).astype("f64")
            rest = rest + straight_through(whole_bias(layer.bias, scales, affine.scale), exact)
        given: Array = (sums.astype("f64") + rest).astype(x.dtype) * (scales * affine.scale).astype(x.dtype)
        return given

    def _products(self, q: Array, numbers: Array, zero_point: int) -> Array:
        layer = self.layer
        if isinstance(layer, Linear):
            return q @ numbers
        ones = (1,) * len(layer.stride)
        padding = window_padding(layer.padding, q.shape[1:-1], numbers.shape[:-2], layer.stride, layer.dilation)
        padded = surrounded(q, as_array(float(zero_point), q.dtype), padding)
        sums: Array = ops.conv(padded, numbers, stride=layer.stride, padding=((0, 0),) * len(ones),
                               dilation=layer.dilation, input_dilation=ones, groups=layer.groups)
        return sums


def _taken(x: Array, affine: rules.Affine) -> Array:
    """The whole numbers of an input, with the gradient of x / scale where they are not cut."""
    scale = as_array(np.float32(affine.scale))
    exact = x / scale.astype(x.dtype)
    whole = ops.round(exact) + float(affine.zero_point)
    inside = (whole >= float(rules.LOWEST)) & (whole <= float(rules.HIGHEST))
    q = rules.quantise(x, scale, as_array(np.int32(affine.zero_point))).astype(x.dtype)
    return straight_through(q, ops.select(inside, exact, 0.0))


def trainable(module: Any, ranges: Mapping[str, Range], bits: int = 8) -> Any:
    """A model that computes as `quantise` of it would, and whose weights can be trained; arguments as there."""
    def exchanged(path: str, layer: Module) -> Module | None:
        return Trainable(layer, ranges[path], bits) if path in ranges and quantisable(layer) else None

    return map_modules(exchanged, layered(module))


def converted(module: Any) -> Any:
    """The quantised model of a `trainable` one."""
    def exchanged(path: str, layer: Module) -> Quantised | None:
        return twin(layer.layer, layer.taken, layer.bits) if isinstance(layer, Trainable) else None

    return map_modules(exchanged, module)
