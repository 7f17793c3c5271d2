"""Drivers: compiled loops around programs do what the same loops do in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.accel import threads
from core.engine.array import as_array
from core.engine.jit import jit
from tests.accel import doubling

WIDTH = 96


def driven(device: str, most: int, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Everything that the driver wrote."""
    program = jit(lambda w, x: x @ w + 1.0, device=device).bind(as_array(weight))
    given, found = np.ones((WIDTH, WIDTH), np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    history, counts = np.zeros(most, np.float32), np.array([0, 0, given.size])
    program.drive(doubling.grow, [given], [found], given.reshape(-1), found.reshape(-1), history, counts, most, 0.5)
    return given, found, history, counts


@pytest.fixture(params=[1, 2])
def thread_count(request: pytest.FixtureRequest) -> Any:
    before = threads.pool().threads
    threads.set_threads(request.param)
    yield request.param
    threads.set_threads(before)


@pytest.mark.parametrize("most", [0, 1, 3, 40])
def test_a_compiled_driver_does_what_python_does(most: int, thread_count: int) -> None:
    weight = np.full((WIDTH, WIDTH), 3.0 / WIDTH, np.float32)
    given, found, history, counts = driven("cpu", most, weight)
    expected = driven("reference", most, weight)
    np.testing.assert_array_equal(counts, expected[3])
    assert counts[1] == (most == 40)
    for mine, other in zip((given, found, history), expected, strict=False):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_calls_and_drives_of_one_program_take_turns() -> None:
    program = jit(lambda w, x: x * w).bind(as_array(np.float32(2.0)))
    given, found = np.full(4, 3.0, np.float32), np.zeros(4, np.float32)
    history, counts = np.zeros(2, np.float32), np.array([0, 0, 4])
    assert program(given).numpy().tolist() == [6.0] * 4
    program.drive(doubling.grow, [given], [found], given, found, history, counts, 2, 1.0)
    assert history.tolist() == [6.0, 12.0]
    assert program(given).numpy().tolist() == [24.0] * 4


def test_numbers_and_arrays_are_what_the_annotations_say() -> None:
    program = jit(lambda w, x: x * w).bind(as_array(np.float32(2.0)))
    given, found = np.ones(4, np.float32), np.zeros(4, np.float32)
    counts = np.array([0, 0, 4])
    with pytest.raises(TypeError, match=r"grow takes a flat array of float32, C-contiguous; found float64\[2\]"):
        program.drive(doubling.grow, [given], [found], given, found, np.zeros(2), counts, 2, 1.0)
    with pytest.raises(TypeError, match=r"found float32\[2, 2\]"):
        program.drive(doubling.grow, [given], [found], given, found, np.zeros((2, 2), np.float32), counts, 2, 1.0)
    with pytest.raises(TypeError, match="grow takes 6 arguments behind the network, found 4"):
        program.drive(doubling.grow, [given], [found], given, found, counts, 2)
