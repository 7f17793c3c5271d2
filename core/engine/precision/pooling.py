"""Averages of bytes, as chips of 8 bits pool.

Invariant: sums are whole numbers, so that every backend has the same bits.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.module import Module, static
from core.engine.precision import rules
from core.engine.precision.quantised import Range


class ByteAveragePool(Module):
    """The mean of sliding windows of 8-bit numbers, without padding; floats in and out.

    Means are rounded to 8 bits, halves away from zero, as TFLite's AVERAGE_POOL_2D rounds them.

    Attributes
    ----------
    scale : f32[]
    zero_point : i32[]
    size, stride : one extent an axis of space
    """

    scale: Array
    zero_point: Array
    size: tuple[int, ...] = static()
    stride: tuple[int, ...] = static()

    @classmethod
    def of(cls, taken: Range, size: tuple[int, ...], stride: tuple[int, ...] | None = None) -> Self:
        """Windows over numbers that lie in a range; they lie side by side if there is no stride."""
        affine = rules.activation(*taken)
        return cls(as_array(np.float32(affine.scale)), as_array(np.int32(affine.zero_point)), size, stride or size)

    def __call__(self, x: Array) -> Array:
        """f32[batch, space..., channel] to the same axes."""
        count = math.prod(self.size)
        total = ops.window(rules.quantise(x, self.scale, self.zero_point).astype("i32"), kind="sum",
                           size=(1, *self.size, 1), stride=(1, *self.stride, 1),
                           padding=((0, 0),) * (len(self.size) + 2))
        halves = ops.div(ops.abs(total) * 2 + count, 2 * count)
        mean = ops.select(total < 0, -halves, halves)
        return rules.dequantise(mean - self.zero_point, self.scale, x.dtype)
