"""Volumes as other libraries write them: what the readers are held against.

Invariant: nothing of the app is used here. Every writer gives the address of what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import tifffile
from numpy.typing import NDArray
from PIL import Image

SHAPE = (13, 11, 9)
CHUNK = (4, 5, 6)
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")


def image(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Neighbouring voxels have different values."""
    return (np.arange(np.prod(shape)).reshape(shape) % 251 + (0.25 if dtype == "float32" else 0)).astype(dtype)


def write_hdf5(folder: Path, array: NDArray[Any], name: str = "raw", **options: Any) -> str:
    with h5py.File(folder / "v.h5", "a") as file:
        file.create_dataset(name, data=array, **options)
    return f"{folder / 'v.h5'}:{name}"


def write_segmentation(path: Path, labels: NDArray[Any], voxel_size: tuple[float, ...] | None) -> str:
    """An HDF5 file of labels that says how large a voxel is, or does not."""
    with h5py.File(path, "w") as file:
        file["segmentation"] = labels
        if voxel_size:
            file["segmentation"].attrs["voxel_size"] = voxel_size
    return f"{path}:segmentation"


def write_store(driver: str, folder: Path, array: NDArray[Any], path: str = "store", **metadata: Any) -> str:
    store = tensorstore.open({"driver": driver, "kvstore": {"driver": "file", "path": f"{folder / path}/"}, **metadata},
                             create=True, dtype=array.dtype).result()
    store[...].write(array).result()
    return str(folder / path)


def write_zarr2(folder: Path, array: NDArray[Any], path: str = "store") -> str:
    return write_store("zarr", folder, array, path, metadata={
        "shape": array.shape, "chunks": [CHUNK[0]] * array.ndim, "compressor": {"id": "zlib"}})


def write_zarr3(folder: Path, array: NDArray[Any], path: str = "store", **metadata: Any) -> str:
    chunk = {"name": "regular", "configuration": {"chunk_shape": [CHUNK[0]] * array.ndim}}
    return write_store("zarr3", folder, array, path, metadata={"shape": array.shape, "chunk_grid": chunk, **metadata})


def write_n5(folder: Path, array: NDArray[Any], path: str = "store", **metadata: Any) -> str:
    return write_store("n5", folder, array.transpose(), path, metadata={
        "dimensions": array.shape[::-1], "blockSize": [CHUNK[0]] * array.ndim, "compression": {"type": "gzip"},
        **metadata})


def write_precomputed(folder: Path, array: NDArray[Any], **scale: Any) -> str:
    scale = {"resolution": [4, 5, 6], "chunk_size": [4, 4, 4], "encoding": "raw", "size": array.shape[::-1], **scale}
    return write_store("neuroglancer_precomputed", folder, array.transpose()[..., np.newaxis],
                       multiscale_metadata={"type": "image", "num_channels": 1}, scale_metadata=scale)


def write_tiff(folder: Path, array: NDArray[Any], **options: Any) -> str:
    tifffile.imwrite(folder / "v.tif", array, **options)
    return str(folder / "v.tif")


def write_pages(folder: Path, array: NDArray[Any], **options: Any) -> str:
    with tifffile.TiffWriter(folder / "pages.tif") as file:
        for page in array:
            file.write(page, contiguous=False, **options)
    return str(folder / "pages.tif")


def write_tiff_slices(folder: Path, array: NDArray[Any]) -> str:
    for number, plane in enumerate(array):
        tifffile.imwrite(folder / f"slice {number}.TIF", plane)
    (folder / "Thumbs.db").write_bytes(b"other")
    return str(folder)


def write_png_slices(folder: Path, array: NDArray[Any]) -> str:
    for number, plane in enumerate(array):
        Image.fromarray(plane).save(folder / f"z{number}_of_{len(array)}.png")
    (folder / ".hidden.png").write_bytes(b"other")
    return str(folder)


WRITERS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "hdf5": (write_hdf5, DTYPES),
    "hdf5 compressed": (partial(write_hdf5, chunks=CHUNK, compression="gzip"), DTYPES),
    "zarr v2": (write_zarr2, DTYPES),
    "zarr v3": (write_zarr3, DTYPES),
    "n5": (write_n5, DTYPES),
    "precomputed": (write_precomputed, tuple(dtype for dtype in DTYPES if dtype != "int64")),
    "tiff": (write_tiff, DTYPES),
    "tiff compressed": (partial(write_tiff, compression="zlib"), DTYPES),
    "tiff big endian": (partial(write_tiff, byteorder=">"), DTYPES),
    "tiff of tiles": (partial(write_tiff, tile=(16, 16), bigtiff=True), DTYPES),
    "tiff page by page": (write_pages, DTYPES),
    "tiff compressed page by page": (partial(write_pages, compression="zlib"), DTYPES),
    "tiff slices": (write_tiff_slices, DTYPES),
    "png slices": (write_png_slices, ("uint8", "uint16")),
}


def with_attributes(folder: Path, **attributes: Any) -> str:
    """An HDF5 file with attributes."""
    address = write_hdf5(folder, image())
    with h5py.File(folder / "v.h5", "a") as file:
        file["raw"].attrs.update(attributes)
    return address


def with_json(write: Callable[[Path, NDArray[Any]], str], name: str, **members: Any) -> Callable[[Path], str]:
    """A store one of whose files says more."""

    def written(folder: Path) -> str:
        address = write(folder, image())
        path = Path(address) / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **members}))
        return address

    return written


def ome(unit: str | None = "micrometer", scale: tuple[float, ...] = (0.03, 0.01, 0.02)) -> dict[str, Any]:
    """What OME-NGFF says of two levels."""
    axes = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "zyx"]
    datasets = [{"path": str(level), "coordinateTransformations": [
        {"type": "scale", "scale": [size * 2**level for size in scale]},
        {"type": "translation", "translation": [9.0] * 3}]} for level in range(2)]
    return {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets,
                             "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 2.0]}]}]}


def group2(folder: Path, attributes: dict[str, Any] | None = None) -> str:
    """A Zarr v2 group of two levels, the second of every other voxel; so are the next two."""
    for level in range(2):
        write_zarr2(folder, image()[:: 2**level, :: 2**level, :: 2**level].copy(), f"g/{level}")
    (folder / "g/.zgroup").write_text('{"zarr_format": 2}')
    (folder / "g/.zattrs").write_text(json.dumps(ome() if attributes is None else attributes))
    return str(folder / "g")


def group3(folder: Path) -> str:
    for level in range(2):
        write_zarr3(folder, image()[:: 2**level, :: 2**level, :: 2**level].copy(), f"g/{level}")
    (folder / "g/zarr.json").write_text(json.dumps({
        "zarr_format": 3, "node_type": "group", "attributes": {"ome": ome()}}))
    return str(folder / "g")


def n5_group(folder: Path) -> str:
    write_n5(folder, image(), "n/s0", resolution=[4.0, 5.0, 6.0])
    write_n5(folder, image()[::2, ::2, ::2], "n/s1", units=["um"] * 3, resolution=[0.008, 0.01, 0.012])
    (folder / "n/attributes.json").write_text('{"n5": "2.0.0"}')
    return str(folder / "n")
