"""Values that are made again where they are read: which, that results agree, and that nothing stores them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import chips
from core.accel.passes import recompute as module
from core.accel.passes.fuse import fuse
from core.accel.passes.recompute import recompute
from core.accel.passes.simplify import simplify
from core.engine import ops, tree
from core.engine.array import as_array
from core.engine.grad import grad
from core.engine.jit import close, jit
from core.engine.nn import BatchNorm, GroupNorm, LayerNorm, relu
from tests.accel.agreement import assert_agree

X = np.random.default_rng(0).normal(size=(6, 5, 7, 8)).astype(np.float32)
CT = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Let small arrays count as large."""
    small = replace(chips.host(), second_cache=64)
    monkeypatch.setattr(module, "host", lambda: small)


def simplified(function, *arguments):
    return simplify(close(jit(function).trace(*arguments)))


def added(function, *arguments):
    """Names of the ops that are made again."""
    graph = simplified(function, *arguments)
    again = recompute(graph, fuse(graph))
    again.check()
    counts = {}
    for sign, equations in ((-1, graph.equations), (1, again.equations)):
        for equation in equations:
            counts[equation.op.name] = counts.get(equation.op.name, 0) + sign
    return {name: count for name, count in counts.items() if count}


def centred(x):
    return x - ops.mean(x, (0, 1, 2))


def scaled(c):
    """A function whose argument is read by the sum of its squares, and by what needs that sum."""
    return c * ops.mean(c * c, (0, 1, 2))


def variance_first(x):
    return scaled(centred(x))


def with_centred(x):
    c = centred(x)
    return scaled(c), c


def test_what_is_made_again():
    assert added(variance_first, X) == {"sub": 1}


@pytest.mark.parametrize("function", [
    with_centred,  # a result is stored anyway
    lambda x: scaled(ops.exp(x)),  # costly
    lambda x: ops.conv(centred(x), ops.full((1, 1, 8, 8), 1.0), stride=(1, 1), padding=((0, 0), (0, 0)),
                       dilation=(1, 1), input_dilation=(1, 1), groups=1) + centred(x),  # no loop reads it
    lambda x: x * 2.0 + 1.0,  # nobody else reads it
], ids=("result", "costly", "product", "alone"))
def test_what_is_not_made_again(function):
    assert added(function, X) == {}


def test_small_values_are_stored(monkeypatch):
    monkeypatch.setattr(module, "host", chips.host)
    assert added(variance_first, X) == {}


def test_a_sum_of_two_is_stored_for_a_reader_that_has_neither():
    """Making it again there would read two arrays in place of one."""
    def function(x, y):
        total = x + y
        scale = ops.mean(total, (0, 1, 2))
        for _ in range(2 * module._NEAR):  # nodes in between, so that the operands would stay for long
            scale = ops.cumsum(scale, axis=0, reverse=False)
        return total * scale

    assert added(function, X, CT) == {}


def batch_norm(x, ct):
    return grad(lambda both: ops.sum(relu(both[0].train(both[1])[0]) * ct))((BatchNorm.init(8), x))


def layer_norm(x, ct):
    return grad(lambda both: ops.sum(relu(both[0](both[1])) * ct))((LayerNorm.init(8), x))


def group_norm(x, ct):
    return grad(lambda both: ops.sum(relu(both[0](both[1])) * ct))((GroupNorm.init(8, 2), x))


@pytest.mark.parametrize("function", (batch_norm, layer_norm, group_norm))
def test_agreement(function):
    expected, actual = (tree.leaves(jit(function, device=device)(X, CT)) for device in ("reference", "cpu"))
    for one, other in zip(expected, actual, strict=True):
        assert_agree(one, other, 1e-4)


def test_steps_of_a_batch_norm_touch_its_input_and_gradients_alone():
    """Mean, variance, two sums of the gradient and the gradient itself read 8 arrays and write one."""
    report = jit(batch_norm, device="null").report(X, CT)
    assert report.nbytes < 9.5 * X.nbytes


def test_chains_end():
    x = as_array(X)

    def function(x):
        y = x
        for _ in range(module._LONGEST + 1):
            y = (y + 1.0) * 1.5
        return y * ops.mean(y, (0, 1, 2))

    assert added(function, x) == {}
