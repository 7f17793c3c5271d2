"""Products by counting bits are those of the same numbers as i8, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine.array import Array, as_array
from core.engine.errors import ShapeError
from core.engine.jit import jit
from core.engine.ops import bit_dot
from core.engine.precision.popcount import binary_product, packed_bits, ternary_product

DEVICES = ("reference", "cpu")
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300))


def binary(a: Array, b: Array) -> tuple[Array, Array]:
    bits = binary_product(packed_bits(a > 0), packed_bits(b > 0), a.shape[1])
    return bits, a @ b.T


def ternary(a: Array, b: Array) -> tuple[Array, Array]:
    bits = ternary_product(*((packed_bits(x > 0), packed_bits(x < 0)) for x in (a, b)))
    return bits, a @ b.T


@settings(max_examples=15)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_counts_are_products(sizes: tuple[int, int, int], seed: int) -> None:
    rows, columns, count = sizes
    generator = np.random.default_rng(seed)
    for product, least in ((binary, 0), (ternary, -1)):
        a, b = (generator.integers(least, 2, (n, count)).astype(np.int8) for n in (rows, columns))
        if least == 0:
            a, b = a * np.int8(2) - np.int8(1), b * np.int8(2) - np.int8(1)
        exact = a.astype(np.int64) @ b.T
        for device in DEVICES:
            counted, multiplied = jit(product, device=device)(a, b)
            assert np.array_equal(counted, exact) and np.array_equal(multiplied, exact)


def test_bits_lie_from_the_lowest_on() -> None:
    x = np.zeros((1, 10), bool)
    x[0, [0, 3, 9]] = True
    assert packed_bits(as_array(x)).numpy().tolist() == [[0b1001, 0b10]]


def test_the_cpu_counts_in_a_kernel() -> None:
    a = np.zeros((4, 16), np.uint8)
    report = jit(lambda a, b: bit_dot(a, b, kind="xor")).report(a, a)
    assert [step[0] for step in report.steps] == ["bit_dot xor"]


def test_rows_of_other_lengths_are_refused() -> None:
    with pytest.raises(ShapeError, match="of as many bytes"):
        bit_dot(as_array(np.zeros((2, 3), np.uint8)), as_array(np.zeros((2, 4), np.uint8)), kind="xor")
