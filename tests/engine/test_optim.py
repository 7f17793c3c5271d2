"""Optimisers and schedules: numbers of PyTorch, closed forms, and what must not change."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.engine import ops, schedule, tree
from core.engine.array import as_array
from core.engine.errors import ConfigError
from core.engine.grad import grad, value_and_grad
from core.engine.jit import jit
from core.engine.module import Module
from core.engine.nn import BatchNorm
from core.engine.optim import SGD, Adam, AdamW, RMSProp, clip_by_global_norm

START = np.array([[1.0, -2.0], [0.5, 3.0]])
CURVATURE = np.array([[1.0, 0.1], [3.0, 0.5]])

# After 5 steps with rate 0.05 on sum(c (p - 1.5)^2) in f64, by torch.optim of PyTorch 2.13.
TORCH = {
    "sgd": (SGD(), [1.204755, -1.8284651746499998, 1.33193, 2.66067140625]),
    "momentum": (SGD(momentum=0.9), [1.51458, -1.5507190906500001, 2.27828, 2.12573390625]),
    "nesterov": (SGD(momentum=0.9, nesterov=True),
                 [1.55229084195, -1.4345426716217533, 1.8478522397, 1.9739134575984374]),
    "rmsprop": (RMSProp(), [1.4999999999999991, -0.5336220534930404, 1.450844948482945, 1.8012566731505242]),
    "rmsprop_momentum": (RMSProp(decay=0.9, momentum=0.5),
                         [1.5656547581357738, -1.1363864903747758, 1.2600549940879975, 2.1871362389657527]),
    "adam": (Adam(), [1.2460181690363896, -1.75033872548227, 0.7485221095688231, 2.750889729396673]),
    "adamw": (AdamW(weight_decay=0.1), [1.2194259587947756, -1.7033947178739293, 0.7337694590370345, 2.6794510153878]),
}
OPTIMISERS = {name: optimiser for name, (optimiser, _) in TORCH.items()}


def quadratic(dtype):
    return lambda parameters: ops.sum((parameters["p"] - 1.5) * (parameters["p"] - 1.5) * as_array(CURVATURE, dtype))


def descended(optimiser, parameters, function, steps, rate):
    state = optimiser.init(parameters)
    for _ in range(steps):
        parameters, state = optimiser.update(grad(function)(parameters), state, parameters, rate)
    return parameters, state


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance"), [("f64", 1e-12), ("f32", 2e-6)])
def test_equals_torch(name, dtype, tolerance):
    optimiser, expected = TORCH[name]
    parameters, state = descended(optimiser, {"p": as_array(START, dtype)}, quadratic(dtype), 5, as_array(0.05, dtype))
    np.testing.assert_allclose(parameters["p"].numpy().ravel(), expected, rtol=tolerance)
    assert (int(state.step), str(state.step.dtype), str(parameters["p"].dtype)) == (5, "i32", dtype)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_finds_the_minimum(name):
    optimiser = AdamW(weight_decay=0.0) if name == "adamw" else OPTIMISERS[name]
    parameters = {"p": as_array(START, "f32")}
    state = optimiser.init(parameters)
    step = jit(lambda p, s, rate: optimiser.update(grad(quadratic("f32"))(p), s, p, rate), device="reference")
    for number in range(400):
        parameters, state = step(parameters, state, as_array(schedule.cosine(0.2, 0.0, 400)(number)))
    np.testing.assert_allclose(parameters["p"], 1.5, atol=1e-2)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_integers_stay_and_dtypes_are_kept(name):
    parameters = {"ids": as_array(np.arange(3)), "p": as_array(START, "f32"), "q": as_array(START, "f64"), "none": None}
    new, state = descended(OPTIMISERS[name], parameters,
                           lambda p: ops.sum(p["p"] * p["p"]) + ops.sum(p["q"]).astype("f32"), 2, 0.1)
    np.testing.assert_array_equal(new["ids"], parameters["ids"])
    assert [leaf.dtype for leaf in tree.leaves(new)] == [leaf.dtype for leaf in tree.leaves(parameters)]
    assert tree.flatten(state)[1] == tree.flatten(OPTIMISERS[name].init(parameters))[1]
    assert np.all(new["p"].numpy() != parameters["p"].numpy()) and np.all(new["q"].numpy() != parameters["q"].numpy())


def test_adam_first_step_is_the_rate_in_every_scale():
    for scale in (1e-3, 1.0, 1e6):
        gradient = as_array(np.array([scale, -2 * scale], np.float32))
        optimiser, parameters = Adam(), ops.zeros((2,))
        new, _ = optimiser.update(gradient, optimiser.init(parameters), parameters, 1e-3)
        np.testing.assert_allclose(new, [-1e-3, 1e-3], rtol=2e-5)


def test_adam_of_constant_gradients_in_closed_form():
    # Both corrected means equal the constant, so every step is rate * g / (|g| + epsilon).
    optimiser, parameters = Adam(), ops.zeros((1,))
    state = optimiser.init(parameters)
    for _ in range(300):
        before = parameters
        parameters, state = optimiser.update(ops.full((1,), 0.25), state, parameters, 1.0)
        assert (before - parameters).item() == pytest.approx(1.0, rel=5e-5)


def test_weight_decay_touches_matrices_only():
    parameters = {"weight": ops.ones((2, 2)), "bias": ops.ones((2,)), "norm": BatchNorm.init(2)}
    optimiser, none = AdamW(weight_decay=0.5), tree.map(lambda leaf: leaf * 0, parameters)
    new, _ = optimiser.update(none, optimiser.init(parameters), parameters, 0.1)
    np.testing.assert_allclose(new["weight"], 0.95, rtol=1e-6)
    for name in ("bias", "norm"):
        tree.map(np.testing.assert_array_equal, new[name], parameters[name])


class Fitted(Module):
    slope: object
    norm: BatchNorm


def test_running_statistics_move_by_the_layer_and_not_by_the_optimiser():
    x = as_array(np.random.default_rng(0).normal(size=(16, 2)) + 3, "f32")
    model = Fitted(ops.ones((2, 1)), BatchNorm.init(2))

    def objective(model):
        y, norm = model.norm.train(x)
        return ops.mean((y @ model.slope) ** 2), norm

    (_, norm), gradient = value_and_grad(objective, has_aux=True)(model)
    new, _ = AdamW().update(gradient, AdamW().init(model), Fitted(model.slope, norm), 0.1)
    np.testing.assert_allclose(new.norm.mean, 0.1 * x.numpy().mean(0), rtol=1e-5)
    np.testing.assert_array_equal(new.norm.mean, norm.mean)
    assert np.all(new.slope.numpy() != model.slope.numpy())


@pytest.mark.parametrize(("limit", "expected"), [(10.0, 1.0), (2.5, 0.5)])
def test_clip_by_global_norm(limit, expected):
    gradients = {"a": as_array(np.array([3.0], np.float32)), "b": as_array(np.array([[4.0]], np.float32)),
                 "ids": as_array(np.array([100], np.int32))}
    clipped, norm = clip_by_global_norm(gradients, limit)
    assert norm.item() == 5.0
    np.testing.assert_allclose([clipped["a"].item(), clipped["b"].item()], [3 * expected, 4 * expected], rtol=1e-6)
    assert clipped["ids"].item() == 100
    assert clip_by_global_norm({"a": ops.zeros((2,))}, 1.0)[0]["a"].numpy().tolist() == [0, 0]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SGD(momentum=1.0), "0 <= momentum < 1, found 1.0"), (lambda: SGD(nesterov=True), "momentum above 0"),
    (lambda: Adam(beta2=-0.1), "beta2"), (lambda: RMSProp(decay=2.0), "decay")])
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# --- schedules -------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "constant": (schedule.constant(0.3), {0: 0.3, 1000: 0.3}),
    "linear": (schedule.linear(1.0, 0.0, 10), {0: 1.0, 5: 0.5, 10: 0.0, 11: 0.0}),
    "linear_late": (schedule.linear(1.0, 0.5, 10, begin=20), {0: 1.0, 20: 1.0, 25: 0.75, 99: 0.5}),
    "cosine": (schedule.cosine(2.0, 1.0, 100), {0: 2.0, 50: 1.5, 25: 1.5 + math.sqrt(0.125), 100: 1.0, 500: 1.0}),
    "exponential": (schedule.exponential(1.0, 1e-2, 10), {0: 1.0, 5: 0.1, 10: 1e-2, 50: 1e-2}),
    "warm_up": (schedule.warm_up(0.0, 4, schedule.linear(1.0, 0.0, 10)), {0: 0.0, 1: 0.25, 4: 1.0, 9: 0.5, 14: 0.0}),
    "no_steps": (schedule.linear(1.0, 0.5, 0), {0: 0.5}),
    # chemprop's: start + step * (peak - start) / 20, then peak * (final / peak)^((step - 20) / 80).
    "noam_like": (schedule.noam_like(1e-4, 1e-3, 1e-4, warm_up_steps=20, steps=100),
                  {0: 1e-4, 10: 5.5e-4, 20: 1e-3, 60: 1e-3 * 0.1**0.5, 100: 1e-4, 200: 1e-4}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_values(name):
    rate, expected = SCHEDULES[name]
    assert {step: rate(step) for step in expected} == pytest.approx(expected, rel=1e-12)


def test_exponential_needs_positive_rates():
    with pytest.raises(ConfigError, match=r"above 0, found 1\.0 and 0\.0"):
        schedule.exponential(1.0, 0.0, 10)


def test_plateau():
    # torch.optim.lr_scheduler.ReduceLROnPlateau(factor=0.5, patience=1, min_lr=0.2, threshold=0) gives these rates.
    plateau, rates = schedule.ReduceOnPlateau(1.0, factor=0.5, patience=1, minimum=0.2), []
    for loss in (5.0, 4.0, 4.0, math.nan, 3.0, 3.0, 6.0, 6.0, 6.0, 6.0, 6.0):
        plateau = plateau.observe(loss)
        rates.append(plateau.rate)
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
    assert plateau.best == 3.0
