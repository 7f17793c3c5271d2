"""Volumes in every format against numpy: boxes, axes, writing, and how little memory they take."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.connectomics.blocked import changed
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.segment import initial_labels, read_seeds
from apps.connectomics.segmentations import written_segmentation
from apps.connectomics.train import labelled
from apps.connectomics.volumes import WritableVolume, create_volume, open_volume
from core.engine.errors import ConfigError, DataError
from core.engine.refusals import Refusals
from tests.apps.connectomics.written import (
    CHUNK,
    SHAPE,
    WRITERS,
    image,
    write_hdf5,
    write_n5,
    write_precomputed,
    write_tiff,
    write_zarr2,
    write_zarr3,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same image in all formats."""
    return {name: write(tmp_path_factory.mktemp("volume"), image()) for name, (write, _) in WRITERS.items()}


@pytest.mark.parametrize(("name", "dtype"), [
    (name, dtype) for name, (_, dtypes) in WRITERS.items() for dtype in dtypes])
def test_a_volume_reads_as_it_was_written(tmp_path: Path, name: str, dtype: str) -> None:
    volume = open_volume(WRITERS[name][0](tmp_path, image(dtype)))
    assert (volume.shape, volume.dtype, volume.dtype.isnative) == (SHAPE, np.dtype(dtype), True)
    whole = volume.read((0, 0, 0), SHAPE)
    assert whole.dtype == volume.dtype and whole.flags.c_contiguous and whole.flags.writeable
    np.testing.assert_array_equal(whole, image(dtype))


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.data())
def test_any_box_is_that_of_numpy(addresses: dict[str, str], name: str, data: st.DataObject) -> None:
    volume = open_volume(addresses[name])
    start = [data.draw(st.integers(0, size - 1)) for size in SHAPE]
    stop = [data.draw(st.integers(first + 1, size)) for first, size in zip(start, SHAPE, strict=True)]
    box = volume.read(start, np.array(stop))
    assert box.flags.c_contiguous and type(box) is np.ndarray
    np.testing.assert_array_equal(box, image()[tuple(map(slice, start, stop))])


@pytest.mark.parametrize("name", ["hdf5", "precomputed"])
@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (13, 11, 10)), ((-1, 0, 0), (5, 5, 5)), ((3, 3, 3), (3, 5, 5)),
                                             ((5, 0, 0), (4, 5, 5)), ((13, 0, 0), (14, 1, 1))])
def test_a_box_outside_is_refused(addresses: dict[str, str], name: str, start: Any, stop: Any) -> None:
    with pytest.raises(DataError, match=r"no such box .*\n  found .*\n  expected  within \(0, 0, 0\) to \(13, 11, 9\)"):
        open_volume(addresses[name]).read(start, stop)


# Axes


OF_SPACE, OF_MORE = ("zyx", "xyz", "yxz", "XZY"), ("czyx", "zyxc", "tczyx", "xycz")


@pytest.mark.parametrize(("write", "axes"), [
    *((write, axes) for write in (write_hdf5, write_zarr2, write_zarr3) for axes in OF_SPACE + OF_MORE),
    *((write_tiff, axes) for axes in OF_SPACE)])
def test_axes_that_are_named(tmp_path: Path, write: Callable[..., str], axes: str) -> None:
    lengths = dict(zip("zyxct", (*SHAPE, 1, 1), strict=True))
    stored = np.einsum(f"zyx->{axes.lower().replace('c', '').replace('t', '')}", image())
    volume = open_volume(write(tmp_path, stored.reshape([lengths[axis] for axis in axes.lower()])), axes=axes)
    assert volume.shape == SHAPE
    np.testing.assert_array_equal(volume.read((1, 2, 3), SHAPE), image()[1:, 2:, 3:])


def test_a_channel_of_its_own_is_dropped(tmp_path: Path) -> None:
    assert open_volume(write_hdf5(tmp_path, image()[np.newaxis])).shape == SHAPE
    assert open_volume(write_zarr2(tmp_path, image()[np.newaxis, np.newaxis])).shape == SHAPE
    assert open_volume(write_n5(tmp_path, image()[np.newaxis], "n5")).shape == SHAPE
    assert open_volume(write_tiff(tmp_path, image()[np.newaxis, :, np.newaxis], imagej=True)).shape == SHAPE


