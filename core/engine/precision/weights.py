"""Weights of 8, 4, 2 and 1 bits: which numbers they become, and how those lie in memory and in files.

    8   -127..127 times the largest weight / 127 (TFLite)
    4   -7..7 times the largest weight / 7
    2   -1, 0, 1 times the mean of the weights above 0.7 of the mean (ternary weight networks, Li et al. 2016,
        arXiv 1605.04711, section 2.2)
    1   -1, 1 times the mean of all weights (binary weight networks, Rastegari et al. 2016, arXiv 1603.05279,
        section 3.1)

Largest and mean are those of absolute values, for each output channel.

Invariant: what is packed and unpacked again is equal.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.module import Module, static

BITS = (8, 4, 2, 1)
TERNARY_THRESHOLD = 0.7
LARGEST = {8: 127, 4: 7, 2: 1, 1: 1}
"""Whole number by bits."""


def weight_scales(weight: Array, bits: int) -> Array:
    """What 1 stands for, f32[out], for each output channel, the last axis; 0 where all weights are 0."""
    size = _sizes(weight)
    if bits == 1:
        return _mean(size)
    if bits == 2:
        above = (size > _mean(size) * TERNARY_THRESHOLD).astype("f64")
        return ((size.astype("f64") * above).sum(0) / ops.maximum(above.sum(0), 1.0)).astype(weight.dtype)
    return size.max(0) / float(LARGEST[bits])


def whole_numbers(weight: Array, scales: Array, bits: int) -> Array:
    """The weights as whole numbers in their float type, ties to even.

    Parameters
    ----------
    weight : f32[..., out]
    scales : f32[out], none 0
    """
    if bits > 2:
        largest = float(LARGEST[bits])
        return ops.maximum(ops.minimum(ops.round(weight / scales), largest), -largest)
    sign = ops.select(weight < 0, -1.0, ops.ones(weight.shape, weight.dtype))
    return sign if bits == 1 else ops.select(ops.abs(weight) > _mean(_sizes(weight)) * TERNARY_THRESHOLD, sign, 0.0)


def _sizes(weight: Array) -> Array:
    """Absolute values f32[weight, out]."""
    return ops.abs(weight).reshape(-1, weight.shape[-1])


def _mean(size: Array) -> Array:
    """f32[out]; the sum is one of f64, so that its order does not show."""
    return size.astype("f64").mean(0).astype(size.dtype)


FIELDS = {4: "nibbles", 2: "pairs", 1: "bits"}
"""Of `Packed`, by the bits of a number: files say by it what they hold."""


class Packed(Module):
    """Whole numbers of 4, 2 or 1 bits, several a byte.

    Attributes
    ----------
    nibbles, pairs, bits : u8[byte, out]; one holds the numbers and the others are None. The first number of a byte lies
        in its lowest bits, and numbers follow each other as in the array without its last axis.
    shape : of the numbers, the output channel last
    """

    nibbles: Array | None
    pairs: Array | None
    bits: Array | None
    shape: tuple[int, ...] = static()

    @classmethod
    def pack(cls, numbers: NDArray[np.int8], bits: int) -> Self:
        """Numbers of `bits` bits, i8[..., out]."""
        count = 8 // bits
        rows = (numbers.reshape(-1, numbers.shape[-1]).astype(np.int64) + LARGEST[bits]) // _step(bits)
        whole = np.zeros((-(-len(rows) // count) * count, numbers.shape[-1]), np.int64)
        whole[:len(rows)] = rows
        places = (1 << bits) ** np.arange(count)
        packed = as_array((whole.reshape(-1, count, whole.shape[1]) * places[:, None]).sum(1).astype(np.uint8))
        return cls(shape=numbers.shape, **{name: packed if bits == own else None for own, name in FIELDS.items()})

    def unpacked(self) -> Array:
        """The numbers, i8 of `shape`."""
        bits, packed = next((bits, held) for bits, name in FIELDS.items() if (held := getattr(self, name)) is not None)
        rest, columns = packed.astype("i32"), []
        for _ in range(8 // bits):
            above = ops.div(rest, 1 << bits)
            columns.append(rest - above * (1 << bits))
            rest = above
        rows = ops.stack(columns, axis=1).reshape(-1, self.shape[-1])[:math.prod(self.shape[:-1])]
        numbers: Array = (rows * _step(bits) - LARGEST[bits]).astype("i8").reshape(self.shape)
        return numbers


def _step(bits: int) -> int:
    """From one number to the next: one bit says -1 or 1."""
    return 2 if bits == 1 else 1
