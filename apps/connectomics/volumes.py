"""Volumes: three-dimensional images and labels of any size, read and written by boxes.

Invariant: positions count voxels in the order z, y, x from 0, whatever the format and its axes; sizes are in nm. A box
costs the memory of itself and of the chunks that it touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from apps.connectomics.formats import create_stored, open_stored
from apps.connectomics.storage import AXES, Selection, Stored, WritableStored, unreadable
from core.engine.errors import ConfigError, DataError, compose

SPACE = "zyx"
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
MAX_CHUNK_BYTES = 512 << 20
"""Of one chunk: it is decoded whole, however little of it is wanted."""

Triple = tuple[int, int, int]
VoxelSize = tuple[float, float, float]
"""nm along z, y, x."""
AnyStored = TypeVar("AnyStored", bound=Stored)


@dataclass(frozen=True)
class Volume:
    """A volume that is read lazily. It may be sent to other processes.

    Attributes
    ----------
    address : where it is, as it was given
    shape : voxels along z, y, x
    dtype : one of `DTYPES`
    voxel_size : nm along z, y, x, or None if nobody says
    """

    address: str
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None
    stored: Stored = field(repr=False)
    axes: str = field(repr=False)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        """The voxels of a box.

        Parameters
        ----------
        start, stop : z, y, x of its first voxel, and behind its last one

        Returns
        -------
        dtype[z, y, x], a new array

        Raises
        ------
        DataError
            If the box is empty or not within the volume, or a chunk cannot be read.
        """
        return self.stored.read(*self._selected(start, stop))

    def _selected(self, start: Sequence[int], stop: Sequence[int]) -> tuple[Selection, tuple[int, ...]]:
        """What to select along the axes as they are stored, and the order that makes z, y, x of them."""
        if not all(0 <= first < last <= size for first, last, size in zip(start, stop, self.shape, strict=True)):
            raise DataError(compose(f"there is no such box in the volume {self.address}", [
                ("found", f"{tuple(map(int, start))} to {tuple(map(int, stop))} (z y x)"),
                ("expected", f"within (0, 0, 0) to {self.shape}, and not empty")]))
        ranges = {axis: slice(int(first), int(last)) for axis, first, last in zip(SPACE, start, stop, strict=True)}
        of_space = [axis for axis in self.axes if axis in SPACE]
        return tuple(ranges.get(axis, 0) for axis in self.axes), tuple(of_space.index(axis) for axis in SPACE)


@dataclass(frozen=True)
class WritableVolume(Volume):
    """A volume that can also be written.

    Processes may write boxes of whole chunks of a Zarr, N5 or precomputed volume at once; boxes that share a chunk, and
    an HDF5 file, only one after the other.
    """

    stored: WritableStored = field(repr=False)

    def write(self, start: Sequence[int], values: NDArray[Any]) -> None:
        """Write ``dtype[z, y, x]`` into the box that begins at `start`.

        Raises
        ------
        DataError
            If the values are of another type, the box is not within the volume, or the store cannot be written.
        """
        if values.dtype != self.dtype:
            raise DataError(f"cannot write {values.dtype} into the volume {self.address}, which is of {self.dtype}")
        stop = [first + size for first, size in zip(start, values.shape, strict=True)]
        self.stored.write(*self._selected(start, stop), values)


def open_volume(address: str, *, axes: str = "", voxel_size: tuple[float, ...] = ()) -> Volume:
    """The volume at an address.

    Parameters
    ----------
    address : ``FILE.h5:DATASET`` (the name may be left out if there is one dataset of three axes), a TIFF file, a
        folder of TIFF or PNG slices, or a folder of Zarr v2 or v3, N5 or Neuroglancer precomputed, on disk or at
        ``gs://``, ``s3://``, ``http://`` or ``https://``. ``zarr2://``, ``zarr3://``, ``n5://`` or ``precomputed://``
        before it says which, and ``:SCALE`` behind it picks one of several resolutions, by name or number
    axes : letters of `AXES` in the order of the stored axes, such as ``xyz`` or ``czyx``, where the format does not
        say; default: the format's own, else z, y, x. Axes other than these must be one long
    voxel_size : nm along z, y, x; default: what the format says

    Raises
    ------
    ConfigError
        If `axes` or `voxel_size` are impossible for any volume.
    DataError
        If there is no such volume, or it cannot be read or is no volume.
    """
    _check_axes(axes)
    if voxel_size and not _are_sizes(voxel_size):
        raise ConfigError(f"a voxel size is three positive numbers of nm, along z, y, x; found {voxel_size}")
    return Volume(address, *_arranged(open_stored(address), axes.lower(), voxel_size))


def create_volume(address: str, shape: Triple, dtype: DTypeLike, voxel_size: VoxelSize,
                  chunk: Triple = (64, 64, 64)) -> WritableVolume:
    """A volume of zeros to be written; one that an earlier call with the same arguments made is opened as it is.

    Parameters
    ----------
    address : ``FILE.h5:DATASET``, ``FOLDER.zarr`` (v3), ``FOLDER.n5``, or with a prefix as in `open_volume`; a
        precomputed volume of u32 or u64 is a segmentation, any other an image
    shape : voxels along z, y, x
    dtype : one of `DTYPES`; the format may have fewer
    voxel_size : nm along z, y, x
    chunk : voxels along z, y, x of the pieces it is kept in

    Raises
    ------
    DataError
        If the address cannot be written, or something else is there.
    """
    if not _are_sizes(voxel_size):
        raise ConfigError(f"a voxel size is three positive numbers of nm, along z, y, x; found {voxel_size}")
    kept = tuple(min(size, length) for size, length in zip(chunk, shape, strict=True))
    sizes = tuple(map(float, voxel_size))
    stored = create_stored(address, shape, np.dtype(dtype), sizes, kept)
    volume = WritableVolume(address, *_arranged(stored, "", ()))
    chunk_there = tuple(stored.chunk[stored.axes.index(axis)] for axis in SPACE) if stored.chunk else kept
    found = (volume.shape, volume.dtype, volume.voxel_size, chunk_there)
    wanted = (tuple(shape), np.dtype(dtype), sizes, kept)
    if found != wanted:
        raise DataError(compose(f"another volume is at {address}", [
            ("found", _described(*found)), ("expected", _described(*wanted)), ("hint", "choose another address")]))
    return volume


def known_voxel_size(volume: Volume) -> VoxelSize:
    """nm along z, y, x; raises `DataError` if nobody says."""
    if volume.voxel_size is None:
        raise DataError(compose(f"{volume.address} does not say how large a voxel is", [
            ("hint", "add --voxel-size, in nm, z y x, such as 10,10,10")]))
    return volume.voxel_size


def common_voxel_size(*volumes: Volume) -> VoxelSize | None:
    """nm along z, y, x of volumes of one region, or None if none of them says; raises `DataError` if they differ."""
    sizes = {volume.voxel_size for volume in volumes if volume.voxel_size}
    if len(sizes) > 1:
        raise DataError(compose("the volumes differ in voxel size", [
            *((volume.address, f"{volume.voxel_size} nm, z y x") for volume in volumes),
            ("hint", "say the right one with --voxel-size")]))
    return sizes.pop() if sizes else None


def check_same_shape(*volumes: Volume) -> None:
    """Raise `DataError` if volumes differ in shape."""
    if len({volume.shape for volume in volumes}) > 1:
        raise DataError(compose("the volumes differ in shape", [
            *((volume.address, f"{volume.shape} voxels") for volume in volumes),
            ("expected", "the same region at the same voxel size, z y x")]))


def check_labels(volume: Volume) -> None:
    """Raise `DataError` if a volume can be no segmentation."""
    if volume.dtype.kind not in "iu":
        raise DataError(f"{volume.address} holds {volume.dtype}; segments have whole numbers")


def check_sized_labels(volume: Volume) -> None:
    """Raise `DataError` if a volume can be no segmentation, or says no voxel size."""
    known_voxel_size(volume)
    check_labels(volume)


def read_labels(volume: Volume, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
    """The labels of a box of a segmentation; raises `DataError` if one is below 0."""
    labels = volume.read(start, stop)
    if labels.min() < 0:
        raise DataError(f"{volume.address} holds {labels.min()}; labels are whole numbers from 0")
    return labels


def _arranged(stored: AnyStored, axes: str, voxel_size: tuple[float, ...]) -> tuple[
        Triple, np.dtype[Any], VoxelSize | None, AnyStored, str]:
    """Shape, dtype and voxel size of a stored array as a volume, and its axes; raises DataError if it is none."""
    address, shown = stored.address, f"{stored.dtype}{list(stored.shape)}"
    if stored.dtype.name not in DTYPES:
        raise unreadable(address, f"values of {stored.dtype}", f"one of {', '.join(DTYPES)}")
    if not 3 <= len(stored.shape) <= len(AXES) or 0 in stored.shape:
        raise unreadable(address, shown, "three axes, none of them empty")
    axes = "" if stored.is_ours else axes
    if stored.axes_stated and axes not in ("", stored.axes):
        raise unreadable(address, f"the axes {stored.axes}, as the format says", f"{axes}, as the settings say",
                         "leave the axes out of the settings")
    axes = axes or stored.axes
    if len(axes) != len(stored.shape) or not set(SPACE) <= set(axes):
        raise unreadable(address, shown, f"one axis for each of {', '.join(axes)}, z, y and x among them")
    lengths = dict(zip(axes, stored.shape, strict=True))
    for axis, length in lengths.items():
        if axis not in SPACE and length > 1:
            raise unreadable(address, f"{length} {'channels' if axis == 'c' else 'times'} in {shown} (axes {axes})",
                             "one", "store one by itself, or name the axes in the order in which they are stored")
    if math.prod(stored.chunk) * stored.dtype.itemsize > MAX_CHUNK_BYTES:
        raise unreadable(address, f"chunks of {stored.dtype}{list(stored.chunk)}",
                         f"at most {MAX_CHUNK_BYTES:,} bytes", "store it again in smaller chunks, such as 64 x 64 x 64")
    z, y, x = (lengths[axis] for axis in SPACE)
    return (z, y, x), stored.dtype, _voxel_size(stored, axes, voxel_size), stored, axes


def _voxel_size(stored: Stored, axes: str, given: tuple[float, ...]) -> VoxelSize | None:
    """nm along z, y, x: what is given, else what the format says."""
    sizes = given
    if not given and stored.voxel_size:
        along = axes if len(stored.voxel_size) == len(axes) else "".join(axis for axis in axes if axis in SPACE)
        sizes = tuple(size for axis in SPACE for at, size in zip(along, stored.voxel_size, strict=False) if at == axis)
        if len(stored.voxel_size) != len(along) or not _are_sizes(sizes):
            raise unreadable(stored.address, f"a voxel size of {list(stored.voxel_size)} nm", "three positive numbers",
                             "say the right one with --voxel-size, in nm, z y x")
    if not sizes:
        return None
    z, y, x = map(float, sizes)
    return z, y, x


def _check_axes(axes: str) -> None:
    letters = axes.lower()
    if axes and not (set(SPACE) <= set(letters) <= set(AXES) and len(set(letters)) == len(letters)):
        raise ConfigError(f"axes are z, y, x and perhaps c (channel) and t (time), each once, in the order in which "
                          f"they are stored, such as zyx, xyz or czyx; found {axes!r}")


def _are_sizes(sizes: Sequence[float]) -> bool:
    return len(sizes) == len(SPACE) and all(math.isfinite(size) and size > 0 for size in sizes)


def _described(shape: tuple[int, ...], dtype: np.dtype[Any], voxel_size: tuple[float, ...] | None,
               chunk: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}, voxels of {list(voxel_size or ())} nm, chunks of {list(chunk)}"
