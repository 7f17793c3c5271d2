"""What TPU v2 and v3 make of a graph: a real chip's product, every op of the table, passes, loops and calls."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.accel.tpu.numerics import round_products
from core.engine import dtypes, ops, tree
from core.engine.array import Array, as_array
from core.engine.backends import Options, backend
from core.engine.grad import grad, vjp
from core.engine.graph import Graph
from core.engine.jit import close, jit
from core.engine.testing import random_graph
from tests.accel.agreement import assert_agree
from tests.accel.test_backends import SAMPLED, cases, leaves, ones_like


def defined(function, *arguments, passes=1):
    """What a chip's results are: those of the reference for the graph with rounded products."""
    graph = round_products(close(jit(function).trace(*arguments)), passes)
    graph.check()
    return backend("reference").compile(graph, Options())([array.storage for array in map(as_array, arguments)])


def compare(function, *arguments, passes=1, tolerance=None):
    device = "tpu-v2" if passes == 1 else f"tpu-v2:{passes}"
    found = leaves(jit(function, device=device)(*arguments))
    for expected, actual in zip(defined(function, *arguments, passes=passes), found, strict=True):
        assert_agree(Array(actual.aval, expected), actual, tolerance)


def equations(graph):
    """All equations, in scans and calls too."""
    for equation in graph.equations:
        yield equation
        for inner in equation.params.values():
            if isinstance(inner, Graph):
                yield from equations(inner)


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("device", ["reference", "tpu-v2", "tpu-v3"])
def test_the_product_of_a_real_chip(realdata, device):
    golden = json.loads((realdata / "accel/golden_numerics/tpu_matmul_golden.json").read_text())["case1"]
    x, y, expected, exact = (np.array(golden[name], np.float32) for name in ("x", "y", "tpu", "cpu_f32"))

    def product(x, y):
        return x @ y

    found = defined(product, x, y)[0] if device == "reference" else jit(product, device=device)(x, y).numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(jit(product, device="tpu-v2:6")(x, y).numpy(), exact, rtol=2e-7)


@pytest.mark.parametrize("device", [None, "reference", "cpu", "tpu-v2"])
def test_rounding_to_bfloat16(realdata, device):
    golden = json.loads((realdata / "accel/golden_numerics/bf16_rne_vectors.json").read_text())
    pairs = golden["f32_bits_to_bf16_bits_rne"] * 5  # whole vectors
    given = np.array([int(before, 16) for before, _ in pairs], np.uint32).view(np.float32)

    def convert(x):
        return x.astype("bf16")

    found = (jit(convert, device=device) if device else convert)(as_array(given)).storage
    assert [f"{bits:04x}" for bits in found] == [after for _, after in pairs]


@pytest.mark.parametrize("op", SAMPLED, ids=lambda op: op.name)
def test_every_op(op):
    for arrays, params in cases(op, dtypes.float32):
        compare(lambda *inputs, params=params: op(*inputs, **params), *arrays)


@pytest.mark.parametrize("op", [op for op in SAMPLED if op.family == "contract"], ids=lambda op: op.name)
@pytest.mark.parametrize("passes", (1, 3, 6))
def test_gradients_of_products(op, passes):
    for arrays, params in cases(op, dtypes.float32):
        def gradients(*inputs, params=params):
            value, pull_back = vjp(lambda inputs: op(*inputs, **params), list(inputs))
            return pull_back(tree.map(ones_like, value))

        compare(gradients, *arrays, passes=passes)


@pytest.mark.parametrize(("passes", "least", "most"), [(1, 2.0**-10, 2.0**-8), (3, 2.0**-19, 2.0**-16),
                                                       (6, 0.0, 2.0**-21)])
def test_errors_of_passes(passes, least, most):
    a, b = drawn(70, 200), drawn(200, 50, seed=1)
    exact = a.numpy().astype(float) @ b.numpy().astype(float)
    found = jit(lambda a, b: a @ b, device="tpu-v3" if passes == 1 else f"tpu-v3:{passes}")(a, b).numpy()
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert least <= error <= most
    compare(lambda a, b: a @ b, a, b, passes=passes)


@pytest.mark.parametrize("device", ["tpu-v2", "tpu-v2:3", "tpu-v2:6"])
def test_infinity_and_nan(device):
    a, b = np.ones((3, 4), np.float32), np.full((4, 2), 1.5, np.float32)
    a[0, 1], a[1, 2] = np.inf, np.nan
    found = jit(lambda a, b: a @ b, device=device)(a, b).numpy()
    np.testing.assert_array_equal(found, [[np.inf] * 2, [np.nan] * 2, [6.0] * 2])


def looped(x, w):
    def step(state, row):
        state = ops.tanh(state @ w + row)
        return state, jit(lambda y: y @ w)(state)

    return ops.scan(step, ops.zeros((3, 12)), x)[1]


def test_loops_calls_and_closed_over_weights():
    x, w, closed = drawn(60, 3, 12), drawn(12, 12, seed=1), drawn(12, 5, seed=2)
    graph = round_products(close(jit(looped).trace(x, w)))
    makers = {value: equation for equation in equations(graph) for value in equation.outputs}
    products = [equation for equation in equations(graph) if equation.op.name == "dot"]
    assert len(products) == 2
    assert all(makers[value].op.name == "convert" for product in products for value in product.inputs)
    compare(looped, x, w, tolerance=2e-3)  # a sum in another order may round a state to its neighbour
    compare(lambda x: ops.scan(lambda total, row: (total + row @ closed, None), ops.zeros((3, 5)), x)[0], x)
    compare(lambda w: grad(lambda w: ops.sum(looped(x, w)))(w), w, tolerance=2e-2)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed):
    function, arguments = random_graph(seed)
    graph = round_products(close(jit(function).trace(*arguments)))
    expected = backend("reference").compile(graph, Options())([array.storage for array in arguments])
    for wanted, found in zip(expected, jit(function, device="tpu-v2")(*arguments), strict=True):
        wanted = Array(found.aval, wanted).numpy().astype(float)
        # A sum in another order may be rounded to the neighbour.
        np.testing.assert_allclose(found.numpy().astype(float), wanted, rtol=0,
                                   atol=6e-2 * max(1.0, np.abs(wanted).max(initial=0)))


def test_what_is_rounded_once_serves_all_who_look():
    def both(x, w):
        return x @ w, x.T @ (x @ w), (x @ w) @ w.T

    graph = round_products(close(jit(both).trace(drawn(20, 30), drawn(30, 5))))
    roundings = [equation for equation in graph.equations if equation.params.get("dtype") is dtypes.bfloat16]
    assert len(roundings) == 4  # x, w, and the two products that others read


def test_other_types_keep_their_meaning():
    numbers = np.random.default_rng(0)
    for dtype in ("f64", "bf16", "i32", "i8"):
        a, b = (as_array(numbers.integers(-9, 9, shape) / 7, dtype) for shape in ((5, 6), (6, 4)))
        found, expected = (jit(lambda a, b: a @ b, device=device)(a, b) for device in ("tpu-v2", "cpu"))
        assert found.storage.tobytes() == expected.storage.tobytes()
