"""Every op of the table on the cpu, against the reference: values, gradients, special numbers, extents of zero."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.accel.passes.exact import with_exact_products
from core.accel.passes.simplify import simplify
from core.engine import dtypes, ops, tree
from core.engine.array import Array, as_array
from core.engine.errors import ShapeError
from core.engine.grad import vjp
from core.engine.graph import Aval
from core.engine.jit import close, jit
from core.engine.ops.table import TABLE, infer
from tests.accel.agreement import assert_agree

KINDS = (dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.int32, dtypes.int16, dtypes.int8, dtypes.uint8)
SAMPLED = [op for op in TABLE.values() if op.samples()]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -2.5, 1e-40]


def leaves(result):
    return [leaf for leaf in tree.leaves(result) if leaf is not None]


def both(function, *arguments):
    """Leaves of the results of the reference and of the cpu."""
    return leaves(jit(function, device="reference")(*arguments)), leaves(jit(function, device="cpu")(*arguments))


def compare(function, *arguments, tolerance=None):
    for expected, actual in zip(*both(function, *arguments), strict=True):
        assert_agree(expected, actual, tolerance)


def converted(values, dtype):
    """An argument of a sample in another dtype, if it is of a float type; integers are its rounded triple."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return as_array(values)
    if dtype.kind in ("int", "uint"):
        values = np.rint(3 * (values if dtype.kind == "int" else np.abs(values)))
    return as_array(values, dtype)


def cases(op, dtype):
    """Arguments and parameters of the samples that an op takes in a dtype."""
    for sample in op.samples():
        arrays = [converted(values, dtype) for values in sample.inputs]
        try:
            infer(op, [array.aval for array in arrays], sample.params)
        except ShapeError:
            continue
        yield arrays, sample.params


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("op", SAMPLED, ids=lambda op: op.name)
def test_values(op, dtype):
    for arrays, params in cases(op, dtype):
        compare(lambda *inputs, params=params: op(*inputs, **params), *arrays)


def ones_like(array):
    return ops.full_like(array, 1)


@pytest.mark.parametrize("op", [op for op in SAMPLED if op.grad], ids=lambda op: op.name)
def test_gradients(op):
    for arrays, params in cases(op, dtypes.float32):
        def gradients(*inputs, params=params):
            def function(floats):
                rest = iter(floats)
                return op(*(next(rest) if x.dtype.is_float else x for x in inputs), **params)

            value, pull_back = vjp(function, [x for x in inputs if x.dtype.is_float])
            return pull_back(tree.map(ones_like, value))

        assert {leaf.dtype for leaf in leaves(gradients(*arrays))} <= {dtypes.float32}
        compare(gradients, *arrays)


# --- special numbers -------------------------------------------------------------------------------------------------

def grid(dtype):
    first, second = np.meshgrid(SPECIAL, SPECIAL)
    return as_array(first, dtype), as_array(second, dtype)


@pytest.mark.parametrize("dtype", (dtypes.float32, dtypes.float64), ids=str)
def test_special_numbers_in_loops(dtype):
    a, b = grid(dtype)
    compare(lambda a, b: [ops.add(a, b), a - b, a * b, a / b, ops.maximum(a, b), ops.minimum(a, b),
                          ops.select(a > b, a, b), -a, abs(a), ops.floor(a), ops.round(a)], a, b)
    compare(lambda a, b: [ops.compare(a, b, kind=kind) for kind in ("lt", "le", "gt", "ge", "eq", "ne")], a, b)
    compare(lambda a: [f(a) for f in (ops.exp, ops.log, ops.log1p, ops.sqrt, ops.tanh, ops.logistic, ops.erf)], a)
    compare(lambda a: [a.astype(target) for target in dtypes.ALL], a)


@pytest.mark.parametrize("dtype", (dtypes.float32, dtypes.float64, dtypes.bfloat16), ids=str)
@pytest.mark.parametrize("kind", ("sum", "max", "min"))
def test_special_numbers_in_reductions(kind, dtype):
    rows = np.random.default_rng(0).normal(size=(6, 37, 5))
    rows[1, 30], rows[2, 0], rows[3, 36, 2], rows[4, 3] = math.nan, math.inf, -math.inf, -math.inf
    x = as_array(rows, dtype)
    for axes in ((1,), (0,), (0, 2), (0, 1, 2), (2,)):
        compare(lambda x, axes=axes: ops.reduce(x, axes=axes, kind=kind), x)


