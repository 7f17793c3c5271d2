"""Export: round trips, coarser scales beside a slow version, skeletons and meshes read back, links, what is refused."""

from __future__ import annotations

import json
import struct
import urllib.parse
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from apps.cli import main
from apps.connectomics import export
from apps.connectomics.pyramid import coarser_image, coarser_labels, halved
from apps.connectomics.volumes import WritableVolume, create_volume, open_volume
from core.engine.errors import DataError
from tests.apps.connectomics.surfaces import euler_characteristic, is_closed, read_fragment, volume

APPS = ("apps.connectomics.app:APP",)
SIZE = (40.0, 10.0, 8.0)
SHAPES = array_shapes(min_dims=3, max_dims=3, max_side=5)
FACTORS = st.tuples(*[st.sampled_from([1, 2])] * 3)


# Coarser scales


def mode(values: list[int]) -> int:
    votes = Counter(values)
    return min(votes, key=lambda label: (-votes[label], label == 0, label))


def mean(values: list[int]) -> int:
    return round(Fraction(sum(values), len(values)))  # half to even


def slowly(values: np.ndarray, factors: tuple[int, ...], reduce: Any) -> np.ndarray:
    """A coarser scale, voxel by voxel."""
    found = np.zeros([-(-length // factor) for length, factor in zip(values.shape, factors, strict=True)], values.dtype)
    for place in np.ndindex(*found.shape):
        box = tuple(slice(at * factor, (at + 1) * factor) for at, factor in zip(place, factors, strict=True))
        found[place] = reduce(values[box].ravel().tolist())
    return found


@given(st.data(), FACTORS)
def test_labels_by_their_mode(data: st.DataObject, factors: tuple[int, int, int]) -> None:
    dtype = data.draw(st.sampled_from([np.uint32, np.uint64]))
    ids = st.sampled_from([0, 1, 2, 5, (1 << 8 * np.dtype(dtype).itemsize) - 1])
    labels = data.draw(arrays(dtype, data.draw(SHAPES), elements=ids))
    found = coarser_labels(labels, factors)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, slowly(labels, factors, mode))


@given(st.data(), FACTORS)
def test_images_by_their_mean(data: st.DataObject, factors: tuple[int, int, int]) -> None:
    image = data.draw(arrays(data.draw(st.sampled_from([np.uint8, np.int16, np.int32])), data.draw(SHAPES)))
    found = coarser_image(image, factors)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, slowly(image, factors, mean))


def test_an_image_of_fractions() -> None:
    image = np.array([[[0.5, 1.0, 7.25]]], np.float32)
    np.testing.assert_array_equal(coarser_image(image, (2, 2, 2)), np.array([[[0.75, 7.25]]], np.float32))


@pytest.mark.parametrize("shape, voxel_size, factors", [
    ((9, 9, 9), (10, 10, 10), (2, 2, 2)), ((9, 9, 9), (40, 4, 4), (1, 2, 2)), ((9, 9, 9), (40, 32, 32), (2, 2, 2)),
    ((9, 9, 9), (10, 10, 24), (2, 2, 1)), ((1, 9, 9), (10, 20, 20), (1, 2, 2)), ((1, 9, 9), (80, 4, 4), (1, 2, 2)),
    ((1, 1, 1), (4, 4, 4), (1, 1, 1))])
def test_the_finer_axes_are_halved(shape: tuple[int, ...], voxel_size: tuple[float, ...],
                                   factors: tuple[int, ...]) -> None:
    assert halved(shape, voxel_size) == factors


# The command


def written(path: Path, values: np.ndarray, voxel_size: tuple[float, ...] | None = SIZE) -> str:
    with h5py.File(path, "w") as file:
        file["v"] = values
        if voxel_size:
            file["v"].attrs["voxel_size"] = voxel_size
    return f"{path}:v"


def exported(capsys: pytest.CaptureFixture[str], address: str, out: Path | str, *more: object) -> dict[str, Any]:
    """What the command says as JSON, its exit code among it."""
    code = main(["connectomics", "export", address, "--out", str(out), "--json", *map(str, more)], APPS)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    return said


def speckled(shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "float32"])
@pytest.mark.parametrize("name, format", [
    ("v.h5:seg", ""), ("v.zarr", ""), ("v.n5", ""), ("v.tif", ""), ("v.TIFF", ""), ("v", "zarr2"),
    ("v", "zarr3"), ("v", "n5"), ("v", "precomputed")])
