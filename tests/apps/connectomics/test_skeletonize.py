"""The command that writes skeletons as SWC files, read back by a reader that knows nothing of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.cli import main
from tests.apps.connectomics.written import write_segmentation

APPS = ("apps.connectomics.app:APP",)
SIZE = (40.0, 10.0, 8.0)


def rods() -> np.ndarray:
    """Two rods, 7 along x and 9 along y, and a speck."""
    labels = np.zeros((12, 60, 80), np.uint32)
    labels[2:5, 2:9, 5:70], labels[7:10, 10:50, 20:27], labels[0, 0, 0] = 7, 9, 11
    return labels


def skeletonized(capsys: pytest.CaptureFixture[str], address: str, out: Path, *more: str) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    code = main(["connectomics", "skeletonize", address, "--out", str(out), "--json", *more], APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def test_a_file_a_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = rods()
    address = write_segmentation(tmp_path / "s.h5", labels, SIZE)
    said = skeletonized(capsys, address, tmp_path / "swc", "--constant", "50")
    assert said["exit_code"] == 0 and said["numbers"]["skeletons"] == 2, said
    assert sorted(path.name for path in (tmp_path / "swc").iterdir()) == ["7.swc", "9.swc"]
    length, nodes = 0.0, 0
    for label in (7, 9):
        rows = np.loadtxt(tmp_path / "swc" / f"{label}.swc", ndmin=2)
        places = dict(zip(rows[:, 0].astype(int), rows[:, 2:5], strict=True))
        voxels = np.rint(rows[:, 4:1:-1] / SIZE).astype(int)
        np.testing.assert_allclose(voxels * SIZE, rows[:, 4:1:-1])
        assert (labels[tuple(voxels.T)] == label).all()
        assert np.count_nonzero(rows[:, 6] == -1) == 1
        length += sum(float(np.linalg.norm(places[int(row[0])] - places[int(row[6])])) for row in rows if row[6] > 0)
        nodes += len(rows)
    assert said["numbers"]["nodes"] == nodes
    assert said["numbers"]["cable length (um)"] == pytest.approx(length / 1000)
    assert 0.6 < length / 1000 < 1.2  # 65 x 8 nm and 40 x 10 nm, less what lies behind the tips


def test_a_voxel_size_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = write_segmentation(tmp_path / "s.h5", rods(), None)
    said = skeletonized(capsys, address, tmp_path / "swc")
    assert said["exit_code"] == 3
    assert "does not say how large a voxel is\n  hint  add --voxel-size, in nm, z y x" in said["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    assert skeletonized(capsys, address, tmp_path / "swc", "--voxel-size", "40,10,8")["exit_code"] == 0


@pytest.mark.parametrize("labels, message", [
    (np.ones((4, 4, 4), np.float32), "holds float32; segments have whole numbers"),
    (np.full((4, 4, 4), -1), "holds -1; labels are whole numbers from 0")])
def test_what_has_no_skeletons(tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray,
                               message: str) -> None:
    said = skeletonized(capsys, write_segmentation(tmp_path / "s.h5", labels, SIZE), tmp_path / "swc")
    assert said["exit_code"] == 3 and message in said["error"], said
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_volume_too_large_to_be_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("segmentation", (1024, 1024, 1024), np.uint8, chunks=(64, 64, 64))
    said = skeletonized(capsys, f"{tmp_path}/s.h5:segmentation", tmp_path / "swc", "--voxel-size", "9,9,9")
    assert said["exit_code"] == 3 and "too large to be made into skeletons in one piece" in said["error"], said


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "swc").mkdir()
    said = skeletonized(capsys, write_segmentation(tmp_path / "s.h5", rods(), SIZE), tmp_path / "swc")
    assert said["exit_code"] == 2 and "exists; choose another name, or remove it" in said["error"], said
