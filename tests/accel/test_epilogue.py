"""Epilogues of products: the same bits as in loops of their own, in every kernel, and in parts of any size."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from core.accel import plan, slices
from core.accel.chips import CHIPS
from core.accel.epilogue import ElementwiseEpilogue
from core.accel.kernels import conv, float_panels, gemm
from core.accel.loopir import Operand, Statement
from core.accel.passes import fuse
from core.accel.step import Buffer, HostStep
from core.engine import dtypes, ops, tree
from core.engine.array import as_array
from core.engine.backends import Options
from core.engine.jit import close, jit
from core.engine.nn.activation import gelu, relu, silu
from core.engine.nn.norm import BatchNorm
from tests.accel.agreement import assert_agree, assert_same_bits
from tests.accel.stepping import evaluate


def drawn(*shape, dtype="f32"):
    generator = np.random.default_rng(shape)
    if dtype in ("i8", "u8"):
        return as_array(generator.integers(0 if dtype == "u8" else -100, 100, shape), dtype)
    return as_array(generator.normal(size=shape), dtype)


def names(function, *arguments):
    """Names of the steps."""
    made = plan.make_plan(close(jit(function, device="null").trace(*arguments)), Options(), "test")
    return [step.name for step in made.body if not isinstance(step, HostStep)]


@pytest.fixture
def apart(monkeypatch):
    """A function that compiles without epilogues, and without cutting long sums, which those with one are not."""
    def compiled(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(fuse._Fuser, "merge_epilogues", lambda fuser: None)
            patch.setattr(slices, "slices", lambda rows, columns, depth: 1)
            return jit(function, device="cpu")(*arguments)

    return compiled


@pytest.fixture
def check(apart):
    """A function that compares results with and without epilogues, bit for bit, and with the reference."""
    def compare(function, *arguments, fused=True):
        together = tree.leaves(jit(lambda *given: function(*given), device="cpu")(*arguments))
        assert_same_bits(tree.leaves(apart(function, *arguments)), together)
        for expected, actual in zip(tree.leaves(jit(function, device="reference")(*arguments)), together, strict=True):
            # Sums of bfloat16 a unit apart may be further apart behind a subtraction.
            assert_agree(expected, actual, 2e-2 if expected.dtype is dtypes.bfloat16 else None)
        found = names(function, *arguments)
        assert any(re.match(r"(conv|matmul|winograd)( \w+)?\+", name) for name in found) == fused, found

    return compare


SHAPES = ((5, 3, 40), (15, 7, 33), (28, 70, 64), (29, 1100, 45), (4, 1, 4), (70, 9, 45))
EPILOGUES = {
    "bias": lambda y, row, column, whole: y + row,
    "relu": lambda y, row, column, whole: relu(y),
    "norm": lambda y, row, column, whole: relu(y * row + row),
    "residual": lambda y, row, column, whole: relu(y * row + row + whole),
    "rows": lambda y, row, column, whole: (y - column) * column,
    "gelu": lambda y, row, column, whole: gelu(y + row),
    "silu": lambda y, row, column, whole: silu(y),
    "two results": lambda y, row, column, whole: (lambda z: (z, relu(z)))(y + whole),
    "bool": lambda y, row, column, whole: y > whole,
    "types": lambda y, row, column, whole: (lambda z: (z.astype("bf16"), z > 0, z))(y + row),
    "twice": lambda y, row, column, whole: y * y,
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_products(name, check):
    for m, k, n in SHAPES:
        check(lambda a, b, *rest: EPILOGUES[name](a @ b, *rest), drawn(m, k), drawn(k, n), drawn(n), drawn(m, 1),
              drawn(m, n))


@pytest.mark.parametrize("dtype", ["f64", "bf16"])
@pytest.mark.parametrize("name", ["norm", "residual", "rows", "gelu", "two results", "bool", "types"])
def test_products_of_other_floats(name, dtype, check):
    for m, k, n in SHAPES:
        check(lambda a, b, *rest: EPILOGUES[name](a @ b, *rest), drawn(m, k, dtype=dtype), drawn(k, n, dtype=dtype),
              drawn(n, dtype=dtype), drawn(m, 1, dtype=dtype), drawn(m, n, dtype=dtype))


@pytest.mark.parametrize("dtype", ["i8", "u8", "bf16"])
def test_few_columns_of_narrow_products(dtype, check):
    a, b = drawn(70, 40, dtype=dtype), drawn(40, 2, dtype="bf16" if dtype == "bf16" else "i8")
    check(lambda a, b: ops.round((a @ b).astype("f32") * 0.01).astype("i8"), a, b, fused=False)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_products_of_bytes_are_scaled_and_rounded(dtype, check):
    for m, k, n in SHAPES:
        check(lambda a, b, scale: ((a @ b).astype("f32") * scale), drawn(m, k, dtype=dtype), drawn(k, n, dtype="i8"),
              drawn(n))
        check(lambda a, b, scale: ops.round((a @ b).astype("f32") * 0.01).astype("i8"), drawn(m, k, dtype=dtype),
              drawn(k, n, dtype="i8"), drawn(n))


CONVOLUTIONS = {
    "1x1": ((2, 5, 7, 20), (1, 1, 20, 48), {}),
    "3x3": ((2, 9, 11, 5), (3, 3, 5, 40), {"padding": ((1, 1), (1, 1))}),
    "short": ((2, 7, 35, 1), (3, 3, 1, 40), {"padding": ((1, 1), (1, 1))}),
    "stride": ((1, 9, 11, 8), (3, 3, 8, 33), {"stride": (2, 2)}),
    "groups": ((2, 6, 5, 8), (3, 3, 4, 70), {"groups": 2}),
    "transposed": ((2, 4, 5, 6), (2, 2, 6, 35), {"input_dilation": (2, 2), "padding": ((1, 1), (1, 1))}),
    "phases without taps": ((1, 4, 3, 6), (1, 1, 6, 35), {"input_dilation": (2, 3)}),
    "volume": ((1, 3, 4, 5, 32), (3, 3, 3, 32, 32), {"padding": ((1, 1),) * 3}),
    "long": ((1, 5, 5, 300), (3, 3, 300, 20), {}),
}


def convolved(x, w, options):
    rank = len(x.shape) - 2
    plain = {"stride": (1,) * rank, "padding": ((0, 0),) * rank, "dilation": (1,) * rank,
             "input_dilation": (1,) * rank, "groups": 1}
    return ops.conv(x, w, **(plain | options))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, dtype, check):
    x_shape, w_shape, options = CONVOLUTIONS[name]
    x, w, row = drawn(*x_shape, dtype=dtype), drawn(*w_shape, dtype=dtype), drawn(w_shape[-1], dtype=dtype)
    whole = drawn(*jit(lambda x, w: convolved(x, w, options), device="null").trace(x, w).graph.outputs[0].aval.shape,
                  dtype=dtype)
    check(lambda x, w, row, whole: relu(convolved(x, w, options) * row + row + whole), x, w, row, whole)


def test_convolutions_in_strips(check, monkeypatch):
    monkeypatch.setattr(conv, "STRIPS_FROM", 1 << 10)
    x, w, row, whole = (drawn(*shape, dtype="bf16") for shape in
                        ((2, 20, 9, 16), (3, 3, 16, 40), (40,), (2, 20, 9, 40)))
    options = {"padding": ((1, 1), (1, 1))}
    check(lambda x, w, row, whole: relu(convolved(x, w, options) + row + whole), x, w, row, whole)
    column = drawn(2, 20, 9, 1, dtype="bf16")
    check(lambda x, w, row, whole: convolved(x, w, options) * row, x, w, column, whole)


@pytest.mark.parametrize(("a", "b", "fused"), [
    ((1, 30), (30, 40), True), ((20, 30), (30, 1), False), ((2, 300), (300, 64), True)], ids=str)
def test_of_other_kernels_thin_ones_have_epilogues_and_dot_products_a_loop(a, b, fused, check):
    check(lambda a, b, row: relu(a @ b + row), drawn(*a), drawn(*b), drawn(b[1]), fused=fused)


def test_phases_of_dot_products_are_each_followed_by_a_loop(check):
    """Of two lines of out each is a phase, and a run of memory."""
    options = {"input_dilation": (2, 1), "padding": ((1, 1), (0, 0))}
    check(lambda x, w, row, whole: relu(convolved(x, w, options) * row + whole), drawn(1, 1, 20, 6), drawn(2, 1, 6, 1),
          drawn(1), drawn(1, 2, 20, 1), fused=False)


def test_groups_of_few_channels_and_host_products_are_followed_by_a_loop(check):
    x, w, row = drawn(2, 6, 5, 8), drawn(3, 3, 1, 8), drawn(8)
    for dtype in ("f32", "bf16"):
        check(lambda x, w, row: relu(convolved(x, w, {"groups": 8}) + row),
              *(array.astype(dtype) for array in (x, w, row)), fused=False)
    numbers = as_array(np.arange(12, dtype=np.int32).reshape(3, 4))
    check(lambda x: x @ x.T + 1, numbers, fused=False)


def test_batches_and_merged_axes(check):
    check(lambda a, b, row: relu(a @ b + row), drawn(3, 5, 20), drawn(3, 20, 9), drawn(9))
    check(lambda a, b, row: relu(a @ b + row), drawn(3, 5, 20), drawn(20, 9), drawn(9))
    check(lambda a, b, rows: a @ b + rows, drawn(3, 5, 20), drawn(3, 20, 9), drawn(3, 1, 9), fused=False)


def test_special_numbers_pass_through(check):
    a, b, row = (drawn(*shape).numpy().copy() for shape in ((20, 30), (30, 40), (40,)))
    a[3], a[5, 1], row[7], row[8] = np.nan, np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        check(lambda a, b, row: (relu(a @ b + row), ops.maximum(a @ b + row, 0.0)), a, b, row)


def test_what_depends_on_held_values_alone_runs_once():
    """Batch norm in inference leaves a multiplication, an addition and the activation behind the convolution."""
    norm, w, x = BatchNorm.init(40), drawn(3, 3, 4, 40), drawn(1, 9, 9, 4)
    traced = jit(lambda held, x: relu(held[0](convolved(x, held[1], {}))), device="null").trace((norm, w), x)
    made = plan.make_plan(close(traced), Options(held=5), "test")
    assert [step.name for step in made.body] == ["conv+mul+add+compare+select"]


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_blocks_of_every_chip(chip, monkeypatch):
    """Products of f32 in blocks of any chip, in one, two and seven pieces, into garbage."""
    for module in (gemm, float_panels):
        monkeypatch.setattr(module, "host", lambda: chip)
    for m, k, n in [(31, 37, 75), (8, 30, 150), (9, 700, 5)]:
        arrays = [drawn(*shape).numpy() for shape in ((m, k), (k, n), (1, n), (m, 1), (m, n))]

        def build(a, b, row, column, whole, out, other):
            shape = whole.shape
            operands = (Operand("x0", replace(row, shape=shape, strides=(0, 1)), "read"),
                        Operand("x1", replace(column, shape=shape, strides=(1, 0)), "read"),
                        Operand("x2", whole, "read"))
            results = (Operand("v1", out, "write"), Operand("v2", other, "write"))
            statements = (Statement("v1", "v0 + x0", dtypes.float32, ("v0", "x0")),
                          Statement("v2", "v1 * x1 + x2", dtypes.float32, ("v1", "x1", "x2")))
            epilogue = ElementwiseEpilogue("test", "v0", dtypes.float32, operands, results, statements, frozenset())
            return gemm.matmul(a, b, replace(out, buffer=Buffer(out.buffer.nbytes)), epilogue)

        a, b, row, column, whole = arrays
        out, other = evaluate(build, arrays, [((m, n), "float32")] * 2)
        np.testing.assert_allclose(out, a @ b + row, atol=1e-3)
        np.testing.assert_allclose(other, (a @ b + row) * column + whole, atol=1e-3)
