"""Consensus beside a slow version with dictionaries, and the command: what it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from apps.cli import main
from apps.connectomics.consensus import consensus
from core.engine.errors import DataError

APPS = ("apps.connectomics.app:APP",)
IDS = st.sampled_from([0, 1, 2, 3, 7])


def slowly(a: np.ndarray, b: np.ndarray, least: int) -> np.ndarray:
    """The consensus, pair by pair."""
    found = np.zeros(a.shape, np.uint32)
    new = int(a.max())
    for ida in sorted(set(a.ravel().tolist()) - {0}):
        voxels = {idb: (a == ida) & (b == idb) for idb in sorted(set(b.ravel().tolist()))}
        largest = max(voxels, key=lambda idb: np.count_nonzero(voxels[idb]))  # the first of equals
        for idb, here in voxels.items():
            if not here.any() or np.count_nonzero(here) < least:
                continue
            new += idb != largest
            found[here] = ida if idb == largest else new
    return found


@given(st.data())
def test_consensus_is_that_of_pairs(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    a, b = (data.draw(arrays(data.draw(st.sampled_from([np.uint8, np.int64, np.uint64])), shape, elements=IDS))
            for _ in range(2))
    least = data.draw(st.integers(1, 4))
    found = consensus(a, b, least)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, slowly(a, b, least))
    assert all(np.count_nonzero(found == label) >= least for label in np.unique(found[found > 0]))


def test_consensus_with_itself_and_with_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (6, 7, 8), np.uint16)
    for other in (labels, np.zeros_like(labels)):
        np.testing.assert_array_equal(consensus(labels, other, 1), labels)
        assert not consensus(np.zeros_like(labels), other, 1).any()


def test_ids_that_do_not_fit() -> None:
    a = np.full((1, 1, 3), 2**32 - 1, np.uint64)
    np.testing.assert_array_equal(consensus(a, a, 1), a)
    with pytest.raises(DataError, match=r"ids up to 4294967296; they must be below 2\^32"):
        consensus(a, np.array([[[1, 1, 2]]]), 1)


def written(path: Path, labels: np.ndarray, voxel_size: tuple[float, ...] | None = (30, 10, 10)) -> str:
    with h5py.File(path, "w") as file:
        file["segmentation"] = labels
        if voxel_size:
            file["segmentation"].attrs["voxel_size"] = voxel_size
    return f"{path}:segmentation"


def agreed(capsys: pytest.CaptureFixture[str], a: str, b: str, out: Path, *more: str) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    code = main(["connectomics", "consensus", a, "--other", b, "--out", str(out), "--json", *more], APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = np.zeros((2, 4, 20, 20), np.uint32)
    a[:, :, 1:] = 5
    b[:, :5], b[:, 5:, :9], b[:, 5:, 9:] = 1, 2, 3
    said = agreed(capsys, written(tmp_path / "a.h5", a), written(tmp_path / "b.h5", b, None), tmp_path / "out.h5",
                  "--min-size", "400")
    assert said["exit_code"] == 0 and said["numbers"] == {
        "segments before": 1, "segments of the other": 3, "segments after": 2, "voxels before": 4 * 20 * 19,
        "voxels after": 4 * 15 * 19}
    with h5py.File(tmp_path / "out.h5") as file:
        found = file["segmentation"]
        assert found.dtype == np.uint32 and found.attrs["voxel_size"].tolist() == [30, 10, 10]
        np.testing.assert_array_equal(found[:], slowly(a, b, 400))
    said = agreed(capsys, f"{tmp_path}/a.h5:segmentation", f"{tmp_path}/b.h5:segmentation", tmp_path / "out.h5")
    assert said["numbers"]["segments after"] == 0  # none of 1000 voxels


@pytest.mark.parametrize("second, voxel_size, message", [
    (np.ones((3, 3, 4), np.uint8), None, "differ in shape\n"),
    (np.ones((3, 3, 3), np.uint8), (10, 10, 10), "differ in voxel size\n"),
    (np.ones((3, 3, 3), np.float32), None, "holds float32 from 1.0; labels are integers from 0"),
    (np.full((3, 3, 3), -2), None, "holds int64 from -2; labels are integers from 0"),
])
def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], second: np.ndarray,
                                 voxel_size: tuple[float, ...] | None, message: str) -> None:
    addresses = written(tmp_path / "a.h5", np.ones((3, 3, 3), np.uint8)), written(tmp_path / "b.h5", second, voxel_size)
    said = agreed(capsys, *addresses, tmp_path / "out.h5")
    assert said["exit_code"] == 3 and message in said["error"], said
    if message.endswith("\n"):
        assert all(address in said["error"] for address in addresses)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
