"""Volumes in chunks on disk or in object stores: Zarr v2 and v3, N5, Neuroglancer precomputed, through tensorstore.

Invariant: a box reads the chunks it touches and no others; a chunk that is not there has the format's fill value, one
that is cut off or damaged is a `DataError`. Boxes of whole chunks may be written by many processes at once.
"""

from __future__ import annotations

import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from apps.connectomics import ngff
from apps.connectomics.storage import (
    AXES,
    Selection,
    WritableStored,
    attribute_voxel_size,
    listed,
    nanometres,
    numbers,
    reading,
    unreadable,
)
from core.engine.errors import ConfigError

_ERRORS = (ValueError, RuntimeError, OSError)
"""What tensorstore raises."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)
"""What comes of metadata that is JSON, but not that of its format."""
_METADATA_SECONDS = 120.0
_RETRIES = {"max_retries": 4, "initial_delay": "200ms", "max_delay": "5s"}


@functools.cache
def _context() -> tensorstore.Context:
    """Settings that all stores share: few attempts, so that a host that is not there is told soon."""
    return tensorstore.Context({f"{kind}_request_retries": _RETRIES for kind in ("http", "gcs", "s3")})


@dataclass(frozen=True)
class ChunkStore(WritableStored):
    """An array of a store."""

    store: tensorstore.TensorStore

    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        with reading(self.address, "whole chunks in a store that answers", _ERRORS):
            values: NDArray[Any] = self.store[selection].transpose(order).read(order="C").result()
            return values

    def write(self, selection: Selection, order: tuple[int, ...], values: NDArray[Any]) -> None:
        with reading(self.address, "a store that can be written", _ERRORS):
            self.store[selection].transpose(order).write(values).result()


class _Folder:
    """The files of a place by name."""

    def __init__(self, address: str, place: str) -> None:
        self.address = address
        self.place = (place if "://" in place else os.path.abspath(place)).rstrip("/")

    def within(self, path: str) -> _Folder:
        if ".." in path.split("/"):
            raise unreadable(self.address, f"an array at {path}", "one within the folder")
        return _Folder(self.address, f"{self.place}/{path}") if path else self

    def above(self) -> tuple[_Folder, str] | None:
        """The folder that this one is in, and its name there; None for a bucket, a host or the root."""
        place, _, name = self.place.rpartition("/")
        return None if not place or place.endswith(":/") else (_Folder(self.address, place), name)

    @functools.cached_property
    def files(self) -> tensorstore.KvStore:
        place = self.place + "/"
        with reading(self.address, "a local path, or gs://, s3://, http:// or https://", _ERRORS):
            return tensorstore.KvStore.open(place if "://" in place else {"driver": "file", "path": place},
                                            context=_context()).result(_METADATA_SECONDS)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What a file says, or None if it is not there or is kept from us."""
        with reading(self.address, f"the file {name}", _ERRORS):
            try:
                content = self.files.read(name).result(_METADATA_SECONDS)
            except _ERRORS as error:
                if "PERMISSION_DENIED" in str(error):  # what S3 says of files that are not there
                    return None
                raise
            if content.state == "missing":
                return None
        with reading(self.address, f"JSON in {name}", (ValueError, RecursionError)):
            value = json.loads(content.value)
            if not isinstance(value, dict):
                raise ValueError(f"JSON of the type {type(value).__name__}")
            return value

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with reading(self.address, "a store that can be written", _ERRORS):
            self.files.write(name, json.dumps(value)).result()


@contextmanager
def new_place(address: str, place: str) -> Iterator[None]:
    """A place in a store that is empty at first, and again if the block fails; a process that is killed leaves a part.

    Raises
    ------
    ConfigError
        If something is there.
    """
    files = _Folder(address, place).files
    with reading(address, "a store that can be listed and written, such as gs:// or s3://", _ERRORS):
        if files.list().result():
            raise ConfigError(f"--out {address} exists; choose another name, or remove it")
    try:
        yield
    except BaseException:
        files.delete_range(tensorstore.KvStore.KeyRange()).result()
        raise


