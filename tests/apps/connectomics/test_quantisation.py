"""Quantisation: inner layers in 8 bits, close to the network in f32, the same on both backends."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from apps.cli import main
from apps.connectomics.canvas import logit
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.quantisation import looks, quantised
from core.engine import random
from core.engine.array import Array, as_array
from core.engine.jit import jit
from tests.apps.connectomics.bright import write_run, write_tubes

FIELD = (9, 7, 11)
CONFIG = ConnectomicsConfig(field_of_view=FIELD, deltas=(2, 2, 2))
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


def test_the_network_is_calibrated_on_masks_that_it_makes() -> None:
    net, image = network(), drawn(2, 2, *FIELD)
    first, second, third = looks(net, image, CONFIG, 3)
    mask = first[1].numpy()
    assert (mask[:, 4, 3, 5] == np.float32(logit(CONFIG.init_activation))).all()
    assert np.count_nonzero(mask == np.float32(logit(CONFIG.pad_value))) == mask.size - 2
    for before, after in ((first, second), (second, third)):
        np.testing.assert_array_equal(after[0].numpy(), image)
        np.testing.assert_array_equal(after[1].numpy(), run(net, image, before[1].numpy()))


def test_a_network_is_close_and_the_same_on_both_backends() -> None:
    net, image = network(), drawn(3, 20, 20, 20)
    small = quantised(net, image, CONFIG)
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
