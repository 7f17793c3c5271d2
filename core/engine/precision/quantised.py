"""Layers of whole numbers: weights of 8 bits or fewer, activations of 8 bits, sums of 32 bits, floats in and out.

    y = float(sum over k of (q[k] - zero point) w[k] + b) * (input scale * weight scale)
    q = round(x / input scale) + zero point

The sum is exact and there is one rounding before it and one behind it, so that every backend gives the same bits.

Invariant: a quantised model is a tree as any other: it is saved, loaded, compiled and called as the model it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.dtypes import DType
from core.engine.errors import ConfigError
from core.engine.module import Module, joined, map_modules, static
from core.engine.nn import Conv, Linear
from core.engine.nn.conv import Padding, Pairs, window_padding
from core.engine.precision import rules
from core.engine.precision.layered import layered
from core.engine.precision.weights import BITS, FIELDS, Packed, weight_scales, whole_numbers

FEWEST_CHANNELS = 8
"""A convolution of fewer input channels reads the data itself: there are few weights to gain from, and no more than
eight bits of each value to lose. It stays as it is."""
LARGEST_BIAS = 1 << 30
"""In steps of a product: a sum of 2^15 products beside it still fits into 32 bits."""
_MARK = "input_scale"
"""The leaf that only quantised layers have."""

Range = tuple[float, float]
"""Least and largest activation that a layer takes."""


class Quantised(Module):
    """What the quantised layers share.

    Attributes
    ----------
    weight : i8, or packed numbers of fewer bits; as the weight or kernel of the layer it was made from
    bias : i32[out], in steps of a product; None if the layer has none
    weight_scale : bf16[out], so that it takes half the room: rounding it moves no weight by half a step
    input_scale : f32[]
    zero_point : i32[]
    """

    weight: Array | Packed
    bias: Array | None
    weight_scale: Array
    input_scale: Array
    zero_point: Array

    @property
    def numbers(self) -> Array:
        """The weight, i8."""
        return self.weight.unpacked() if isinstance(self.weight, Packed) else self.weight

    def take(self, x: Array) -> Array:
        """An input of floats as i8."""
        return rules.quantise(x, self.input_scale, self.zero_point)

    def give(self, sums: Array, dtype: DType) -> Array:
        """The floats of i32 sums of products."""
        # A program that is bound to its weights computes this once, and a loop before it begins.
        shift = self.numbers.astype("i32").reshape(-1, sums.shape[-1]).sum(0) * self.zero_point
        bias = -shift if self.bias is None else self.bias - shift
        return rules.dequantise(sums + bias, self.weight_scale.astype("f32") * self.input_scale, dtype)


class QuantisedLinear(Quantised):
    """A `Linear` in whole numbers."""

    @classmethod
    def of(cls, layer: Linear, taken: Range, bits: int) -> Self:
        """A layer whose inputs lie in a range."""
        return cls(**_parts(layer.weight, layer.bias, taken, bits))

    def __call__(self, x: Array) -> Array:
        """f32[..., in] to f32[..., out]."""
        return self.give(self.take(x) @ self.numbers, x.dtype)


class QuantisedConv(Quantised):
    """A `Conv` in whole numbers."""

    stride: tuple[int, ...] = static()
    padding: Padding = static()
    dilation: tuple[int, ...] = static()
    groups: int = static()

    @classmethod
    def of(cls, layer: Conv, taken: Range, bits: int) -> Self:
        """A layer whose inputs lie in a range."""
        return cls(**_parts(layer.kernel, layer.bias, taken, bits), stride=layer.stride, padding=layer.padding,
                   dilation=layer.dilation, groups=layer.groups)

    def __call__(self, x: Array) -> Array:
        """f32[batch, space..., in] to f32[batch, space..., out]."""
        weight = self.numbers
        padding = window_padding(self.padding, x.shape[1:-1], weight.shape[:-2], self.stride, self.dilation)
        # Around the image lies what stands for 0, which the op's own padding would not be.
        padded = surrounded(self.take(x), self.zero_point.astype("i8"), padding)
        ones = (1,) * len(self.stride)
        sums = ops.conv(padded, weight, stride=self.stride, padding=((0, 0),) * len(ones), dilation=self.dilation,
                        input_dilation=ones, groups=self.groups)
        return self.give(sums, x.dtype)


def surrounded(x: Array, value: Array, padding: Pairs) -> Array:
    """[batch, space..., channel] with a value around the axes of space."""
    if not any(low or high for low, high in padding):
        return x
    low, high = ((0, *side, 0) for side in zip(*padding, strict=True))
    return ops.pad(x, value, low=low, high=high, interior=(0,) * x.ndim)


def _parts(weight: Array, bias: Array | None, taken: Range, bits: int) -> dict[str, Any]:
    """The fields of `Quantised`."""
    affine = rules.activation(*taken)
    scales = fitted_scales(weight, bias, affine.scale, bits)
    numbers = whole_numbers(weight, scales, bits).astype("i8")
    return {"weight": numbers if bits == 8 else Packed.pack(numbers.numpy(), bits),
            "bias": None if bias is None else whole_bias(bias, scales, affine.scale).astype("i32"),
            "weight_scale": scales.astype("bf16"),
            "input_scale": as_array(np.float32(affine.scale)), "zero_point": as_array(np.int32(affine.zero_point))}


def fitted_scales(weight: Array, bias: Array | None, input_scale: float, bits: int) -> Array:
    """The scales f32[out] of weights, numbers of bf16.

    They are raised where the bias would not fit into `LARGEST_BIAS` steps otherwise.
    """
    scales = weight_scales(weight, bits)
    if bias is not None:
        scales = ops.maximum(scales, ops.abs(bias) / (input_scale * LARGEST_BIAS))
    scales = scales.astype("bf16").astype("f32")
    return ops.select(scales == 0, 1.0, scales)


def whole_bias(bias: Array, scales: Array, input_scale: float) -> Array:
    """A bias in steps of a product, f64[out], ties to even."""
    return ops.round(bias.astype("f64") / (scales * input_scale).astype("f64"))


def quantise(module: Any, ranges: Mapping[str, Range], bits: int = 8) -> Any:
    """A model with its layers in whole numbers.

    Linear and Conv are replaced where `quantisable` says so and the range of their input is known; recurrent cells and
    edge networks are taken apart for it (see `layered`). All else stays f32: embeddings, norms, transposed
    convolutions, products of activations with each other, and arrays that a model multiplies by itself.

    Parameters
    ----------
    module : tree of modules of f32
    ranges : by the dotted path of a layer in the layered module, as `calibrate` gives them
    bits : of a weight: 8, 4, 2 or 1; activations have 8

    Raises
    ------
    ConfigError
        If there is no such number of bits.
    """
    if bits not in BITS:
        raise ConfigError(f"weights have {', '.join(map(str, BITS))} bits, found {bits}")

    def exchanged(path: str, layer: Module) -> Module | None:
        return twin(layer, ranges[path], bits) if path in ranges and quantisable(layer) else None

    return map_modules(exchanged, layered(module))


def quantisable(layer: Module) -> bool:
    """Whether a layer has a form in whole numbers that is worth having."""
    return isinstance(layer, Linear) or (isinstance(layer, Conv) and layer.kernel.shape[-2] >= FEWEST_CHANNELS)


def twin(layer: Module, taken: Range, bits: int) -> Quantised:
    """The quantised form of a Linear or Conv whose input lies in a range."""
    if isinstance(layer, Linear):
        return QuantisedLinear.of(layer, taken, bits)
    assert isinstance(layer, Conv)
    return QuantisedConv.of(layer, taken, bits)


def as_saved(like: Any, names: Collection[str]) -> Any:
    """A model of the structure that a file of these names holds, for `checkpoint.tree_of`.

    Parameters
    ----------
    like : the model in f32
    names : dotted paths of the arrays in the file
    """
    if not any(name.rpartition(".")[2] == _MARK for name in names):
        return like

    def exchanged(path: str, layer: Module) -> Module | None:
        if joined(path, _MARK) not in names or not quantisable(layer):
            return None
        packed = (bits for bits, name in FIELDS.items() if joined(path, f"weight.{name}") in names)
        return twin(layer, (0.0, 0.0), next(packed, 8))

    return map_modules(exchanged, layered(like))
