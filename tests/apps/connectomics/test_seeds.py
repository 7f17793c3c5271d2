"""Seed policies: each beside what google/ffn says it does, on images whose peaks are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import ndimage

from apps.cli import main
from apps.connectomics import config
from apps.connectomics.config import FloodSettings
from apps.connectomics.seeds import POLICIES, Given, within
from apps.connectomics.segmentations import read_origins
from core.engine.errors import ConfigError, DataError
from tests.apps.connectomics.bright import write_run, write_tubes

APPS = ("apps.connectomics.app:APP",)
SHAPE = (20, 40, 36)
SPOTS = [(6, 9, 10), (6, 28, 25), (13, 18, 8), (14, 30, 12)]
"""Voxels of peaks, ascending."""


def spots(heights: tuple[float, ...] = (3.0, 5.0, 4.0, 2.0)) -> np.ndarray:
    """An image that is 0 or less but around some peaks."""
    image = np.zeros(SHAPE)
    for spot, height in zip(SPOTS, heights, strict=True):
        image[spot] = height
    image = ndimage.gaussian_filter(image, 1.0)
    return (image / image.max() * 5 - 1).astype(np.float32)


def seeds(name: str, image: np.ndarray, labels: np.ndarray | None = None, **more: Any) -> list[tuple[int, ...]]:
    nothing = np.zeros(image.shape, np.int32)
    found = POLICIES[name](Given(image, nothing if labels is None else labels, **more))
    assert found.dtype == np.int64 and found.ndim == 2 and found.shape[1] == 3
    return [tuple(seed) for seed in found.tolist()]


def test_the_settings_know_all_policies() -> None:
    assert tuple(POLICIES) == config.POLICIES


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "PolicyInvertOrigins"])
def test_the_same_image_gives_the_same_seeds_all_inside(name: str) -> None:
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    labels = (np.indices(SHAPE) % 11 == 0).any(0).astype(np.int32)
    np.random.seed(7)
    found = seeds(name, image, labels)
    assert found == seeds(name, image, labels) and len(set(found)) > 1
    assert all(0 <= place < size for seed in found for place, size in zip(seed, SHAPE, strict=True))


@pytest.mark.parametrize("name, offsets, flat", [("PolicyGrid3d", (0, 8, 4, 12, 2, 10, 14), False),
                                                 ("PolicyGrid2d", (0, 8, 4, 12, 2, 6, 10, 14), True)])
def test_grids_one_after_the_other(name: str, offsets: tuple[int, ...], flat: bool) -> None:
    expected = [(z, y, x) for offset in offsets for z in (range(20) if flat else range(offset, 20, 16))
                for y in range(offset, 40, 16) for x in range(offset, 36, 16)]
    assert seeds(name, np.zeros(SHAPE, np.float32)) == expected


def test_all_voxels_the_brightest_first() -> None:
    image = np.random.default_rng(0).integers(0, 9, (3, 4, 5)).astype(np.float32)
    found = seeds("PolicyMax", image)
    assert sorted(found) == list(np.ndindex(3, 4, 5))
    assert (np.diff([image[seed] for seed in found]) <= 0).all()
    assert all(a > b for a, b in itertools.pairwise(found) if image[a] == image[b])


def test_peaks_of_an_image() -> None:
    assert seeds("PolicyMaxPeaks", spots()) == SPOTS
    kept = np.zeros(SHAPE, np.int32)
    kept[12:, 24:] = 1
    found = seeds("PolicyMaxPeaks", spots(), kept)
    assert [seed for seed in found if not kept[seed]] == SPOTS[:3] and SPOTS[3] not in found


def test_peaks_of_an_image_then_of_its_sections() -> None:
    found = seeds("PolicyImagePeaks3D2D", spots())
    assert found[:4] == [SPOTS[1], SPOTS[2], SPOTS[0], SPOTS[3]]
    sections = [z for z, _, _ in found[4:]]
    assert sections == sorted(sections) and {(y, x) for z, y, x in found[4:] if z == 6} == {(9, 10), (28, 25)}
    assert found[4:].index((6, 28, 25)) < found[4:].index((6, 9, 10))


def test_bright_disks_of_sections() -> None:
    found = seeds("PolicyImagePeaks2DDisk", spots() + 1)
    of_section = [seed for seed in found if seed[0] == 6]
    assert of_section == [(6, 28, 25), (6, 9, 10)]  # 3 is more than half of 5
    assert [seed for seed in seeds("PolicyImagePeaks2DDisk", spots((2, 5, 4, 2)) + 1) if seed[0] == 6] == [(6, 28, 25)]


def test_far_from_edges_in_each_section() -> None:
    image = np.zeros(SHAPE, np.float32)
    image[:, :, [6, 30]] = 9.0  # walls
    found = seeds("PolicyPeaks2d", image)
    assert found == sorted(found) and {z for z, _, _ in found} == set(range(20))
    assert {x for _, _, x in found} == {18}


def test_empty_space_is_filled() -> None:
    labels = np.ones(SHAPE, np.int32)
    ball = (((np.indices(SHAPE) - np.array([10, 20, 18]).reshape(3, 1, 1, 1)) ** 2).sum(0)) < 36
    labels[ball] = 0
    labels[10, 5, 5] = -1  # a seed that gave no object: not empty, as in google/ffn
    assert seeds("PolicyFillEmptySpace", np.zeros(SHAPE, np.float32), labels) == [(10, 20, 18)]


def test_origins_from_the_last_one() -> None:
    assert seeds("PolicyInvertOrigins", spots(), origins=np.array(SPOTS)) == SPOTS[::-1]


def test_the_margin() -> None:
    found = within(np.array([(2, 3, 4), (1, 3, 4), (2, 36, 4), (17, 36, 31), (18, 36, 31)]), SHAPE, (2, 3, 4))
    assert found.tolist() == [[2, 3, 4], [2, 36, 4], [17, 36, 31]]


def test_a_second_run_from_the_last_object_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    write_tubes(tmp_path / "tubes.h5")

    def origins(out: str, *more: str) -> list[tuple[int, ...]]:
        assert main(["connectomics", "segment", f"{tmp_path}/tubes.h5:raw", "--model", str(run), "--out",
                     f"{tmp_path}/{out}", "--min-segment-size", "50", "--json", *more], APPS) == 0
        with h5py.File(tmp_path / out) as file:
            return [tuple(row) for row in file["origins"][:][["z", "y", "x"]].tolist()]

    first = origins("first.h5")
    again = origins("again.h5", "--seed-policy", "PolicyInvertOrigins", "--origins", f"{tmp_path}/first.h5")
    assert again == first[::-1] and len(again) == 3
    assert origins("back.h5", "--seed-policy", "PolicyInvertOrigins", "--origins", f"{tmp_path}/first.h5",
                   "--reverse") == first
    assert [tuple(seed) for seed in read_origins(tmp_path / "first.h5").tolist()] == first
    capsys.readouterr()
    with h5py.File(tmp_path / "first.h5", "r+") as file:
        del file["origins"]
    code = main(["connectomics", "segment", f"{tmp_path}/tubes.h5:raw", "--model", str(run), "--out",
                 f"{tmp_path}/no.h5", "--json", "--seed-policy", "PolicyInvertOrigins", "--origins",
                 f"{tmp_path}/first.h5"], APPS)
    assert code == 3 and "with a table origins" in json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(DataError, match="with a table origins"):
        read_origins(tmp_path / "none.h5")


@pytest.mark.parametrize("settings, message", [
    ({"seed_policy": "PolicyFillEmptySpace"}, "add --init"),
    ({"seed_policy": "PolicyInvertOrigins"}, "go together"),
    ({"origins": Path("seg.h5")}, "go together")])
def test_what_a_policy_needs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FloodSettings(**settings)