@pytest.mark.parametrize("axes", ["zy", "zyz", "zyxq", "zyxx", "abc"])
def test_impossible_axes_are_a_setting(addresses: dict[str, str], axes: str) -> None:
    with pytest.raises(ConfigError, match=f"axes are z, y, x and perhaps c .* found '{axes}'"):
        open_volume(addresses["hdf5"], axes=axes)


def test_axes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    channels = write_hdf5(tmp_path, image("uint8", (3, 13, 11, 9)))
    with pytest.raises(DataError, match=r"found +3 channels in uint8\[3, 13, 11, 9\] \(axes czyx\)\n  expected  one"):
        open_volume(channels)
    with pytest.raises(DataError, match=r"found +uint8\[3, 13, 11, 9\]\n  expected  one axis for each of x, y, z,"):
        open_volume(channels, axes="xyz")
    colour = write_tiff(tmp_path, image("uint8", (5, 16, 16, 3)), photometric="rgb")
    with pytest.raises(DataError, match=r"3 channels in uint8\[5, 16, 16, 3\] \(axes zyxc\)"):
        open_volume(colour)
    for address, own in ((write_precomputed(tmp_path, image()), "xyzc"), (write_n5(tmp_path, image(), "n"), "xyz"),
                         (write_zarr3(tmp_path, image(), "z", dimension_names=["z", "x", "y"]), "zxy")):
        with pytest.raises(DataError, match=f"the axes {own}, as the format says\n  expected  zyx, as the sett"):
            open_volume(address, axes="zyx")
        assert open_volume(address).shape == open_volume(address, axes=own).shape


# Writing


TARGETS = ("{}/v.h5:seg", "{}/v.tif", "{}/v.zarr", "{}/v.zarr/deep/seg", "{}/v.n5", "zarr2://{}/v", "zarr3://{}/v", "n5://{}/v",
           "precomputed://{}/v")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "float32"])
def test_what_is_written_is_read(tmp_path: Path, target: str, dtype: str) -> None:
    address = target.format(tmp_path / "new folder")
    volume = create_volume(address, SHAPE, dtype, (6.0, 5.0, 4.0), CHUNK)
    values = image(dtype)
    for z in range(0, 12, 4):
        volume.write((z, 0, 0), values[z:z + 4])
    for reader in (volume, open_volume(address), create_volume(address, SHAPE, dtype, (6.0, 5.0, 4.0), CHUNK)):
        assert (reader.shape, reader.dtype, reader.voxel_size) == (SHAPE, np.dtype(dtype), (6, 5, 4))
        np.testing.assert_array_equal(reader.read((0, 0, 0), (12, 11, 9)), values[:12])
        assert not reader.read((12, 0, 0), SHAPE).any()
    volume.write((1, 2, 3), values[:2, :3, :4])
    np.testing.assert_array_equal(open_volume(address).read((1, 2, 3), (3, 5, 7)), values[:2, :3, :4])


@pytest.mark.parametrize("target", TARGETS)
def test_another_volume_is_not_overwritten(tmp_path: Path, target: str) -> None:
    address = target.format(tmp_path)
    create_volume(address, SHAPE, "uint8", (6, 5, 4), CHUNK).write((0, 0, 0), image())
    for shape, dtype, size, chunk in [((13, 11, 8), "uint8", (6, 5, 4), CHUNK), (SHAPE, "uint16", (6, 5, 4), CHUNK),
                                      (SHAPE, "uint8", (6, 5, 3), CHUNK), (SHAPE, "uint8", (6, 5, 4), (4, 4, 4))]:
        if target.endswith(".tif") and chunk != CHUNK:  # which has no chunks
            continue
        with pytest.raises(DataError, match=r"another volume is at .*\n  found +uint8\[13, 11, 9\], voxels of \[6\.0"):
            create_volume(address, shape, dtype, size, chunk)
    np.testing.assert_array_equal(open_volume(address).read((0, 0, 0), SHAPE), image())


