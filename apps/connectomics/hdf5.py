"""Volumes in HDF5 files, through h5py.

Invariant: a file is open only while a box is read or written, so that volumes can be sent to other processes and files
are free in between. One process at a time may write a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apps.connectomics.storage import (
    AXES,
    Selection,
    WritableStored,
    arranged,
    attribute_voxel_size,
    check_packed,
    listed,
    reading,
    unreadable,
)

HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises for files that are truncated, damaged, locked, or use filters that are not there."""


AXES_NOTE = "axes"
"""Attribute of the datasets that we write."""


@dataclass(frozen=True)
class Hdf5Dataset(WritableStored):
    """A dataset of an HDF5 file."""

    path: Path
    name: str
    notes_axes: bool

    @property
    def is_ours(self) -> bool:
        return self.notes_axes

    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        with _opened(self.address, self.path, "r") as file:
            if self.chunk:
                self._check_chunks(file[self.name], selection)
            return arranged(file[self.name][selection], order, self.dtype)

    def _check_chunks(self, dataset: h5py.Dataset, selection: Selection) -> None:
        """See `check_packed`; libhdf5 unpacks whatever a chunk holds."""
        ranges = tuple(at if isinstance(at, slice) else slice(at, at + 1) for at in selection)
        for piece in dataset.iter_chunks(ranges):
            corner = tuple(at.start // length * length for at, length in zip(piece, self.chunk, strict=True))
            packed = dataset.id.get_chunk_info_by_coord(corner).size
            check_packed(self.address, packed or 0, math.prod(self.chunk) * dataset.dtype.itemsize)

    def write(self, selection: Selection, order: tuple[int, ...], values: NDArray[Any]) -> None:
        with _opened(self.address, self.path, "r+") as file:
            dataset = file[self.name]
            dataset[selection] = values.transpose(np.argsort(order))
            file.flush()  # closing a dataset keeps silent about a full disk


def open_hdf5(address: str, place: str, part: str) -> Hdf5Dataset:
    """The dataset `part` of a file; without a name, the only one of three or more axes."""
    path = Path(place)
    with _opened(address, path, "r") as file:
        found = [] if part else _volumes(file)
        if len(found) == 1:
            part = found[0]
        dataset = file.get(part) if part else None
        if not isinstance(dataset, h5py.Dataset):
            raise unreadable(address, f"the datasets {listed([_described(file, name) for name in _volumes(file)])}",
                             f"one named {part}" if part else "one dataset, or an address such as FILE.h5:DATASET")
        if dataset.external:
            raise unreadable(address, f"values in another file, {dataset.external[0][0]}", "values in the file itself")
        missing = [source.file_name for source in (dataset.virtual_sources() if dataset.is_virtual else ())
                   if source.file_name != "." and not (path.parent / source.file_name).exists()]
        if missing:
            raise unreadable(address, f"a virtual dataset without its file {missing[0]}", "all files of its parts")
        return Hdf5Dataset(
            address, shape=dataset.shape or (), dtype=dataset.dtype.newbyteorder("="), axes=AXES[-dataset.ndim:],
            axes_stated=False, voxel_size=attribute_voxel_size(dataset.attrs), chunk=dataset.chunks or (), path=path,
            name=part, notes_axes=dataset.attrs.get(AXES_NOTE) == AXES[-dataset.ndim:])


def volumes_of(path: Path) -> list[str]:
    """Names of the datasets of three or more axes in a file.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    with _opened(str(path), path, "r") as file:
        return _volumes(file)


def create_hdf5(address: str, place: str, part: str, shape: tuple[int, ...], dtype: np.dtype[Any],
                voxel_size: tuple[float, ...], chunk: tuple[int, ...]) -> Hdf5Dataset:
    """The dataset `part` of a file, made if it is not there; its values are compressed."""
    if not part:
        raise unreadable(address, "no name of a dataset", "an address such as FILE.h5:DATASET")
    path = Path(place)
    with reading(address, "a folder that can be written", (OSError,)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(address, path, "a") as file:
        if part not in file:
            dataset = file.create_dataset(part, shape, dtype, chunks=chunk, compression="gzip", compression_opts=1,
                                          shuffle=True)
            dataset.attrs["voxel_size"] = voxel_size
            dataset.attrs[AXES_NOTE] = AXES[-len(shape):]
    return open_hdf5(address, place, part)


@contextmanager
def _opened(address: str, path: Path, mode: str) -> Iterator[h5py.File]:
    expected = "a whole HDF5 file that no other process is writing"
    with reading(address, expected, HDF5_ERRORS), h5py.File(path, mode) as file:
        yield file


def _volumes(file: h5py.File) -> list[str]:
    """Names of the datasets of three or more axes."""
    names = []

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 3:
            names.append(name)

    file.visititems(visit)
    return names


def _described(file: h5py.File, name: str) -> str:
    return f"{name} {file[name].dtype}{list(file[name].shape)}"
