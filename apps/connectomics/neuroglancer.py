"""What Neuroglancer shows besides volumes: precomputed skeletons and meshes, and a link to a state of the viewer.

Invariant: positions are x, y, z in nm from the corner of the volume's first voxel, so that the middle of a voxel lies
half of one behind its index.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apps.connectomics.meshes import Mesh
from apps.connectomics.skeletons import Skeletons

VIEWER = "https://neuroglancer-demo.appspot.com/"
SKELETONS_INFO = {
    "@type": "neuroglancer_skeletons", "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}]}
MESHES_INFO = {"@type": "neuroglancer_legacy_mesh"}


def write_skeletons(skeletons: Skeletons, voxel_size: Sequence[float], folder: Path) -> int:
    """Write skeletons in the precomputed format, one file a label, and say how many they are.

    The format is that of neuroglancer's ``src/datasource/precomputed/skeletons.md``; the radius in nm is an attribute.

    Parameters
    ----------
    voxel_size : nm along z, y, x
    folder : to be made
    """
    folder.mkdir()
    (folder / "info").write_text(json.dumps(SKELETONS_INFO), encoding="utf-8")
    labels = np.unique(skeletons.label)
    for label in labels:
        tree = skeletons.subset(skeletons.label == label)
        _write_parts(folder / str(label), (
            ((len(tree.label), len(tree.edges)), "<u4"), (_corners(tree.positions, voxel_size), "<f4"),
            (tree.edges, "<u4"), (tree.radius, "<f4")))
    return len(labels)


def write_mesh(mesh: Mesh, label: int, folder: Path, voxel_size: Sequence[float]) -> None:
    """Write a mesh in the precomputed format of a single resolution: a list of its parts, of which there is one.

    The format is that of neuroglancer's ``src/datasource/precomputed/mesh.rst``, "Legacy single-resolution mesh
    format"; its folder has an ``info``, `MESHES_INFO`.

    Parameters
    ----------
    voxel_size : nm along z, y, x
    """
    part = f"{label}:0:0"
    (folder / f"{label}:0").write_text(json.dumps({"fragments": [part]}), encoding="utf-8")
    _write_parts(folder / part, ((len(mesh.vertices), "<u4"), (_corners(mesh.vertices, voxel_size), "<f4"),
                                 (mesh.triangles, "<u4")))


def _corners(positions: NDArray[np.float64], voxel_size: Sequence[float]) -> NDArray[np.float64]:
    """x, y, z from the corner of the first voxel, of z, y, x from its middle; in nm."""
    corners: NDArray[np.float64] = (positions + np.divide(voxel_size, 2))[:, ::-1]
    return corners


def _write_parts(path: Path, parts: Sequence[tuple[ArrayLike, str]]) -> None:
    """Write numbers one after the other, each array in its type."""
    path.write_bytes(b"".join(np.ascontiguousarray(part, kind).tobytes() for part, kind in parts))


def refer_to(volume: Path, name: str) -> None:
    """Say in the ``info`` of a precomputed segmentation that its ``skeletons`` or ``mesh`` are in the folder `name`."""
    path = volume / "info"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**info, name: name}), encoding="utf-8")


def state_link(layers: Sequence[tuple[str, str, str]], shape: Sequence[int], voxel_size: Sequence[float]) -> str:
    """A link that opens layers in Neuroglancer, at the middle of the volume.

    Parameters
    ----------
    layers : name, type (``image`` or ``segmentation``) and source, such as ``precomputed://https://HOST/PATH``
    shape : voxels along z, y, x
    voxel_size : nm along z, y, x
    """
    state: dict[str, Any] = {
        "dimensions": {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", voxel_size[::-1], strict=True)},
        "position": [length / 2 for length in shape[::-1]],
        "layers": [{"type": kind, "source": source, "name": name} for name, kind, source in layers],
        "layout": "4panel"}
    return f"{VIEWER}#!{urllib.parse.quote(json.dumps(state, separators=(',', ':')), safe=':,/[]')}"
