"""Tracing: equations, captures, where they come from, and what a traced value may not do."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.errors import TraceError
from core.engine.grad import grad
from core.engine.graph import Aval
from core.engine.jit import close, jit
from core.engine.trace import is_staging


def graph_of(function, *arguments):
    return jit(function, device="reference").trace(*arguments)


def test_a_graph_reads_like_this():
    traced = graph_of(lambda x: ops.sum(ops.tanh(x) * x, 1), as_array(np.ones((2, 3), np.float32)))
    text = [line.split("   #")[0] for line in str(traced.graph).splitlines()]
    assert text == ["{ inputs a:f32[2, 3]", "  b:f32[2, 3] = tanh[] a", "  c:f32[2, 3] = mul[] b a",
                    "  d:f32[2] = reduce[axes=(1,) kind=sum] c", "  outputs d }"]
    traced.graph.check()


def test_equations_know_their_source_line():
    traced = graph_of(lambda x: x + 1, as_array(1.0))
    assert all("engine/test_trace.py:" in equation.where.source for equation in traced.graph.equations)


def test_concrete_arrays_are_captured_once():
    weights = as_array(np.arange(3.0))
    traced = graph_of(lambda x: x * weights + weights, as_array(np.ones(3)))
    assert traced.captures == (weights,) and len(traced.graph.inputs) == 2
    closed = close(traced)
    closed.check()
    assert len(closed.inputs) == 1 and [array is weights.storage for array in closed.constants.values()] == [True]


def test_outer_traces_are_captured():
    def outer(x):
        y = ops.tanh(x)
        inner = jit(lambda z: z * y + x, device="reference")
        return inner(x) + grad(lambda z: ops.sum(z * y))(x)

    x = as_array(np.linspace(-1, 1, 5))
    expected = np.tanh(x.numpy()) * x.numpy() + x.numpy() + np.tanh(x.numpy())
    np.testing.assert_allclose(jit(outer, device="reference")(x).numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("use", [bool, float, int, lambda x: x.item(), lambda x: x.numpy(), np.asarray,
                                 lambda x: 1 if x > 0 else 2],
                         ids=["bool", "float", "int", "item", "numpy", "asarray", "if"])
def test_the_value_of_a_traced_array_is_not_known(use):
    with pytest.raises(TraceError, match=r"the value of (f32|bool)\[\] is not known while it is traced; use select"):
        graph_of(use, as_array(1.0))


def test_a_traced_array_may_not_leave_its_trace():
    kept = []
    graph_of(lambda x: kept.append(x) or x, as_array(1.0))
    with pytest.raises(TraceError, match=r"add got f32\[\] from a trace that has ended; return the value"):
        kept[0] + 1


def test_a_leaked_array_is_refused_in_a_later_trace():
    kept = []
    graph_of(lambda x: kept.append(x) or x, as_array(1.0))
    with pytest.raises(TraceError, match="not known while it is traced"):
        jit(lambda x: x + kept[0], device="reference")(as_array(1.0))


def test_an_error_while_tracing_ends_the_trace():
    def broken(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        graph_of(broken, as_array(1.0))
    assert not is_staging() and (as_array(1.0) + 1).item() == 2


def test_each_thread_has_its_own_context():
    seen = []

    def function(x):
        thread = threading.Thread(target=lambda: seen.append((is_staging(), (as_array(2.0) * 3).item())))
        thread.start()
        thread.join()
        return x

    graph_of(function, as_array(1.0))
    assert seen == [(False, 6.0)]


def test_results_may_be_arguments_constants_and_numbers():
    x = as_array(np.arange(3.0))
    out = jit(lambda x: {"x": x, "c": as_array(np.ones(2)), "n": 3.5, "none": None, "twice": (x, x)}, device="cpu")(x)
    assert out["none"] is None and out["n"].aval == Aval(as_array(1.0).dtype, ())
    for leaf in (out["x"], *out["twice"]):
        assert isinstance(leaf, Array) and (leaf.numpy() == x.numpy()).all()
    assert out["n"].item() == 3.5 and (out["c"].numpy() == 1).all()
