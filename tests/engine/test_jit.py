"""jit and bind: what is compiled when, what a call may be given, and who owns memory."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from core.accel.cpu import CpuExecutable
from core.engine import ops, random, tree
from core.engine.array import Array, array, as_array
from core.engine.errors import ShapeError
from core.engine.grad import grad, value_and_grad
from core.engine.graph import Aval
from core.engine.jit import jit
from core.engine.ops import table
from core.engine.ops.control import custom_call

DEVICES = ("reference", "cpu")


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_numpy_arrays_numbers_and_trees(device):
    @functools.partial(jit, device=device)
    def function(x, scale, parts):
        """Text."""
        return {"y": x * scale + parts[0], "z": [parts[1] - 1]}

    out = function(np.arange(3, dtype=np.float32), 2.0, (np.float32(1), 4))
    np.testing.assert_array_equal(out["y"].numpy(), [1, 3, 5])
    assert out["z"][0].item() == 3 and isinstance(out["y"], Array)
    assert function.__doc__ == "Text." and function.__name__ == "function"


def test_a_function_is_traced_once_for_each_signature():
    traced = []

    @jit
    def function(x, y):
        traced.append((x.aval, tree.flatten(y)[1]))
        return x + y[0]

    for _ in range(3):
        function(drawn(3), (drawn(3),))
    function(drawn(4), (drawn(4),))
    function(drawn(3), [drawn(3)])
    function(drawn(3).astype("f64"), (drawn(3),))
    assert len(traced) == 4
    function(drawn(4), (drawn(4, seed=1),))
    assert len(traced) == 4


def test_captured_arrays_are_constants():
    held = np.ones(3, np.float32)
    inside = array(held)
    function = jit(lambda x: x + inside)
    assert (function(drawn(3)).numpy() == drawn(3).numpy() + 1).all()
    held[:] = 5
    assert (function(drawn(3)).numpy() == drawn(3).numpy() + 1).all()


def test_host_functions_run_between_kernels():
    def double(x):
        return x * 2

    function = jit(lambda x: custom_call(ops.tanh(x), function=double, avals=(Aval(x.dtype, x.shape),))[0] + 1)
    for seed in range(2):
        x = drawn(4, 3, seed=seed)
        np.testing.assert_allclose(function(x).numpy(), 2 * np.tanh(x.numpy()) + 1, rtol=1e-5)


def test_random_numbers_are_the_same_everywhere():
    def function(key):
        return [random.uniform(k, (1000,)) for k in (key, *random.split(key, 3), random.fold_in(key, 5))]

    results = [function(random.key(7)), *(jit(function, device=device)(random.key(7)) for device in DEVICES)]
    for other in results[1:]:
        assert [x.storage.tobytes() for x in other] == [x.storage.tobytes() for x in results[0]]


def test_a_key_that_is_folded_in_a_loop_is_complete_before_it_is_used():
    """A word of random_bits reads the whole key: the two loops over (2,) are not one."""
    def function(key):
        return random.fold_in(random.fold_in(key, 3), 4)

    assert jit(function)(random.key(1)).storage.tobytes() == function(random.key(1)).storage.tobytes()


# --- bind ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
def test_bound_arguments_are_copies(device):
    weights = np.ones(3, np.float32)
    program = jit(lambda w, x: w * x, device=device).bind(as_array(weights))
    assert (program(drawn(3)).numpy() == drawn(3).numpy()).all()
    weights[:] = 9
    assert (program(drawn(3)).numpy() == drawn(3).numpy()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_programs_of_one_function_share_nothing(device):
    function = jit(lambda w, x: x * w, device=device)
    programs = [function.bind(as_array(np.full(3, weight, np.float32))) for weight in (1, 2)]
    for weight in (1, 2, 1, 1, 2):
        np.testing.assert_array_equal(programs[weight - 1](np.ones(3, np.float32)).numpy(), weight)


@pytest.mark.parametrize("device", DEVICES)
def test_updates_are_carried_from_call_to_call(device):
    def step(state, x):
        return {"n": state["n"] + 1, "s": state["s"] + x, "old": state["s"]}, state["s"] * 1

    start = {"n": as_array(0), "s": as_array(np.zeros(3, np.float32)), "old": drawn(3)}
    program = jit(step, device=device).bind(start, update=True)
    total, values = np.zeros(3, np.float32), []
    for step in range(5):
        x = drawn(3, seed=step)
        result = program(x)
        np.testing.assert_array_equal(result.numpy(), total)
        np.testing.assert_array_equal(program.value["old"].numpy(), total)
        total = total + x.numpy()
        values.append(program.value)
        np.testing.assert_array_equal(values[-1]["s"].numpy(), total)
    assert [value["n"].item() for value in values] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("device", DEVICES)
def test_a_new_shape_keeps_the_state(device):
    function = jit(lambda s, x: (s + ops.sum(x), ops.mean(x) + s), device=device)
    program = function.bind(as_array(np.float32(0)), update=True)
    total = 0.0
    for size in (2, 5, 2, 7, 5):
        program(as_array(np.ones(size, np.float32)))
        total += size
        assert program.value.item() == total


@pytest.mark.parametrize(("update", "copies", "holding"), [(True, 5, 1), (False, 3, 3)])
def test_what_is_owned_is_held_no_more_often_than_needed(update, copies, holding, monkeypatch):
    """What calls update, by the executable of the last call alone; what stays, once by each."""
    held = []
    hold = CpuExecutable.hold
    monkeypatch.setattr(CpuExecutable, "hold", lambda own, arrays: held.append(own) or hold(own, arrays))
    function = jit(lambda s, x: (s + ops.sum(x), s) if update else s + ops.sum(x))
    program = function.bind(drawn(64), update=update)
    for size in (2, 5, 2, 7, 5):
        program(drawn(size))
    assert len(held) == copies and sum(bool(own.held()) for own in set(held)) == holding


def test_swapped_state():
    program = jit(lambda s, x: ((s[1], s[0] + x), s[0])).bind((drawn(4), drawn(4, seed=1)), update=True)
    a, b = drawn(4).numpy(), drawn(4, seed=1).numpy()
    for step in range(4):
        assert (program(drawn(4, seed=step)).numpy() == a).all()
        a, b = b, a + drawn(4, seed=step).numpy()
    assert [leaf.numpy().tobytes() for leaf in program.value] == [a.tobytes(), b.tobytes()]


@pytest.mark.parametrize("device", DEVICES)
def test_state_without_leaves(device):
    program = jit(lambda s, x: (s, x + 1), device=device).bind((), update=True)
    assert program(as_array(1.0)).item() == 2.0 and program.value == ()


def test_training_lowers_the_loss():
    x, y = drawn(32, 4), drawn(32, 1, seed=1)

    def step(weights, x, y):
        loss, gradient = value_and_grad(lambda w: ops.mean((ops.tanh(x @ w[0]) @ w[1] - y) ** 2))(weights)
        return tree.map(lambda w, g: w - 0.1 * g, weights, gradient), loss

    start = [drawn(4, 8, seed=2), drawn(8, 1, seed=3)]
    programs = [jit(step, device=device).bind(start, update=True) for device in DEVICES]
    losses = [[program(x, y).item() for _ in range(20)] for program in programs]
    assert losses[0][-1] < 0.9 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert programs[1].report.flops > 0 and programs[1].report.nbytes > 0


def test_the_report_lists_steps_by_layer_and_text():
    report = jit(lambda x: ops.tanh(x) @ x.T).report(drawn(40, 50))
    assert "tanh" in report.sources and report.flops >= 2 * 40 * 50 * 40 and report.arena > 0
    assert all(len(step) == 4 for step in report.steps)
    alike = jit(lambda x: (ops.tanh(x), ops.tanh(ops.sort(x, axis=0)[0][::2]))).report(drawn(40, 50)).sources
    assert {"tanh", "tanh 2"} <= set(alike) and alike["tanh"] != alike["tanh 2"]


def test_shapes_are_checked_when_traced():
    with pytest.raises(ShapeError):
        jit(lambda x: x @ x)(drawn(2, 3))


def test_an_op_that_is_but_a_record_runs_everywhere(monkeypatch):
    monkeypatch.setattr(table, "TABLE", dict(table.TABLE))
    cosine = table.register(replace(ops.sin, name="cos", numpy=np.cos))
    x = drawn(5, 6)
    for device in DEVICES:
        found = jit(lambda x: cosine(x * 2) + 1, device=device)(x)
        np.testing.assert_allclose(found.numpy(), np.cos(x.numpy() * 2) + 1, rtol=1e-6)


def test_arrays_that_share_storage_are_told_apart():
    bits = as_array(np.array([1.0, 2.0], np.float32), "bf16")
    words = as_array(bits.storage)
    function = lambda x: (x + bits.astype("f32"), x + words.astype("f32"))  # noqa: E731
    x = as_array(np.zeros(2, np.float32))
    for found, expected in zip(jit(function)(x), function(x), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_a_program_keeps_what_it_was_bound_to():
    weights = np.ones(3, np.float32)
    program = jit(lambda weights, x: ops.sum(weights) * x).bind(weights)
    weights[:] = 5
    assert [program(np.ones(count, np.float32)).numpy()[0] for count in (2, 4, 2)] == [3.0, 3.0, 3.0]


def test_a_carry_keeps_its_tree():
    swapped = lambda carry, _: ({"b": carry["b"], "a": carry["a"] + 1}, None)  # noqa: E731
    with pytest.raises(ShapeError, match="the carry of the tree"):
        ops.scan(swapped, {"a": as_array(0.0), "b": as_array(1.0)}, length=3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_of_no_images_is_zero(device):
    def loss(w, x):
        return ops.sum(ops.conv(x, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), input_dilation=(1, 1),
                                groups=1))

    gradient = jit(grad(loss), device=device)(drawn(3, 3, 4, 8), np.zeros((0, 8, 8, 4), np.float32))
    assert not gradient.numpy().any()