def test_special_numbers_in_order():
    values = as_array(np.random.default_rng(0).permutation(SPECIAL * 5).astype(np.float32).reshape(8, 5))
    compare(lambda x: [ops.sort(x, axis=0), ops.sort(x, axis=1), ops.argmax(x, 0), ops.argreduce(x, axis=1, kind="min"),
                       ops.window(x, x, kind="max", size=(2, 2), stride=(1, 1), padding=((0, 0), (1, 1))),
                       ops.segment_reduce(x, np.int32([0, 1, 1, 0, 2, 5, -1, 2]), count=4, kind="max")], values)


@pytest.mark.parametrize("dtype", (dtypes.int32, dtypes.int64, dtypes.int8, dtypes.int16, dtypes.uint8, dtypes.uint32),
                         ids=str)
def test_integers_wrap_and_divide(dtype):
    limits = np.iinfo(dtype.storage)
    numbers = np.array([limits.min, limits.max, 0, 1, 2, 7, limits.max - 1], dtype.storage)
    a, b = (as_array(values.copy()) for values in np.meshgrid(numbers, numbers))
    compare(lambda a, b: [a + b, a - b, a * b, -a, abs(a), ops.maximum(a, b), ops.minimum(a, b), a / b, a < b, a == b,
                          ops.sum(a), ops.sum(a, 0), ops.amax(b, 1), ops.amin(a)], a, b)
    compare(lambda a: [a.astype(target) for target in dtypes.ALL], a)


def test_unsigned_bytes_meet_signed_ones():
    numbers = np.random.default_rng(0)
    x, w = numbers.integers(0, 256, (2, 9, 7, 33), np.uint8), numbers.integers(-128, 128, (3, 3, 33, 20), np.int8)
    results = jit(lambda x, w: (ops.conv(x, w, stride=(1, 2), padding=((1, 1), (0, 1)), dilation=(1, 1),
                                         input_dilation=(1, 1), groups=1), x[0, 0] @ w[0, 0], x[0, 0] @ w[0, 0, :, :1]))
    for expected, actual in zip(*both(results, x, w), strict=True):
        assert actual.dtype is dtypes.int32
        assert_agree(expected, actual)
    np.testing.assert_array_equal(actual.numpy(), x[0, 0].astype(int) @ w[0, 0, :, :1].astype(int))


@pytest.mark.parametrize("pair", [("i16", "i16"), ("i16", "i8"), ("i8", "i16"), ("u8", "i16")], ids="x".join)
def test_products_of_16_bits_wrap_around_in_32(pair):
    generator = np.random.default_rng(0)
    x, w = (as_array(generator.integers(limits.min, limits.max, shape, endpoint=True).astype(limits.dtype))
            for limits, shape in zip([np.iinfo(dtypes.as_dtype(name).storage) for name in pair],
                                     [(2, 9, 7, 33), (3, 3, 33, 20)], strict=True))
    function = jit(lambda x, w: (ops.conv(x, w, stride=(1, 2), padding=((1, 1), (0, 1)), dilation=(1, 1),
                                          input_dilation=(1, 1), groups=1), x[0, 0] @ w[0, 0], x[0, 0] @ w[0, 0, :, 0]))
    for expected, actual in zip(*both(function, x, w), strict=True):
        assert actual.dtype is dtypes.int32
        assert_agree(expected, actual)
    wide = x.numpy()[0, 0].astype(np.int64) @ w.numpy()[0, 0, :, 0].astype(np.int64)
    np.testing.assert_array_equal(actual.numpy(), wide.astype(np.int32))
    program = jit(lambda w, x: x @ w).bind(w[0, 0])
    program(x)
    assert not [name for name, *_ in program.report.steps if name.startswith("host ")]


def test_products_of_16_bits_in_a_loop():
    x = as_array(np.full((4, 3, 5), -32768, np.int16))

    def step(total, row):
        return total + row @ ops.transpose(row, axes=(1, 0)), total

    compare(lambda x: ops.scan(step, as_array(np.zeros((3, 3), np.int32)), x), x)


def test_products_of_too_many_16_bit_terms_stay_exact():
    many = as_array(np.full((1, (1 << 23) + 1), -32768, np.int16))
    product = jit(lambda x: ops.dot(x, x, contract=((1,), (1,)), batch=((), ())))
    graph = with_exact_products(simplify(close(product.trace(many))))
    assert [equation.op.name for equation in graph.equations] == ["dot"]


