"""Simplification: fewer equations, the same bits."""

from __future__ import annotations

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
], ids=str)
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
    assert not {"call", "scan"} & {equation.op.name for equation in after.equations}
    storages = [array.storage for array in arguments]
    for value, one, other in zip(before.outputs, run_graph(before, storages), run_graph(after, storages), strict=True):
        if any(array.dtype is dtypes.bfloat16 for array in arguments):
            wide = [Array(value.aval, array).numpy().astype(float) for array in (one, other)]
            np.testing.assert_allclose(wide[0], wide[1], atol=6e-2)
        else:
            np.testing.assert_array_equal(one, other)


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
