"""Google's pretrained network on a volume it never saw: their own published objects, to the voxel."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.cli import main
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.seeds import Given, peaks, within
from apps.connectomics.segment import as_network_sees

APPS = ("apps.connectomics.app:APP",)
MOVES = {3: 1, 21: 1, 2: 7, 7: 8, 10: 11, 12: 23, 5: 49, 11: 402, 9: 459}
QUICK = (3, 21, 2, 7, 10, 12)


@pytest.fixture(scope="module")
def volume(realdata: Path) -> Path:
    return realdata / "connectomics" / "fib25_training2.h5"


@pytest.fixture(scope="module")
def run(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ffn") / "run"
    assert main(["connectomics", "import-checkpoint", str(realdata / "connectomics" / "ffn_fib25_tf"), "--out",
                 str(out)], APPS) == 0
    return out


def grown(volume: Path, run: Path, folder: Path, number: int, capsys: Any, *more: str) -> tuple[Any, np.ndarray, Any]:
    """The record of an object grown among those before it, its mask, and the published one."""
    with h5py.File(volume) as file:
        published, ids = file["google_ffn_first25"][:], file["google_ffn_origins/id"][:]
        start = file["google_ffn_origins/start_zyx"][:][list(ids).index(number)]
    with h5py.File(folder / "before.h5", "w") as file:
        file["labels"] = np.where(published < number, published, 0)
    with open(folder / "seeds.csv", "w", newline="") as file:
        csv.writer(file).writerows([("z", "y", "x"), start])
    capsys.readouterr()
    out = folder / f"{number}.h5"
    code = main(["connectomics", "segment", f"{volume}:raw", "--model", str(run), "--out", str(out), "--seeds",
                 str(folder / "seeds.csv"), "--init", f"{folder}/before.h5:labels", "--json", *more], APPS)
    assert code == 0 and json.loads(capsys.readouterr().out)["numbers"]["objects"] == 1
    with h5py.File(out) as file:
        (origin,) = file["origins"][:]
        return origin, file["segmentation"][:] == origin["id"], published == number


@pytest.mark.parametrize("number", [pytest.param(number, marks=[] if number in QUICK else [pytest.mark.slow])
                                    for number in MOVES])
def test_objects_are_the_published_ones(volume: Path, run: Path, tmp_path: Path, number: int,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    origin, mask, published = grown(volume, run, tmp_path, number, capsys)
    assert origin["moves"] == MOVES[number] and origin["voxels"] == np.count_nonzero(published)
    assert np.count_nonzero(mask != published) == 0


def test_without_the_rule_against_disconnected_predictions_an_object_is_another(
        volume: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin, mask, published = grown(volume, run, tmp_path, 12, capsys, "--disco-seed-threshold", "-1")
    assert origin["moves"] == 25
    assert np.count_nonzero(mask & published) / np.count_nonzero(mask | published) == pytest.approx(0.896, abs=5e-4)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_less_precision_is_close(volume: Path, run: Path, tmp_path: Path, precision: str,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    _, mask, published = grown(volume, run, tmp_path, 2, capsys, "--precision", precision)
    assert np.count_nonzero(mask & published) / np.count_nonzero(mask | published) > 0.99


def test_seeds_are_as_many_as_published_and_hold_all_origins(volume: Path) -> None:
    with h5py.File(volume) as file:
        image, starts = file["raw"][:], file["google_ffn_origins/start_zyx"][:]
    given = Given(as_network_sees(image, ConnectomicsConfig()), np.zeros(image.shape, np.int32))
    seeds = within(peaks(given), image.shape, (16, 16, 16))
    assert len(seeds) == 12464
    places = {tuple(seed): number for number, seed in enumerate(seeds.tolist())}
    order = [places[tuple(start)] for start in starts.tolist()]
    assert order == sorted(order)
