"""Fusion: what becomes one kernel, and that every plan reads values after they are made."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel.passes.fuse import MAXIMUM_EQUATIONS, VIEWS, fuse
from core.accel.passes.simplify import simplify
from core.engine import ops, random
from core.engine.array import as_array
from core.engine.grad import grad
from core.engine.jit import close, jit
from core.engine.testing import random_graph


def graph_of(function, *arguments):
    return simplify(close(jit(function).trace(*arguments)))


def kernels(function, *arguments):
    """Names of the ops of each node."""
    return [[equation.op.name for equation in node.equations] for node in fuse(graph_of(function, *arguments))]


def drawn(*shape):
    return as_array(np.random.default_rng(0).normal(size=shape).astype(np.float32))


X = drawn(6, 5)


@pytest.mark.parametrize(("function", "expected"), [
    (lambda x: ops.tanh(x * 2 + 1), [["mul", "add", "tanh"]]),
    (lambda x: (ops.tanh(x), ops.exp(x)), [["tanh"], ["exp"]]),
    (lambda x: (ops.sum(ops.tanh(x), 0), ops.amax(ops.tanh(x), 0)), [["tanh", "reduce", "reduce"]]),
    (lambda x: (ops.sum(ops.tanh(x), 0), ops.amax(ops.tanh(x), 1)), [["tanh", "reduce"], ["reduce"]]),
    (lambda x: ops.tanh(ops.exp(x).T), [["exp"], ["tanh"]]),
    (lambda x: ops.tanh(x.T) + 1, [["tanh", "add"]]),
    (lambda x: x - ops.sum(x, 1, True), [["reduce"], ["sub"]]),
    (lambda x: ops.exp(x @ x.T) + 1, [["dot"], ["exp", "add"]]),
    (lambda x: x.T.reshape(-1)[3:], []),
    (lambda x: ops.sort(ops.tanh(x), axis=0)[0] * 2, [["tanh"], ["sort"], ["mul"]]),
], ids=str)
def test_nodes(function, expected):
    assert kernels(function, X) == expected


def test_a_value_that_returns_through_another_node_is_not_fused():
    """exp(x) is read by a product and by what the product is added to."""
    assert kernels(lambda x: (lambda y: y + y @ x)(ops.exp(x)), drawn(5, 5)) == [["exp"], ["dot"], ["add"]]


def test_softmax_is_three_loops():
    assert len(kernels(lambda x: (lambda e: e / ops.sum(e, 1, True))(ops.exp(x - ops.amax(x, 1, True))), X)) == 3


def test_a_key_made_in_a_loop_is_complete_before_it_is_used():
    nodes = kernels(lambda key: random.fold_in(random.fold_in(key, 3), 4), random.key(0))
    assert all(names.count("random_bits") <= 1 for names in nodes)


def test_loops_have_a_largest_size():
    def chain(x):
        for _ in range(3 * MAXIMUM_EQUATIONS):
            x = ops.tanh(x)
        return x

    nodes = kernels(chain, X)
    assert sum(map(len, nodes)) == 3 * MAXIMUM_EQUATIONS and max(map(len, nodes)) <= MAXIMUM_EQUATIONS
    assert len(nodes) <= 6


@pytest.mark.parametrize("seed", range(0, 120, 4))
def test_nodes_hold_each_equation_once_in_order(seed):
    function, arguments = random_graph(seed, length=20)
    graph = graph_of(function, *arguments)
    nodes = fuse(graph)
    held = [equation for node in nodes for equation in node.equations]
    assert set(held) == {equation for equation in graph.equations if equation.op.name not in VIEWS}
    assert len(held) == len(set(held))
    sources = {e.outputs[0]: e.inputs[0] for e in graph.equations if e.op.name in VIEWS and e.inputs}
    iotas = {e.outputs[0] for e in graph.equations if e.op.name in VIEWS and not e.inputs}
    made = {*graph.inputs, *graph.constants}
    for node in nodes:
        inside = {value for equation in node.equations for value in equation.outputs}
        for equation in node.equations:
            for value in equation.inputs:
                direct = value
                while value in sources:
                    value = sources[value]
                assert value in iotas or value in made or (value in inside and value is direct)
        made |= inside
        reductions = {equation.params["axes"] for equation in node.equations if equation.op.name == "reduce"}
        assert len(reductions) <= 1 or not node.is_loop


def test_a_gradient_of_a_dense_layer_has_few_kernels():
    def loss(w, x):
        return ops.mean(ops.tanh(x @ w) ** 2)

    assert len(kernels(lambda w, x: grad(lambda w: loss(w, x))(w), drawn(5, 4), X)) <= 4
