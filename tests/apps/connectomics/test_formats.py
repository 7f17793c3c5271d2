"""What formats say of volumes, how addresses name them, and files that cannot be used."""

from __future__ import annotations

import http.server
import json
import random
import resource
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from apps.connectomics.formats import Address
from apps.connectomics.volumes import open_volume
from core.engine.errors import ConfigError, DataError
from tests.apps.connectomics.written import (
    SHAPE,
    group2,
    group3,
    image,
    n5_group,
    ome,
    with_attributes,
    with_json,
    write_hdf5,
    write_n5,
    write_pages,
    write_png_slices,
    write_precomputed,
    write_tiff,
    write_tiff_slices,
    write_zarr2,
    write_zarr3,
)

# The size of a voxel


def imagej(folder: Path, **metadata: Any) -> str:
    return write_tiff(folder, image(), imagej=True, resolution=(1 / 4, 1 / 5), metadata={"axes": "ZYX", **metadata})


VOXEL_SIZES: dict[str, tuple[Callable[[Path], str], str, tuple[float, float, float] | None]] = {
    "hdf5": (lambda folder: write_hdf5(folder, image()), "", None),
    "hdf5 voxel_size": (partial(with_attributes, voxel_size=(6.0, 5, 4)), "", (6, 5, 4)),
    "hdf5 resolution": (partial(with_attributes, resolution=[40, 4, 4]), "", (40, 4, 4)),
    "hdf5 element_size_um": (partial(with_attributes, element_size_um=[0.04, 0.004, 0.005]), "", (40, 4, 5)),
    "hdf5 in words": (partial(with_attributes, resolution="fine"), "", None),
    "zarr v2": (with_json(write_zarr2, ".zattrs", resolution=[6, 5, 4]), "", (6, 5, 4)),
    "zarr v3": (with_json(write_zarr3, "zarr.json", attributes={"voxel_size": [6, 5, 4]}), "", (6, 5, 4)),
    "zarr v2 group": (group2, "", (30, 10, 40)),
    "zarr v2 group, next level": (group2, ":1", (60, 20, 80)),
    "zarr v2 array in a group": (group2, "/1", (60, 20, 80)),
    "zarr v2 group in pixels": (partial(group2, attributes=ome("pixel")), "", None),
    "zarr v2 group without units": (partial(group2, attributes=ome(None)), "", None),
    "zarr v2 group of NGFF 0.1": (partial(group2, attributes={"multiscales": [
        {"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]}), "", None),
    "zarr v3 group": (group3, "", (30, 10, 40)),
    "zarr v3 array in a group": (group3, "/0", (30, 10, 40)),
    "n5": (partial(write_n5, array=image()), "", None),
    "n5 resolution": (with_json(write_n5, "attributes.json", resolution=[4, 5, 6]), "", (6, 5, 4)),
    "n5 resolution and units": (with_json(write_n5, "attributes.json", resolution=[0.4, 0.5, 0.6],
                                          units=["um"] * 3), "", (600, 500, 400)),
    "n5 pixelResolution": (with_json(write_n5, "attributes.json",
                                     pixelResolution={"dimensions": [4, 5, 6], "unit": "nm"}), "", (6, 5, 4)),
    "n5 in pixels": (with_json(write_n5, "attributes.json",
                               pixelResolution={"dimensions": [1, 1, 1], "unit": "pixel"}), "", None),
    "n5 group": (n5_group, "", (6, 5, 4)),
    "n5 group, next scale": (n5_group, ":s1", (12, 10, 8)),
    "n5 array in a group": (n5_group, "/s1", (12, 10, 8)),
    "precomputed": (partial(write_precomputed, array=image()), "", (6, 5, 4)),
    "imagej": (partial(imagej, spacing=30, unit="nm"), "", (30, 5, 4)),
    "imagej in micrometres": (partial(imagej, spacing=0.03, unit="\\u00B5m"), "", (30, 5000, 4000)),
    "imagej in pixels": (partial(imagej, spacing=1, unit="pixel"), "", None),
    "imagej without a unit": (imagej, "", None),
    "slices": (partial(write_png_slices, array=image()), "", None),
}


@pytest.mark.parametrize("case", VOXEL_SIZES)
def test_the_size_of_a_voxel(tmp_path: Path, case: str) -> None:
    write, part, expected = VOXEL_SIZES[case]
    volume = open_volume(write(tmp_path) + part)
    assert volume.voxel_size == (expected if expected is None else pytest.approx(expected))
    step = 2 if part in (":1", "/1", ":s1", "/s1") else 1
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape), image()[::step, ::step, ::step])
    assert open_volume(volume.address, voxel_size=(3.0, 2.0, 1.0)).voxel_size == (3, 2, 1)


@pytest.mark.parametrize("sizes", [(10.0, 10.0), (10.0, 10.0, 0.0), (10.0, -1.0, 10.0), (float("nan"), 1.0, 1.0)])
def test_an_impossible_size_is_refused(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"voxel size of \[.*\] nm\n  expected  three positive numbers\n  hint .*--"):
        open_volume(with_attributes(tmp_path, voxel_size=sizes))
    with pytest.raises(ConfigError, match="three positive numbers of nm, along z, y, x; found"):
        open_volume(str(tmp_path / "v.h5"), voxel_size=sizes)


def test_sizes_follow_the_axes(tmp_path: Path) -> None:
    address = with_attributes(tmp_path, resolution=[4, 5, 6])
    assert open_volume(address, axes="xyz").voxel_size == (6, 5, 4)
    address = write_hdf5(tmp_path, image()[np.newaxis], "c")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file["c"].attrs["resolution"] = [6, 5, 4]
    assert open_volume(address).voxel_size == (6, 5, 4)


# Names in addresses


@pytest.mark.parametrize(("text", "parts"), [
    ("a/v.h5:volumes/raw", ("hdf5", "a/v.h5", "volumes/raw")), ("v.hdf5", ("hdf5", "v.hdf5", "")),
    ("V.HDF:a:b", ("hdf5", "V.HDF", "a:b")), ("d/v.zarr/raw", ("", "d/v.zarr/raw", "")),
    ("v.zarr:1", ("", "v.zarr", "1")),
    ("zarr2://v", ("zarr2", "v", "")), ("n5:///d/v.n5:s1", ("n5", "/d/v.n5", "s1")),
    ("gs://bucket/a/b", ("", "gs://bucket/a/b", "")), ("s3://bucket/a:2", ("", "s3://bucket/a", "2")),
    ("precomputed://gs://b/v:8_8_8", ("precomputed", "gs://b/v", "8_8_8")),
    ("http://host:8080/v", ("", "http://host:8080/v", "")), ("https://host:80/v:1", ("", "https://host:80/v", "1")),
    ("precomputed://http://host:80", ("precomputed", "http://host:80", ""))])
def test_the_parts_of_an_address(text: str, parts: tuple[str, str, str]) -> None:
    address = Address.parse(text)
    assert (address.format, address.place, address.part) == parts


def test_the_only_dataset_needs_no_name(tmp_path: Path) -> None:
    write_hdf5(tmp_path, image(), "volumes/raw")
    write_hdf5(tmp_path, np.zeros((4, 4)), "table")
    assert open_volume(str(tmp_path / "v.h5")).shape == SHAPE
    write_hdf5(tmp_path, image("uint16"), "labels")
    with pytest.raises(DataError, match=r"labels uint16\[13, 11, 9\], volumes/raw uint8\[13, 11, 9\]\n  expected  one"):
        open_volume(str(tmp_path / "v.h5"))


def test_scales_of_precomputed_by_name_and_number(tmp_path: Path) -> None:
    address = write_precomputed(tmp_path, image())
    half = image()[::2, ::2, ::2].copy()
    write_precomputed(tmp_path, half, resolution=[8, 10, 12], key="half", voxel_offset=[5, 6, 7])
    for part in (":half", ":1"):
        volume = open_volume(address + part)
        assert volume.voxel_size == (12, 10, 8)
        np.testing.assert_array_equal(volume.read((0, 0, 0), half.shape), half)
    with pytest.raises(DataError, match="the scales 4_5_6, half\n  expected  one named third"):
        open_volume(address + ":third")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server of the folder `tmp_path`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("write", [write_zarr2, write_zarr3, write_n5, write_precomputed, group2])
def test_stores_on_a_web_server(tmp_path: Path, server: str, write: Callable[..., str]) -> None:
    path = Path(write(tmp_path, image()) if write is not group2 else group2(tmp_path)).name
    volume = open_volume(f"{server}/{path}")
    np.testing.assert_array_equal(volume.read((1, 2, 3), SHAPE), image()[1:, 2:, 3:])
    with pytest.raises(DataError, match=r"none of its files can be read\n  expected  a folder with zarr\.json"):
        open_volume(f"{server}/elsewhere")
    with pytest.raises(DataError, match="an HDF5 or TIFF file that is not on this machine"):
        open_volume(f"{server}/v.h5:raw")


def test_a_host_that_does_not_answer_is_told() -> None:
    with pytest.raises(DataError, match=r"precomputed://http://127\.0\.0\.1:9/v\n  found +.*[Cc]onnect"):
        open_volume("precomputed://http://127.0.0.1:9/v")


def cut(address: str, name: str = "", keep: float = 0.5) -> str:
    path = Path(address.removesuffix(":raw"), name)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    return address


def renamed_slice(folder: Path) -> str:
    address = write_png_slices(folder, image())
    Image.fromarray(image()[0, 1:]).save(folder / "z7_of_13.png")
    return address


def external(folder: Path) -> str:
    (folder / "secret").write_bytes(bytes(27))
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("raw", (3, 3, 3), "u1", external=[(str(folder / "secret"), 0, 27)])
    return str(folder / "v.h5")


def text(folder: Path) -> str:
    (folder / "notes.txt").write_text("no volume")
    return str(folder / "notes.txt")


def colour_slices(folder: Path) -> str:
    Image.fromarray(image("uint8", (8, 8, 3))).save(folder / "0.png")
    return str(folder)


def huge_chunk(folder: Path) -> str:
    return with_json(write_zarr3, "zarr.json", shape=[1 << 20] * 3, chunk_grid={
        "name": "regular", "configuration": {"chunk_shape": [1 << 12] * 3}})(folder)


UNUSABLE: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing there": (lambda folder: f"{folder}/a/b.h5:raw", r"no a in .*, only none\n  expected  FILE\.h5:DATASET"),
    "another dataset": (lambda folder: write_hdf5(folder, image()) + "s",
                        r"the datasets raw uint8\[13, 11, 9\]\n  expected  one named raws"),
    "a group for a dataset": (lambda folder: write_hdf5(folder, image(), "a/b").removesuffix("/b"), "one named a"),
    "a part of a path": (lambda folder: write_zarr2(folder, image()) + "s/raw", "no stores in .*, only store\n"),
    "an empty folder": (str, r"none\n  expected  a folder with zarr\.json, \.zarray, \.zgroup, attributes\.json, info"),
    "a text": (text, "a file that begins with 6e 6f 20 76"),
    "two axes": (lambda folder: write_hdf5(folder, image()[0]), r"uint8\[11, 9\]\n  expected  three axes"),
    "six axes": (lambda folder: write_hdf5(folder, image()[None, None, None]), "three axes"),
    "no voxels": (lambda folder: write_hdf5(folder, image()[:0]), "three axes, none of them empty"),
    "no shape": (lambda folder: write_hdf5(folder, h5py.Empty("u1")), r"uint8\[\]\n  expected  three axes"),
    "float64": (lambda folder: write_hdf5(folder, np.zeros(SHAPE)), "values of float64\n  expected  one of uint8, "),
    "complex": (lambda folder: write_zarr2(folder, np.zeros(SHAPE, np.complex64)), "values of complex64"),
    "text values": (lambda folder: write_hdf5(folder, np.full(SHAPE, b"a")), r"values of \|S1"),
    "values of another file": (external, "values in another file, .*secret"),
    "truncated HDF5": (lambda folder: cut(write_hdf5(folder, image())), "found +OSError: .*truncated file"),
    "empty HDF5": (lambda folder: cut(write_hdf5(folder, image()), keep=0), "expected  a whole HDF5 file"),
    "truncated TIFF": (lambda folder: cut(write_tiff(folder, image())), "expected  a whole TIFF file"),
    "truncated compressed TIFF": (lambda folder: cut(write_tiff(folder, image(), compression="zlib"), keep=0.9),
                                  "expected  a whole TIFF file"),
    "TIFF without pages": (lambda folder: cut(write_tiff(folder, image()), keep=0.005), "expected  a whole TIFF file"),
    "pages of two sizes": (lambda folder: write_pages(folder, [image()[0], image()[0, 1:]]),
                           "2 images of different sizes or types"),
    "a name in a TIFF": (lambda folder: write_tiff(folder, image()) + ":raw", "the name 'raw' behind the colon"),
    "a slice of another size": (renamed_slice, r"slice 7 of uint8\[10, 9\]\n  expected  uint8\[11, 9\]"),
    "a truncated slice": (lambda folder: cut(write_png_slices(folder, image()), "z5_of_13.png"),
                          r"expected  one grey image in z5_of_13\.png"),
    "colour slices": (colour_slices, "an image of the mode RGB"),
    "TIFF and PNG": (lambda folder: write_png_slices(folder, image()) and write_tiff_slices(folder, image()),
                     "TIFF and PNG files in one folder"),
    "a Zarr group": (lambda folder: group2(folder, {}), "a Zarr group that is no image of OME-NGFF"),
    "a level that is not there": (lambda folder: group2(folder) + ":7", "the levels 0, 1\n  expected  one named 7"),
    "a level elsewhere": (lambda folder: group2(folder, {"multiscales": [{"datasets": [{"path": "../store"}]}]}),
                          r"an array at \.\./store"),
    "a level of an array": (lambda folder: write_zarr3(folder, image()) + ":0", "the name '0' behind the colon"),
    "another format": (lambda folder: "n5://" + write_zarr3(folder, image()), r"no attributes\.json\n  expected  an "),
    "no N5 dataset": (lambda folder: n5_group(folder) + ":s2", "no N5 dataset s2"),
    "broken JSON": (lambda folder: cut(write_zarr3(folder, image()), "zarr.json"), r"expected  JSON in zarr\.json"),
    "JSON of another kind": (with_json(write_zarr3, "zarr.json", shape="large"), "expected  a Zarr v3 array, whole"),
    "NGFF of another kind": (lambda folder: group2(folder, {"multiscales": 7}), "the metadata of a Zarr v2 array"),
    "a huge chunk": (huge_chunk, r"chunks of uint8\[4096, 4096, 4096\]\n  expected  at most 536,870,912 bytes"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_told(tmp_path: Path, case: str) -> None:
    make, message = UNUSABLE[case]
    address = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        volume = open_volume(address)
        volume.read((0, 0, 0), volume.shape)
    assert str(caught.value).startswith(f"cannot use the volume {address}\n  found")
    assert "  expected  " in str(caught.value)


# Bombs


def bomb(window: int) -> bytes:
    """64 MiB of zeros, deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    return packer.compress(bytes(1 << 26)) + packer.flush()


def hdf5_bomb(folder: Path) -> str:
    with h5py.File(folder / "v.h5", "w") as file:
        dataset = file.create_dataset("raw", (16, 16, 16), "u1", chunks=(16, 16, 16), compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0), bomb(15))
    return str(folder / "v.h5")


def tiff_bomb(folder: Path) -> str:
    path = Path(write_tiff(folder, image("uint8", (5, 16, 16)), compression="zlib", metadata=None))
    with tifffile.TiffFile(path) as file:
        tags = file.pages[2].tags
        places = [tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    whole, packed = bytearray(path.read_bytes()), bomb(15)
    for place, value in zip(places, (len(whole), len(packed)), strict=True):
        struct.pack_into("<I", whole, place, value)
    path.write_bytes(whole + packed)
    return str(path)


def n5_bomb(folder: Path) -> str:
    address = write_n5(folder, image("uint8", (4, 4, 4)))
    piece = Path(address, "0/0/0")
    piece.write_bytes(piece.read_bytes().partition(b"\x1f\x8b")[0] + bomb(31))
    return address


@pytest.mark.parametrize("write", [hdf5_bomb, tiff_bomb, n5_bomb])
def test_small_pieces_do_not_unpack_to_huge_ones(tmp_path: Path, write: Callable[[Path], str]) -> None:
    volume = open_volume(write(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a compressed piece of 6|End of data expected"):
        volume.read((0, 0, 0), volume.shape)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


# Random damage


@pytest.mark.parametrize("write", [write_tiff, partial(write_tiff, compression="zlib"), write_pages])
def test_damaged_tiffs_are_refused_or_read(tmp_path: Path, write: Callable[..., str]) -> None:
    address = write(tmp_path, image())
    whole, refused = Path(address).read_bytes(), 0
    for seed in range(200):
        chance = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.choice((chance.randrange(len(whole)), chance.randrange(400)))] = chance.randrange(256)
        Path(address).write_bytes(damaged)
        try:
            volume = open_volume(address)
            volume.read((0, 0, 0), [min(size, 20) for size in volume.shape])
        except DataError:
            refused += 1
    assert refused > 20


VALUES = (None, True, -1, 0, 1e300, float("nan"), "", "zyx", [], [1], [None] * 3, {}, {"a": 1}, [[]], 1 << 70)


@pytest.mark.parametrize(("write", "name"), [(group2, ".zattrs"), (group2, "0/.zarray"), (group3, "zarr.json"),
                                             (group3, "0/zarr.json"), (n5_group, "s0/attributes.json"),
                                             (partial(write_precomputed, array=image()), "info")])
def test_damaged_metadata_is_refused_or_read(tmp_path: Path, write: Callable[[Path], str], name: str) -> None:
    address = write(tmp_path)
    path = Path(address, name)
    content = json.loads(path.read_text())
    refused = 0
    for seed in range(200):
        chance = random.Random(seed)
        damaged = json.loads(json.dumps(content))
        node = damaged
        while True:
            key = chance.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
            if not isinstance(node[key], dict | list) or not node[key] or chance.random() < 0.2:
                break
            node = node[key]
        node[key] = chance.choice(VALUES)
        path.write_text(json.dumps(damaged))
        try:
            volume = open_volume(address)
            volume.read((0, 0, 0), [min(size, 20) for size in volume.shape])
        except DataError:
            refused += 1
    assert refused > 20
