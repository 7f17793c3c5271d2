"""Scores of volumes in files: every mask and setting by name, blocks, margins, and what cannot be compared.

Invariant: volumes are small, and what is expected follows from how they were drawn.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest

from apps.app import Report
from apps.connectomics import scoring
from apps.connectomics.agreement import ContingencyTable, Mask
from apps.connectomics.config import ScoreSettings
from apps.connectomics.runlength import Definition
from apps.connectomics.scoring import score, score_addresses
from apps.connectomics.skeletons import skeletonize, write_swc
from apps.connectomics.volumes import Volume
from core.engine.errors import ConfigError, DataError
from core.engine.refusals import Refusals

EDGES, SKELETONS = map(str, Definition)


class Labels:
    """A volume in memory that notes what is read of it."""

    def __init__(self, labels: np.ndarray, voxel_size: tuple[float, ...] | None = None, address: str = "a") -> None:
        self.labels, self.shape, self.voxel_size, self.address = labels, labels.shape, voxel_size, address
        self.read_so_far: Counter[tuple[Any, ...]] = Counter()

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
        self.read_so_far[tuple(start), tuple(stop)] += 1
        return self.labels[tuple(map(slice, start, stop))]


def scored(segmentation: Labels, truth: Labels, no_merge: Labels | None = None, **settings: Any) -> Report:
    volumes = (cast(Volume, volume) for volume in (segmentation, truth))
    return score(*volumes, ScoreSettings(truth="b", **settings), cast(Volume, no_merge) if no_merge else None)


def tubes() -> tuple[np.ndarray, np.ndarray]:
    """A truth of two tubes of 40 planes, and a segmentation that splits the one and leaves out the end of the other."""
    truth = np.zeros((40, 20, 40), np.uint16)
    truth[:, 5:14, 5:14], truth[:, 5:14, 25:34] = 3, 4
    segmentation = truth * 10
    segmentation[20:, 5:14, 5:14] = 7
    segmentation[30:, 5:14, 25:34] = 0
    return segmentation, truth


def stored(path: Path, **labels: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, values in labels.items():
            file[name] = values


@pytest.fixture
def files(tmp_path: Path) -> Path:
    segmentation, truth = tubes()
    stored(tmp_path / "seg.h5", segmentation=segmentation)
    stored(tmp_path / "gt.h5", groundtruth=truth, no_merge=(truth == 4).astype(np.uint8))
    return tmp_path


def run(files: Path, **settings: Any) -> Report:
    with Refusals(files / "refused.csv") as refused:
        return score_addresses(f"{files / 'seg.h5'}:segmentation", files / "report", refused,
                               ScoreSettings(truth=f"{files / 'gt.h5'}:groundtruth", **settings))


def rows(files: Path, name: str) -> list[dict[str, str]]:
    with open(files / "report" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_every_mask_by_name(files: Path) -> None:
    report = run(files)
    table = ContingencyTable.of(*tubes())
    found = rows(files, "agreement")
    assert [row["mask"] for row in found] == [str(mask) for mask in Mask]
    for row, mask in zip(found, Mask, strict=True):
        expected = table.agreement(mask)
        assert int(row["voxels"]) == expected.voxels
        for name in ("voi_split", "voi_merge", "voi", "arand", "rand_split", "rand_merge", "nid"):
            assert float(row[name]) == getattr(expected, name)
    numbers = json.loads((files / "report" / "report.json").read_text())
    assert numbers == dict(report.numbers)
    assert numbers["voi_split (labelled in both)"] == pytest.approx(40 / 70)
    assert not (files / "report" / "run_lengths.csv").exists()


def test_run_lengths_are_a_sweep_in_both_definitions(files: Path) -> None:
    report = run(files, erl=True, voxel_size=(10.0, 10.0, 10.0), minimum_radius=(0.0, 40.0), merge_threshold=(1, 50))
    found = rows(files, "run_lengths")
    assert [tuple(row.values())[:3] for row in found] == [
        (definition, radius, threshold) for radius, threshold, definition in itertools.product(
            ("0.0", "40.0"), ("1", "50"), (EDGES, SKELETONS))]
    for row in found:  # two skeletons of 390 nm; runs of 190 and 190, and of 290
        assert float(row["perfect_erl_nm"]) == pytest.approx(390)
        assert float(row["erl_nm"]) == pytest.approx((190**2 + 190**2 + 290**2) / 780)
        assert [float(row[kind]) for kind in ("correct_nm", "split_nm", "merged_nm", "omitted_nm")] == \
            pytest.approx([670, 10, 0, 100])
    for definition in Definition:
        assert report.numbers[f"nerl lowest, {definition}"] == pytest.approx((2 * 190**2 + 290**2) / 780 / 390)
        assert report.numbers[f"nerl highest, {definition}"] == report.numbers[f"nerl lowest, {definition}"]


def test_a_merger_is_seen_and_a_mask_of_what_must_not_be_merged(files: Path) -> None:
    segmentation, truth = tubes()
    segmentation[:5, 5:14, 25:34] = 30
    merged = run_lengths(scored(Labels(segmentation, (10, 10, 10)), Labels(truth), erl=True, minimum_radius=(0.0,),
                                merge_threshold=(1, 6)))
    # The first five planes of the one tube lie in the segment of the first twenty of the other.
    assert merged[EDGES, 1] == pytest.approx((190**2 + 240**2) / 780)
    assert merged[SKELETONS, 1] == 0
    assert merged[EDGES, 6] == merged[SKELETONS, 6] == pytest.approx((190**2 + 190**2 + 40**2 + 240**2) / 780)
    report = run(files, erl=True, voxel_size=(10.0, 10.0, 10.0), no_merge=f"{files / 'gt.h5'}:no_merge",
                 minimum_radius=(0.0,))
    assert {row["mergers"] for row in report.tables["run_lengths"]} == {1}
    assert run_lengths(report)[SKELETONS, 1] == pytest.approx((190**2 + 190**2) / 780)


def run_lengths(report: Report) -> dict[tuple[str, int], float]:
    return {(row["definition"], row["merge_threshold"]): row["erl_nm"] for row in report.tables["run_lengths"]}


def test_skeletons_may_be_given(files: Path) -> None:
    folder = files / "skeletons"
    folder.mkdir()
    write_swc(skeletonize(tubes()[1], (10.0, 10.0, 10.0)), folder)
    own, given = (run(files, erl=True, voxel_size=(10.0, 10.0, 10.0), skeletons=skeletons)
                  for skeletons in (None, folder))
    assert own.tables == given.tables


def test_a_margin_is_left_out() -> None:
    segmentation, truth = tubes()
    inner = (slice(6, -6), slice(6, -6), slice(6, -6))
    report = scored(Labels(segmentation, (10, 10, 10)), Labels(truth), margin=6, erl=True, minimum_radius=(0.0,))
    whole = scored(Labels(segmentation[inner]), Labels(truth[inner]))
    assert report.tables["agreement"] == whole.tables["agreement"]
    assert report.tables["run_lengths"][0]["perfect_erl_nm"] == pytest.approx(270)


@pytest.mark.parametrize("margin", [0, 3])
def test_blocks_give_the_result_of_the_whole_and_no_voxel_is_read_twice(monkeypatch: pytest.MonkeyPatch,
                                                                       margin: int) -> None:
    segmentation, truth = (Labels(labels, (10, 10, 10)) for labels in tubes())
    whole = scored(segmentation, truth, margin=margin, erl=True)
    monkeypatch.setattr(scoring, "BLOCK", 8)
    truth.read_so_far.clear()
    assert scored(segmentation, truth, margin=margin, erl=True) == whole
    del truth.read_so_far[(0, 0, 0), truth.shape]  # the skeletons are made of the whole
    times = np.zeros(truth.shape, int)
    for start, stop in truth.read_so_far:
        assert all(last - first <= 8 and first // 8 == (last - 1) // 8
                   for first, last in zip(start, stop, strict=True))
        times[tuple(map(slice, start, stop))] += 1
    inner = (slice(margin, -margin or None),) * 3
    assert times[inner].min() == times[inner].max() == 1 and times.sum() == times[inner].size


def test_a_radius_that_no_node_has_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    segmentation, truth = (Labels(labels, (10, 10, 10)) for labels in tubes())
    report = scored(segmentation, truth, erl=True, minimum_radius=(0.0, 1000.0), merge_threshold=(1,))
    assert {row["minimum_radius_nm"] for row in report.tables["run_lengths"]} == {0.0}
    with pytest.raises(DataError, match=r"no skeleton is left(.|\n)*--minimum-radius"):
        scored(segmentation, truth, erl=True, minimum_radius=(1000.0,))


@pytest.mark.parametrize(("change", "settings", "message"), [
    ({"shape": (40, 20, 41)}, {}, r"differ in shape\n.*\(40, 20, 40\) voxels\n.*\(40, 20, 41\) voxels"),
    ({}, {"margin": 10}, r"margin of 10 voxels leaves nothing of \(40, 20, 40\)"),
    ({}, {"erl": True}, r"size of a voxel(.|\n)*--voxel-size"),
    ({"voxel_size": (8, 8, 8)}, {"erl": True, "other": (9, 9, 9)}, r"differ in voxel size\n.*9, 9, 9\).*\n.*8, 8, 8"),
    ({"labels": np.zeros((40, 20, 40), int)}, {}, "nothing to compare"),
    ({"labels": np.full((40, 20, 40), 0.5)}, {}, r"truth does not hold labels\n.*float64"),
    ({"labels": np.eye(40, dtype=int)[:, None].repeat(20, axis=1), "voxel_size": (8, 8, 8)},
     {"erl": True, "minimum_voxels": 10_000}, "no skeleton is left"),
])
def test_what_cannot_be_compared(change: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    segmentation, truth = tubes()
    volume = Labels(truth, address="b")
    vars(volume).update(change)
    other = settings.get("other")
    with pytest.raises(DataError, match=message):
        scored(Labels(segmentation, other), volume, **{name: settings[name] for name in settings.keys() - {"other"}})


def test_a_truth_that_is_too_large_for_skeletons(monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation, truth = tubes()
    monkeypatch.setattr(scoring, "MAX_SKELETONIZED", truth.size - 1)
    with pytest.raises(DataError, match=r"too large(.|\n)*--skeletons"):
        scored(Labels(segmentation, (10, 10, 10)), Labels(truth), erl=True)


def test_skeletons_that_lie_elsewhere_or_have_no_radii(tmp_path: Path) -> None:
    segmentation, truth = (Labels(labels, (10, 10, 10)) for labels in tubes())
    (tmp_path / "1.swc").write_text("1 0 50 50 0 5 -1\n2 0 50 50 1e300 5 1\n")
    with pytest.raises(DataError, match=r"1 of 2 nodes(.|\n)*below \[400, 200, 400\] nm"):
        scored(segmentation, truth, erl=True, skeletons=tmp_path)
    (tmp_path / "1.swc").write_text("1 0 50 50 0 nan -1\n2 0 50 50 390 nan 1\n")
    with pytest.raises(DataError, match=r"how far nodes are(.|\n)*--minimum-radius 0"):
        scored(segmentation, truth, erl=True, skeletons=tmp_path)
    report = scored(segmentation, truth, erl=True, skeletons=tmp_path, minimum_radius=(0.0,))
    assert report.tables["run_lengths"][0]["perfect_erl_nm"] == 390


@pytest.mark.parametrize("settings", [{"skeletons": Path("a")}, {"no_merge": "a"}])
def test_settings_of_run_lengths_need_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="add --erl"):
        ScoreSettings(truth="b", **settings)
    replace(ScoreSettings(truth="b", erl=True), **settings)


@pytest.mark.parametrize("name", ["minimum_radius", "merge_threshold"])
def test_a_sweep_needs_a_number(name: str) -> None:
    with pytest.raises(ConfigError, match="at least one number"):
        ScoreSettings(truth="b", **{name: ()})


def test_the_watershed_of_fib25_from_its_file(realdata: Path, tmp_path: Path) -> None:
    path = realdata / "connectomics/fib25_training2.h5"
    with Refusals(tmp_path / "refused.csv") as refused:
        report = score_addresses(f"{path}:watershed", tmp_path / "report", refused,
                                 ScoreSettings(truth=f"{path}:groundtruth"))
    assert report.numbers["voi (labelled in both)"] == pytest.approx(2.7370, abs=5e-5)
    assert report.numbers["arand (labelled in both)"] == pytest.approx(0.2712, abs=5e-5)


@pytest.mark.slow
def test_run_lengths_of_the_watershed_of_fib25(realdata: Path) -> None:
    with h5py.File(realdata / "connectomics/fib25_training2.h5") as file:
        segmentation, truth = (Labels(file[name][()], (10.0, 10.0, 10.0)) for name in ("watershed", "groundtruth"))
    report = scored(segmentation, truth, erl=True, constant=100.0, minimum_voxels=1000, minimum_radius=(50.0,),
                    merge_threshold=(1, 25))
    # 16.21 um with the skeletons of another program; the run length itself hangs on single branches.
    found = report.tables["run_lengths"]
    assert all(row["perfect_erl_nm"] == pytest.approx(16_210, rel=0.05) for row in found)
    assert all(0 < row["nerl"] < 0.5 for row in found)
    merged = [row for row in found if row["merge_threshold"] == 1]
    assert merged[0]["nerl"] > merged[1]["nerl"]