def test_a_long_sum_is_accurate():
    x = as_array(np.random.default_rng(0).random((40_000, 3)).astype(np.float32))
    actual = jit(lambda x: (ops.sum(x), ops.sum(x, 0), ops.sum(x.T, 1)))(x)
    exact = x.numpy().astype(np.float64)
    for found, wanted in zip(actual, (exact.sum(), exact.sum(0), exact.sum(0)), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


# --- empty and scalar extents ----------------------------------------------------------------------------------------

ZERO = {
    "loop": lambda x: (x + 1, ops.tanh(x) > 0),
    "reduce": lambda x: (ops.sum(x), ops.sum(x, 0), ops.sum(x, 1), ops.amax(x, 0), ops.amin(x)),
    "fused": lambda x: (x - ops.mean(x, 0, True), ops.sum(x * x, 0), ops.amax(x + 1, 0)),
    "move": lambda x: (x.T, x.reshape(3, -1) if x.size else x.reshape(3, 0), ops.concatenate([x, x], 1),
                       ops.pad(x, 1.0, low=(1, 0), high=(2, 1), interior=(1, 1)), x[:, 1:], x[:, None]),
    "gather": lambda x: (ops.gather(x, np.int32([0, 1]), axis=0), ops.gather(x, np.zeros((0,), np.int32), axis=1)),
    "scatter": lambda x: (ops.scatter_add(x, np.zeros((0,), np.int32), x[:0], axis=0),
                          ops.scatter_add(ops.zeros((4, 3)), np.zeros(x.shape[0], np.int32), x, axis=0)),
    "segment": lambda x: [ops.segment_reduce(x, np.zeros(x.shape[0], np.int32), count=2, kind=kind)
                          for kind in ("sum", "max", "min")],
    "dot": lambda x: (x @ ops.ones((3, 5)), ops.ones((4, x.shape[0])) @ x, x @ x.T, x.T @ x),
    "conv": lambda x: ops.conv(x.reshape(x.shape[0], 3, 1), ops.ones((2, 1, 4)), stride=(1,), padding=((0, 0),),
                               dilation=(1,), input_dilation=(1,), groups=1),
    "conv_dw": lambda x: ops.conv_dw(
        x.reshape(x.shape[0], 3, 1), ops.ones((x.shape[0], 2, 4)), kernel=(2,), stride=(1,), padding=((0, 0),),
        dilation=(1,), input_dilation=(1,), groups=1),
    "cumsum": lambda x: (ops.cumsum(x, axis=0, reverse=False), ops.cumsum(x, axis=1, reverse=True)),
    "sort": lambda x: (ops.sort(x, axis=0), ops.sort(x, axis=1), ops.argmax(x, 1)),
    "window": lambda x: ops.window(x, kind="sum", size=(1, 2), stride=(1, 1), padding=((0, 0), (0, 0))),
    "scan": lambda x: ops.scan(lambda carry, row: (carry + row, carry), ops.zeros((3,)), x),
}


@pytest.mark.parametrize("rows", (0, 1))
@pytest.mark.parametrize("name", ZERO)
def test_empty_batch(name, rows):
    compare(ZERO[name], as_array(np.ones((rows, 3), np.float32)))


def test_results_of_mixed_precision_keep_their_dtype():
    x = as_array(np.random.default_rng(0).normal(size=(4, 6)), dtypes.bfloat16)
    of = as_array(np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32))
    compare(lambda x, of: ops.window(x, of, kind="max", size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0))), x, of)


def test_arguments_of_any_strides():
    base = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    for values in (base.T, base[::2, ::-1], np.broadcast_to(base[0], (5, 8)), np.asfortranarray(base)):
        compare(lambda x: (x * 2, ops.sum(x, 0)), Array(Aval(dtypes.float32, values.shape), values))


def test_windows_over_many_axes_run_on_the_host():
    def pooled(x):
        return ops.window(x, kind="sum", size=(1, 2, 2, 2, 2, 1), stride=(1,) * 6, padding=((0, 0),) * 6)

    x = np.random.default_rng(0).random((2, 3, 4, 3, 4, 2), np.float32)
    np.testing.assert_allclose(jit(pooled)(x).numpy(), jit(pooled, device="reference")(x).numpy(), rtol=1e-6)
    assert [step[0] for step in jit(pooled).report(x).steps] == ["host window"]
