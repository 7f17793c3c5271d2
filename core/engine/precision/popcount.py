"""Products of binary and ternary numbers by counting bits.

With a and b of -1 and 1, whose signs are bits (1 for 1): sum over k of a b = K - 2 popcount(a xor b) (Rastegari et al.
2016, arXiv 1603.05279, section 3.2). Ternary numbers are two rows of bits, one of what is 1 and one of what is -1.

Invariant: results are those of the product of the same numbers as i8, exactly.
"""

from __future__ import annotations

import numpy as np

from core.engine import ops
from core.engine.array import Array

_PLACES = (1 << np.arange(8)).astype(np.int32)


def packed_bits(x: Array) -> Array:
    """u8[row, byte] of bool[row, k]; the first bit of a byte is its lowest, and what is missing at the end is 0."""
    rows, count = x.shape
    wide = ops.pad(x.astype("i32"), 0, low=(0, 0), high=(0, -count % 8), interior=(0, 0))
    return (wide.reshape(rows, -1, 8) * _PLACES).sum(2).astype("u8")


def binary_product(a: Array, b: Array, count: int) -> Array:
    """i32[m, n], the products of rows of numbers of -1 and 1.

    Parameters
    ----------
    a, b : u8[m, byte], u8[n, byte], bits that are set where a number is 1, from `packed_bits`
    count : numbers of a row
    """
    return count - 2 * ops.bit_dot(a, b, kind="xor")


def ternary_product(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """i32[m, n], the products of rows of numbers of -1, 0 and 1.

    Parameters
    ----------
    a, b : pairs of u8[row, byte], from `packed_bits`: bits that are set where a number is 1, and where it is -1
    """
    plus = ops.concatenate([a[0], a[1]], axis=1), ops.concatenate([a[1], a[0]], axis=1)
    right = ops.concatenate([b[0], b[1]], axis=1)
    return ops.bit_dot(plus[0], right, kind="and") - ops.bit_dot(plus[1], right, kind="and")
