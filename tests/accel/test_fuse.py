"""Fusion: what becomes one kernel, and that every plan reads values after they are made."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel.passes.fuse import MAXIMUM_EQUATIONS, MAXIMUM_ROW, PRODUCTS, fuse
from core.accel.passes.simplify import simplify
from core.accel.views import VIEWS
from core.engine import dtypes, ops, random
from core.engine.array import Array, as_array
from core.engine.grad import grad
from core.engine.graph import Aval
from core.engine.jit import close, jit
from core.engine.nn.activation import gelu, log_softmax, softmax
from core.engine.nn.norm import BatchNorm, GroupNorm, LayerNorm
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
    (lambda x: x - ops.sum(x, 1, True), [["reduce", "sub"]]),
    (lambda x: x - ops.sum(x, 0, True), [["reduce"], ["sub"]]),
    (lambda x: x.T - ops.tanh(ops.sum(x, 1)), [["reduce", "tanh"], ["sub"]]),
    (lambda x: ops.exp(x).reshape(3, 10) * 2, [["exp", "mul"]]),
    (lambda x: (ops.sum(x, 0), ops.sum(x * x, 0)), [["reduce", "mul", "reduce"]]),
    (lambda x: ops.exp(x @ x.T) + 1, [["dot", "exp", "add"]]),
    (lambda x: x.T.reshape(-1)[3:], []),
    (lambda x: ops.sort(ops.tanh(x), axis=0)[0] * 2, [["tanh"], ["sort"], ["mul"]]),
], ids=lambda value: None if callable(value) else str(value))
def test_nodes(function, expected):
    assert kernels(function, X) == expected


def test_a_value_that_returns_through_another_node_is_not_fused():
    """exp(x) is read by a product and by what the product is added to."""
    assert kernels(lambda x: (lambda y: y + y @ x)(ops.exp(x)), drawn(5, 5)) == [["exp"], ["dot", "add"]]


SQUARE = drawn(5, 5)


@pytest.mark.parametrize(("function", "expected"), [
    (lambda x: ops.tanh(x @ x + x[0]) * ops.exp(x[0]).reshape(5, 1) + x,
     [["exp"], ["dot", "add", "tanh", "mul", "add"]]),
    (lambda x: x @ x * x[:, 1:2], [["dot"], ["mul"]]),
    (lambda x: ops.tanh((x @ x).reshape(25) + 1).reshape(5, 5), [["dot", "add", "tanh"]]),
    (lambda x: x @ x + x @ ops.exp(x), [["dot"], ["exp"], ["dot", "add"]]),
    (lambda x: x @ (x @ x + 1) + 2, [["dot", "add"], ["dot", "add"]]),
    (lambda x: (ops.tanh(x @ x), ops.exp(x @ x) + x), [["dot"], ["tanh"], ["exp", "add"]]),
    (lambda x: (lambda y: (y, ops.tanh(y)))(x @ x), [["dot"], ["tanh"]]),
    (lambda x: (lambda y: (y.T, ops.tanh(y)))(x @ x), [["dot"], ["tanh"]]),
    (lambda x: ops.tanh((x @ x).T), [["dot"], ["tanh"]]),
    (lambda x: (lambda y: y + y.T)(x @ x), [["dot"], ["add"]]),
    (lambda x: ops.tanh((x @ x)[1:]), [["dot"], ["tanh"]]),
    (lambda x: x @ x + x.T, [["dot"], ["add"]]),
    (lambda x: x @ x + ops.iota(shape=(5, 5), dtype=dtypes.float32, axis=0), [["dot"], ["add"]]),
    (lambda x: ops.sum(x @ x + 1), [["dot"], ["add", "reduce"]]),
    (lambda x: (lambda y: y + x @ (x @ y))(x @ x), [["dot"], ["dot"], ["dot", "add"]]),
    (lambda x: ops.tanh(x @ x + random.uniform(random.key(0), (5, 5))), None),
], ids=lambda value: None if callable(value) else str(value))
def test_a_product_goes_on_with_the_loop_that_alone_reads_it(function, expected):
    found = kernels(function, SQUARE)
    assert found == expected if expected else ["dot"] in found


def weighted(function):
    """The gradient of a function's weighted sum, as training asks for it."""
    return lambda x, ct: grad(lambda x: ops.sum(function(x) * ct))(x)


LAYER, GROUP, BATCH = LayerNorm.init(8), GroupNorm.init(8, 2), BatchNorm.init(8)


@pytest.mark.parametrize(("function", "count"), [
    (softmax, 1), (log_softmax, 1), (LAYER, 1), (GROUP, 1), (gelu, 1), (lambda x: ops.maximum(BATCH(x), 0.0), 2),
    (lambda x: BATCH.train(x)[0], 5)], ids=["softmax", "log_softmax", "layer", "group", "gelu", "batch", "train"])
def test_layers_are_few_kernels(function, count):
    assert len(kernels(function, drawn(2, 3, 5, 8))) == count


