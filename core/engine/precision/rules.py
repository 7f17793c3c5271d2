"""The rules of 8-bit numbers: those of TFLite, in ops of the engine, so that every backend gives the same bits.

real = (q - zero_point) * scale (tensorflow, ``quantization_spec.md``; Jacob et al. 2018, arXiv 1712.05877, equation 1).

    weights      i8, -127..127, zero point 0, a scale for each output channel
    activations  i8, -128..127, any zero point, one scale a tensor
    biases       i32, zero point 0, scale = activation scale * weight scale

Invariant: whatever is rounded here is rounded to nearest, and what happens to a tie stands at the function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.engine import ops
from core.engine.array import Array
from core.engine.errors import DataError

LOWEST, HIGHEST = -128, 127
"""Of an activation."""
I32_LOWEST, I32_HIGHEST = -(1 << 31), (1 << 31) - 1
_POWERS = 2.0 ** np.arange(32)


@dataclass(frozen=True)
class Affine:
    """What the numbers of one tensor stand for: real = (q - zero_point) * scale."""

    scale: float
    zero_point: int


def activation(low: float, high: float) -> Affine:
    """Scale and zero point of activations within low..high, a range that is widened to hold 0.

    The zero point is the i8 nearest to the one that maps `low` to -128, so that 0 is exact.

    Raises
    ------
    DataError
        If a bound is not a finite number.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"activations that range from {low} to {high} have no 8-bit form; the model or its input holds "
                        f"values that are not finite")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = float(np.float32((high - low) / (HIGHEST - LOWEST)))
    if scale == 0.0:  # nothing but zeros, or numbers below all float32
        return Affine(1.0, 0)
    return Affine(scale, min(max(round(LOWEST - low / scale), LOWEST), HIGHEST))


def quantise(x: Array, scale: Array, zero_point: Array) -> Array:
    """i8 of floats: round(x / scale) + zero_point, cut to -128..127; ties to even, NaN becomes 0.

    Parameters
    ----------
    x : f32[...] or f64[...]
    scale : f32[]
    zero_point : i32[]
    """
    return (ops.round(x / scale.astype(x.dtype)) + zero_point.astype(x.dtype)).astype("i8")


def dequantise(sums: Array, scales: Array, dtype: object = "f32") -> Array:
    """Floats of i32 sums: converted to the dtype, then multiplied by the scales."""
    real: Array = sums.astype(dtype) * scales.astype(dtype)
    return real


def multiplier(real: NDArray[np.float64] | float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """``q31, shift`` with real = q31 * 2^(shift - 31), for `requantise`.

    Parameters
    ----------
    real : f64[...] of at least 0, such as activation scale * weight scale / output scale

    Returns
    -------
    i32[...] within 2^30..2^31-1, or 0, and i32[...]. What is below 2^-32 becomes 0, as in TFLite.

    Raises
    ------
    DataError
        If one is negative, not finite, or at least 2^30.
    """
    given = np.asarray(real, np.float64)
    if not (np.isfinite(given) & (given >= 0) & (given < 2.0 ** 30)).all():
        raise DataError("multipliers of a requantisation lie in 0..2^30; the scales of a layer are out of proportion")
    fraction, shift = np.frexp(given)
    q31 = np.floor(fraction * 2.0 ** 31 + 0.5).astype(np.int64)
    overflow = q31 == 1 << 31
    q31, shift = np.where(overflow, 1 << 30, q31), shift + overflow
    small = shift < -31
    return np.where(small, 0, q31).astype(np.int32), np.where(small, 0, shift).astype(np.int32)


def requantise(x: Array, q31: Array, shift: Array) -> Array:
    """x * q31 * 2^(shift - 31), rounded twice: TFLite's ``MultiplyByQuantizedMultiplier``.

    Every number on the way is a multiple of a power of two that f64 holds exactly, so that vectors of f64 do what the
    reference does in 64-bit integers.

    Parameters
    ----------
    x : i32[...]. Where x * 2^shift leaves i32, which TFLite leaves undefined, it saturates.
    q31, shift : i32, broadcast to x, from `multiplier`; shift in -31..30

    Returns
    -------
    i32[...]
    """
    left, right = (ops.gather(_POWERS, ops.maximum(exponent, 0), axis=0) for exponent in (shift, -shift))
    raised = ops.maximum(ops.minimum(x.astype("f64") * left, float(I32_HIGHEST)), float(I32_LOWEST))
    return _rounding_divide(_doubling_high_product(raised, q31.astype("f64")), right).astype("i32")


def _doubling_high_product(a: Array, b: Array) -> Array:
    """floor(a b / 2^31 + 1/2): ``SaturatingRoundingDoublingHighMul`` of i32 held in f64, b from 0 on.

    Its nudge of 2^30, or 1 - 2^30 below 0, before a division that truncates is one of 2^30 before one that floors. The
    product has up to 62 bits, so b is taken apart: floor((m + f) / n) = floor((m + floor(f)) / n) for whole m and n.
    """
    high = ops.floor(b * 2.0 ** -16)
    carried = ops.floor((a * (b - high * 2.0 ** 16) + 2.0 ** 30) * 2.0 ** -16)
    return ops.floor((a * high + carried) * 2.0 ** -15)


def _rounding_divide(x: Array, power: Array) -> Array:
    """x / power, ties away from 0: ``RoundingDivideByPOT`` for the power 2^exponent, all held in f64."""
    half = ops.floor(power * 0.5)
    nudge = half - ops.select(x < 0, ops.minimum(half, 1.0), 0.0)
    return ops.floor((x + nudge) / power)
