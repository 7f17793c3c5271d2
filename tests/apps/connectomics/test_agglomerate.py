"""Agglomeration: a closer look beside a plainly written one, the rule, the command, and Google's network on FIB-25."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import ndimage

from apps.cli import main
from apps.connectomics import agglomeration
from apps.connectomics.agglomeration import DECISION, are_one, groups
from apps.connectomics.blocks import Grid
from apps.connectomics.canvas import Canvas, FloodOptions
from apps.connectomics.config import AgglomerateSettings, ConnectomicsConfig
from apps.connectomics.resegmentation import EvalResult, Subvolume, resegment
from apps.connectomics.segment import as_network_sees, equalised
from apps.connectomics.volumes import open_volume
from core.engine.array import Array, as_array
from core.engine.jit import Program, jit
from tests.apps.connectomics.bright import write_run, write_tubes
from tests.apps.connectomics.plainly import Plainly

APPS = ("apps.connectomics.app:APP",)
FIELD = (7, 7, 5)
DELTAS = (2, 2, 1)
SIZE = (20.0, 10.0, 10.0)
SETTINGS = AgglomerateSettings(image="", model=Path())
ANALYSIS = (slice(4, 20), slice(3, 19), slice(3, 17))


def doubt(weight: Array, image: Array, logits: Array) -> Array:
    """A network that sees anything in what it has not looked at, and takes it back at a second look where it is dim."""
    return image * weight + logits * (image - 1.0) * 0.8 - 1.0


def follow(weight: Array, image: Array, logits: Array) -> Array:
    """A network whose mask is where the image is bright, and remembers what it was."""
    return image * weight + logits * 0.4 - 1.0


def network(rule: Callable[[Array, Array, Array], Array]) -> Program:
    return jit(rule, device="cpu").bind(as_array(np.float32(3.0)))


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of smooth blobs, and segments of its bright parts, which planes cut."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 22, 20)), 1.6)
    image = (noise / noise.std()).astype(np.float32)
    labels, _ = ndimage.label(image > 0.5)
    for box in (np.s_[12:], np.s_[:, 11:]):
        labels[box] += (labels.max() + 1) * (labels[box] > 0)
    return image, labels


# A closer look


def plainly(image: np.ndarray, labels: np.ndarray, pair: tuple[int, int], settings: AgglomerateSettings) -> dict[
        str, Any]:
    """The scores of google/ffn, step by step as its files have them; names are joined by dots."""
    program = network(doubt)
    kept = np.where(np.isin(labels, pair), 0, labels).astype(np.int32)
    flood = Plainly(image, kept, lambda i, s: program(i[None], s[None]).numpy()[0].copy(), FIELD, DELTAS)
    masks: list[np.ndarray | None] = []
    scores: dict[str, Any] = {f"num_voxels_{which}": np.count_nonzero(labels[ANALYSIS] == label)
                              for which, label in zip("ab", pair, strict=True)}
    for which, label in zip("ab", pair, strict=True):
        segment = labels == label
        distance = ndimage.distance_transform_edt(segment, sampling=SIZE)
        for place in np.ndindex(*distance.shape):
            if not flood.inside(place):
                distance[place] = 0
        prob = None
        for _ in range(settings.max_retry_iters):
            seed = tuple(map(int, np.unravel_index(np.argmax(distance), distance.shape)))
            if not distance[seed]:
                break
            distance[flood.around(seed, settings.exclusion_radius)] = 0
            prob, moves = flood.grow(seed)
            found = np.nan_to_num(1 / (1 + np.exp(-prob.astype(np.float64))))[ANALYSIS]
            if np.sum((found >= 0.6) & segment[ANALYSIS]) / np.sum(segment[ANALYSIS]) >= (
                    settings.segment_recovery_fraction):
                break
        masks.append(None if prob is None else found >= 0.5)
        if masks[-1] is not None:
            scores |= {f"from_{which}.origin.{axis}": place for axis, place in zip("zyx", seed, strict=True)}
            scores |= {f"from_{which}.num_voxels": np.count_nonzero(masks[-1]),
                       f"from_{which}.deleted_voxels": sum(
                           deleted for position, deleted in moves
                           if all(s.start <= p < s.stop for p, s in zip(position, ANALYSIS, strict=True)))}
            scores |= {f"from_{which}.segment_{other}_consistency": np.mean(masks[-1][labels[ANALYSIS] == name])
                       for other, name in zip("ab", pair, strict=True)}
    if masks[0] is not None and masks[1] is not None and (masks[0] | masks[1]).any():
        scores["iou"] = np.sum(masks[0] & masks[1]) / np.sum(masks[0] | masks[1])
    return scores


def looked_at(image: np.ndarray, labels: np.ndarray, pair: tuple[int, int], settings: AgglomerateSettings = SETTINGS,
              rule: Callable[[Array, Array, Array], Array] = follow) -> tuple[EvalResult, Canvas]:
    kept = np.where(np.isin(labels, pair), 0, labels).astype(np.int32)
    canvas = Canvas(image, kept, network(rule), FIELD, FloodOptions(deltas=DELTAS))
    return resegment(canvas, labels == pair[0], labels == pair[1], ANALYSIS, SIZE, settings), canvas


def flat(found: EvalResult) -> dict[str, Any]:
    """Scores by names joined by dots, without what is missing."""
    scores = asdict(found)
    for which in ("from_a", "from_b"):
        grown = scores.pop(which) or {"origin": ()}
        scores |= {f"{which}.origin.{axis}": place for axis, place in zip("zyx", grown.pop("origin"), strict=False)}
        scores |= {f"{which}.{name}": value for name, value in grown.items()}
    return {name: value for name, value in scores.items() if value == value}


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_closer_look_is_that_of_the_plain_version(seed: int, tries: int) -> None:
    image, labels = blobs(seed)
    settings = replace(SETTINGS, max_retry_iters=tries, exclusion_radius=(1, 2, 2), segment_recovery_fraction=0.9)
    sizes = np.bincount(labels[ANALYSIS].ravel())
    sizes[0] = 0
    ids = np.argsort(-sizes)[:6].tolist()
    looks, doubts = 0, 0
    for pair in ((a, b) for a in ids for b in ids if a < b and sizes[a] and sizes[b]):
        found, _ = looked_at(image, labels, pair, settings, doubt)
        expected = plainly(image, labels, pair, settings)
        assert flat(found) == pytest.approx(expected), pair
        looks += "iou" in expected
        doubts += expected.get("from_a.deleted_voxels", 0)
    assert looks >= 3 and doubts > 0


def rods() -> tuple[np.ndarray, np.ndarray]:
    """The image of two rods along z, brightest inside, and their labels."""
    labels = np.zeros((24, 22, 20), np.int64)
    labels[2:22, 3:10, 5:14], labels[2:22, 12:19, 5:14] = 4, 9
    inside = ndimage.distance_transform_edt(labels)
    return np.where(labels > 0, 1 + 0.3 * inside, -1).astype(np.float32), labels


def test_what_grew_from_the_first_can_end_it_early() -> None:
    image, labels = rods()
    labels[12:][labels[12:] == 4] = 7
    for pair, scored in (((4, 7), True), ((4, 9), False)):
        found, canvas = looked_at(image, labels, pair, replace(SETTINGS, terminate_early=True))
        whole, all_of_it = looked_at(image, labels, pair)
        assert found.from_a == whole.from_a and whole.from_b is not None
        assert (found == whole) is scored and (found.from_b is not None) is scored
        assert (canvas.counters.moves < all_of_it.counters.moves) is not scored
        assert (whole.iou > 0.9) is scored


def test_other_segments_stay_in_the_way() -> None:
    image, labels = rods()
    rod = labels == 4
    labels[9:][rod[9:]] = 0
    labels[15:][rod[15:]] = 7
    assert looked_at(image, labels, (4, 7))[0].iou > 0.9
    labels[9:15][rod[9:15]] = 3
    assert looked_at(image, labels, (4, 7))[0].iou < 0.1


def test_a_subvolume_ends_with_the_volume() -> None:
    inner = Subvolume.around((50, 60, 70), (200, 200, 200), (20, 30, 30), (4, 14, 14))
    assert (inner.start, inner.stop) == ((30, 30, 40), (71, 91, 101))
    assert inner.analysis == (slice(16, 25), slice(16, 45), slice(16, 45))
    cut = Subvolume.around((5, 60, 199), (200, 200, 200), (20, 30, 30), (4, 14, 14))
    assert (cut.start, cut.stop) == ((0, 30, 169), (26, 91, 200))
    assert cut.analysis == (slice(16, 10), slice(16, 45), slice(16, 15))  # none along z: too near to the face
    shape = np.subtract(cut.stop, cut.start)
    canvas = Canvas(np.zeros(shape, np.float32), np.zeros(shape, np.int32), network(follow), FIELD, FloodOptions())
    found = resegment(canvas, np.ones(shape, bool), np.ones(shape, bool), cut.analysis, SIZE, SETTINGS)
    assert flat(found) == {"num_voxels_a": 0, "num_voxels_b": 0}


# The rule


GOOD = {"iou": 0.81, **{f"from_{a}.segment_{b}_consistency": 0.61 for a in "ab" for b in "ab"},
        **{f"from_{a}.{name}": value for a in "ab" for name, value in (("num_voxels", 1000), ("deleted_voxels", 19))}}


@pytest.mark.parametrize("changes, one", [
    ({}, True), ({"iou": 0.8}, False), ({"iou": math.nan}, False), ({"from_a.deleted_voxels": 500}, True),
    ({"from_b.deleted_voxels": 20}, True), ({"from_a.deleted_voxels": 20, "from_b.deleted_voxels": 20}, False),
    *(({f"from_{a}.segment_{b}_consistency": value}, False) for a in "ab" for b in "ab" for value in (0.6, math.nan))])
def test_the_rule(changes: dict[str, float], one: bool) -> None:
    decisions = np.zeros(1, DECISION)
    for name, value in {**GOOD, **changes}.items():
        decisions[name] = value
    assert are_one(decisions, SETTINGS).tolist() == [one]


def test_groups_take_their_smallest_id() -> None:
    pairs = np.zeros(4, DECISION)
    pairs["id_a"], pairs["id_b"] = [5, 3, 20, 9], [9, 9, 2**64 - 1, 11]
    ids, smallest = groups(pairs)
    assert dict(zip(ids.tolist(), smallest.tolist(), strict=True)) == {
        3: 3, 5: 3, 9: 3, 11: 3, 20: 20, 2**64 - 1: 20}
    assert [len(array) for array in groups(pairs[:0])] == [0, 0]


def test_contrast_is_evened_out_over_whole_sections(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(90, 110, (9, 64, 60)).astype(np.uint8)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = image
    around = Subvolume((2, 10, 20), (7, 40, 60), (slice(0, 5), slice(0, 30), slice(0, 40)))
    box = np.s_[2:7, 10:40, 20:60]
    for clahe, whole in ((False, image), (True, equalised(image))):
        config = ConnectomicsConfig(clahe=clahe)
        np.testing.assert_array_equal(agglomeration._seen(open_volume(f"{tmp_path}/v.h5:raw"), around, config),
                                      as_network_sees(whole, config)[box])


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


def written(path: Path, labels: np.ndarray, voxel_size: tuple[float, ...] | None = None) -> str:
    with h5py.File(path, "w") as file:
        file["segmentation"] = labels
        if voxel_size:
            file["segmentation"].attrs["voxel_size"] = voxel_size
    return f"{path}:segmentation"


def agglomerated(capsys: pytest.CaptureFixture[str], address: str, image: object, run: Path, out: Path,
                 *more: object) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    words = ["connectomics", "agglomerate", address, "--image", str(image), "--model", str(run), "--out", str(out),
             "--json", *map(str, more)]
    capsys.readouterr()
    code = main(words, APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def table(path: Path) -> dict[tuple[int, int], dict[str, str]]:
    with open(path, newline="") as file:
        return {(int(row["id_a"]), int(row["id_b"])): row for row in csv.DictReader(file)}


def cut_tubes(labels: np.ndarray) -> np.ndarray:
    """Three tubes, the second cut into three, with ids that no float has."""
    cut = labels.astype(np.uint64) * 10
    second = labels == 2
    cut[20:][second[20:]] = 2**60 + 1
    cut[40:][second[40:]] = 7
    for z in (20, 40):
        cut[z][second[z]] = 0
    return cut


def test_what_was_cut_is_joined_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    cut = cut_tubes(labels)
    address, image = written(tmp_path / "cut.h5", cut), f"{tmp_path}/tubes.h5:raw"
    said = agglomerated(capsys, address, image, run, tmp_path / "out.h5", "--radius", "9,12,12")
    assert said["exit_code"] == 0, said
    rows = table(tmp_path / "out.decisions.csv")
    assert [pair for pair, row in rows.items() if row["merged"] == "True"] == [(7, 2**60 + 1), (20, 2**60 + 1)]
    assert said["numbers"] == {
        "segments before": 5, "decision points": len(rows), "decided": sum(row["iou"] != "" for row in rows.values()),
        "merged pairs": 2, "segments after": 3, "precision": "f32"}
    with h5py.File(tmp_path / "out.h5") as file:
        merged = file["segmentation"]
        assert merged.dtype == np.uint64 and merged.attrs["voxel_size"].tolist() == [10, 10, 10]
        np.testing.assert_array_equal(merged[:], np.where(np.isin(cut, [7, 20, 2**60 + 1]), 7, cut))
    for (a, b), row in rows.items():
        place = tuple(int(row[axis]) for axis in "zyx")
        assert (np.array(place) >= 0).all() and (np.array(place) < labels.shape).all()
        for which, label in (("a", a), ("b", b)):
            seed = tuple(int(row[f"from_{which}.origin.{axis}"]) for axis in "zyx")
            assert seed == (-1, -1, -1) or cut[seed] == label
    first = rows[20, 2**60 + 1]
    assert first["z"] in ("19", "20") and float(first["distance"]) == 5  # the voxel between belongs to one of them


def test_blocks_and_workers_change_nothing_and_the_rule_needs_no_other_look(
        run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    address, image = written(tmp_path / "cut.h5", cut_tubes(labels)), f"{tmp_path}/tubes.h5:raw"
    options = ("--radius", "9,12,12", "--max-distance", "80")
    assert agglomerated(capsys, address, image, run, tmp_path / "whole.h5", *options)["exit_code"] == 0
    monkeypatch.setattr(agglomeration, "BLOCK", 30)
    assert agglomerated(capsys, address, image, run, tmp_path / "out.h5", *options, "--workers", 2)["exit_code"] == 0
    with h5py.File(tmp_path / "whole.h5") as one, h5py.File(tmp_path / "out.h5") as other:
        np.testing.assert_array_equal(one["segmentation"][:], other["segmentation"][:])
    assert (tmp_path / "whole.decisions.csv").read_bytes() == (tmp_path / "out.decisions.csv").read_bytes()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.blocks/blocks").iterdir()}
    assert len(done) == 8
    strict = agglomerated(capsys, address, image, run, tmp_path / "out.h5", *options, "--min-iou", 1)
    assert strict["exit_code"] == 0 and strict["numbers"]["merged pairs"] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out.blocks/blocks").iterdir()} == done
    far = agglomerated(capsys, address, image, run, tmp_path / "out.h5", "--radius", "9,12,12")
    assert far["exit_code"] == 2 and "began with other settings\n  points  [[7, " in far["error"]
    assert len(far["error"]) < 1000


def test_small_segments_stay_and_finer_ones_are_joined_alike(run: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    cut = cut_tubes(labels)
    fine = cut.repeat(2, 1)
    fine[0, 0, 0] = 999  # a segment that only the fine voxels have
    finer = written(tmp_path / "fine.h5", fine, (10, 5, 10))
    address, image = written(tmp_path / "cut.h5", cut), f"{tmp_path}/tubes.h5:raw"
    options = ("--radius", "9,12,12", "--fine", finer)
    small, large = (np.count_nonzero(cut == name) for name in (2**60 + 1, 20))
    assert small == np.count_nonzero(cut == 7) < large
    said = agglomerated(capsys, address, image, run, tmp_path / "out.h5", *options)
    assert said["exit_code"] == 0 and said["numbers"]["merged pairs"] == 2, said
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["segmentation"].attrs["voxel_size"].tolist() == [10, 5, 10]
        np.testing.assert_array_equal(file["segmentation"][:], np.where(np.isin(fine, [7, 20, 2**60 + 1]), 7, fine))
    said = agglomerated(capsys, address, image, run, tmp_path / "large.h5", *options, "--min-size", small + 1)
    assert said["exit_code"] == 0 and said["numbers"]["merged pairs"] == 0
    assert all(2**60 + 1 not in pair for pair in table(tmp_path / "large.decisions.csv"))
    said = agglomerated(capsys, address, image, run, tmp_path / "wrong.h5", "--fine",
                        written(tmp_path / "wrong-fine.h5", fine[:, :70], (10, 5, 10)))
    assert said["exit_code"] == 3 and "is no coarser scale of the volume" in said["error"]


@pytest.mark.parametrize("between, one", [(0, True), (3, False)])
def test_segments_around_a_point_are_kept(run: Path, tmp_path: Path, between: int, one: bool) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    first = labels == 1
    labels[25:][first[25:]] = between
    labels[35:][first[35:]] = 7
    arguments = {
        "input": written(tmp_path / "s.h5", labels), "image": f"{tmp_path}/tubes.h5:raw", "model": str(run),
        "settings": {"voxel_size": [10, 10, 10], "radius": [12, 12, 12], "analysis_radius": [9, 9, 9]},
        "points": [[1, 7, 29, 9, 9, 50.0], [2, 3, 50, 30, 30, 9.0]]}
    near, far = Grid((60, 48, 48), (30, 48, 48), (1, 1, 1))
    (decision,) = agglomeration.decide_block(near, arguments)["decisions"]
    assert decision[["id_a", "id_b", "z", "y", "x", "distance"]].tolist() == (1, 7, 29, 9, 9, 50.0)
    assert (decision["iou"] > 0.8) == one and (decision["iou"] < 0.1) != one
    assert agglomeration.decide_block(far, arguments)["decisions"][["id_a", "id_b"]].tolist() == [(2, 3)]


@pytest.mark.parametrize("labels, message", [
    (np.zeros((60, 48, 48), np.uint8), "holds no segment: all its voxels are 0"),
    (np.ones((60, 48, 48), np.float32), "holds float32; segments have whole numbers"),
    (np.full((60, 48, 48), -1), "holds -1; labels are whole numbers from 0"),
    (np.ones((60, 48, 47), np.uint8), "the volumes differ in shape\n")])
def test_segmentations_that_cannot_be(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      labels: np.ndarray, message: str) -> None:
    write_tubes(tmp_path / "tubes.h5")
    said = agglomerated(capsys, written(tmp_path / "s.h5", labels), f"{tmp_path}/tubes.h5:raw", run,
                        tmp_path / "out.h5", "--radius", "9,9,9")
    assert said["exit_code"] == 3 and message in said["error"], said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.h5", "tubes.h5"]


@pytest.mark.parametrize("more, message", [
    (("--radius", "2,9,9"), "the network sees more than the subvolume around a decision point\n  found     a radius of "
                            "(2, 9, 9) voxels (z y x), a field of view of (7, 7, 7)\n  expected  a radius of at least "
                            "(3, 3, 3)"),
    (("--radius", "3,9,9"), "an analysis radius of (0, 6, 6) voxels (z y x)"),
    (("--radius", "9,9,9", "--analysis-radius", "3,3,10"), "an analysis radius of (3, 3, 10) voxels"),
    (("--radius", "9,9"), "radius is three numbers, z y x; found 9 9")])
def test_settings_that_cannot_be(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                 more: tuple[str, ...], message: str) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    said = agglomerated(capsys, written(tmp_path / "s.h5", labels), f"{tmp_path}/tubes.h5:raw", run,
                        tmp_path / "out.h5", *more)
    assert said["exit_code"] == 2 and message in said["error"], said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.h5", "tubes.h5"]


def test_voxel_sizes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5", voxel_size=None)
    image, radius = f"{tmp_path}/tubes.h5:raw", ("--radius", "9,12,12")
    said = agglomerated(capsys, written(tmp_path / "s.h5", labels), image, run, tmp_path / "out.h5", *radius)
    assert said["exit_code"] == 3
    assert "s.h5:segmentation does not say how large a voxel is\n  hint  add --voxel-size" in said["error"]
    said = agglomerated(capsys, f"{tmp_path}/s.h5:segmentation", image, run, tmp_path / "out.h5", *radius,
                        "--voxel-size", "10,10,10")
    assert said["exit_code"] == 0 and said["numbers"]["merged pairs"] == 0
    write_tubes(tmp_path / "other.h5", voxel_size=(20.0, 10.0, 10.0))
    said = agglomerated(capsys, written(tmp_path / "sized.h5", labels, (10, 10, 10)), f"{tmp_path}/other.h5:raw", run,
                        tmp_path / "out.h5", *radius)
    assert said["exit_code"] == 3 and "the volumes differ in voxel size\n" in said["error"]


def test_a_volume_smaller_than_what_the_network_sees(run: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"], file["segmentation"] = np.ones((5, 20, 20), np.uint8), np.ones((5, 20, 20), np.uint8)
    said = agglomerated(capsys, f"{tmp_path}/v.h5:segmentation", f"{tmp_path}/v.h5:raw", run, tmp_path / "out.h5",
                        "--voxel-size", "10,10,10")
    assert said["exit_code"] == 3 and "has 5 x 20 x 20 voxels (z y x); the network sees 7 x 7 x 7" in said["error"]


# Google's network


def test_a_cut_neurite_of_fib25_is_joined_and_its_neighbour_is_not(
        realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Body 351 runs along y; body 152 touches it."""
    box = np.s_[100:165, 135:200, 0:65]
    with h5py.File(realdata / "connectomics" / "fib25_training2.h5") as file:
        image, bodies = file["raw"][box], file["groundtruth"][box]
    cut = np.where(np.isin(bodies, [152, 351]), bodies, 0).astype(np.uint32)
    behind = bodies == 351
    behind[:, :33] = False
    cut[behind] = 9000
    cut[:, 32:34][bodies[:, 32:34] == 351] = 0
    with h5py.File(tmp_path / "crop.h5", "w") as file:
        file["raw"], file["cut"] = image, cut
    assert main(["connectomics", "import-checkpoint", str(realdata / "connectomics" / "ffn_fib25_tf"), "--out",
                 str(tmp_path / "run")], APPS) == 0
    said = agglomerated(capsys, f"{tmp_path}/crop.h5:cut", f"{tmp_path}/crop.h5:raw", tmp_path / "run",
                        tmp_path / "out.h5", "--voxel-size", "10,10,10", "--radius", "24,24,24")
    assert said["exit_code"] == 0, said
    rows = table(tmp_path / "out.decisions.csv")
    assert {pair: row["merged"] for pair, row in rows.items()} == {
        (152, 351): "False", (152, 9000): "False", (351, 9000): "True"}
    assert all(row["iou"] for row in rows.values())
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["segmentation"][:], np.where(cut == 9000, 351, cut))