@dataclass(frozen=True)
class _Found:
    """The array that an address means: where it lies in its folder, and what its format says of it; see `Stored`."""

    path: str = ""
    axes: str = ""
    voxel_size: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class ChunkFormat(ABC):
    """A format that tensorstore reads.

    Attributes
    ----------
    title : for people
    driver : tensorstore's name
    markers : files by which a folder is known to be of this format
    """

    title: str
    driver: str
    markers: tuple[str, ...]

    @abstractmethod
    def find(self, folder: _Folder, part: str) -> _Found | None:
        """The array, level or scale `part` of a folder; None if it is not of this format."""

    @abstractmethod
    def prepare(self, folder: _Folder, shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...],
                chunk: tuple[int, ...]) -> dict[str, Any]:
        """tensorstore's specification of a new array; sizes are those of z, y, x."""

    def known(self, address: str, place: str) -> bool:
        """Whether a place holds this format."""
        return any(_Folder(address, place).read_json(marker) is not None for marker in self.markers)

    def open(self, address: str, place: str, part: str) -> ChunkStore:
        """The array at an address."""
        return self._open(address, _Folder(address, place), part, write=False)

    def create(self, address: str, place: str, part: str, shape: tuple[int, ...], dtype: np.dtype[Any],
               voxel_size: tuple[float, ...], chunk: tuple[int, ...]) -> ChunkStore:
        """The array at an address, made if it is not there."""
        folder = _Folder(address, place)
        if self._is_missing(folder, part):
            specification = self.prepare(folder, shape, dtype, voxel_size, chunk)
            with reading(address, "a store that can be written", _ERRORS):
                tensorstore.open({"driver": self.driver, "kvstore": folder.files.spec().to_json(), **specification},
                                 create=True, open=True, context=_context()).result()
        return self._open(address, folder, part, write=True)

    def _is_missing(self, folder: _Folder, part: str) -> bool:
        """Whether the array `part` of a folder is yet to be made; raises DataError if it cannot be."""
        if part:
            raise unreadable(folder.address, f"the name {part!r} behind the colon", "no name, or a folder in the path")
        return self._find(folder, "") is None

    def _find(self, folder: _Folder, part: str) -> _Found | None:
        with reading(folder.address, f"the metadata of {self.title}", _MALFORMED):
            return self.find(folder, part)

    def _open(self, address: str, folder: _Folder, part: str, *, write: bool) -> ChunkStore:
        found = self._find(folder, part)
        if found is None:
            raise unreadable(address, f"no {' or '.join(self.markers)}", self.title)
        with reading(address, f"{self.title}, whole", _ERRORS):
            store = tensorstore.open(
                {"driver": self.driver, "kvstore": folder.within(found.path).files.spec().to_json(), **found.options},
                read=True, write=write, context=_context()).result(_METADATA_SECONDS)
            store = store[tensorstore.d[:].translate_to[0]]  # precomputed volumes begin at their offset
        shape = tuple(store.shape)
        chunk = tuple(length or 1 for length in store.chunk_layout.read_chunk.shape or ())
        return ChunkStore(address, shape=shape, dtype=store.dtype.numpy_dtype, axes=found.axes or AXES[-len(shape):],
                          axes_stated=bool(found.axes), voxel_size=found.voxel_size, chunk=chunk, store=store)


class _Zarr(ChunkFormat):
    """What both versions of Zarr share: groups of OME-NGFF, and arrays that may stand in one."""

    @abstractmethod
    def attributes(self, folder: _Folder) -> tuple[bool, dict[str, Any]] | None:
        """Whether a folder is an array, and what else it says; None if it is not Zarr."""

    def find(self, folder: _Folder, part: str) -> _Found | None:
        node = self.attributes(folder)
        if node is None:
            return None
        is_array, attributes = node
        if not is_array:
            found = ngff.levels(attributes)
            if not found:
                raise unreadable(folder.address, "a Zarr group that is no image of OME-NGFF",
                                 "an array; add its name in the group to the path")
            chosen = ngff.chosen(folder.address, found, part)
            return _Found(chosen.path, chosen.axes, chosen.voxel_size)
        if part:
            raise unreadable(folder.address, f"the name {part!r} behind the colon", "no name: this is one array")
        if level := self._level_of(folder):
            return _Found("", level.axes, level.voxel_size)
        axes = "".join(map(str, attributes.get("dimension_names") or ()))
        return _Found("", axes if set("zyx") <= set(axes) <= set(AXES) else "", attribute_voxel_size(attributes))

    def _level_of(self, folder: _Folder) -> ngff.Level | None:
        """What the group around an array says of it."""
        if (above := folder.above()) is None:
            return None
        group, name = above
        _, attributes = self.attributes(group) or (False, {})
        return next((level for level in ngff.levels(attributes) if level.path == name), None)


class Zarr3(_Zarr):
    title, driver, markers = "a Zarr v3 array", "zarr3", ("zarr.json",)

    def attributes(self, folder: _Folder) -> tuple[bool, dict[str, Any]] | None:
        node = folder.read_json("zarr.json")
        if node is None:
            return None
        names = {"dimension_names": node.get("dimension_names")}
        return node["node_type"] == "array", {**node.get("attributes", {}), **names}

    def prepare(self, folder: _Folder, shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...],
                chunk: tuple[int, ...]) -> dict[str, Any]:
        return {"metadata": {
            "shape": shape, "data_type": dtype.name, "fill_value": 0, "dimension_names": ["z", "y", "x"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                       {"name": "zstd", "configuration": {"level": 1}}],
            "attributes": {"voxel_size": voxel_size}}}


