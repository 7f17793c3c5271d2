"""Simplification: fewer equations, the same bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.accel.passes.simplify import simplify
from core.engine import dtypes, ops
from core.engine.array import Array, as_array
from core.engine.jit import close, jit
from core.engine.ops.control import run_graph
from core.engine.testing import random_graph


def graphs(function, *arguments):
    before = close(jit(function, device="reference").trace(*arguments))
    return before, simplify(before)


def names(function, *arguments):
    return [equation.op.name for equation in graphs(function, *arguments)[1].equations]


X = as_array(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
IDENTITY = as_array(np.ones((3, 4), np.float32))


@pytest.mark.parametrize(("function", "expected"), [
    (lambda x: x * 1.0, []), (lambda x: 1.0 * x, []), (lambda x: x / 1.0, []), (lambda x: x + 0.0, []),
    (lambda x: x - 0.0, []), (lambda x: 0 + x, []), (lambda x: x**1.0, []),
    (lambda x: x * IDENTITY, []), (lambda x: x.reshape(3, 4), []),
    (lambda x: x.transpose(0, 1), []), (lambda x: x.astype("f32"), []), (lambda x: ops.concatenate([x]), []),
    (lambda x: x * 0.0, ["broadcast", "mul"]), (lambda x: 0.0 - x, ["broadcast", "sub"]),
    (lambda x: 1.0 / x, ["broadcast", "div"]),
    (lambda x: ops.tanh(x) + ops.tanh(x), ["tanh", "add"]), (lambda x: (ops.exp(x), ops.tanh(x))[1], ["tanh"]),
    (lambda x: jit(lambda y: ops.tanh(y))(x), ["tanh"]),
    (lambda x: ops.segment_sum(-x, np.zeros(3, np.int32), 2) + 1.5, ["segment_reduce", "neg", "broadcast", "add"]),
    (lambda x: ops.scan(lambda c, r: (c + r, None), ops.zeros((4,)), x)[0], ["slice", "reshape"] * 3 + ["add"] * 2),
], ids=lambda value: None if callable(value) else str(value))
def test_what_is_left(function, expected):
    assert sorted(names(function, X)) == sorted(expected)


@pytest.mark.parametrize("value", (np.nan, np.inf, -0.0))
def test_times_zero_is_not_zero_and_plus_zero_keeps_special_numbers(value):
    x = as_array(np.full((3,), value, np.float32))
    times, plus = jit(lambda x: (x * 0.0, x + 0.0))(x)
    np.testing.assert_array_equal(times.numpy(), np.full(3, value * 0.0, np.float32))
    np.testing.assert_array_equal(plus.numpy(), x.numpy())


def test_host_calls_stay():
    from core.engine.ops.control import custom_call

    calls = []
    jit(lambda x: (custom_call(x, function=lambda v: calls.append(1) or v, avals=(x.aval,)), x)[1])(X)
    assert calls == [1]


@pytest.mark.parametrize("seed", range(0, 120, 4))
def test_results_keep_their_bits(seed):
    function, arguments = random_graph(seed)
    before, after = graphs(function, *arguments)
    after.check()
    assert [value.aval for value in after.inputs] == [value.aval for value in before.inputs]
    assert [value.aval for value in after.outputs] == [value.aval for value in before.outputs]
    assert "call" not in {equation.op.name for equation in after.equations}
    for equation in after.equations:
        if equation.op.name == "scan":
            assert not {"call", "scan"} & {inner.op.name for inner in equation.params["body"].equations}
    storages = [array.storage for array in arguments]
    for value, one, other in zip(before.outputs, run_graph(before, storages), run_graph(after, storages), strict=True):
        if any(array.dtype is dtypes.bfloat16 for array in arguments):
            wide = [Array(value.aval, array).numpy().astype(float) for array in (one, other)]
            np.testing.assert_allclose(wide[0], wide[1], atol=6e-2)
        else:
            np.testing.assert_array_equal(one, other)


def test_long_scans_stay_with_a_simple_body():
    def function(x):
        return ops.scan(lambda c, r: (jit(lambda c: ops.tanh(c + r * 1.0))(c), ops.tanh(c + r)), ops.zeros((4,)), x)

    (scan,) = (equation for equation in graphs(function, as_array(np.ones((99, 4), np.float32)))[1].equations
               if equation.op.name == "scan")
    assert [equation.op.name for equation in scan.params["body"].equations] == ["add", "tanh"]


def test_a_scan_within_a_scan_is_unrolled():
    def inner(c, r):
        return ops.scan(lambda c, x: (ops.tanh(c * x), None), c, ops.stack([r] * 40))[0], None

    graph = graphs(lambda x: ops.scan(inner, ops.zeros((4,)), x)[0], as_array(np.ones((30, 4), np.float32)))[1]
    (scan,) = (equation for equation in graph.equations if equation.op.name == "scan")
    assert "scan" not in {equation.op.name for equation in scan.params["body"].equations}


def test_a_scan_with_something_for_the_host_is_unrolled():
    def body(c, r):
        return ops.dynamic_slice(ops.concatenate([c, r]), as_array(2), sizes=(4,)), None

    assert "scan" not in names(lambda x: ops.scan(body, ops.zeros((4,)), x)[0], as_array(np.ones((30, 4), np.float32)))


def test_equal_constants_are_one():
    one, other = (as_array(np.float32([1, 2, 3, 4])) for _ in range(2))
    assert names(lambda x: (x + one) * (x + other), X) == ["broadcast", "add", "mul"]
    zero, minus_zero = (as_array(np.float32(number)) for number in (0.0, -0.0))
    assert names(lambda x: (ops.tanh(zero), ops.tanh(minus_zero)), X) == ["tanh", "tanh"]


def padded(x, rows, columns, number=0.0):
    """A part of X, and numbers for the rest."""
    return ops.pad(x[slice(*rows), slice(*columns)], number, low=(rows[0], columns[0]),
                   high=(3 - rows[1], 4 - columns[1]), interior=(0, 0))


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 3, 4), (1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_neighbours_that_zeros_fill_up_are_joined(cuts, order):
    def function(x):
        pieces = [padded(ops.tanh(x), (0, 3), cut) for cut in list(pairwise(cuts))[::order]]
        return sum(pieces[1:], pieces[0])

    left = names(function, X)
    assert left.count("concat") == 1 and "add" not in left and left.count("pad") == (cuts[0] > 0 or cuts[-1] < 4)
    before, after = graphs(function, X)
    np.testing.assert_array_equal(*(run_graph(graph, [X.storage])[0] for graph in (before, after)))


@pytest.mark.parametrize("function", [
    lambda x: padded(x, (0, 3), (0, 2)) + padded(x, (0, 3), (1, 4)),
    lambda x: padded(x, (0, 3), (0, 2), 1.0) + padded(x, (0, 3), (2, 4), 1.0),
    lambda x: padded(x, (0, 3), (0, 1)) + padded(x, (0, 3), (2, 4)),
    lambda x: padded(x, (0, 2), (0, 2)) + padded(x, (1, 3), (2, 4)),
    lambda x: padded(x, (0, 2), (0, 4)) + padded(x, (0, 3), (0, 2)),
], ids=["overlap", "ones", "gap", "two axes", "other axes"])
def test_what_is_no_neighbour_is_added(function):
    assert "add" in names(function, X)


def test_long_sums_are_split_for_the_threads():
    x = as_array(np.ones((64, 1024), np.float32))
    assert names(lambda x: ops.sum(x), x) == ["reduce", "reduce"]
    assert names(lambda x: ops.sum(x), X) == ["reduce"]


def test_bfloat16_is_widened_outside_loops_and_products_only():
    x = X.astype("bf16")
    sums = names(lambda x: ops.cumsum(ops.tanh(x), axis=0, reverse=False), x)
    assert sums == ["tanh", "convert", "cumsum", "convert"]
    assert names(lambda x: ops.tanh(x) @ x.T, x) == ["tanh", "transpose", "dot"]
    assert names(lambda x: ops.tanh(x) * x, x) == ["tanh", "mul"]