def test_scales_of_a_precomputed_volume_are_made_in_order(tmp_path: Path) -> None:
    address, half = f"precomputed://{tmp_path}/p", tuple(-(-size // 2) for size in SHAPE)
    with pytest.raises(DataError, match=r"the name '1' behind the colon\n  expected  the number of a scale, 0\.\.0"):
        create_volume(address + ":1", SHAPE, "uint32", (6, 5, 4), CHUNK)
    for part, shape, size in (("", SHAPE, (6, 5, 4)), (":1", half, (12, 10, 8))):
        create_volume(address + part, shape, "uint32", size, CHUNK).write((0, 0, 0), image("uint32", shape))
    for part, shape in ((":0", SHAPE), (":1", half)):
        np.testing.assert_array_equal(open_volume(address + part).read((0, 0, 0), shape), image("uint32", shape))


def fill(volume: WritableVolume, z: int) -> None:
    volume.write((z, 0, 0), image("uint32")[z:z + 4])


@pytest.mark.parametrize("target", ["{}/v.zarr", "zarr2://{}/v", "{}/v.n5", "precomputed://{}/v"])
def test_processes_write_chunks_at_once(tmp_path: Path, target: str) -> None:
    volume = create_volume(target.format(tmp_path), SHAPE, "uint32", (6, 5, 4), CHUNK)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(fill, volume), range(0, 13, 4)))
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), image("uint32"))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    volume = create_volume(f"{tmp_path}/v.zarr", SHAPE, "uint8", (6, 5, 4))
    with pytest.raises(DataError, match=r"cannot write uint16 into the volume .* which is of uint8"):
        volume.write((0, 0, 0), image("uint16"))
    with pytest.raises(DataError, match="no such box"):
        volume.write((1, 0, 0), image())
    for address, expected in [("{}/v.png", "does not say in which format to write"), ("{}/v", "FOLDER.zarr"),
                              ("{}/v.h5", "no name of a dataset"), ("{}/v.zarr:1", "the name '1' behind the colon"),
                              ("{}/file/v.zarr", "a store that can be written"), ("{}/file.h5:v", "a whole HDF5 file")]:
        for name in ("file", "file.h5"):
            (tmp_path / name).write_text("not a folder")
        with pytest.raises(DataError, match=expected):
            create_volume(address.format(tmp_path), SHAPE, "uint8", (6, 5, 4))
    with pytest.raises(ConfigError, match="three positive numbers"):
        create_volume(f"{tmp_path}/w.zarr", SHAPE, "uint8", (6, 5, 0))
    assert not (tmp_path / "w.zarr").exists()
    with pytest.raises(DataError, match="int8"):
        create_volume(f"precomputed://{tmp_path}/p", SHAPE, "complex64", (6, 5, 4))


# Sparse and damaged


