"""Expansion beside a slow version, voxel by voxel, and the command: what it writes and what it refuses."""

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
from apps.connectomics.expansion import expanded, finer_labels, of_parts
from apps.connectomics.pyramid import coarser_labels, coarser_shape
from tests.apps.connectomics.written import write_segmentation

APPS = ("apps.connectomics.app:APP",)
SIZE = (30.0, 10.0, 10.0)


@given(arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.sampled_from([0, 0, 1, 2, 9])),
       st.sampled_from([0.0, 10.0, 25.0, 1000.0]))
def test_a_voxel_goes_to_a_nearest_segment(labels: np.ndarray, max_distance: float) -> None:
    found = expanded(labels, SIZE, max_distance)
    assert found.dtype == labels.dtype
    places = np.argwhere(labels)
    for voxel in np.ndindex(labels.shape):
        distances = np.linalg.norm((places - voxel) * SIZE, axis=1)
        nearest = distances.min(initial=np.inf)
        wanted = {int(labels[tuple(place)]) for place in places[distances <= nearest + 1e-6]}
        assert int(found[voxel]) in (wanted if nearest <= max_distance else {0})


@given(st.data())
def test_finer_labels_undo_coarser_ones(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=7))
    factors = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
    coarse = data.draw(arrays(np.uint32, coarser_shape(shape, factors), elements=st.integers(0, 3)))
    fine = finer_labels(coarse, factors, shape)
    assert fine.shape == shape
    np.testing.assert_array_equal(coarser_labels(fine, factors), coarse)


@given(arrays(np.uint16, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 9])),
       arrays(np.uint16, (2, 3, 4), elements=st.sampled_from([0, 3, 4])), st.sampled_from([0.0, 0.5, 1.0]))
def test_parts_go_to_the_segment_that_has_most_of_them(parts: np.ndarray, labels: np.ndarray, least: float) -> None:
    found = of_parts(parts, labels, least)
    assert not found[parts == 0].any()
    alone = []
    for part in set(parts[parts > 0].tolist()):
        (new,) = set(found[parts == part].tolist())
        voxels = {label: np.count_nonzero(labels[parts == part] == label) for label in (3, 4)}
        most = max(voxels, key=voxels.__getitem__)  # of equals the first
        if voxels[most] and voxels[most] >= least * np.count_nonzero(parts == part):
            assert new == most
        else:
            alone.append(new)
    assert sorted(alone) == list(range(int(labels.max()) + 1, int(labels.max()) + 1 + len(alone)))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    code = main(["connectomics", "expand", *arguments, "--json"], APPS)
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return report


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = np.zeros((2, 3, 4), np.uint32)
    coarse[0, 0, 0], coarse[1, 2, 3] = 7, 5
    fine = np.zeros((2, 5, 8), np.uint8)
    address = write_segmentation(tmp_path / "coarse.h5", coarse, SIZE)
    like = write_segmentation(tmp_path / "fine.h5", fine, None)
    report = said(capsys, address, "--like", like, "--max-distance", "5", "--out", str(tmp_path / "out.h5"))
    assert report["exit_code"] == 0
    assert report["numbers"] == {"segments": 2, "voxels before": 6, "voxels after": 13, "voxels": fine.size}
    with h5py.File(tmp_path / "out.h5") as file:
        found = file["segmentation"]
        assert found.dtype == np.uint32 and found.attrs["voxel_size"].tolist() == [30, 5, 5]
        np.testing.assert_array_equal(found[:], expanded(finer_labels(coarse, (1, 2, 2), fine.shape), (30, 5, 5), 5))


def test_the_command_with_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = np.zeros((2, 3, 4), np.uint8)
    coarse[0, 0, 0], coarse[1, 2, 3] = 7, 5
    parts = np.arange(1, 4 * 6 * 8 + 1, dtype=np.uint16).reshape(4, 6, 8) // 3
    address, small = write_segmentation(tmp_path / "coarse.h5", coarse, SIZE), tmp_path / "small.h5"
    fine = write_segmentation(tmp_path / "parts.h5", parts, (15.0, 5.0, 5.0))
    options = ("--max-distance", "20", "--min-share", "0.6", "--parts", fine, "--out", str(tmp_path / "out.h5"))
    assert said(capsys, address, "--like", fine, *options)["exit_code"] == 0
    grown = expanded(finer_labels(coarse, (2, 2, 2), parts.shape), (15, 5, 5), 20)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["segmentation"].dtype == np.uint32
        np.testing.assert_array_equal(file["segmentation"][:], of_parts(parts, grown, 0.6))
    other = write_segmentation(small, parts[:3], SIZE)
    report = said(capsys, address, "--parts", other, "--out", str(tmp_path / "none.h5"))
    assert report["exit_code"] == 3 and "the parts are not those of the volume" in report["error"]


@pytest.mark.parametrize("labels, voxel_size, like, message", [
    (np.ones((3, 3, 3), np.uint8), SIZE, (6, 6, 5), None),
    (np.ones((3, 3, 3), np.uint8), SIZE, (6, 6, 8), None),
    (np.ones((3, 3, 3), np.uint8), SIZE, (2, 6, 6), "is no coarser scale"),
    (np.ones((3, 3, 3), np.uint8), SIZE, (6, 6, 4), "is no coarser scale"),
    (np.ones((5, 3, 3), np.uint8), SIZE, (6, 6, 6), "is no coarser scale"),
    (np.ones((3, 3, 3), np.uint8), None, (6, 6, 6), "does not say how large a voxel is"),
    (np.ones((3, 3, 3), np.float32), SIZE, (6, 6, 6), "segments have whole numbers"),
    (np.full((3, 3, 3), -1), SIZE, (6, 6, 6), "labels are whole numbers from 0"),
])
def test_what_fits_and_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray,
                                       voxel_size: tuple[float, ...] | None, like: tuple[int, ...],
                                       message: str | None) -> None:
    address = write_segmentation(tmp_path / "a.h5", labels, voxel_size)
    report = said(capsys, address, "--like", write_segmentation(tmp_path / "like.h5", np.zeros(like, np.uint8), SIZE),
                  "--out", str(tmp_path / "out.h5"))
    assert report["exit_code"] == (3 if message else 0), report
    assert (tmp_path / "out.h5").exists() == (message is None)
    if message:
        assert message in report["error"]
