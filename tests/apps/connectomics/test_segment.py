"""The command that segments: files in, files out, whole or by blocks, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.cli import main
from apps.connectomics import interim
from apps.connectomics.canvas import Canvas, Origin
from apps.connectomics.interim import Interim
from apps.connectomics.segment import equalised
from tests.apps.connectomics.bright import write_run, write_tubes

APPS = ("apps.connectomics.app:APP",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


def segmented(capsys: pytest.CaptureFixture[str], run: Path, volume: object, out: Path,
              *more: object) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    words = ["connectomics", "segment", str(volume), "--model", str(run), "--out", str(out), "--min-segment-size", "50",
             "--json", *map(str, more)]
    code = main(words, APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def assert_same_objects(found: np.ndarray, labels: np.ndarray) -> None:
    """Objects are the labels up to names and a few voxels at corners, where no field of view was."""
    assert not found[labels == 0].any()
    pairs = {(int(a), int(b)) for a, b in np.unique(np.stack([found[found > 0], labels[found > 0]]), axis=1).T}
    assert len(pairs) == len(np.unique(labels)) - 1 == len(np.unique(found[found > 0]))
    assert np.count_nonzero(found) > 0.9 * np.count_nonzero(labels)


def test_tubes_are_objects(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    said = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5")
    assert said["exit_code"] == 0 and said["numbers"]["objects"] == 3
    with h5py.File(tmp_path / "out.h5") as file:
        found, origins = file["segmentation"][:], file["origins"][:]
        assert file["segmentation"].attrs["voxel_size"].tolist() == [10, 10, 10]
    assert found.dtype == np.uint32 and origins.dtype.names == ("id", "z", "y", "x", "moves", "voxels")
    assert_same_objects(found, labels)
    assert [found[z, y, x] for _, z, y, x, _, _ in origins] == [1, 2, 3] == origins["id"].tolist()
    assert origins["voxels"].tolist() == [np.count_nonzero(found == number) for number in (1, 2, 3)]
    assert (origins["moves"] > 10).all()


@pytest.mark.parametrize("more", [(), ("--block", "40,40,40", "--overlap", "12,12,12")])
def test_a_move_threshold_over_that_of_the_training(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                    more: tuple[str, ...]) -> None:
    write_tubes(tmp_path / "tubes.h5")
    said = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5", "--move-threshold", 0.96, *more)
    assert said["exit_code"] == 0 and said["numbers"]["objects"] == 0  # a mask begins with 0.95


def test_seeds_and_what_is_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    with h5py.File(tmp_path / "kept.h5", "w") as file:
        file["old"] = np.where(labels == 2, 5, 0).astype(np.uint8)
    (tmp_path / "seeds.csv").write_text("x,y,z,note\n9,9,30,\n40,40,30,dark\n9,9,1,low\n,3,4,blank\n16,35,30,\n")
    said = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5", "--seeds", tmp_path / "seeds.csv",
                     "--init", f"{tmp_path}/kept.h5:old")
    assert said["exit_code"] == 4 and said["refused"] == 2
    assert (tmp_path / "refused.csv").read_text().splitlines()[1:] == [
        '3,z is 1; a field of view fits around 3..56,"1,9,9"', '4,not three whole numbers,"4,3,"']
    with h5py.File(tmp_path / "out.h5") as file:
        found, origins = file["segmentation"][:], file["origins"][:]
    assert_same_objects(found, labels)
    assert (found[labels == 2] == 5).all()
    assert origins[["id", "z", "y", "x"]].tolist() == [(6, 30, 9, 9), (7, 30, 35, 16)]


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (MemoryError, 5)])
@pytest.mark.parametrize("every", [60.0, 0.0])
def test_a_run_that_was_stopped_goes_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                        monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int,
                                        every: float) -> None:
    write_tubes(tmp_path / "tubes.h5")
    whole = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "whole.h5")
    accept, grown = Canvas._accept, list[Origin | None]()

    def stopping(canvas: Canvas, *arguments: Any) -> Origin | None:
        if len(grown) == 2:
            raise error
        grown.append(accept(canvas, *arguments))
        return grown[-1]

    monkeypatch.setattr(interim, "_EVERY", every)
    monkeypatch.setattr(Canvas, "_accept", stopping)
    assert segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5")["exit_code"] == code
    assert not (tmp_path / "out.h5").exists() and len(list(tmp_path.glob("out.h5.*.interim"))) == 1
    counted = list[Origin | None]()
    monkeypatch.setattr(Canvas, "_accept", lambda *arguments: counted.append(accept(*arguments)) or counted[-1])
    other = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5", "--segment-threshold", "0.7")
    assert other["numbers"]["tried"] == len(counted) == whole["numbers"]["tried"]
    counted.clear()
    again = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5")
    assert again["numbers"] == whole["numbers"] and len(counted) == whole["numbers"]["tried"] - 2
    assert not list(tmp_path.glob("*.interim"))
    with h5py.File(tmp_path / "out.h5") as file, h5py.File(tmp_path / "whole.h5") as expected:
        for name in ("segmentation", "origins"):
            np.testing.assert_array_equal(file[name][:], expected[name][:])


def test_a_damaged_interim_is_not_gone_on_from(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with Interim(tmp_path / "out.h5", [np.zeros(3), "settings"]) as file:
            seen.append(file.load())
            file.path.write_bytes(b"PK damaged")
            seen.append(file.load())
    assert seen == [None] * 4 and not list(tmp_path.glob("*.interim"))


def test_blocks_give_the_whole_up_to_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_tubes(tmp_path / "tubes.h5")
    for workers in (1, 2):
        out = tmp_path / f"out{workers}.h5"
        said = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", out, "--block", "33,33,33", "--overlap", "12,12,12",
                         "--workers", workers)
        assert said["exit_code"] == 0 and said["numbers"]["objects"] == 3 and said["numbers"]["blocks"] == 8
        with h5py.File(out) as file:
            assert_same_objects(file["segmentation"][:], labels)
            assert set(file["origins"]["id"]) == {1, 2, 3}
    again = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out1.h5", "--block", "33,33,33",
                      "--overlap", "12,12,12")
    assert again["exit_code"] == 0
    other = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out1.h5", "--block", "40,40,40")
    assert other["exit_code"] == 2


def written(path: Path, image: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["raw"] = image
        file["raw"].attrs["voxel_size"] = (10.0, 10.0, 10.0)
    return f"{path}:raw"


@pytest.mark.parametrize("image, message", [
    (np.zeros((40, 40, 40), np.uint8), "has the value 0 everywhere"),
    (np.full((5, 40, 40), 3, np.uint8), "has 5 x 40 x 40 voxels (z y x); the network sees 7 x 7 x 7 at once"),
    (np.where(np.arange(64000).reshape(40, 40, 40) == 41, np.nan, 100).astype(np.float32), "the first at (0, 1, 1)"),
    (np.random.default_rng(0).integers(0, 60000, (40, 40, 40), np.uint16), "not like the images of the training"),
])
def test_images_that_cannot_be_segmented(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         image: np.ndarray, message: str) -> None:
    said = segmented(capsys, run, written(tmp_path / "image.h5", image), tmp_path / "out.h5")
    assert said["exit_code"] == 3 and message in said["error"], said
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("more, code, message", [
    (["--seeds", "{}/none.csv"], 3, "No such file"),
    (["--seeds", "{}/bad.csv"], 3, "needs the columns z, y, x; found z, y"),
    (["--seeds", "{}/outside.csv"], 3, "holds no seed that a field of view fits around"),
    (["--init", "{}/small.h5:labels"], 3, "has 3 x 3 x 3 voxels, the image has 60 x 48 x 48"),
    (["--min-boundary-dist", "1,1"], 2, "min-boundary-dist is three numbers, z y x; found 1 1"),
    (["--block", "33,33,33", "--init", "x.h5:y"], 2, "--init, --seeds and --origins are for whole volumes"),
])
def test_settings_that_cannot_be(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str],
                                 code: int, message: str) -> None:
    write_tubes(tmp_path / "tubes.h5")
    (tmp_path / "bad.csv").write_text("z,y\n1,2\n")
    (tmp_path / "outside.csv").write_text("z,y,x\n0,0,0\n")
    with h5py.File(tmp_path / "small.h5", "w") as file:
        file["labels"] = np.ones((3, 3, 3), np.uint8)
    said = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5",
                     *(word.format(tmp_path) for word in more))
    assert said["exit_code"] == code and message in said["error"], said
    assert not (tmp_path / "out.h5").exists()


def test_a_volume_without_a_voxel_size(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tubes(tmp_path / "tubes.h5", voxel_size=None)
    assert segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5")["exit_code"] == 0
    blocks = segmented(capsys, run, f"{tmp_path}/tubes.h5:raw", tmp_path / "out.h5", "--block", "33,33,33")
    assert blocks["exit_code"] == 3 and "does not say how large a voxel is" in blocks["error"]


def test_contrast_may_be_evened_out() -> None:
    image = np.random.default_rng(0).integers(90, 110, (3, 64, 64)).astype(np.uint8)
    even = equalised(image)
    assert even.shape == image.shape and even.min() >= 0 and even.max() <= 255
    assert even.std() > 2 * image.std()
    np.testing.assert_array_equal(even[:1], equalised(image[:1]))
