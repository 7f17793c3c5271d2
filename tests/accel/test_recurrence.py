"""Recurrence: loops with less in them, that mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel.passes.recurrence import lighten
from core.accel.passes.simplify import simplify
from core.engine import nn, ops, random, tree
from core.engine.array import Array, as_array
from core.engine.grad import grad
from core.engine.jit import close, jit
from core.engine.ops.control import run_graph
from core.engine.testing import random_graph
from tests.accel.agreement import assert_agree

STEPS = 60
"""More than may be unrolled."""


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2)


def lightened(function, *arguments):
    """The graph as the pass leaves it; its results are checked against the graph as it was traced."""
    before = close(jit(function, device="reference").trace(*arguments))
    after = lighten(simplify(before))
    after.check()
    storages = [array.storage for array in arguments]
    for value, one, other in zip(before.outputs, run_graph(before, storages), run_graph(after, storages), strict=True):
        assert_agree(Array(value.aval, one), Array(value.aval, other))
    return after


def scans(graph):
    return [equation for equation in graph.equations if equation.op.name == "scan"]


def names(graph):
    return [equation.op.name for equation in graph.equations]


X, W = drawn(STEPS, 3, 4), drawn(4, 4, seed=1)


def test_a_graph_without_scans_stays():
    graph = simplify(close(jit(lambda x: ops.tanh(x) + 1, device="reference").trace(X)))
    assert lighten(graph) is graph


def test_scans_that_carry_the_same_become_one():
    def function(x, w):
        once = ops.scan(lambda c, r: (ops.tanh(c @ w + r), None), x[0], x)[0]
        again = ops.scan(lambda c, r: ((h := ops.tanh(c @ w + r)), (c, h * 2)), x[0], x)
        return once, again

    (scan,) = scans(lightened(function, X, W))
    assert names(scan.params["body"]).count("dot") == 1
    assert scan.params["carries"] == 1 and len(scan.outputs) == 3


@pytest.mark.parametrize("other", [
    lambda x, w: ops.scan(lambda c, r: (ops.tanh(c @ w - r), None), x[0], x)[0],
    lambda x, w: ops.scan(lambda c, r: (ops.tanh(c @ w + r), None), x[1], x)[0],
    lambda x, w: ops.scan(lambda c, r: (ops.tanh(c @ w + r), None), x[0], x, reverse=True)[0],
    lambda x, w: ops.scan(lambda c, r: (ops.tanh(c @ w + r), None), x[0], x[1:])[0],
    lambda x, w: ops.scan(lambda c, r: (ops.tanh(c @ w + r), c + w[0]), x[0], x * 2),
], ids=["other body", "other begin", "other direction", "other length", "other sequence"])
def test_other_scans_stay_apart(other):
    graph = lightened(lambda x, w: (ops.scan(lambda c, r: (ops.tanh(c @ w + r), None), x[0], x)[0], other(x, w)), X, W)
    assert len(scans(graph)) == 2


def test_a_sum_of_products_is_one_product_behind_the_loop():
    def function(x, w):
        def body(carry, row):
            state, total, bias = carry
            new = ops.tanh(state @ w + row)
            return (new, total + (state.T @ new).T.reshape(2, 8), ops.sum(new, axis=0) + bias), None

        return ops.scan(body, (x[0], ops.ones((2, 8)), ops.ones((4,))), x)[0]

    graph = lightened(function, X, W)
    (scan,) = scans(graph)
    assert scan.params["carries"] == 1 and names(scan.params["body"]).count("dot") == 1
    assert "dot" in names(graph) and "reduce" in names(graph)


def test_a_sum_of_products_of_the_sequences_alone_leaves_no_loop():
    def function(x, y):
        return ops.scan(lambda c, r: (c + r[0].T @ r[1], None), ops.zeros((4, 4)), (x, y))[0]

    graph = lightened(function, X, drawn(STEPS, 3, 4, seed=2))
    assert not scans(graph) and names(graph).count("dot") == 1


@pytest.mark.parametrize("body", [
    lambda w: lambda c, r: (c + c @ w, None), lambda w: lambda c, r: (c + r @ w, c),
    lambda w: lambda c, r: (c - r @ w, None), lambda w: lambda c, r: (r @ w + c, None),
    lambda w: lambda c, r: (c + c, None), lambda w: lambda c, r: ((s := c + (r @ w) @ w), s),
    lambda w: lambda c, r: (c + ops.tanh(r @ w), None),
], ids=range(7))
def test_what_is_no_mere_sum_of_products_stays(body):
    graph = lightened(lambda x, w: ops.scan(body(w), x[0], x), X / 4, W / 4)
    assert len(scans(graph)) == 1


def test_what_nobody_needs_is_dropped():
    def function(x, w):
        def body(carry, row):
            state, idle, seen = carry
            new = ops.tanh(state + row)
            return (new, idle @ w, seen + new), (new, ops.exp(row), idle)

        _, (states, _, _) = ops.scan(body, (x[0], x[1], x[2]), x)
        return states

    (scan,) = scans(lightened(function, X, W))
    assert sorted(names(scan.params["body"])) == ["add", "tanh"]
    assert (scan.params["consts"], scan.params["carries"], len(scan.inputs), len(scan.outputs)) == (0, 1, 2, 2)


@pytest.mark.parametrize(("layer", "joins"), [(nn.LSTM, 1), (nn.GRU, 2)])
def test_training_has_two_loops_of_one_product_each(layer, joins):
    made = layer.init(random.key(0), 3, 4)
    leaves, structure = tree.flatten(made)
    gradient = grad(lambda leaves, x: ops.sum(tree.unflatten(structure, leaves)(x)[0] ** 2))
    graph = lightened(lambda x, *leaves: gradient(leaves, x), drawn(2, 20, 3), *leaves)
    forward, backward = scans(graph)
    assert [names(scan.params["body"]).count("dot") for scan in (forward, backward)] == [1, 1]
    assert "pad" not in names(backward.params["body"]) and names(backward.params["body"]).count("concat") == joins
    assert names(graph).count("dot") == 3, "of the projection, and of the gradients of both weights"


@pytest.mark.parametrize("seed", range(0, 240, 6))
def test_random_graphs_keep_their_meaning(seed):
    function, arguments = random_graph(seed)
    before = simplify(close(jit(function, device="reference").trace(*arguments)))
    after = lighten(before)
    after.check()
    storages = [array.storage for array in arguments]
    for value, one, other in zip(before.outputs, run_graph(before, storages), run_graph(after, storages), strict=True):
        assert_agree(Array(value.aval, one), Array(value.aval, other))
