"""Executables of the cpu: every element is written, memory of earlier calls stays, constants run once, null agrees."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest

from core.accel import cpu
from core.accel.plan import make_plan
from core.engine import ops, random
from core.engine.array import as_array
from core.engine.backends import Options, backend
from core.engine.graph import Aval
from core.engine.jit import close, jit
from core.engine.testing import random_graph
from tests.accel.agreement import assert_same_bits

POISON = 0xFF
"""Floats of these bytes are NaN, integers -1."""


class PoisonedNumpy:
    """numpy whose new arrays hold no zeros by chance."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        made = np.empty(shape, dtype)
        made.reshape(-1).view(np.uint8)[...] = POISON
        return made

    def zeros(self, shape, dtype):
        return np.full(shape, POISON, dtype)

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)


def executable(function, *arguments, options=None):
    return backend("cpu").compile(close(jit(function).trace(*arguments)), options or Options())


def storages(arrays):
    return [array.storage for array in arrays]


@pytest.mark.parametrize("seed", range(200, 220))
def test_every_element_is_written(seed, monkeypatch):
    function, arguments = random_graph(seed, length=8)
    expected = jit(function)(*arguments)
    monkeypatch.setattr(cpu, "np", PoisonedNumpy())
    actual = executable(function, *arguments)(storages(arguments))
    assert [array.tobytes() for array in actual] == [array.storage.tobytes() for array in expected]


@pytest.mark.parametrize("seed", range(200, 208))
def test_a_call_does_not_see_the_one_before(seed):
    function, arguments = random_graph(seed, length=8)
    others = [ops.mirror(array, range(array.ndim)) if array.dtype.is_float else array for array in arguments]
    compiled, fresh = jit(function), jit(function)
    first = compiled(*arguments)
    kept = [array.storage.copy() for array in first]
    second = compiled(*others)
    assert_same_bits(second, fresh(*others))
    assert_same_bits(compiled(*arguments), first)
    overwritten = [array.aval for array, before in zip(first, kept, strict=True)
                  if array.storage.tobytes() != before.tobytes()]
    assert not overwritten


@pytest.mark.parametrize("size", [0, 3, 5000, 200_001])
def test_large_results_begin_with_a_cache_line(size):
    program = jit(lambda x: x + 1)
    results = [program(np.arange(size, dtype=np.float32)) for _ in range(3)]
    for result in results:
        np.testing.assert_array_equal(result.storage, np.arange(1, size + 1, dtype=np.float32))
        assert size < 200_000 or result.storage.ctypes.data % 64 == 0


@pytest.mark.parametrize("keep", [lambda result: result, lambda result: result.storage,
                                   lambda result: result.numpy()[1:], lambda result: memoryview(result.numpy())])
def test_memory_of_large_results_is_used_again_once_nobody_has_it(keep):
    program = jit(lambda nothing, x: x + 1).bind(())
    x = np.arange(200_000, dtype=np.float32)
    result = program(x)
    kept, place = keep(result), result.storage.ctypes.data
    del result
    second = program(x + 9)
    assert second.storage.ctypes.data != place
    np.testing.assert_array_equal(getattr(kept, "storage", kept), (x + 1)[-len(kept):])
    del kept
    place = second.storage.ctypes.data
    del second
    assert program(x).storage.ctypes.data == place


def test_close_outputs_have_the_bits_of_distant_ones():
    """LLVM must not choose between a vector and a scalar sum by the distance of two addresses."""
    def function(x):
        y = ops.log(x * x + 0.5)
        return y, ops.sum(y)

    x = np.random.default_rng(0).normal(size=16).astype(np.float32)
    made = executable(function, as_array(x))
    bits = set()
    for gap in range(0, 256, 4):
        memory = np.zeros(512, np.float32)
        memory[:16] = x
        y, total = memory[16 + gap // 4:32 + gap // 4], memory[400:401]
        made._run(made._body, [memory[:16]], [y, total])
        bits.add(total.tobytes())
    assert len(bits) == 1


def test_four_threads_call_one_function():
    function = jit(lambda x: (ops.tanh(x @ x.T), ops.sum(x, 0)))
    inputs = [as_array(np.random.default_rng(seed).normal(size=(33, 20)).astype(np.float32)) for seed in range(4)]
    expected = [function(x) for x in inputs]
    wrong = []

    def call(number):
        for _ in range(50):
            actual = function(inputs[number])
            if any(a.storage.tobytes() != b.storage.tobytes() for a, b in zip(actual, expected[number], strict=True)):
                wrong.append(number)

    workers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# --- prologue --------------------------------------------------------------------------------------------------------

def drawn(*shape):
    return as_array(np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32))


