"""Meshes: closed surfaces of the right size at the right place, whole and in pieces, and the command for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from apps.cli import main
from apps.connectomics import meshing
from apps.connectomics.meshes import joined, surface
from tests.apps.connectomics.surfaces import area, euler_characteristic, is_closed, read_ply, volume
from tests.apps.connectomics.written import write_segmentation

APPS = ("apps.connectomics.app:APP",)
SIZE = (40.0, 10.0, 8.0)
CUBE = (10.0, 10.0, 10.0)


def ball(radius: float, side: int) -> np.ndarray:
    middle = (side - 1) / 2
    return ((np.indices((side,) * 3) - middle) ** 2).sum(axis=0) <= radius**2


def torus() -> np.ndarray:
    z, y, x = np.indices((16, 60, 60)) - np.array([7.5, 29.5, 29.5])[:, None, None, None]
    return z**2 + (np.hypot(y, x) - 20) ** 2 <= 36


# Surfaces


@given(st.data())
def test_a_surface_has_a_corner_between_each_voxel_inside_and_each_outside(data: st.DataObject) -> None:
    inside = np.pad(data.draw(arrays(bool, data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5)))), 1)
    found = surface(inside)
    between = set()
    for axis in range(3):
        for place in np.argwhere(np.diff(inside, axis=axis)) * 2:
            place[axis] += 1
            between.add(tuple(place.tolist()))
    assert set(map(tuple, found.reshape(-1, 3).tolist())) == between
    if inside.any():
        mesh = joined(found, (1.0, 1.0, 1.0), 0)
        assert is_closed(mesh.triangles) and len(mesh.vertices) == len(between)
        assert volume(mesh.vertices[:, ::-1], mesh.triangles) > 0


@pytest.mark.parametrize("inside, euler", [
    (ball(8, 21), 2), (torus(), 0), (ball(8, 21) & ~ball(4, 21), 4), (np.ones((3, 4, 5), bool), 2),
    (np.concatenate([ball(3, 9), ball(4, 9)]), 4)], ids=["ball", "torus", "hollow ball", "box", "two balls"])
@pytest.mark.parametrize("smoothing", [0, 5])
def test_shapes(inside: np.ndarray, euler: int, smoothing: int) -> None:
    mesh = joined(surface(np.pad(inside, 1)), CUBE, smoothing)
    assert is_closed(mesh.triangles) and euler_characteristic(mesh.triangles) == euler


@pytest.mark.parametrize("radius", [8, 15, 25])
def test_a_ball_has_its_volume_and_its_area(radius: int) -> None:
    found = surface(np.pad(ball(radius, 2 * radius + 3), 1))
    mesh = joined(found, CUBE, 5)
    corners, nm = mesh.vertices[:, ::-1], radius * 10
    assert volume(corners, mesh.triangles) == pytest.approx(4 / 3 * np.pi * nm**3, rel=0.025)
    assert area(corners, mesh.triangles) == pytest.approx(4 * np.pi * nm**2, rel=0.025)
    flat = joined(found, SIZE, 5)
    np.testing.assert_allclose(flat.vertices / SIZE, mesh.vertices / CUBE)


def test_smoothing_moves_no_corner_by_half_a_voxel() -> None:
    found = surface(np.pad(ball(9, 21), 1))
    steps, smooth = (joined(found, CUBE, rounds) for rounds in (0, 5))
    np.testing.assert_array_equal(steps.triangles, smooth.triangles)
    assert np.linalg.norm(steps.vertices - smooth.vertices, axis=1).max() < 5


# The command


def meshed(capsys: pytest.CaptureFixture[str], address: str, out: Path, *more: str) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    code = main(["connectomics", "mesh", address, "--out", str(out), "--json", *more], APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def test_a_file_a_segment_at_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = np.iinfo(np.uint64).max
    labels = np.zeros((6, 9, 12), np.uint64)
    labels[:2, 3:6, 4:12], labels[3, 4, 5] = name, 7  # one that the volume cuts off, and a single voxel
    said = meshed(capsys, write_segmentation(tmp_path / "s.h5", labels, SIZE), tmp_path / "ply", "--smoothing", "0")
    assert said["exit_code"] == 0, said
    assert sorted(path.name for path in (tmp_path / "ply").iterdir()) == [f"{name}.ply", "7.ply"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ply", "s.h5"]
    sizes = []
    for label, low, high in ((name, (0, 3, 4), (2, 6, 12)), (7, (3, 4, 5), (4, 5, 6))):
        corners, triangles = read_ply(tmp_path / "ply" / f"{label}.ply")
        assert is_closed(triangles) and euler_characteristic(triangles) == 2 and volume(corners, triangles) > 0
        np.testing.assert_array_equal(corners.min(axis=0)[::-1], np.subtract(low, 0.5) * SIZE)
        np.testing.assert_array_equal(corners.max(axis=0)[::-1], np.subtract(high, 0.5) * SIZE)
        sizes.append((len(corners), len(triangles)))
    assert sizes[1] == (6, 8)  # an octahedron
    assert said["numbers"] == {"meshes": 2, "vertices": sum(size[0] for size in sizes),
                               "triangles": sum(size[1] for size in sizes)}


@pytest.mark.parametrize("smoothing", ["0", "5"])
def test_pieces_fit_without_a_seam(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                   smoothing: str) -> None:
    labels = np.zeros((24, 62, 63), np.uint16)
    labels[4:20, 1:61, 1:61][torus()] = 3
    labels[11:] *= 2
    labels[:4, :30] = np.random.default_rng(0).integers(0, 4, (4, 30, 63))
    address = write_segmentation(tmp_path / "s.h5", labels, SIZE)
    assert meshed(capsys, address, tmp_path / "whole", "--smoothing", smoothing)["exit_code"] == 0
    monkeypatch.setattr(meshing, "BLOCK", 13)
    assert meshed(capsys, address, tmp_path / "pieces", "--smoothing", smoothing)["exit_code"] == 0
    for label in ("1", "2", "3", "6"):
        whole, pieces = (read_ply(tmp_path / folder / f"{label}.ply") for folder in ("whole", "pieces"))
        np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)  # means of neighbours are summed in another order
        assert set(map(tuple, pieces[1].tolist())) == set(map(tuple, whole[1].tolist()))
        assert is_closed(pieces[1])


def test_a_voxel_size_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = write_segmentation(tmp_path / "s.h5", np.ones((2, 2, 2), np.uint8), None)
    said = meshed(capsys, address, tmp_path / "ply")
    assert said["exit_code"] == 3
    assert "does not say how large a voxel is\n  hint  add --voxel-size, in nm, z y x" in said["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    assert meshed(capsys, address, tmp_path / "ply", "--voxel-size", "40,10,8", "--smoothing", "0")["exit_code"] == 0
    np.testing.assert_array_equal(np.ptp(read_ply(tmp_path / "ply/1.ply")[0], axis=0), [16, 20, 80])


@pytest.mark.parametrize("labels, message", [
    (np.ones((4, 4, 4), np.float32), "holds float32; segments have whole numbers"),
    (np.full((4, 4, 4), -1), "holds -1; labels are whole numbers from 0")])
def test_what_has_no_meshes(tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray,
                            message: str) -> None:
    said = meshed(capsys, write_segmentation(tmp_path / "s.h5", labels, SIZE), tmp_path / "ply")
    assert said["exit_code"] == 3 and message in said["error"], said
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ply").mkdir()
    said = meshed(capsys, write_segmentation(tmp_path / "s.h5", np.ones((2, 2, 2), np.uint8), SIZE), tmp_path / "ply")
    assert said["exit_code"] == 2 and "exists; choose another name, or remove it" in said["error"], said