SPARSE = """
import resource, sys
from apps.connectomics.volumes import open_volume
volume = open_volume(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in ((0, 0, 0), (1000, 1000, 1000), (2048 - 65, 2048 - 65, 2048 - 65)):
    box = volume.read(start, [first + 65 for first in start])
    assert box.shape == (65, 65, 65) and not box.any()
print(volume.shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_a_sparse_volume_costs_no_more_than_its_boxes(tmp_path: Path, kind: str) -> None:
    address = f"{tmp_path}/v.h5:raw" if kind == "hdf5" else f"{tmp_path}/v.zarr"
    create_volume(address, (2048, 2048, 2048), "uint8", (10, 10, 10))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1 << 20
    done = subprocess.run([sys.executable, "-c", SPARSE, address], cwd=ROOT, capture_output=True, text=True, check=True)
    shape, _, megabytes = done.stdout.rpartition(" ")
    assert shape == "(2048, 2048, 2048)" and int(megabytes) < 32


@pytest.mark.parametrize("target", ["{}/v.zarr", "zarr2://{}/v", "{}/v.n5", "precomputed://{}/v"])
def test_a_missing_chunk_is_zero_and_a_damaged_one_is_refused(tmp_path: Path, target: str) -> None:
    volume = create_volume(target.format(tmp_path), (8, 8, 8), "uint8", (6, 5, 4), (4, 4, 4))
    values = np.random.default_rng(1).integers(1, 255, (8, 8, 8), np.uint8)
    volume.write((0, 0, 0), values)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    pieces = sorted(path for path in files if path.name[-1].isdecimal() and not path.suffix)
    assert len(pieces) == 8
    pieces[0].unlink()
    sparse = volume.read((0, 0, 0), (8, 8, 8))
    assert (sparse == 0).sum() == 64 and (sparse[sparse > 0] == values[sparse > 0]).all()
    pieces[1].write_bytes(pieces[1].read_bytes()[:20])
    with pytest.raises(DataError, match=r"found .*\n  expected  whole chunks in a store that answers") as caught:
        volume.read((0, 0, 0), (8, 8, 8))
    assert pieces[1].name in str(caught.value) and volume.address in str(caught.value)


@pytest.mark.realdata
def test_a_real_volume(realdata: Path) -> None:
    volume = open_volume(f"{realdata / 'connectomics/fib25_training2.h5'}:raw", voxel_size=(10.0, 10.0, 10.0))
    raw = volume.read((0, 0, 0), volume.shape)
    assert (raw.shape, raw.dtype, raw.min(), raw.max()) == ((250, 250, 250), np.uint8, 26, 217)
    assert (round(float(raw.mean()), 2), round(float(raw.std()), 2)) == (130.03, 33.45)
    with pytest.raises(DataError, match=r"google_ffn_first25 uint8\[250, 250, 250\], groundtruth uint16"):
        open_volume(str(realdata / "connectomics/fib25_training2.h5"))


def test_axes_are_a_setting_of_volumes_that_we_did_not_write(tmp_path):
    values = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["labels"] = values.T
    with written_segmentation(tmp_path / "ours.h5", values.shape, (4.0, 4.0, 4.0)) as file:
        file.write((0, 0, 0), values)
    create_volume(f"{tmp_path / 'made.h5'}:labels", values.shape, values.dtype, (4.0, 4.0, 4.0),
                  (1, 2, 2)).write((0, 0, 0), values)
    for name in ("theirs", "ours", "made"):
        volume = open_volume(str(tmp_path / f"{name}.h5"), axes="xyz")
        np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), values)


def test_a_virtual_dataset_needs_the_files_of_its_parts(tmp_path):
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["raw"] = np.ones((4, 4, 4), np.uint8)
    layout = h5py.VirtualLayout((4, 4, 4), np.uint8)
    layout[:] = h5py.VirtualSource("part.h5", "raw", (4, 4, 4))
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    address = f"{tmp_path / 'whole.h5'}:raw"
    assert open_volume(address).read((0, 0, 0), (4, 4, 4)).all()
    (tmp_path / "part.h5").unlink()
    with pytest.raises(DataError, match=r"without its file part\.h5"):
        open_volume(address)


def test_a_change_of_a_file_is_seen(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.zeros((4, 4, 4), np.uint8)
    volume = open_volume(f"{tmp_path / 'a.h5'}:raw")
    before = changed(volume)
    assert changed(volume) == before
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["raw"][0] = 1
    os.utime(tmp_path / "a.h5", ns=(0, 1))
    assert changed(volume) != before


def test_labels_below_zero_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.random.default_rng(0).integers(0, 255, (4, 4, 4)).astype(np.uint8)
        file["labels"] = np.full((4, 4, 4), -1, np.int32)
    with pytest.raises(DataError, match="labels are"):
        labelled(tmp_path / "a.h5", ConnectomicsConfig(raw="raw", labels="labels"))
    with pytest.raises(DataError, match="labels are"):
        initial_labels(f"{tmp_path / 'a.h5'}:labels", (4, 4, 4))


def test_seeds_in_another_encoding_are_one_clear_sentence(tmp_path):
    (tmp_path / "seeds.csv").write_bytes("z,y,x,straße\n".encode("latin-1"))
    with pytest.raises(DataError, match="is no CSV file in UTF-8"):
        read_seeds(tmp_path / "seeds.csv", (40, 40, 40), ConnectomicsConfig(), Refusals(tmp_path / "refused.csv"))