def test_what_held_inputs_determine_runs_once():
    held, x = drawn(40, 48), drawn(30, 40)
    graph = close(jit(lambda w, x: x @ ops.tanh(w)).trace(held, x))
    plan = make_plan(graph, Options(held=1), "cpu")
    assert {"tanh", "pack"} <= {step.name for step in plan.prologue}
    assert "pack" not in {step.name for step in plan.body}
    made = backend("cpu").compile(graph, Options(held=1))
    made.hold([held.storage])
    expected = x.numpy() @ np.tanh(held.numpy())
    for _ in range(2):
        np.testing.assert_allclose(made([x.storage])[0], expected, rtol=1e-4, atol=1e-5)
    made.hold([-held.storage])
    np.testing.assert_allclose(made([x.storage])[0], -expected, rtol=1e-4, atol=1e-5)


def test_what_a_step_updates_is_not_hoisted():
    made = executable(lambda w, x: (w * 0.5, x @ w), drawn(40, 48), drawn(30, 40),
                      options=Options(held=1, carried=True))
    assert not made._plan.prologue
    made.hold([drawn(40, 48).storage])
    first, second = (made([drawn(30, 40).storage])[0] for _ in range(2))
    np.testing.assert_allclose(second, first / 2, rtol=1e-6)


def test_a_buffer_that_is_half_constant_is_written_again_at_each_call():
    """One part of a join is constant and goes to the prologue; the other part changes."""
    function = jit(lambda x: ops.concatenate([ops.tanh(drawn(4)), x * 2, ops.zeros((3,))]) + 1)
    for seed in range(3):
        x = as_array(np.float32([seed, 1]))
        np.testing.assert_allclose(function(x).numpy()[4:], [2 * seed + 1, 3, 1, 1, 1])


def test_constants_may_be_large_small_and_shared():
    table, small = drawn(50, 6), as_array(np.float32(2.5))
    function = jit(lambda ids: (ops.gather(table, ids, axis=0) * small, table[3] + table[4]))
    rows, added = function(as_array([3, 0, 49]))
    np.testing.assert_array_equal(rows.numpy(), table.numpy()[[3, 0, 49]] * np.float32(2.5))
    np.testing.assert_array_equal(added.numpy(), table.numpy()[3] + table.numpy()[4])


# --- kernels, null ---------------------------------------------------------------------------------------------------

NETWORK = {
    "softmax": lambda x: ops.exp(x - ops.amax(x, 1, True)) / ops.sum(ops.exp(x - ops.amax(x, 1, True)), 1, True),
    "normalised": lambda x: (x - ops.mean(x, 0, True)) / ops.sqrt(ops.mean(x * x, 0, True) + 1e-5),
    "turned": lambda x: ops.tanh(x.T) * 2, "strided": lambda x: x[::2, 1:] + 1,
    "noise": lambda x: x + random.uniform(random.key(1), x.shape), "sorted": lambda x: ops.sort(x, axis=1)[0],
    "summed": lambda x: ops.cumsum(x, axis=1, reverse=False),
}


@pytest.mark.parametrize("name", NETWORK)
def test_kernel_text_is_independent_of_shape(name):
    function = jit(NETWORK[name], device="null")
    texts = [function.report(drawn(*shape)).sources for shape in ((6, 10), (14, 34), (30, 7))]
    assert texts[0] == texts[1] == texts[2] and texts[0]


@pytest.mark.parametrize("seed", range(6))
def test_null_reports_what_the_cpu_runs(seed):
    function, arguments = random_graph(seed)
    planned, made = (jit(function, device=device).report(*arguments) for device in ("null", "cpu"))
    assert (planned.backend, made.backend) == ("null", "cpu")
    assert (planned.steps, planned.sources, planned.arena) == (made.steps, made.sources, made.arena)


def test_null_plans_a_large_model_without_its_memory():
    def model(weights, x):
        for weight in weights:
            x = ops.tanh(x @ weight)
        return ops.mean(x)

    big = Aval(as_array(0.0).dtype, (30_000, 30_000))
    arguments = [[as_array(np.broadcast_to(np.float32(0), big.shape)) for _ in range(4)],
                 as_array(np.broadcast_to(np.float32(0), (4096, 30_000)))]
    tracemalloc.start()
    function = jit(model, device="null")
    report = function.report(*arguments)
    result = function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.shape == () and peak < 64 << 20
    assert report.flops > 4 * 2 * 4096 * 30_000**2 and report.arena > 4096 * 30_000 * 4


def test_a_fork_during_a_call_of_another_thread_can_call():
    function = jit(lambda x: ops.tanh(x) * 2)
    x = drawn(4, 5)
    expected = function(x).numpy()
    (compiled,) = function._compiled.values()
    with compiled.executable._lock:  # as the other thread holds it
        child = os.fork()
        if child == 0:
            os._exit(0 if (function(x).numpy() == expected).all() else 1)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
    assert done and status == 0
