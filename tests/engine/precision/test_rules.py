"""The rules of 8-bit numbers: TFLite's vectors, and arithmetic of unbounded integers.

Invariant: what is compared is equal, on every backend.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.array import as_array
from core.engine.errors import DataError
from core.engine.jit import jit
from core.engine.precision import rules

DEVICES = ("reference", "cpu")
REQUANTISE = {device: jit(rules.requantise, device=device) for device in DEVICES}
I32 = st.integers(rules.I32_LOWEST, rules.I32_HIGHEST)


@pytest.mark.parametrize("device", DEVICES)
def test_requantises_as_tflite(realdata: Path, device: str) -> None:
    stored = json.loads((realdata / "accel" / "golden_numerics" / "tflite_requant_vectors.json").read_text())
    column = dict(zip(stored["fields"], map(np.array, zip(*stored["rows"], strict=True)), strict=True))
    q31, shift = rules.multiplier(column["real_multiplier"])
    assert len(q31) == 72
    assert np.array_equal(q31, column["q31"])
    assert np.array_equal(shift, column["shift"])
    found = REQUANTISE[device](column["acc_int32"].astype(np.int32), q31, shift)
    assert np.array_equal(found.numpy(), column["result"])


def tflite(x: int, q31: int, shift: int) -> int:
    """The text of the reference, in unbounded integers."""
    a = min(max(x << max(shift, 0), rules.I32_LOWEST), rules.I32_HIGHEST)
    product = a * q31
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    high = abs(nudged) // (1 << 31) * (1 if nudged >= 0 else -1)
    exponent = max(-shift, 0)
    mask = (1 << exponent) - 1
    return (high >> exponent) + ((high & mask) > (mask >> 1) + (high < 0))


@given(st.lists(st.tuples(I32, st.integers(1 << 30, rules.I32_HIGHEST) | st.just(0), st.integers(-31, 30)),
                min_size=16, max_size=16))
def test_requantises_as_unbounded_integers(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)]
    expected = [tflite(*row) for row in rows]
    for device in DEVICES:
        assert REQUANTISE[device](*columns).numpy().tolist() == expected


@given(st.floats(1e-9, 1e9))
def test_a_multiplier_is_its_parts(real: float) -> None:
    q31, shift = rules.multiplier(real)
    assert (1 << 30) <= int(q31) < 1 << 31
    assert abs(int(q31) * 2.0 ** (int(shift) - 31) / real - 1) <= 2.0 ** -31


@pytest.mark.parametrize("real", [-0.5, np.inf, np.nan, 2.0 ** 31])
def test_multipliers_out_of_proportion_are_refused(real: float) -> None:
    with pytest.raises(DataError, match="multipliers of a requantisation lie in"):
        rules.multiplier(real)


def test_multipliers_too_small_are_nothing() -> None:
    assert [int(part) for part in rules.multiplier(2.0 ** -40)] == [0, 0]


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 255.0, (1.0, -128)), (-128.0, 127.0, (1.0, 0)), (-255.0, 0.0, (1.0, 127)), (3.0, 25.5, (0.1, -128)),
    (-2.0, -1.0, (2 / 255, 127)), (0.0, 0.0, (1.0, 0)), (-1.0, 1.0, (2 / 255, -1))])
def test_a_range_has_a_scale_and_a_zero_point(low: float, high: float, expected: tuple[float, int]) -> None:
    found = rules.activation(low, high)
    assert (found.scale, found.zero_point) == (float(np.float32(expected[0])), expected[1])


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_zero_is_exact_and_the_range_is_held(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    affine = rules.activation(low, high)
    q = rules.quantise(as_array(np.array([0.0, low, high], np.float32)), as_array(np.float32(affine.scale)),
                       as_array(np.int32(affine.zero_point))).numpy().astype(int)
    back = (q - affine.zero_point) * affine.scale
    assert back[0] == 0
    assert abs(back[1] - low) <= affine.scale * 1.01
    assert abs(back[2] - high) <= affine.scale * 1.01


def test_a_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        rules.activation(0.0, float("inf"))


@pytest.mark.parametrize("device", DEVICES)
def test_quantises_ties_to_even_and_saturates(device: str) -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 1e9, -1e9, np.nan, 126.6], np.float32)
    found = jit(rules.quantise, device=device)(x, np.float32(1), np.int32(0))
    assert found.numpy().tolist() == [0, 2, 0, -2, 127, -128, 0, 127]


def test_the_cpu_runs_all_of_it_in_kernels() -> None:
    x = np.arange(64, dtype=np.int32)
    report = REQUANTISE["cpu"].report(x, np.int32(1 << 30), np.int32(-3))
    names = [step[0] for step in report.steps]
    assert not [name for name in names if name.startswith("host")], names