def test_a_volume_in_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                   name: str, format: str, dtype: str) -> None:
    monkeypatch.setattr(export, "CHUNK", 4)
    monkeypatch.setattr(export, "BLOCK", 8)
    values = speckled((9, 14, 17), dtype)
    said = exported(capsys, written(tmp_path / "in.h5", values), tmp_path / name, "--format", format)
    assert said["exit_code"] == 0 and said["numbers"]["voxels"] == values.size, said
    volume = open_volume(f"{tmp_path / name}")
    assert (volume.shape, volume.dtype, volume.voxel_size) == (values.shape, values.dtype, SIZE)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.h5", name.partition(":")[0]])


@pytest.mark.parametrize("dtype, reduce", [("uint32", mode), ("uint8", mean)])
def test_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str,
                reduce: Any) -> None:
    monkeypatch.setattr(export, "CHUNK", 4)
    monkeypatch.setattr(export, "BLOCK", 8)
    values = speckled((9, 21, 23), dtype)
    address = written(tmp_path / "in.h5", values)
    said = exported(capsys, address, tmp_path / "v", "--format", "precomputed", "--scales", 3)
    assert said["exit_code"] == 0 and said["numbers"]["coarser scales"] == 3, said
    info = json.loads((tmp_path / "v/info").read_text())
    assert info["type"] == ("segmentation" if reduce is mode else "image")
    assert [scale["resolution"] for scale in info["scales"]] == [[8, 10, 40], [16, 20, 40], [32, 40, 40], [64, 80, 80]]
    for number, factors in enumerate([(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)]):
        values = slowly(values, factors, reduce)
        volume = open_volume(f"{tmp_path}/v:{number}")
        np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), values)


def test_scales_until_one_chunk_holds_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = written(tmp_path / "in.h5", np.ones((3, 130, 40), np.uint8), (10, 10, 10))
    for more, sides in (((), [130, 65, 33]), (("--scales", 0), [130]), (("--scales", 1), [130, 65]),
                        (("--scales", 20), [130, 65, 33, 17, 9, 5, 3, 2, 1])):
        out = tmp_path / f"v{len(sides)}"
        assert exported(capsys, address, out, "--format", "precomputed", *more)["exit_code"] == 0
        info = json.loads((out / "info").read_text())
        assert [scale["size"][1] for scale in info["scales"]] == sides


def test_scales_are_made_in_order(tmp_path: Path) -> None:
    address = f"precomputed://{tmp_path}/v"
    create_volume(address, (8, 8, 8), np.uint8, (10, 10, 10))
    for part in ("2", "10_10_10"):
        with pytest.raises(DataError, match=rf"the name '{part}' behind the colon\n.*the number of a scale, 0\.\.1"):
            create_volume(f"{address}:{part}", (4, 4, 4), np.uint8, (20, 20, 20))
    for _ in range(2):  # made, then opened
        create_volume(f"{address}:1", (4, 4, 4), np.uint8, (20, 20, 20))
    with pytest.raises(DataError, match=r"another volume is at .*:1\n"):
        create_volume(f"{address}:1", (4, 4, 4), np.uint8, (30, 20, 20))
    with pytest.raises(DataError):  # another type than that of the other scales
        create_volume(f"{address}:2", (4, 4, 4), np.uint32, (40, 40, 40))
    assert len(json.loads((tmp_path / "v/info").read_text())["scales"]) == 2


