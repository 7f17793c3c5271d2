"""Kernels that walk rows in stages, and reductions of columns: agreement, special numbers, accuracy, threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import threads
from core.accel.loopir import Nest, Operand, Reduction, Statement, normal_loops
from core.accel.stages import ROW_BUFFER, borrowed, choose_kept, passes
from core.accel.step import contiguous
from core.engine import dtypes, ops, tree
from core.engine.array import as_array
from core.engine.grad import grad
from core.engine.jit import jit
from core.engine.nn.activation import log_softmax, softmax
from core.engine.nn.norm import BatchNorm, GroupNorm, LayerNorm
from tests.accel.agreement import assert_agree, assert_same_bits


def drawn(*shape, dtype=dtypes.float32, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape), dtype)


def both(function, *arguments):
    """Leaves of the results of the reference and of the cpu."""
    return [tree.leaves(jit(function, device=device)(*arguments)) for device in ("reference", "cpu")]


def compare(function, *arguments, tolerance=None):
    for expected, actual in zip(*both(function, *arguments), strict=True):
        assert_agree(expected, actual, tolerance)


def normalised(x):
    layer = LayerNorm.init(x.shape[-1])
    return layer(x)


FUNCTIONS = {
    "softmax": softmax, "log_softmax": log_softmax, "layer norm": normalised,
    "two axes": lambda x: x - ops.mean(x * x, (0, 1), True) if x.ndim == 2 else softmax(x.reshape(x.shape[0], -1)),
    "rows": lambda x: (ops.amax(x, -1) - ops.amin(x, -1), x * ops.tanh(ops.sum(x, -1, True)), ops.exp(x)),
}
SHAPES = ((1, 1), (1, 7), (5, 1), (3, 64), (7, 129), (2, 3, 33), (3, 4097), (17, ROW_BUFFER + 3), (2, 70_001))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name, shape):
    function, x = FUNCTIONS[name], drawn(*shape)
    # In rows of one some results are rounding errors around 0; the summand gives them a scale.
    compare(lambda x: [leaf + 1.0 for leaf in tree.leaves(function(x))] if shape[-1] == 1 else function(x), x)
    weights = [drawn(*leaf.shape, seed=1) for leaf in tree.leaves(function(x))]

    def loss(x, weights):
        terms = zip(tree.leaves(function(x)), weights, strict=True)
        return sum(ops.sum(leaf * weight) for leaf, weight in terms)

    if shape[-1] > 1:  # a row of one has gradients of 0, and nothing sets their scale
        compare(lambda x, weights: grad(lambda x: loss(x, weights))(x), x, weights, tolerance=3e-5)


@pytest.mark.parametrize("shape", ((5, 40), (5, 1), (1, 1), (40,), (1,)), ids=str)
def test_what_rows_make_before_between_and_after_their_passes(shape):
    """Each is wanted outside of the kernel: functions of rows alone, of reductions, and of elements."""
    def function(x, row):
        before = ops.tanh(row + 1)
        total = ops.sum(x * x, -1)
        between = total * before
        y = x - between.reshape(*x.shape[:-1], 1)
        largest = ops.amax(y, -1)
        return before, total, between, y, largest, largest + before

    rng = np.random.default_rng(0)
    compare(function, rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[:-1]).astype(np.float32))


@pytest.mark.parametrize("dtype", (dtypes.float64, dtypes.bfloat16), ids=str)
@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
def test_other_floats(name, dtype):
    tolerance = 2e-2 if dtype is dtypes.bfloat16 else None
    compare(FUNCTIONS[name], drawn(5, 77, dtype=dtype), tolerance=tolerance)


@pytest.mark.parametrize("shape", ((1, 1, 1, 4), (2, 3, 3, 8), (2, 20, 20, 12), (3, 1, 1, 8)), ids=str)
def test_group_norm(shape):
    norm = GroupNorm.init(shape[-1], 4)
    if shape != (1, 1, 1, 4):
        compare(lambda norm, x, ct: grad(lambda both: ops.sum(both[0](both[1]) * ct))((norm, x)), norm, drawn(*shape),
                drawn(*shape, seed=1), tolerance=1e-4)
    compare(lambda norm, x: norm(x), norm, drawn(*shape))


def test_batch_norm():
    x = drawn(8, 40, 40, 6)
    compare(lambda norm, x: norm.train(x), BatchNorm.init(6), x)
    compare(lambda norm, x: grad(lambda x: ops.sum(norm.train(x)[0] * x * x))(x), BatchNorm.init(6), x, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("length", (3, 100, 70_001))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_numbers(name, length):
    x = np.random.default_rng(0).normal(size=(6, length)).astype(np.float32)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[row, length // 2] = value
    x[3], x[4, 0], x[4, -1] = -np.inf, np.inf, -np.inf
    compare(FUNCTIONS[name], as_array(x))


@pytest.mark.parametrize("dtype", (dtypes.float32, dtypes.float64, dtypes.int32), ids=str)
@pytest.mark.parametrize("shape", ((40_000, 3), (40_009, 3), (257, 700), (3, 5, 1200, 2)), ids=str)
def test_columns(shape, dtype):
    x = as_array(np.random.default_rng(0).normal(size=shape) * 100 if dtype.is_float else
                 np.random.default_rng(0).integers(-9, 9, shape), dtype)
    axes = tuple(range(len(shape) - 1))
    compare(lambda x: (ops.sum(x, axes), ops.amax(x, axes), ops.amin(x + 1, axes), ops.sum(x * x, axes), x - 1), x)


def test_long_columns_are_as_exact_as_long_rows():
    x = np.random.default_rng(0).random((1 << 17, 4)).astype(np.float32)
    exact = x.astype(np.float64).sum(0)
    found = jit(lambda x: ops.sum(x, 0))(as_array(x)).numpy()
    assert np.abs(found / exact - 1).max() < 4 * 2.0**-24


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_special_numbers_in_long_columns():
    x = np.random.default_rng(0).normal(size=(40_000, 5)).astype(np.float32)
    x[30_000, 0], x[5, 1], x[39_999, 2], x[7, 3], x[9, 3] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    compare(lambda x: (ops.sum(x, 0), ops.amax(x, 0), ops.amin(x, 0)), as_array(x))


LARGE = {
    "softmax": (softmax, (300, 301)), "layer norm": (normalised, (300, 301)),
    "group norm": (lambda x: GroupNorm.init(8, 2)(x), (4, 24, 24, 8)),
    "columns": (lambda x: ops.sum(x, 0), (20_000, 9)),
    "train": (lambda x: BatchNorm.init(9).train(x)[0], (2, 90, 90, 9)),
}


@pytest.mark.parametrize("name", LARGE)
def test_same_bits_at_any_number_of_threads(name):
    function, shape = LARGE[name]
    compiled, x, before, results = jit(function), drawn(*shape), threads.pool().threads, []
    try:
        for count in (1, 2, 3):
            threads.set_threads(count)
            results.append(tree.leaves(compiled(x)))
    finally:
        threads.set_threads(before)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


# --- what is kept ----------------------------------------------------------------------------------------------------

OPERANDS = [Operand(name, contiguous(dtypes.float32, (3, 4)), role) for name, role in (("x", "read"), ("z", "write"))]
REDUCTIONS = [Reduction("m", "x", "max", dtypes.float32), Reduction("t", "e", "sum", dtypes.float32, 1)]


def statements(costly):
    return [Statement("s", "x - m", dtypes.float32, ("x", "m"), 1),
            Statement("e", "exp_f32(s)", dtypes.float32, ("s",), 1, costly=costly),
            Statement("z", "e / t", dtypes.float32, ("e", "t"), 2)]


@pytest.mark.parametrize(("costly", "row", "expected"), [
    (True, 4, ("e",)), (True, ROW_BUFFER, ("e",)), (True, ROW_BUFFER + 1, ()), (False, 4, ())])
def test_what_is_kept(costly, row, expected):
    assert choose_kept(OPERANDS, statements(costly), REDUCTIONS, row) == expected


@pytest.mark.parametrize(("kept", "expected"), [(("e",), [["s", "e"], ["z"]]), ((), [["s", "e"], ["s", "e", "z"]])])
def test_a_pass_computes_what_it_needs(kept, expected):
    nest = Nest(normal_loops((3, 4), (1,), OPERANDS), tuple(OPERANDS), tuple(statements(True)), frozenset(),
                tuple(REDUCTIONS), kept)
    first, *rest = passes(nest)
    assert not first.statements and first.reads == (0,)
    assert [[statement.result for statement in part.statements] for part in rest] == expected
    assert [part.writes for part in rest] == [(), (1,)]


X, Z = OPERANDS
STRIDED = replace(Z.view, shape=(3, 300), strides=(1, 3))


@pytest.mark.parametrize(("operands", "expected"), [
    ([X, Z], {"e": 1}),
    ([replace(X, becomes="z"), Z], {}),  # later passes read x
    ([X, replace(Z, streamed=True)], {}),
    ([X, replace(Z, view=contiguous(dtypes.bfloat16, (3, 300)))], {}),
    ([X, replace(Z, view=STRIDED)], {}),
    ([X, Z, replace(Z, name="e")], {"e": 1}),  # e is wanted, too
], ids=("free", "in place", "streamed", "rounded", "strided", "two"))
def test_kept_values_lie_where_the_last_pass_writes(operands, expected):
    long = [replace(operand, view=contiguous(operand.view.dtype, (3, 300)) if operand.view.shape == (3, 4)
                    else operand.view) for operand in operands]
    nest = Nest(normal_loops((3, 300), (1,), long), tuple(long), tuple(statements(True)), frozenset(),
                tuple(REDUCTIONS), ("e",))
    assert borrowed(nest, passes(nest)[-1]) == expected


def test_a_row_that_takes_the_place_of_another():
    x = drawn(9, 333)
    program = jit(lambda x: (softmax(x), ())).bind(x, update=True)
    program()
    assert_agree(jit(softmax, device="reference")(x), program.value)
