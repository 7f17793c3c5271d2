"""Training with few bits in mind: the forward pass is the converted model's, and training makes up for the rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.engine import nn, ops, random
from core.engine.array import as_array
from core.engine.grad import grad
from core.engine.jit import jit
from core.engine.losses import mse
from core.engine.module import parameters
from core.engine.optim import Adam
from core.engine.precision import calibrate, quantise
from core.engine.precision.training import EXACT_TERMS, converted, straight_through, trainable
from core.engine.precision.weights import BITS
from core.engine.train import State, gradient_step

KEY = random.key(5)
DEVICES = ("reference", "cpu")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply(module, x):
    return module(x)


class Convolutions(nn.MLP):
    """Two convolutions and a linear layer of more inputs than a f32 sums exactly."""

    @classmethod
    def init(cls, key):
        one, two, three = random.split(key, 3)
        return cls((nn.Conv.init(one, 8, 8, (3, 3), stride=2), nn.Conv.init(two, 8, 130, (3, 3), groups=2),
                    nn.Linear.init(three, 130 * 9, 3)), nn.relu)

    def __call__(self, x):
        first, second, last = self.layers
        return last(nn.relu(second(nn.relu(first(x)))).reshape(x.shape[0], -1))


NETWORKS: dict[str, tuple[Any, np.ndarray]] = {
    "linear": (nn.MLP.init(KEY, (20, 33, 4)), drawn(17, 20)), "conv": (Convolutions.init(KEY), drawn(2, 6, 5, 8))}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_converted_model_computes(name: str, bits: int) -> None:
    network, x = NETWORKS[name]
    ranges = calibrate(apply, network, [x * np.float32(0.7)])  # some inputs are cut
    model = trainable(network, ranges, bits)
    expected = jit(apply, device="reference")(quantise(network, ranges, bits), x)
    for device in DEVICES:
        assert np.array_equal(jit(apply, device=device)(model, x), expected)
        assert np.array_equal(jit(apply, device=device)(converted(model), x), expected)


def test_long_sums_are_held_in_f64() -> None:
    assert NETWORKS["conv"][0].layers[2].weight.shape[0] > EXACT_TERMS >= 1000


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_a_rounding_is_one(device: str) -> None:
    x = np.float32([-3.5, -0.2, 0.0, 1e-30, 0.5, 126.7, 1e9])
    value = jit(lambda x: straight_through(ops.round(x), x), device=device)(x)
    assert np.array_equal(value, np.rint(x))
    slope = jit(grad(lambda x: ops.sum(straight_through(ops.round(x), x * 3.0))), device=device)(x)
    assert np.array_equal(slope, np.full(7, 3.0))


def test_what_is_cut_has_no_gradient() -> None:
    model = trainable(nn.Linear(as_array(np.eye(2, dtype=np.float32)), None), {"": (0.0, 1.0)})
    slope = grad(lambda x: ops.sum(model(x)))(as_array(np.float32([[0.5, 2.0], [-1.0, 0.0]])))
    one = float(np.float32(127) * converted(model).weight_scale.astype("f32").numpy()[0])  # what the weight of 1 became
    assert abs(one - 1) < 0.5 / 127
    np.testing.assert_allclose(slope, [[one, 0.0], [0.0, one]], rtol=1e-6)


def test_the_gradient_of_the_weights_is_near_that_of_the_layer() -> None:
    network, x = NETWORKS["linear"]
    model = trainable(network, calibrate(apply, network, [x]))
    loss = lambda module: ops.sum(module(as_array(x)) ** 2.0)  # noqa: E731
    exact, found = (parameters(grad(loss)(module)) for module in (network, model))
    for name, value in exact.items():
        near = found[name.replace(".weight", ".layer.weight").replace(".bias", ".layer.bias")]
        assert np.abs(near.numpy() - value.numpy()).max() < 0.05 * np.abs(value.numpy()).max(), name


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_training_makes_up_for_the_rounding(bits: int) -> None:
    x = drawn(256, 8)
    y = np.tanh(x @ drawn(8, 2, seed=1))
    optimiser, rate = Adam(), as_array(np.float32(3e-3))

    def trained(module, steps):
        step = jit(gradient_step(lambda module, key, batch: mse(module(batch[0]), batch[1]), optimiser.update))
        state = State(module, optimiser.init(module))
        for number in range(steps):
            state, _ = step(state, rate, random.fold_in(KEY, number), (x, y))
        return state.parameters

    network = trained(nn.MLP.init(KEY, (8, 32, 2)), 300)
    ranges = calibrate(apply, network, [x])
    before = float(mse(quantise(network, ranges, bits)(as_array(x)), as_array(y)))
    model = trained(trainable(network, ranges, bits), 200)
    small = converted(model)
    assert np.array_equal(jit(apply)(small, x), jit(apply)(model, x))
    assert float(mse(small(as_array(x)), as_array(y))) < before
