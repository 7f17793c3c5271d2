"""Random graphs: eager, reference and cpu agree, whatever memory held before and however many threads run."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel import threads
from core.engine import dtypes, ops, tree
from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.testing import random_graph
from tests.accel.agreement import assert_agree, assert_same_bits

COUNT, USUAL = 500, 30
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= USUAL else []) for seed in range(COUNT)]
TOLERANCE = {dtypes.float64: 1e-11, dtypes.float32: 2e-5, dtypes.bfloat16: 6e-2}
"""Largest difference, relative to the largest result or to 1, by the coarsest float type in the graph."""


def tolerance(arguments):
    return max(TOLERANCE[array.dtype] for array in arguments if array.dtype.is_float)


@pytest.mark.parametrize("seed", SEEDS)
def test_backends_agree(seed):
    function, arguments = random_graph(seed)
    expected = function(*arguments)
    assert all(np.isfinite(array.numpy()).all() for array in expected), "the generator lets infinities through"
    traced = jit(function, device="reference")
    traced.trace(*arguments).graph.check()
    assert_same_bits(expected, traced(*arguments))
    compiled = jit(function, device="cpu")
    actual = compiled(*arguments)
    for wanted, found in zip(expected, actual, strict=True):
        assert found.aval == wanted.aval
        scale = max(1.0, np.abs(wanted.numpy().astype(float)).max(initial=0))
        error = np.abs(wanted.numpy().astype(float) - found.numpy().astype(float)).max(initial=0)
        assert error <= tolerance(arguments) * scale, f"{wanted.aval} is off by {error:.1e}"
    assert_same_bits(actual, compiled(*arguments))


@pytest.fixture
def set_threads():
    before = threads.pool().threads
    yield threads.set_threads
    threads.set_threads(before)


@pytest.mark.parametrize("seed", range(0, USUAL, 6))
def test_same_bits_for_any_number_of_threads(seed, set_threads):
    function, arguments = random_graph(seed)
    compiled = jit(function, device="cpu")
    results = []
    for count in (1, 2, 3):
        set_threads(count)
        results.append(compiled(*arguments))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


LARGE = {
    "loop": lambda x: ops.tanh(x) * 2 + x, "sum": ops.sum, "rows": lambda x: (ops.sum(x * x, 1), ops.amax(x, 1)),
    "columns": lambda x: (ops.sum(ops.sin(x), 0), ops.amin(x, 0), ops.tanh(x)), "turned": lambda x: ops.exp(x.T) + 1,
    "product": lambda x: x @ x.T, "cumsum": lambda x: ops.cumsum(x, axis=0, reverse=True),
    "scatter": lambda x: ops.scatter_add(ops.zeros((9, 301)), np.arange(317, dtype=np.int32) % 11, x, axis=0),
    "softmax": lambda x: (lambda e: e / ops.sum(e, 1, True))(ops.exp(x - ops.amax(x, 1, True))),
}


@pytest.mark.parametrize("name", LARGE)
def test_same_bits_where_threads_share_the_work(name, set_threads):
    x = as_array(np.random.default_rng(0).normal(size=(317, 301)).astype(np.float32))
    compiled = jit(LARGE[name], device="cpu")
    results = []
    for count in (1, 2, 3):
        set_threads(count)
        results.append(tree.leaves(compiled(x)))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])
    for expected, actual in zip(tree.leaves(LARGE[name](x)), results[0], strict=True):
        assert_agree(expected, actual)


def test_a_seed_gives_one_graph():
    function, arguments = random_graph(3)
    again, same = random_graph(3)
    assert_same_bits(arguments, same)
    assert_same_bits(function(*arguments), again(*same))
