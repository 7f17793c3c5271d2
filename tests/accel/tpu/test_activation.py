"""The activation unit: rules, cuts, tables and windows, against their definitions in numpy."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.tpu.activation import FixedPoint, FloatingPoint, Pooling, Scaling, Window, mean
from core.accel.tpu.instructions import Function, Pool

UNIT = FloatingPoint(np.zeros(1, np.int32), np.ones(1, np.float32), np.float32(1))
"""Sums as they are."""


def made(scaling, sums, function=Function.IDENTITY, pool=Pool.NONE):
    found = scaling.bytes_of(np.array(sums, np.int32).reshape(-1, 1), function, pool)
    return found.reshape(-1).view(np.int8 if scaling.signed else np.uint8).tolist()


@pytest.mark.parametrize(("function", "scaling", "wanted"), [
    (Function.IDENTITY, Scaling(UNIT), [-128, -7, 0, 3, 9, 127]),
    (Function.IDENTITY, Scaling(UNIT, signed=False), [0, 0, 0, 3, 9, 255]),
    (Function.IDENTITY, Scaling(UNIT, zero=-9), [-128, -16, -9, -6, 0, 127]),
    (Function.RELU, Scaling(UNIT, zero=-9), [-9, -9, -9, -6, 0, 127]),
    (Function.RELU6, Scaling(UNIT, zero=-9, ceiling=-3), [-9, -9, -9, -6, -3, -3]),
    (Function.TABLE, Scaling(UNIT, table=np.arange(256).astype(np.uint8)[::-1]), [127, 6, -1, -4, -10, -128]),
])
def test_functions(function, scaling, wanted):
    assert made(scaling, [-1000, -7, 0, 3, 9, 1000], function) == wanted


def test_sums_leave_as_four_bytes_in_four_rows():
    sums = np.array([[1, -2], [0x01020304, 5]], np.int32)
    assert Scaling(None).bytes_of(sums, Function.SUMS, Pool.NONE).tolist() == [
        [1, 254], [0, 255], [0, 255], [0, 255], [4, 5], [3, 0], [2, 0], [1, 0]]


@given(st.lists(st.integers(-2**31, 2**31 - 1), min_size=1, max_size=9), st.integers(-2**31, 2**31 - 1),
       st.floats(2.0**-40, 1, width=32), st.floats(2.0**-10, 4, width=32))
def test_floats_are_rounded_where_the_layers_of_the_engine_round_them(sums, bias, factor, step):
    rule = FloatingPoint(np.array([bias], np.int32), np.array([factor], np.float32), np.float32(step))
    wrapped = [(one + bias + 2**31) % 2**32 - 2**31 for one in sums]
    real = np.array(wrapped, np.float32) * np.float32(factor) / np.float32(step)
    assert made(Scaling(rule), sums) == np.clip(np.rint(real), -128, 127).astype(int).tolist()


def test_integers_are_rounded_as_tflite_rounds_them(realdata):
    rows = json.loads((realdata / "accel/golden_numerics/tflite_requant_vectors.json").read_text())["rows"]
    for total, _, q31, shift, result in rows:
        rule = FixedPoint(*(np.array([one], np.int64) for one in (0, q31, shift)))
        assert made(Scaling(rule), [total]) == [min(max(result, -128), 127)]


@given(st.integers(-10**6, 10**6), st.integers(1, 100))
def test_a_mean_is_rounded_half_away_from_zero(total, count):
    exact = Fraction(total, count)
    wanted = int(abs(exact) + Fraction(1, 2)) * (1 if total >= 0 else -1)
    assert mean(np.array(total), count) == wanted


@given(st.data(), st.integers(1, 6), st.integers(1, 6))
def test_windows_leave_padding_out(data, lines, length):
    size = data.draw(st.integers(1, lines)), data.draw(st.integers(1, length))
    low, high = (tuple(data.draw(st.integers(0, one - 1)) for one in size) for _ in range(2))
    stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    values = np.random.default_rng(data.draw(st.integers(0, 9))).integers(-128, 128, (lines, length))
    pooling = Pooling(Window(size, stride, low, high), lines, length)
    largest, means = [], []
    for line, row in itertools.product(range(0, lines + low[0] + high[0] - size[0] + 1, stride[0]),
                                       range(0, length + low[1] + high[1] - size[1] + 1, stride[1])):
        first, second = (slice(max(at - before, 0), at - before + one)
                         for at, before, one in zip((line, row), low, size, strict=True))
        largest.append(values[first, second].max())
        means.append(mean(values[first, second].sum(), values[first, second].size))
    assert made(Scaling(UNIT, pooling=pooling), values, pool=Pool.MAX) == largest
    assert made(Scaling(UNIT, pooling=pooling), values, pool=Pool.AVERAGE) == means


def test_pooled_bytes_are_looked_up():
    pooling = Pooling(Window((1, 2), (1, 2)), 1, 4, np.arange(256).astype(np.uint8)[::-1])
    assert made(Scaling(UNIT, pooling=pooling), [1, 5, -3, -7], pool=Pool.MAX) == [-6, 2]


def test_columns_that_are_missing_give_zero_points():
    rule = FloatingPoint(np.array([7], np.int32), np.ones(1, np.float32), np.float32(1)).columns(0, 3)
    assert Scaling(rule, zero=5).bytes_of(np.full((1, 3), 9, np.int32), Function.IDENTITY,
                                          Pool.NONE).tolist() == [[21, 5, 5]]