@pytest.mark.parametrize(("function", "count"), [
    (softmax, 1), (log_softmax, 1), (LAYER, 1), (GROUP, 1), (gelu, 1), (lambda x: BATCH.train(x)[0], 7)],
    ids=["softmax", "log_softmax", "layer", "group", "gelu", "train"])
def test_gradients_of_layers_are_few_kernels(function, count):
    assert len(kernels(weighted(function), drawn(2, 3, 5, 8), drawn(2, 3, 5, 8))) == count


def test_parameters_of_a_layer_norm_take_a_kernel_each():
    assert len(kernels(lambda layer, x, ct: grad(lambda both: ops.sum(both[0](both[1]) * ct))((layer, x)), LAYER,
                       drawn(6, 8), drawn(6, 8))) == 3


@pytest.mark.parametrize(("shape", "count"), [
    ((4, 64), 1), ((64, MAXIMUM_ROW), 1), ((64, MAXIMUM_ROW + 1), 3), ((2, MAXIMUM_ROW), 3), ((4, 1), 3)])
def test_only_rows_that_fit_a_cache_are_walked_in_stages(shape, count):
    x = Array(Aval(dtypes.float32, shape), np.broadcast_to(np.float32(1), shape))
    assert len(kernels(softmax, x)) == count


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


def test_kernels_have_no_more_operands_than_a_step():
    def choices(conditions, branches):
        results = [branches[0]]
        for number in range(1, MAXIMUM_EQUATIONS):
            results.append(ops.select(conditions[number], branches[number], results[-1]))
        return results

    branches = drawn(MAXIMUM_EQUATIONS, 6)
    found, expected = (jit(choices, device=device)(branches > 0, branches) for device in ("cpu", "reference"))
    np.testing.assert_array_equal([row.numpy() for row in found], [row.numpy() for row in expected])


@pytest.mark.parametrize("seed", range(0, 120, 4))
def test_nodes_hold_each_equation_once_in_order(seed):
    function, arguments = random_graph(seed, length=20)
    graph = graph_of(function, *arguments)
    nodes = fuse(graph)
    held = [equation for node in nodes for equation in node.equations]
    assert set(held) == {equation for equation in graph.equations if equation.op.name not in VIEWS}
    assert len(held) == len(set(held))
    made = {*graph.inputs, *graph.constants}
    for node in nodes:
        inside = {value: equation for equation in node.equations for value in equation.outputs}
        for equation in node.equations:
            for value in equation.inputs:
                source = sources(graph)[value][0]
                own = node.is_loop or (equation is not node.equations[0] and node.equations[0].op.name in PRODUCTS)
                assert source is None or source in made or (own and source in inside)
                if source in inside:
                    check_place(graph, node, inside[source], equation, value)
        made |= inside.keys()
        reductions = {equation.params["axes"] for equation in node.equations if equation.op.name == "reduce"}
        assert reductions <= {node.axes} or not node.is_loop


def sources(graph):
    """For every value the one behind views, None for an iota, and the position there of each of its elements."""
    found = {value: (value, np.arange(value.aval.size).reshape(value.aval.shape)) for value in
             (*graph.inputs, *graph.constants, *(v for e in graph.equations for v in e.outputs))}
    for equation in graph.equations:
        if equation.op.name in VIEWS and not equation.inputs:
            found[equation.outputs[0]] = None, found[equation.outputs[0]][1]
        elif equation.op.name in VIEWS:
            source, places = found[equation.inputs[0]]
            found[equation.outputs[0]] = source, equation.op.numpy(places, **equation.params)
    return found


def check_place(graph, node, maker, reader, value):
    """What an equation reads of its node is of the same element or row, and complete."""
    if not node.is_loop:
        np.testing.assert_array_equal(sources(graph)[value][1].reshape(-1), np.arange(value.aval.size))
        return
    rows = np.zeros(node.shape, int) + np.arange(np.prod(node.shape, dtype=int) // max(row_length(node), 1)).reshape(
        [1 if axis in (node.axes or ()) else extent for axis, extent in enumerate(node.shape)])
    of_row = maker.op.name == "reduce" or node.is_per_row(maker)
    places = sources(graph)[value][1].reshape(-1)
    if of_row and not node.is_per_row(reader):
        np.testing.assert_array_equal(places, rows.reshape(-1))
        assert node.stages[maker] < node.stages[reader]
    else:
        assert of_row == node.is_per_row(reader)
        np.testing.assert_array_equal(places, np.arange(places.size))
        assert node.stages[maker] <= node.stages[reader]


def row_length(node):
    return int(np.prod([node.shape[axis] for axis in node.axes or ()], dtype=int))


def test_a_gradient_of_a_dense_layer_has_few_kernels():
    def loss(w, x):
        return ops.mean(ops.tanh(x @ w) ** 2)

    assert len(kernels(lambda w, x: grad(lambda w: loss(w, x))(w), drawn(5, 4), X)) <= 4