class Zarr2(_Zarr):
    title, driver, markers = "a Zarr v2 array", "zarr", (".zarray", ".zgroup")

    def attributes(self, folder: _Folder) -> tuple[bool, dict[str, Any]] | None:
        is_array = folder.read_json(".zarray") is not None
        attributes = folder.read_json(".zattrs")
        if not is_array and attributes is None and folder.read_json(".zgroup") is None:
            return None
        return is_array, attributes or {}

    def prepare(self, folder: _Folder, shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...],
                chunk: tuple[int, ...]) -> dict[str, Any]:
        folder.write_json(".zattrs", {"voxel_size": voxel_size})
        return {"metadata": {
            "shape": shape, "dtype": dtype.newbyteorder("<").str, "fill_value": 0, "chunks": chunk,
            "dimension_separator": "/", "compressor": {"id": "zstd", "level": 1}}}


class N5(ChunkFormat):
    """Axes are x, y, z in the metadata, x fastest; ``s0`` is the finest of several scales."""

    title, driver, markers = "an N5 dataset", "n5", ("attributes.json",)

    def find(self, folder: _Folder, part: str) -> _Found | None:
        attributes = folder.read_json("attributes.json")
        if attributes is None:
            return None
        path = part
        if not part and "dimensions" not in attributes:
            path = "s0"
        if path:
            attributes = folder.within(path).read_json("attributes.json") or {}
        if "dimensions" not in attributes:
            raise unreadable(folder.address, f"no N5 dataset {path}".rstrip(), "a path that ends at a dataset")
        return _Found(path, "xyzct"[:len(attributes["dimensions"])], _n5_voxel_size(attributes))

    def prepare(self, folder: _Folder, shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...],
                chunk: tuple[int, ...]) -> dict[str, Any]:
        return {"metadata": {
            "dimensions": shape[::-1], "dataType": dtype.name, "blockSize": chunk[::-1],
            "compression": {"type": "gzip", "level": 1}, "axes": ["x", "y", "z"], "units": ["nm"] * 3,
            "resolution": voxel_size[::-1]}}


def _n5_voxel_size(attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """nm along x, y, z: ``pixelResolution`` of n5-viewer, or ``resolution``, in nm where no units stand beside it."""
    viewer = attributes.get("pixelResolution")
    if isinstance(viewer, dict):
        sizes = numbers(viewer.get("dimensions"))
        factors = [nanometres(viewer.get("unit"))] * len(sizes)
    else:
        sizes = numbers(attributes.get("resolution"))
        factors = [nanometres(unit) for unit in attributes.get("units", ["nm"] * len(sizes))]
    known = [size * factor for size, factor in zip(sizes, factors, strict=True) if factor]
    return tuple(known) if len(known) == len(sizes) else ()


class Precomputed(ChunkFormat):
    """Axes are x, y, z, channel; neuroglancer's ``src/datasource/precomputed/volume.md``."""

    title, driver, markers = "a precomputed volume", "neuroglancer_precomputed", ("info",)

    def find(self, folder: _Folder, part: str) -> _Found | None:
        info = folder.read_json("info")
        if info is None:
            return None
        keys = [str(scale["key"]) for scale in info["scales"]]
        wanted = part or "0"
        if wanted not in keys and not (wanted.isdecimal() and int(wanted) < len(keys)):
            raise unreadable(folder.address, f"the scales {listed(keys)}", f"one named {part}")
        index = keys.index(wanted) if wanted in keys else int(wanted)
        return _Found("", "xyzc", numbers(info["scales"][index]["resolution"]), {"scale_index": index})

    def _is_missing(self, folder: _Folder, part: str) -> bool:
        """As for any format; scales are numbered from 0 in the order in which they are made."""
        with reading(folder.address, f"the metadata of {self.title}", _MALFORMED):
            made = len((folder.read_json("info") or {"scales": ()})["scales"])
        if part and not (part.isdecimal() and int(part) <= made):
            raise unreadable(folder.address, f"the name {part!r} behind the colon", f"the number of a scale, 0..{made}")
        return int(part or 0) == made

    def prepare(self, folder: _Folder, shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...],
                chunk: tuple[int, ...]) -> dict[str, Any]:
        labels = dtype in (np.uint32, np.uint64)
        encoding = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
        return {"multiscale_metadata": {"type": "segmentation" if labels else "image", "data_type": dtype.name,
                                        "num_channels": 1},
                "scale_metadata": {"size": shape[::-1], "resolution": voxel_size[::-1], "chunk_size": chunk[::-1],
                                   **(encoding if labels else {"encoding": "raw"})}}
