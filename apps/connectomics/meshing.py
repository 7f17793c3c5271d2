"""Mesh: a segmentation in, the surfaces of its segments out, as PLY files.

Invariant: the segmentation is read once, box by box; what is held is a box and the surface of one segment. The folder
of meshes appears whole or not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.app import Report
from apps.connectomics.blocks import Triple, boxes, triple
from apps.connectomics.config import MeshSettings
from apps.connectomics.meshes import Mesh, joined, surface, write_ply
from apps.connectomics.outputs import made_whole
from apps.connectomics.volumes import Volume, check_sized_labels, known_voxel_size, open_volume, read_labels
from core.engine.refusals import Refusals

BLOCK = 256
"""Side in voxels of what is read at once."""


def mesh_address(input: str, out: Path, refused: Refusals, settings: MeshSettings) -> Report:
    """Write the surfaces of a segmentation, one PLY file a segment. Nothing is refused one by one."""
    volume = open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size)
    check_sized_labels(volume)
    with made_whole(out) as folder:
        return Report(write_meshes(volume, settings, folder, write_ply))


def write_meshes(volume: Volume, settings: MeshSettings, folder: Path,
                 write: Callable[[Mesh, int, Path], None]) -> dict[str, float | int | str]:
    """Write the mesh of each segment of a volume that `check_sized_labels` lets pass.

    Parameters
    ----------
    folder : to be made
    write : called with mesh, label and folder

    Returns
    -------
    what is said of the meshes
    """
    folder.mkdir()
    count = vertices = triangles = 0
    with tempfile.TemporaryDirectory(prefix=".surfaces.", dir=folder.parent) as pieces:
        _write_pieces(volume, Path(pieces))
        for path in sorted(Path(pieces).iterdir(), key=lambda path: int(path.name)):
            mesh = joined(np.fromfile(path, np.int32).reshape(-1, 3, 3), known_voxel_size(volume),
                          settings.smoothing)
            write(mesh, int(path.name), folder)
            path.unlink()
            count, vertices, triangles = count + 1, vertices + len(mesh.vertices), triangles + len(mesh.triangles)
    return {"meshes": count, "vertices": vertices, "triangles": triangles}


def _write_pieces(volume: Volume, folder: Path) -> None:
    """Append what is found of each segment's surface in each box to a file that is named after the segment."""
    for start, stop in boxes((0, 0, 0), volume.shape, BLOCK):
        low = np.array(start) - np.equal(start, 0)  # cells from here to the first voxel behind the box
        labels = _with_rim(volume, triple(low), triple(np.add(stop, 1)))
        for label, place in _objects(labels):
            around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in place)
            corner = 2 * (low + [side.start for side in around])
            with open(folder / str(label), "ab") as file:
                file.write((surface(labels[around] == label) + corner.astype(np.int32)).tobytes())


def _with_rim(volume: Volume, low: Triple, high: Triple) -> NDArray[Any]:
    """The labels of a box that may reach beyond the volume by one voxel, where there are none."""
    labels = read_labels(volume, np.maximum(low, 0).tolist(), np.minimum(high, volume.shape).tolist())
    return np.pad(labels, [(int(first < 0), int(last > size))
                           for first, last, size in zip(low, high, volume.shape, strict=True)])


def _objects(labels: NDArray[Any]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each label that occurs, but 0, and the smallest box around it."""
    ids, numbers = np.unique(labels, return_inverse=True)
    for label, box in zip(ids.tolist(), ndimage.find_objects(numbers.reshape(labels.shape) + 1), strict=True):
        if label:
            yield label, box
