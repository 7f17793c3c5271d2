"""Scans as compiled loops: what is carried, what is stacked, what is done before, on any number of threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.accel import cpu, threads
from core.accel.finished import ARENA
from core.accel.passes.memory import lifetimes
from core.accel.plan import _touched, make_plan
from core.accel.step import Repeat, Step
from core.engine import nn, ops, random, tree
from core.engine.array import as_array
from core.engine.backends import Options
from core.engine.grad import grad
from core.engine.jit import close, jit
from tests.accel.agreement import assert_agree, assert_same_bits
from tests.accel.test_executable import PoisonedNumpy
from tests.accel.test_memory import overlapping

LENGTHS = (97, 98)
"""Odd and even: a carry ends in one of two places. More than may be unrolled."""


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2)


def plan_of(function, *arguments, held=0):
    return make_plan(close(jit(function, device="null").trace(*arguments)), Options(held=held), "null")


def repeats(plan):
    return [step for step in plan.body if isinstance(step, Repeat)]


W, START, OTHER = drawn(4, 4, seed=1), drawn(3, 4, seed=2), drawn(3, 4, seed=3)


def cell(state, row):
    return ops.tanh(state @ W + row)


def shifted(carry, row):
    first, second, third = carry
    return (cell(third, row), first, second), second


def exchanged(carry, row):
    one, other = carry
    return (other, cell(one, row)), None


def framed(state, row):
    """Parts of an array are the same in every step."""
    moved = ops.pad(row, 2.0, low=(0, 1), high=(0, 0), interior=(0, 0))
    wide = ops.concatenate([ops.zeros((3, 1)), cell(state, row), moved], axis=1)
    return wide[:, 1:5], wide


def noisy(carry, row):
    key, use = random.split(carry[1])
    return (cell(carry[0], row) + random.uniform(use, (3, 4)), key), None


SCANS = {
    "last only": lambda x: ops.scan(lambda c, r: (cell(c, r), None), START, x),
    "stacked after": lambda x: ops.scan(lambda c, r: ((n := cell(c, r)), n), START, x),
    "stacked before": lambda x: ops.scan(lambda c, r: (cell(c, r), c), START, x),
    "stacked before and after": lambda x: ops.scan(lambda c, r: ((n := cell(c, r)), (c, n, c, n * 2)), START, x),
    "reverse": lambda x: ops.scan(lambda c, r: ((n := cell(c, r)), (c, n)), START, x, reverse=True),
    "reverse, last only": lambda x: ops.scan(lambda c, r: (cell(c, r), r + 1), START, x, reverse=True),
    "shifted": lambda x: ops.scan(shifted, (START, OTHER, START * 2), x),
    "exchanged": lambda x: ops.scan(exchanged, (START, OTHER), x),
    "same twice": lambda x: ops.scan(lambda c, r: (((n := cell(c[0], r)), n), None), (START, OTHER), x),
    "carried round": lambda x: ops.scan(lambda c, r: ((c[0], cell(c[1], c[0] + r)), c[0]), (START, OTHER), x),
    "turned": lambda x: ops.scan(lambda c, r: (cell(c, r), (c.T, c[::2, 1:], r, W, c.reshape(6, 2))), START, x),
    "numbers": lambda x: ops.scan(lambda c, r: (c + 1, c * 2), as_array(0), x),
    "no carry": lambda x: ops.scan(lambda c, r: (None, (cell(START, r), ops.arange(3), ops.exp(r))), None, x),
    "constant start": lambda x: ops.scan(lambda c, r: (cell(c, r), c), ops.zeros((3, 4)), x),
    "sequences of views": lambda x: ops.scan(
        lambda c, r: (cell(c, r[0].T + r[1]), c), START,
        (ops.mirror(ops.moveaxis(x, 1, 2), (0,)), ops.broadcast_to(OTHER, x.shape))),
    "positions": lambda x: ops.scan(lambda c, r: (c / 2 + r.astype("f32"), c), x[0], ops.arange(x.shape[0])),
    "framed": lambda x: ops.scan(framed, START, x),
    "rows": lambda x: ops.scan(lambda c, r: (ops.sum(cell(c, r), axis=1, keepdims=True) * r, ops.sum(c)), START, x),
    "noise": lambda x: ops.scan(noisy, (START, random.key(3)), x),
    "invariant": lambda x: ops.scan(lambda c, r: (ops.tanh(c * ops.sum(ops.exp(W)) + r @ ops.tanh(W).T), None), START,
                                    x),
    "one behind the other": lambda x: ops.scan(lambda c, r: (cell(c, r), c), START,
                                               ops.scan(lambda c, r: (cell(c, r), c), START, x)[1], reverse=True),
    "no elements": lambda x: ops.scan(lambda c, r: ((c[0] * 2, cell(c[1], r)), c[0]), (ops.zeros((0, 2)), START), x),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", SCANS)
def test_scans_agree_with_the_reference(name, length, monkeypatch):
    monkeypatch.setattr(cpu, "np", PoisonedNumpy())
    x = drawn(length, 3, 4)
    assert repeats(plan_of(SCANS[name], x)), "the scan is no loop"
    function = jit(SCANS[name], device="cpu")
    expected = tree.leaves(jit(SCANS[name], device="reference")(x))
    for _ in range(2):
        for wanted, found in zip(expected, tree.leaves(function(x)), strict=True):
            assert_agree(wanted, found)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["last only", "reverse", "shifted", "framed", "turned"])
def test_gradients_agree_with_the_reference(name, length):
    def loss(x):
        return sum((ops.sum(leaf * leaf) for leaf in tree.leaves(SCANS[name](x))), as_array(np.float32(0)))

    x = drawn(length, 3, 4)
    expected, found = (jit(grad(loss), device=device)(x) for device in ("reference", "cpu"))
    assert_agree(expected, found)


@pytest.mark.parametrize("name", SCANS)
def test_what_a_loop_keeps_shares_no_memory_with_what_lives_beside_it(name):
    plan = plan_of(SCANS[name], drawn(97, 3, 4))
    spans = lifetimes([[buffer for buffer in touched if plan.base_of[buffer][0] == ARENA]
                       for step in plan.body for touched in _touched(step)])
    assert not list(overlapping(spans, {span.buffer: plan.base_of[span.buffer][1] for span in spans}))
    for repeat in repeats(plan):
        for step in repeat.steps:
            written = {step.operands[index] for index in step.writes}
            assert not written & (set(step.operands) - written), "a step reads the place it writes"


@pytest.mark.parametrize(("batch", "product"), [(8, "matmul"), (1, "matmul thin")])
@pytest.mark.parametrize("is_bound", [True, False])
def test_only_the_cell_is_left_in_the_loop(batch, product, is_bound):
    """Weights are packed once, and neither carries nor stacks are copied."""
    layer, x = nn.LSTM.init(random.key(0), 5, 48), drawn(batch, 33, 5)
    leaves, structure = tree.flatten(layer)
    plan = plan_of(lambda *given: tree.unflatten(structure, given[:-1])(given[-1]), *leaves, x,
                   held=len(leaves) if is_bound else 0)
    (repeat,) = repeats(plan)
    assert len(repeat.steps) == 2 and repeat.steps[0].name == product
    assert "pack" in {step.name for step in (plan.prologue if is_bound else plan.body) if isinstance(step, Step)}
    assert not any(isinstance(step, Repeat) for step in plan.prologue)


def test_a_loop_of_constants_runs_once():
    plan = plan_of(lambda x: SCANS["reverse"](drawn(97, 3, 4))[1][0] + x, START)
    assert not repeats(plan) and any(isinstance(step, Repeat) for step in plan.prologue)


def test_plans_of_long_scans_are_small():
    sizes = [len(plan_of(SCANS["stacked after"], drawn(length, 3, 4)).report.steps) for length in (50, 5000)]
    assert sizes[0] == sizes[1]
    reports = [plan_of(SCANS["stacked after"], drawn(length, 3, 4)).report for length in (50, 100)]
    assert 1.8 < reports[1].flops / reports[0].flops <= 2


@pytest.mark.parametrize("layer", (nn.LSTM, nn.GRU))
@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize(("batch", "hidden"), [(1, 7), (3, 16), (8, 33), (17, 64)])
def test_recurrent_layers_agree_with_the_reference_on_any_number_of_threads(layer, reverse, batch, hidden):
    made = layer.init(random.key(1), 6, hidden, reverse=reverse)
    leaves, structure = tree.flatten(made)
    x = drawn(batch, 31, 6)

    def function(leaves, x):
        return ops.sum(tree.unflatten(structure, leaves)(x)[0] ** 2)

    def both(leaves, x):
        return tree.unflatten(structure, leaves)(x), grad(function)(leaves, x)

    expected = tree.leaves(jit(both, device="reference")(leaves, x))
    compiled, before, found = jit(both, device="cpu"), threads.pool().threads, []
    try:
        for count in (1, 2, 3):
            threads.set_threads(count)
            found.append(tree.leaves(compiled(leaves, x)))
    finally:
        threads.set_threads(before)
    for wanted, given in zip(expected, found[0], strict=True):
        assert_agree(wanted, given)
    for one, other in pairwise(found):
        assert_same_bits(one, other)
