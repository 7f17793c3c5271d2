"""Derivatives of functions: higher orders, trees, scans, jit inside grad inside jit."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine import dtypes, ops, tree
from core.engine.array import as_array
from core.engine.grad import grad, value_and_grad, vjp
from core.engine.jit import jit
from core.engine.ops.control import all_reduce
from core.engine.testing import check_grads

DEVICES = ("reference", "cpu")


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape))


def test_grad_of_grad_of_grad():
    f = grad(grad(grad(lambda x: x * x * x * x + ops.sin(x))))
    assert f(as_array(np.float64(0.3))).item() == pytest.approx(24 * 0.3 - np.cos(0.3), rel=1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_jit_inside_grad_inside_jit(device):
    weights = drawn(4)
    inner = jit(lambda x, y: ops.tanh(x * weights) * y, device=device)

    def loss(x):
        return ops.sum(inner(x, ops.sin(x)) * inner(x, x))

    outer = jit(lambda x: grad(lambda z: ops.sum(grad(loss)(z) * z))(x), device=device)
    x = drawn(4, seed=1)
    eager = grad(lambda z: ops.sum(grad(loss)(z) * z))(x)
    np.testing.assert_allclose(outer(x).numpy(), eager.numpy(), rtol=1e-11)
    check_grads(loss, [x], order=2)


def test_gradients_are_trees_with_zeros_where_nothing_flows():
    point = {"w": drawn(3), "unused": drawn(2), "ids": as_array([1, 2]), "flag": as_array([True]), "nothing": None}
    value, gradient = value_and_grad(lambda p: ops.sum(p["w"] * p["w"]))(point)
    assert tree.flatten(gradient)[1] == tree.flatten(point)[1]
    assert [leaf.aval for leaf in tree.leaves(gradient)] == [leaf.aval for leaf in tree.leaves(point)]
    np.testing.assert_allclose(gradient["w"].numpy(), 2 * point["w"].numpy())
    assert not gradient["unused"].numpy().any() and value.shape == ()


def test_auxiliary_results_and_further_arguments():
    (loss, auxiliary), gradient = value_and_grad(lambda w, x, k: (ops.sum(w * x) * k, {"x": x, "twice": w * 2}),
                                                 has_aux=True)(drawn(3), drawn(3, seed=1), 2.0)
    np.testing.assert_allclose(gradient.numpy(), 2 * drawn(3, seed=1).numpy())
    np.testing.assert_array_equal(auxiliary["twice"].numpy(), 2 * drawn(3).numpy())
    assert loss.dtype is dtypes.float64


def test_vjp_takes_a_cotangent_of_any_shape():
    x = drawn(3, 4)
    value, pull_back = vjp(lambda x: {"a": ops.sum(x, 0), "b": x * x}, x)
    ct = {"a": drawn(4, seed=1), "b": drawn(3, 4, seed=2)}
    expected = ct["a"].numpy() + 2 * x.numpy() * ct["b"].numpy()
    np.testing.assert_allclose(pull_back(ct).numpy(), expected, rtol=1e-14)
    assert set(value) == {"a", "b"}


def test_a_value_used_often_gets_all_its_cotangents():
    check_grads(lambda x: x * x + ops.exp(x) * x - x / (x * x + 1), [drawn(5)], order=2)


def test_bfloat16_and_float32_gradients_keep_their_dtype():
    for dtype in (dtypes.bfloat16, dtypes.float32):
        assert grad(lambda x: ops.sum(ops.tanh(x) * 2))(as_array([0.5, 1.0], dtype)).dtype is dtype
    mixed = grad(lambda x: ops.sum(x.astype("f32") * 3))(as_array([0.5], dtypes.bfloat16))
    assert mixed.dtype is dtypes.bfloat16 and mixed.numpy() == 3


@pytest.mark.parametrize("point", ([1.0, 1.0, 0.5], [0.0, 0.0, 0.0]))
def test_ties_share_the_cotangent(point):
    x = as_array(point)
    ties = np.float32(x.numpy() == x.numpy().max())
    np.testing.assert_allclose(grad(ops.amax)(x).numpy(), ties / ties.sum())
    assert grad(lambda y: ops.sum(ops.maximum(y, y * 1.0)))(x).numpy() == pytest.approx(1)


# --- scan ------------------------------------------------------------------------------------------------------------

def cell(carry, x):
    state, count = carry
    state = ops.tanh(state * 0.7 + x @ WEIGHTS)
    return (state, count + 1), (state * x[:3], count)


WEIGHTS = drawn(4, 3, seed=9)


def loop(carry, xs, reverse):
    results = []
    for step in reversed(range(len(xs))) if reverse else range(len(xs)):
        carry, y = cell(carry, xs[step])
        results.append(y)
    results = results[::-1] if reverse else results
    counts = ops.concatenate([count.reshape(1) for _, count in results])
    return carry, (ops.stack([y for y, _ in results]), counts)


@pytest.mark.parametrize("device", (None, *DEVICES))
@pytest.mark.parametrize("reverse", (False, True))
def test_scan_is_the_loop(reverse, device):
    start, xs = (drawn(3), as_array(0)), drawn(5, 4, seed=1)
    def scanned(state, xs):
        return ops.scan(cell, state, xs, reverse=reverse)

    actual = (jit(scanned, device=device) if device else scanned)(start, xs)
    for found, wanted in zip(tree.leaves(actual), tree.leaves(loop(start, xs, reverse)), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reverse", (False, True))
def test_gradient_of_scan_is_that_of_the_loop(reverse, device):
    def loss(run):
        def function(arguments):
            state, xs = arguments
            (last, _), (ys, _) = run((state, as_array(0)), xs)
            return ops.sum(last * last) + ops.sum(ops.sin(ys))

        return function

    point = (drawn(3), drawn(5, 4, seed=1))
    scanned = loss(lambda s, x: ops.scan(cell, s, x, reverse=reverse))
    expected = grad(loss(lambda s, x: loop(s, x, reverse)))(point)
    for found, wanted in zip(jit(grad(scanned), device=device)(point), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-12)
    check_grads(scanned, [point], order=2)


def test_scan_with_captured_weights_and_random_keys():
    from core.engine import random

    def loss(w):
        def body(carry, _):
            state, key = carry
            key, use = random.split(key)
            noise = random.uniform(use, (3,)).astype("f64")
            return (ops.tanh(state * w + noise), key), None

        (state, _), _ = ops.scan(body, (ops.ones((3,), "f64"), random.key(4)), length=4)
        return ops.sum(state)

    check_grads(loss, [drawn(3)], order=2)
    compiled = jit(grad(loss), device="cpu")
    np.testing.assert_allclose(compiled(drawn(3)).numpy(), grad(loss)(drawn(3)).numpy(), rtol=1e-11)


def test_scan_without_steps():
    carry, ys = ops.scan(lambda c, x: (c + x, x * 2), drawn(3), as_array(np.zeros((0, 3))))
    assert ys.shape == (0, 3) and (carry.numpy() == drawn(3).numpy()).all()


def test_all_reduce_is_its_own_adjoint():
    _, pull_back = vjp(lambda x: all_reduce(x, group=lambda values: values * 2)[0] * 3, drawn(3))
    np.testing.assert_allclose(pull_back(as_array(np.ones(3))).numpy(), 6)


def test_powers_of_zero_have_the_gradients_of_their_limits():
    slope = grad(lambda x: ops.sum(ops.pow(x, as_array([0.0, 1.0, 2.0]))))
    assert slope(as_array(0.0)).item() == 1.0 and slope(as_array(3.0)).item() == 7.0
