"""Training a flood-filling network: it learns, resumes to the same bits, and segments what it has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.app import Report, config_values, dump_config
from apps.connectomics.config import ConnectomicsConfig, EvaluateSettings
from apps.connectomics.evaluate import evaluate
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.train import chosen, dry_run, labelled, train, volumes_of
from core.engine import random
from core.engine.array import as_array
from core.engine.checkpoint import load
from core.engine.errors import ConfigError, DataError
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory, Stopped

SMALL: dict[str, Any] = {"field_of_view": (9, 9, 9), "deltas": (2, 2, 2), "depth": 2, "features": 8, "batch_size": 4,
                         "min_object": 50, "image_mean": 0.5, "image_stddev": 0.5, "rate": 0.02}


@pytest.fixture
def tubes(tmp_path: Path) -> Path:
    """Bright tubes along z on a dark ground."""
    labels = np.zeros((30, 30, 30), np.uint16)
    for number, (y, x) in enumerate([(5, 5), (5, 20), (20, 6), (20, 22)], 1):
        labels[:, y:y + 6, x:x + 6] = number
    image = (labels > 0) + np.random.default_rng(0).normal(scale=0.05, size=labels.shape)
    path = tmp_path / "tubes.h5"
    with h5py.File(path, "w") as file:
        file["raw"], file["labels"] = image.astype(np.float32), labels
        file["raw"].attrs["voxel_size"] = file["labels"].attrs["voxel_size"] = (10.0, 10.0, 10.0)
    return path


def run_of(path: Path, config: ConnectomicsConfig, data: Path) -> RunDirectory:
    return RunDirectory.create(path, app="connectomics", command=["train"], config=config_values(config),
                               config_text=dump_config(config), data=[data])


def trained(run: RunDirectory, config: ConnectomicsConfig, data: Path, stop_after: int | None = None) -> Report:
    """The report of a training that goes on to its end, or is asked to stop."""
    with run.training(), Refusals(run.path / "refused.csv") as refused:
        training = train((data,), config, run, refused)
        while True:
            try:
                progress = next(training)
            except StopIteration as end:
                report: Report = end.value
                return report
            if progress.step == stop_after:
                run.request_stop()


def test_training_learns_to_fill_tubes(tubes: Path, tmp_path: Path) -> None:
    config = ConnectomicsConfig(**SMALL, epochs=3, steps=60)
    run = run_of(tmp_path / "run", config, tubes)
    report = trained(run, config, tubes)
    losses = [row["loss"] for row in report.tables["learning_curve"]]
    assert len(losses) == 3 and losses[-1] < 0.3 < losses[0]
    assert {name: array.shape for name, array in report.arrays.items()} == dict.fromkeys(
        ("image", "target", "found"), (4, 9, 9))
    with Refusals(tmp_path / "refused.csv") as refused:
        scores = evaluate(run, config, (tubes,), tmp_path, refused,
                          EvaluateSettings(min_segment_size=200, seed_policy="PolicyGrid3d"))
    assert scores.numbers["objects"] == 4
    assert float(scores.numbers["voi (labelled in both)"]) < 0.1


def test_a_silent_network_adds_nothing_with_its_blocks_nor_in_the_end() -> None:
    drawn = FloodFillingNetwork.init(random.key(0), 3, 4)
    image, mask = np.random.default_rng(0).normal(size=(2, 1, 5, 5, 5)).astype(np.float32)
    without, silent = replace(drawn, blocks=()), drawn.silent()
    np.testing.assert_array_equal(silent(image, mask).numpy(), mask)
    np.testing.assert_array_equal(replace(silent, last=drawn.last)(image, mask).numpy(), without(image, mask).numpy())
    assert np.abs(drawn(image, mask).numpy() - without(image, mask).numpy()).max() > 0.1


def test_the_field_of_view_goes_where_the_mask_is_if_not_into_the_object() -> None:
    config = ConnectomicsConfig(**SMALL, move_threshold=0.9)
    masks = np.zeros((4, 13, 13, 13), np.float32)
    offsets = np.array([[[2, 2, 4], [0, 2, 2], [4, 0, 2]]] * 4, np.int32)
    masks[1, 4, 6, 6] = 2.0  # not enough
    masks[2, 4, 6, 6], masks[2, 8, 4, 6] = 2.5, 3.0
    masks[3, 6, 6, 8], masks[3, 4, 6, 6] = 3.0, 2.5
    found = chosen(as_array(masks), as_array(offsets), config).numpy()
    np.testing.assert_array_equal(found, [[2, 2, 4], [2, 2, 4], [4, 0, 2], [2, 2, 4]])


def test_borders_are_off_what_is_learned_and_on_what_is_measured(tubes: Path) -> None:
    config = ConnectomicsConfig(**SMALL, border=1)
    learned, measured = volumes_of((tubes,), config)[0], labelled(tubes, config)
    assert np.count_nonzero(measured.labels) == 4 * 30 * 6 * 6
    assert np.count_nonzero(learned.labels) == 4 * 30 * 4 * 4


def test_a_stopped_training_goes_on_with_the_same_bits(tubes: Path, tmp_path: Path) -> None:
    config = ConnectomicsConfig(**SMALL, epochs=2, steps=5)
    whole = run_of(tmp_path / "whole", config, tubes)
    trained(whole, config, tubes)
    with pytest.raises(Stopped):
        trained(run_of(tmp_path / "cut", config, tubes), config, tubes, stop_after=3)
    trained(RunDirectory.resume(tmp_path / "cut", [tubes]), config, tubes)
    mine, same = (load(tmp_path / name / "model.safetensors")[0] for name in ("whole", "cut"))
    assert mine.keys() == same.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(array.numpy(), same[name].numpy(), name)


def test_a_dry_run_shows_shapes(tubes: Path) -> None:
    shapes = dry_run((tubes,), ConnectomicsConfig(**SMALL))
    assert shapes["field of view"] == "f32[4, 9, 9, 9]" and shapes["masks"] == "f32[4, 13, 13, 13]"


@pytest.mark.parametrize("settings, message", [
    ({"end": (40, 30, 30)}, "has no voxels from"),
    ({"begin": (20, 0, 0), "end": (10, 30, 30)}, "has no voxels from"),
    ({"labels": "nothing"}, "nothing"),
    ({"image_mean": 128.0, "image_stddev": 33.0}, "is not like the images of the training"),
])
def test_what_cannot_be_learned_from_is_said(tubes: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(tubes, ConnectomicsConfig(**{**SMALL, **settings}))


def test_steps_that_leave_the_field_of_view_are_refused():
    """The mask would be read outside of what was predicted."""
    ConnectomicsConfig(field_of_view=(9, 9, 9), deltas=(4, 0, 4))
    with pytest.raises(ConfigError, match="at most half of the field of view"):
        ConnectomicsConfig(field_of_view=(9, 9, 9), deltas=(4, 5, 4))
