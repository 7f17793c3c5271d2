"""Stores past the caches: every element once and nothing else, wherever an array begins; and when they are chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import lower
from core.accel.loopir import Operand, Reduction, Statement
from core.accel.loops import loop_step
from core.accel.step import contiguous
from core.engine import dtypes, ops
from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.nn import gelu, softmax
from tests.accel.agreement import assert_agree
from tests.accel.stepping import evaluate

STREAM = "stream("
SHAPES = ((256,), (257,), (5003,), (1, 1), (7, 256), (5, 1023), (3, 4099))


def doubled(x, y):
    operands = [Operand("x", x, "read"), Operand("y", y, "write", streamed=True)]
    return [loop_step("double", x.shape, (), operands, [Statement("y", "x + x", x.dtype, ("x",))])]


@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int32, np.uint16), ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("skipped", (0, 1, 5))
def test_elements(shape, skipped, dtype):
    """Outputs begin and end anywhere in a line; what lies before and behind them stays."""
    x = np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)

    def build(x, y):
        part = replace(y, shape=x.shape, strides=contiguous(y.dtype, x.shape).strides, offset=skipped)
        return doubled(x, part)

    size = x.size
    (found,) = evaluate(build, [x], [((size + skipped + 3,), dtype)])
    np.testing.assert_array_equal(found[skipped:skipped + size].reshape(shape), x + x)
    garbage = np.frombuffer(b"\xa5" * found.nbytes, dtype)
    assert found[:skipped].tobytes() == garbage[:skipped].tobytes()
    assert found[skipped + size:].tobytes() == garbage[skipped + size:].tobytes()


def test_columns_apart():
    """Rows that do not follow each other in memory are streamed one by one."""
    x = np.random.default_rng(0).normal(size=(6, 300)).astype(np.float32)

    def build(x, y):
        return doubled(x, replace(y, shape=x.shape, strides=(700, 1), offset=11))

    (found,) = evaluate(build, [x], [((6 * 700,), np.float32)])
    np.testing.assert_array_equal(found.reshape(6, 700)[:, 11:311], x + x)


def test_rows_and_their_reductions():
    """A pass that reduces stores plainly, the last one streams."""
    x = np.random.default_rng(0).normal(size=(5, 4500)).astype(np.float32)

    def build(x, square, centred):
        operands = [Operand("x", x, "read"), Operand("s", square, "write", streamed=True),
                    Operand("c", centred, "write", streamed=True)]
        statements = [Statement("s", "x * x", dtypes.float32, ("x",)),
                      Statement("c", "x - t", dtypes.float32, ("x", "t"), 1)]
        step = loop_step("rows", x.shape, (1,), operands, statements, (), [Reduction("t", "s", "sum", dtypes.float32)])
        assert step.kernel.count(STREAM) == 1
        return [step]

    square, centred = evaluate(build, [x], [(x.shape, np.float32)] * 2)
    assert_agree(as_array(x * x), as_array(square))
    assert_agree(as_array(x - (x.astype(np.float64) ** 2).sum(1, keepdims=True).astype(np.float32)), as_array(centred))


# --- what is streamed ------------------------------------------------------------------------------------------------

X = np.zeros((1000, 300), np.float32)


@pytest.mark.parametrize(("function", "x", "streamed"), [
    (lambda x: x + 1.0, X, 1), (softmax, X, 1), (lambda x: (x + 1.0, x * 2.0), X, 2),
    (lambda x: (x + 1.0).sum(), X, 0),
    (lambda x: ((x + 1.0) @ ops.full((300, 300), 1.0)).sum(), X, 0),  # another step reads the elements
    (gelu, X, 0),  # takes longer than memory
    (lambda x: x + x[0], X, 1),
    (lambda x: x + x[0], X.reshape(10_000, 30), 0),  # short runs
], ids=("map", "softmax", "two", "sum", "read again", "slow", "long runs", "short runs"))
@pytest.mark.parametrize("cached", (0, 1 << 40), ids=("large", "small"))
def test_what_is_streamed(monkeypatch, function, x, streamed, cached):
    """Results that nothing reads, if they are larger than the caches."""
    monkeypatch.setattr(lower, "_CACHED_RESULTS", cached)
    report = jit(function, device="null").report(x)
    assert sum(text.count(STREAM) for text in report.sources.values()) == (0 if cached else streamed)
