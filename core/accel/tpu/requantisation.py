"""Requantisation: sums of 8-bit products to 8-bit numbers, by integers alone, as TFLite's kernels do it.

``real = (q - zero point) * scale`` holds on both sides, so that a sum is multiplied by M = s_in * s_w / s_out and moved
to the zero point of the output. M is ``q31 * 2^(shift - 31)`` with a whole number q31. Source: TensorFlow Lite 8-bit
quantization specification, and MultiplyByQuantizedMultiplier of its kernels (gemmlowp's two roundings).

Invariant: every step is exact in 64 bits; halves are rounded away from zero, twice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def multiplier(real: float) -> tuple[int, int]:
    """q31 in 2^30..2^31-1 (or 0) and shift, with ``q31 * 2^(shift - 31)`` nearest to a number that is not negative."""
    fraction, shift = math.frexp(real)
    if shift < -31:  # less than half for any sum
        return 0, 0
    q31 = math.floor(fraction * 2**31 + 0.5)
    return (q31 // 2, shift + 1) if q31 == 2**31 else (q31, shift)


def rescale(sums: NDArray[np.int32], q31: Any, shift: Any) -> Integers:
    """``sums * q31 * 2^(shift - 31)``, rounded.

    Parameters
    ----------
    sums : i32[..., column]; moved to the left by a positive shift they still fit into 32 bits
    q31, shift : integers, or integers[column]
    """
    q31, shift = np.asarray(q31, np.int64), np.asarray(shift, np.int64)
    products = (sums.astype(np.int64) << np.maximum(shift, 0)) * q31
    nudged = products + np.where(products >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))
    right = np.maximum(-shift, 0)
    mask = (np.int64(1) << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return np.asarray((high >> right) + ((high & mask) > threshold))