def test_the_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = written(tmp_path / "in.h5", np.ones((2, 4, 6), np.uint16))
    said = exported(capsys, address, tmp_path / "my seg", "--format", "precomputed", "--labels", "--image", "raw",
                    "--url", "https://host/d/")
    viewer, _, state = said["numbers"]["link"].partition("#!")
    assert viewer.startswith("https://") and " " not in state
    assert json.loads(urllib.parse.unquote(state)) == {
        "dimensions": {"x": [8e-9, "m"], "y": [1e-8, "m"], "z": [4e-8, "m"]}, "position": [3, 2, 1], "layout": "4panel",
        "layers": [{"type": "image", "source": "precomputed://https://host/d/raw", "name": "raw"},
                   {"type": "segmentation", "source": "precomputed://https://host/d/my%20seg", "name": "my seg"}]}
    assert open_volume(f"{tmp_path}/my seg").dtype == np.uint32
    said = exported(capsys, address, tmp_path / "img", "--format", "precomputed", "--image", "n5://s3://b/raw")
    layers = json.loads(urllib.parse.unquote(said["numbers"]["link"].partition("#!")[2]))["layers"]
    assert [layer["type"] for layer in layers] == ["image", "image"] and layers[0]["source"] == "n5://s3://b/raw"


def read_skeleton(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions x y z, edges and radii of a precomputed skeleton."""
    content = path.read_bytes()
    nodes, edges = struct.unpack_from("<2I", content)
    assert len(content) == 8 + 12 * nodes + 8 * edges + 4 * nodes
    return (np.array(struct.unpack_from(f"<{3 * nodes}f", content, 8)).reshape(-1, 3),
            np.array(struct.unpack_from(f"<{2 * edges}I", content, 8 + 12 * nodes)).reshape(-1, 2),
            np.array(struct.unpack_from(f"<{nodes}f", content, 8 + 12 * nodes + 8 * edges)))


def test_skeletons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((10, 40, 50), np.uint16)
    labels[2:5, 3:8, 5:45], labels[6:9, 5:35, 10:16] = 7, 300
    said = exported(capsys, written(tmp_path / "in.h5", labels), tmp_path / "seg", "--format", "precomputed",
                    "--skeletons")
    assert said["exit_code"] == 0 and said["numbers"]["skeletons"] == 2, said
    assert json.loads((tmp_path / "seg/info").read_text())["skeletons"] == "skeletons"
    info = json.loads((tmp_path / "seg/skeletons/info").read_text())
    assert info["@type"] == "neuroglancer_skeletons" and info["transform"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert info["vertex_attributes"] == [{"id": "radius", "data_type": "float32", "num_components": 1}]
    assert sorted(path.name for path in (tmp_path / "seg/skeletons").iterdir()) == ["300", "7", "info"]
    length = 0.0
    for label in (7, 300):
        positions, edges, radius = read_skeleton(tmp_path / "seg/skeletons" / str(label))
        voxels = positions[:, ::-1] / SIZE - 0.5
        np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-4)
        assert (labels[tuple(np.rint(voxels).astype(int).T)] == label).all()
        assert len(edges) == len(positions) - 1 and edges.max() < len(positions)
        assert (radius > 0).all()
        length += float(np.linalg.norm(np.diff(positions[edges], axis=1), axis=2).sum())
    assert said["numbers"]["cable length (um)"] == pytest.approx(length / 1000, rel=1e-5)
    volume = open_volume(f"{tmp_path}/seg")
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), labels)


def test_meshes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((10, 12, 14), np.uint16)
    labels[2:5, :8, 5:9], labels[6, 7, 8] = 7, 300
    said = exported(capsys, written(tmp_path / "in.h5", labels), tmp_path / "seg", "--format", "precomputed",
                    "--meshes")
    assert said["exit_code"] == 0 and said["numbers"]["meshes"] == 2, said
    info = json.loads((tmp_path / "seg/info").read_text())
    assert info["mesh"] == "mesh" and info["type"] == "segmentation"
    folder = tmp_path / "seg/mesh"
    assert json.loads((folder / "info").read_text()) == {"@type": "neuroglancer_legacy_mesh"}
    assert sorted(path.name for path in (tmp_path / "seg").iterdir()) == ["8_10_40", "info", "mesh"]
    total = 0
    for label, low, high in ((7, (2, 0, 5), (5, 8, 9)), (300, (6, 7, 8), (7, 8, 9))):
        (part,) = json.loads((folder / f"{label}:0").read_text())["fragments"]
        corners, triangles = read_fragment(folder / part)
        assert is_closed(triangles) and euler_characteristic(triangles) == 2 and volume(corners, triangles) > 0
        middle = (corners.min(axis=0) + corners.max(axis=0))[::-1] / 2 / SIZE
        np.testing.assert_allclose(middle, np.add(low, high) / 2, atol=0.01)  # smoothing pulls along diagonals
        total += len(triangles)
    assert len(list(folder.iterdir())) == 5 and said["numbers"]["triangles"] == total
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/seg").read((0, 0, 0), labels.shape), labels)


# TIFF and object stores


def test_a_stack_for_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = speckled((5, 6, 7), "uint16")
    assert exported(capsys, written(tmp_path / "in.h5", values), tmp_path / "v.tif")["exit_code"] == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "v.tif"), values)
    with tifffile.TiffFile(tmp_path / "v.tif") as file:
        tags = file.pages.first.tags
        assert len(file.pages) == 5 and file.series[0].axes == "ZYX"
        for tag, size in (("XResolution", 8), ("YResolution", 10)):  # pixels in a centimetre
            pixels, units = tags[tag].value
            assert pixels / units == pytest.approx(1e7 / size)


@pytest.mark.parametrize("shape", [(1, 6, 7), (5, 1, 7), (5, 6, 1), (1, 1, 1), (4, 5, 3)])
def test_a_stack_of_any_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, int, int]) -> None:
    values = speckled(shape, "uint8")
    address = written(tmp_path / "in.h5", values, (41.5, 8.3, 7.9))
    assert exported(capsys, address, tmp_path / "v.tif")["exit_code"] == 0
    volume = open_volume(f"{tmp_path}/v.tif")
    assert (volume.shape, volume.voxel_size) == (shape, (41.5, 8.3, 7.9))
    np.testing.assert_array_equal(volume.read((0, 0, 0), shape), values)


STORES = ("file://{}/store", "memory://{}")


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name, format", [("v.zarr", ""), ("v.n5", ""), ("v", "zarr2"), ("v", "precomputed")])
def test_a_volume_in_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                             store: str, name: str, format: str) -> None:
    monkeypatch.setattr(export, "CHUNK", 4)
    monkeypatch.setattr(export, "BLOCK", 8)
    values = speckled((9, 14, 17), "uint32")
    source, out = written(tmp_path / "in.h5", values), f"{store.format(tmp_path)}/{name}"
    said = exported(capsys, source, out, "--format", format)
    assert said["exit_code"] == 0 and said["written"] == out, said
    volume = open_volume(out)
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), values)
    again = exported(capsys, source, out, "--format", format)
    assert again["exit_code"] == 2 and "exists; choose another name" in again["error"]
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), values)
    if format == "precomputed":
        assert said["numbers"]["coarser scales"] == 4 and f"precomputed://{out}" in urllib.parse.unquote(
            said["numbers"]["link"])
        assert open_volume(f"{out}:1").shape == (9, 7, 9)
    assert {path.name for path in tmp_path.iterdir()} <= {"in.h5", "store"}


@pytest.mark.parametrize("store", STORES)
def test_a_failure_leaves_nothing_in_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    source, place = written(tmp_path / "in.h5", speckled((4, 4, 4), "uint8")), store.format(tmp_path)
    assert exported(capsys, source, f"{place}/kept.zarr")["exit_code"] == 0

    def full(self: WritableVolume, start: Any, values: Any) -> None:
        raise DataError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(WritableVolume, "write", full)
        assert exported(capsys, source, f"{place}/v.zarr")["error"] == "no room"
    assert exported(capsys, source, f"{place}/v.zarr")["exit_code"] == 0  # the place is empty
    assert open_volume(f"{place}/kept.zarr").shape == (4, 4, 4)


@pytest.mark.parametrize("out, more, code, message", [
    ("gs://bucket/v.h5:seg", [], 2, "does not say in which format"),
    ("gs://bucket/v.tif", [], 2, "does not say in which format"),
    ("n5://memory://a/v", ["--format", "zarr3"], 2, "does not say in which format"),
    ("memory://a/v", ["--format", "precomputed", "--skeletons"], 2, "skeletons are written to this machine only"),
    ("http://127.0.0.1:9/v.zarr", [], 3, "a store that can be listed and written"),
    ("nothing://a/v.zarr", [], 3, "a local path, or gs://, s3://"),
])
def test_stores_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, more: list[str],
                                       code: int, message: str) -> None:
    said = exported(capsys, written(tmp_path / "in.h5", np.ones((4, 4, 4), np.uint8)), out, *more)
    assert said["exit_code"] == code and message in said["error"], said


# What cannot be


@pytest.mark.parametrize("name, more, code, message", [
    ("v", [], 2, "does not say in which format to write\n  expected  FILE.h5:DATASET, FILE.tif, FOLDER.zarr,"),
    ("v.h5", [], 2, "does not say in which format"),
    ("v.n5:part", [], 2, "does not say in which format"),
    ("v.tif:part", [], 2, "does not say in which format"),
    ("v.tif", ["--format", "n5", "--scales", "1"], 2, "--scales is for precomputed volumes"),
    ("in.h5/v.zarr", [], 2, "lies in something that is a file, not a folder"),
    ("v:1", ["--format", "precomputed"], 2, "does not say in which format"),
    ("v", ["--format", "tiff"], 2, "format cannot be \"tiff\""),
    ("v.zarr", ["--scales", "2"], 2, "--scales is for precomputed volumes: add --format precomputed"),
    ("v.zarr", ["--skeletons"], 2, "--skeletons is for precomputed volumes"),
    ("v.zarr", ["--meshes"], 2, "--meshes is for precomputed volumes"),
    ("in.h5:other", [], 2, "in.h5 exists; choose another name, or remove it"),
    ("v", ["--format", "precomputed", "--labels"], 3, "holds float32; labels are whole numbers from 0"),
    ("v", ["--format", "precomputed", "--skeletons"], 3, "holds float32; segments have whole numbers"),
    ("v", ["--format", "precomputed", "--meshes"], 3, "holds float32; segments have whole numbers"),
])
def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str],
                                 code: int, message: str) -> None:
    address = written(tmp_path / "in.h5", np.ones((4, 4, 4), np.float32))
    said = exported(capsys, address, tmp_path / name, *more)
    assert said["exit_code"] == code and message in said["error"], said
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5"]


def test_without_a_voxel_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = written(tmp_path / "in.h5", np.ones((4, 4, 4), np.uint8), None)
    said = exported(capsys, address, tmp_path / "v.zarr")
    assert said["exit_code"] == 3 and "add --voxel-size, in nm, z y x, such as 10,10,10" in said["error"]
    assert exported(capsys, address, tmp_path / "v.zarr", "--voxel-size", "1,2,3")["exit_code"] == 0
    assert open_volume(f"{tmp_path}/v.zarr").voxel_size == (1, 2, 3)


def test_labels_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = written(tmp_path / "in.h5", np.full((4, 4, 4), -3))
    said = exported(capsys, address, tmp_path / "v", "--format", "precomputed")
    assert said["exit_code"] == 3 and "holds -3; labels are whole numbers from 0" in said["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5"]


@pytest.mark.parametrize("name, more", [("v.h5:seg", []), ("v.n5", []), ("v", ["--format", "precomputed"])])
def test_nothing_is_left_of_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch, name: str, more: list[str]) -> None:
    def full(self: WritableVolume, start: Any, values: Any) -> None:
        raise DataError("no room")

    monkeypatch.setattr(WritableVolume, "write", full)
    said = exported(capsys, written(tmp_path / "in.h5", np.ones((4, 4, 4), np.uint8)), tmp_path / name, *more)
    assert said["exit_code"] == 3 and said["error"] == "no room"
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5"]
