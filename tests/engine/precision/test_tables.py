"""Tables of bytes and averages of bytes: TFLite's numbers, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.precision import ByteAveragePool, TableActivation

DEVICES = ["reference", "cpu", "tpu-v1"]


@pytest.mark.parametrize(("name", "function", "scale", "zero"), [
    ("sigmoid", lambda x: 1 / (1 + math.exp(-x)), 1 / 256, -128), ("tanh", math.tanh, 1 / 128, 0)])
@pytest.mark.parametrize("taken", [(-8.0, 8.0), (-1.5, 0.25), (0.0, 0.0)])
def test_a_table_holds_the_nearest_byte_of_the_function(name, function, scale, zero, taken):
    layer = TableActivation.of(name, taken)
    for number, found in zip(range(-128, 128), layer.table.numpy().tolist(), strict=True):
        exact = function((number - int(layer.zero_point)) * float(layer.scale)) / scale
        wanted = math.copysign(math.floor(abs(exact) + 0.5), exact) + zero
        assert found == min(max(wanted, -128), 127)


@pytest.mark.parametrize("device", DEVICES)
def test_a_table_is_near_its_function(device):
    x = np.linspace(-9, 9, 333).astype(np.float32)
    found = jit(lambda layer, x: layer(x), device=device)(TableActivation.of("tanh", (-4, 4)), x).numpy()
    # Half a step of the input where tanh is steepest, and half a step of the output, whose largest is 127 / 128.
    assert np.abs(found - np.tanh(np.clip(x, -4, 4))).max() < 4 / 255 + 1 / 128


@pytest.mark.parametrize("device", DEVICES)
def test_averages_are_rounded_away_from_zero(device):
    layer = ByteAveragePool.of((-128.0, 127.0), (2,), (2,))
    assert (float(layer.scale), int(layer.zero_point)) == (1.0, 0)
    x = as_array(np.array([1, 2, -1, -2, -3, 3, 127, 126, -128, -128], np.float32).reshape(1, 10, 1))
    found = jit(lambda layer, x: layer(x), device=device)(layer, x).numpy()
    assert found.reshape(-1).tolist() == [2.0, -2.0, 0.0, 127.0, -128.0]
