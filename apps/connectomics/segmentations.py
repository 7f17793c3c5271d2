"""Segmentations as files: HDF5 with ``segmentation`` and, of segmentations by flood filling, ``origins``.

Invariant: a file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apps.connectomics.blocks import Triple
from apps.connectomics.hdf5 import AXES_NOTE, HDF5_ERRORS
from apps.connectomics.storage import reading
from core.engine.checkpoint import written_whole

ORIGIN = np.dtype([(name, np.int64) for name in ("id", "z", "y", "x", "moves", "voxels")])
"""Of the table ``origins``: how an object came to be."""

_CHUNK = 64
"""Side in voxels of the pieces in which labels are kept."""


class SegmentationFile:
    """A file that is being written; see `written_segmentation`."""

    def __init__(self, store: h5py.File) -> None:
        self._store = store
        self.dtype: np.dtype[Any] = store["segmentation"].dtype

    def write(self, start: Sequence[int], labels: NDArray[Any]) -> None:
        """Write labels, whole numbers[z, y, x] that the type holds, into the box that begins at `start`, once a box."""
        if labels.any():  # pieces that are not there are 0, and take neither time nor room
            box = tuple(slice(first, first + size) for first, size in zip(start, labels.shape, strict=True))
            self._store["segmentation"][box] = labels

    def write_origins(self, rows: NDArray[Any]) -> None:
        """Write how the objects came to be, `ORIGIN`[object]."""
        self._store.create_dataset("origins", data=rows)


@contextmanager
def written_segmentation(out: Path, shape: Triple, voxel_size: tuple[float, float, float] | None,
                         dtype: np.dtype[Any] | type[np.integer[Any]] = np.uint32,
                         **attributes: str) -> Iterator[SegmentationFile]:
    """A new file of labels of integer type [z, y, x], none at first, which takes its place when the block ends.

    Parameters
    ----------
    shape : voxels along z, y, x
    voxel_size : nm along z, y, x, or None if nobody says
    attributes : of the labels, such as the precision of the network that made them
    """
    with written_whole(out) as file, h5py.File(file, "w") as store:
        chunks = tuple(min(size, _CHUNK) for size in shape)
        data = store.create_dataset("segmentation", shape, dtype, chunks=chunks, compression="gzip",
                                    compression_opts=1, shuffle=True)
        data.attrs[AXES_NOTE] = "zyx"
        if voxel_size is not None:
            data.attrs["voxel_size"] = voxel_size
        data.attrs.update(attributes)
        yield SegmentationFile(store)


def read_origins(path: Path) -> NDArray[np.int64]:
    """Where the objects of a segmentation began, in the order of their ids.

    Returns
    -------
    i64[object, 3], voxels z y x

    Raises
    ------
    DataError
        If it is not a file of flood filling.
    """
    expected = "an HDF5 file with a table origins, as the command segment writes it"
    with reading(str(path), expected, HDF5_ERRORS), h5py.File(path, "r") as file:
        rows = np.sort(file["origins"][:], order="id", kind="stable")
        return np.stack([rows[axis] for axis in "zyx"], axis=1).astype(np.int64)
