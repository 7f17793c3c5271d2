"""The op table: derivatives of every op against finite differences in f64, shape rules against numpy rules."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine import dtypes, ops
from core.engine.array import as_array
from core.engine.graph import Aval
from core.engine.ops.table import TABLE, evaluate, infer
from core.engine.testing import check_grads

SAMPLED = [op for op in TABLE.values() if op.samples()]
WITHOUT_SAMPLES = {"scan", "call", "custom_call"}
"""Ops whose parameters hold graphs or functions; test_grad and test_jit try them."""
STEPS = {"floor", "round", "compare", "and", "or", "not", "iota", "argreduce", "random_bits", "bit_dot"}
"""Ops whose derivative is zero everywhere it exists, or that have none."""


def sample_ids(op):
    return [pytest.param(op, sample, id=f"{op.name}-{number}") for number, sample in enumerate(op.samples())]


SAMPLES = [case for op in SAMPLED for case in sample_ids(op)]


def test_every_op_can_be_tried():
    assert {name for name, op in TABLE.items() if not op.samples()} == WITHOUT_SAMPLES


def test_every_smooth_op_has_a_gradient():
    assert {name for name, op in TABLE.items() if op.grad is None} == STEPS


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_the_shape_rule_is_the_numpy_rule(op, sample):
    avals = [Aval(dtypes.as_dtype(values.dtype), values.shape) for values in map(np.asarray, sample.inputs)]
    results = op.numpy(*sample.inputs, **sample.params)
    shapes = [np.shape(result) for result in (results if op.multiple else (results,))]
    expected = infer(op, avals, sample.params)
    assert shapes == [aval.shape for aval in expected]
    stored = evaluate(op, [np.asarray(values) for values in sample.inputs], avals, sample.params, expected)
    assert [(array.dtype, array.shape) for array in stored] == [(aval.dtype.storage, aval.shape) for aval in expected]


def is_smooth(op, sample):
    """Whether a sample has derivatives that differences in f64 can see: a coarser float type rounds them away."""
    target = sample.params.get("dtype")
    return op.grad is not None and target not in (dtypes.float32, dtypes.bfloat16)


@pytest.mark.parametrize("order", (1, 2))
@pytest.mark.parametrize(("op", "sample"), [case for case in SAMPLES if is_smooth(*case.values)])
def test_derivatives(op, sample, order):
    arrays = [as_array(values) for values in sample.inputs]

    def function(*floats):
        rest = iter(floats)
        return op(*(next(rest) if array.dtype.is_float else array for array in arrays), **sample.params)

    check_grads(function, [array for array in arrays if array.dtype.is_float], order)


COMPOSED = {
    "matmul": lambda a, b: a @ b.reshape(4, 3), "matvec": lambda a, b: a @ b.reshape(12)[:4],
    "batched": lambda a, b: ops.matmul(ops.stack([a, a]), b.reshape(1, 4, 3)), "mean": lambda a, b: ops.mean(a * b, 1),
    "amax": lambda a, b: ops.amax(a, 0), "index": lambda a, b: a[1:, ::2] * b[None, :2, 1:3],
    "gathered": lambda a, b: a[np.array([2, 0, 2])] * b,
    "take_along": lambda a, b: ops.take_along(a, ops.sort(b, axis=1)[1]),
    "stack": lambda a, b: ops.stack([a, b], 1), "moveaxis": lambda a, b: ops.moveaxis(a, 0, 1),
    "segment_mean": lambda a, b: ops.segment_mean(a, np.int32([1, 1, 5]), 3),
    "segment_softmax": lambda a, b: ops.segment_softmax(a, np.int32([1, 1, -1]), 3) * b,
    "mirror": lambda a, b: ops.mirror(a, (0, 1)) * b, "power": lambda a, b: a**2 + abs(b) ** 1.5 + 2.0**a,
}


@pytest.mark.parametrize("name", COMPOSED)
def test_derivatives_of_composed_functions(name):
    generator = np.random.default_rng(5)
    check_grads(COMPOSED[name], [generator.normal(size=(3, 4)), generator.normal(size=(3, 4))], order=2)


def test_a_wrong_gradient_is_found():
    with pytest.raises(AssertionError, match="derivative 1 is"):
        check_grads(lambda x: ops.floor(x * 1e7) * 1e-7, [np.array([0.3])])


def test_table_of_meanings():
    x = np.array([[3.0, 1.0, 2.0], [0.5, -1.0, 9.0]])
    a = as_array(x)
    for actual, expected in (
            (ops.cumsum(a, axis=1, reverse=True), np.cumsum(x[:, ::-1], 1)[:, ::-1]),
            (ops.argmax(a), [0, 2]), (ops.sort(a, axis=1)[1], np.argsort(x, 1)),
            (ops.one_hot(as_array([1, 3, -1]), 3), [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
            (ops.gather(a, as_array([1, 2, -1]), axis=0), [x[1], [0, 0, 0], [0, 0, 0]]),
            (ops.scatter_add(a, as_array([1, 1, 7]), as_array(np.ones((3, 3))), axis=0), [x[0], x[1] + 2]),
            (ops.segment_reduce(a, as_array([1, 1]), count=2, kind="max"), [[-np.inf] * 3, x.max(0)]),
            (ops.round(as_array([0.5, 1.5, -2.5])), [0, 2, -2]), (ops.div(as_array([-7, 7]), 2), [-4, 3]),
            (as_array([300.7, -5.2, np.nan]).astype("u8"), [255, 0, 0]), (ops.arange(3), [0, 1, 2]),
            (ops.dynamic_slice(a, as_array(0), as_array(5), sizes=(1, 2)), x[:1, 1:]),
            (ops.pad(a, 7.0, low=(0, -1), high=(1, 0), interior=(0, 1)),
             [[7, 1, 7, 2], [7, -1, 7, 9], [7, 7, 7, 7]])):
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_int8_products_are_exact_in_int32():
    a = as_array(np.full((2, 300), -128, np.int8))
    out = ops.dot(a, a, contract=((1,), (1,)), batch=((), ()))
    assert out.dtype is dtypes.int32 and (out.numpy() == 300 * 128**2).all()


@pytest.mark.parametrize("other", (np.int8, np.int16))
def test_products_of_16_bits_wrap_around_in_int32(other):
    a, b = np.full((1, 5), -32768, np.int16), np.full((5, 1), np.iinfo(other).min, other)
    exact = 5 * 32768 * -int(np.iinfo(other).min)
    out = ops.matmul(as_array(a), as_array(b))
    assert out.dtype is dtypes.int32 and out.numpy()[0, 0] == np.int64(exact).astype(np.int32)


@pytest.mark.parametrize("target", ("bf16", "i32", np.float64, dtypes.int8), ids=str)
def test_a_dtype_may_be_given_by_name(target):
    x = as_array([1.5, -2.5])
    assert ops.convert(x, dtype=target).storage.tobytes() == x.astype(target).storage.tobytes()


@pytest.mark.parametrize("name", ("bf16", "f32"))
def test_scalars_keep_having_no_axes(name):
    assert as_array(0.5, name).shape == ops.mean(as_array([1.0, 2.0], name)).shape == ops.zeros((), name).shape == ()
    padded = ops.pad(as_array([1.0, 2.0], name), 0.5, low=(1,), high=(0,), interior=(0,))
    np.testing.assert_array_equal(padded.numpy(), [0.5, 1, 2])


@pytest.mark.parametrize("op", [op for op in SAMPLED if op.family == "unary" and op.grad], ids=lambda op: op.name)
def test_gradients_have_the_dtype_of_the_operand(op):
    x = as_array([0.25, 0.75])
    (ct,) = op.grad(as_array([1.0, 1.0]), op(x), x)
    assert ct.dtype is dtypes.float32


@pytest.mark.parametrize(("call", "says"), [
    (lambda x: ops.transpose(x, (1, 0)), "transpose(x, *, axes): too many positional arguments"),
    (lambda x: ops.conv(x, x), "conv(x, w, *, stride, padding, dilation, input_dilation, groups): missing a required"),
    (lambda x: ops.tanh(x, axis=1), "tanh(x): got an unexpected keyword argument 'axis'"),
    (lambda x: ops.add(x), "add(a, b): missing a required argument: 'b'"),
])
def test_a_call_with_other_arguments_says_what_an_op_takes(call, says):
    with pytest.raises(TypeError) as raised:
        call(np.ones((2, 3), np.float32))
    assert str(raised.value).startswith(says)
