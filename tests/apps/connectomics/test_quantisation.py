"""Quantisation: inner layers in 8 bits, close to the network in f32, the same on both backends."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from apps.cli import main
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.quantisation import QuantisedConv, largest_activations, quantised
from core.engine import random
from core.engine.array import Array, as_array
from core.engine.jit import jit
from core.engine.nn import Conv
from core.engine.nn.activation import relu
from tests.apps.connectomics.bright import write_run, write_tubes

FIELD = (9, 7, 11)
APPS = ("apps.connectomics.app:APP",)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network() -> FloodFillingNetwork:
    return FloodFillingNetwork.init(random.key(1), 3, 8)


def run(network: FloodFillingNetwork, image: np.ndarray, logits: np.ndarray, device: str = "cpu") -> np.ndarray:
    def apply(network: FloodFillingNetwork, image: Array, logits: Array) -> Array:
        result: Array = network(image, logits)
        return result

    return jit(apply, device=device)(network, as_array(image), as_array(logits)).numpy()


def test_a_layer_errs_by_half_a_step() -> None:
    conv = Conv.init(random.key(0), 4, 5, (3, 3, 3))
    x = np.abs(drawn(0, 1, 5, 6, 7, 4))
    layer = QuantisedConv.of(conv, float(x.max()))
    assert layer.kernel.dtype.name == "int8"
    kernel = layer.kernel.numpy().astype(np.float64)
    assert (np.abs(kernel).max(axis=(0, 1, 2, 3)) == 127).all()  # each channel of the output has its own step
    step, weight_step = x.max() / 255, np.abs(conv.kernel.numpy()).max(axis=(0, 1, 2, 3)) / 127
    assert np.abs(kernel * weight_step - conv.kernel.numpy()).max() <= weight_step.max() / 2 * 1.001
    units = np.rint(x / step)
    exact = conv(as_array((units * step).astype(np.float32))).numpy()
    difference = layer(as_array(x)).numpy() - exact  # of rounded weights alone: half a step for each of 108 products
    assert np.abs(difference).max() <= 108 * x.max() * weight_step.max() / 2
    assert np.abs(layer(as_array(x)).numpy() - conv(as_array(x)).numpy()).std() < 0.02 * exact.std()


def test_inputs_beyond_the_largest_are_cut() -> None:
    layer = QuantisedConv.of(Conv.init(random.key(0), 2, 3, (3, 3, 3)), 2.0)
    x = np.abs(drawn(1, 1, 4, 4, 4, 2)) * 3
    np.testing.assert_array_equal(layer(as_array(x)).numpy(), layer(as_array(np.minimum(x, 2))).numpy())


def test_layers_without_weights_or_inputs_give_their_bias() -> None:
    conv = Conv.init(random.key(0), 2, 3, (3, 3, 3))
    blank = Conv(as_array(np.zeros((3, 3, 3, 2, 3), np.float32)), as_array(np.float32([1, 2, 3])), (1,) * 3, "same",
                 (1,) * 3, 1)
    for layer in (QuantisedConv.of(blank, 5.0), QuantisedConv.of(conv, 0.0)):
        found = layer(as_array(np.zeros((1, 3, 3, 3, 2), np.float32))).numpy()
        assert np.isfinite(found).all() and (found == layer.bias.numpy()).all()


def test_largest_activations_are_those_of_the_layers() -> None:
    net, image = network(), drawn(2, *FIELD)
    largest = largest_activations(net, image, FIELD, 3.0, -3.0, "cpu")
    assert largest.shape == (5,)
    logits = np.full((1, *FIELD), -3, np.float32)
    logits[0, 4, 3, 5] = 3
    expected = np.zeros(5)
    for _ in range(2):  # the only field of view, twice
        x = net.first_a(as_array(np.stack([image[None], logits], axis=-1)))
        seen, x = [relu(x)], net.first_b(relu(x))
        for block in net.blocks:
            middle = block.a(relu(x))
            seen += [relu(x), relu(middle)]
            x = block(x)
        expected = np.maximum(expected, [value.numpy().max() for value in seen])
        logits = run(net, image[None], logits)
    np.testing.assert_allclose(largest, expected, rtol=1e-5)


def test_a_network_is_close_and_the_same_on_both_backends() -> None:
    net, image = network(), drawn(3, 20, 20, 20)
    small = quantised(net, largest_activations(net, image, FIELD, 3.0, -3.0, "cpu").tolist())
    seen, logits = image[None, :9, :7, :11].copy(), drawn(4, 1, *FIELD)
    found, reference, exact = run(small, seen, logits), run(small, seen, logits, "reference"), run(net, seen, logits)
    assert 0 < np.abs(found - exact).std() < 0.05 * (exact - logits).std()
    # An activation on the edge between two units may fall to either side, as sums in f32 have no order.
    assert np.mean(np.abs(found - reference) > 1e-4) < 0.01 and np.abs(found - reference).max() < 0.02


@pytest.mark.parametrize("blocks", [(), ("--block", "33,33,33", "--overlap", "12,12,12")])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], blocks: tuple[str, ...]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    assert main(["connectomics", "segment", f"{tmp_path}/tubes.h5:raw", "--model", str(write_run(tmp_path / "run")),
                 "--out", f"{tmp_path}/out.h5", "--precision", "int8", "--min-segment-size", "50", "--json", *blocks],
                APPS) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["numbers"]["precision"] == "int8" and said["numbers"]["objects"] == 3
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["segmentation"].attrs["precision"] == "int8"
        found = file["segmentation"][:]
    assert np.count_nonzero(found[labels > 0]) > 0.9 * np.count_nonzero(labels) and not found[labels == 0].any()
