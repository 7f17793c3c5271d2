"""What Neuroglancer shows besides volumes: precomputed skeletons, and a link to a state of the viewer.

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

from apps.connectomics.skeletons import Skeletons

VIEWER = "https://neuroglancer-demo.appspot.com/"
SKELETONS_INFO = {
    "@type": "neuroglancer_skeletons", "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}]}


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
        corners = (tree.positions + np.divide(voxel_size, 2))[:, ::-1]
        (folder / str(label)).write_bytes(b"".join(
            np.ascontiguousarray(part, kind).tobytes() for part, kind in (
                ((len(tree.label), len(tree.edges)), "<u4"), (corners, "<f4"), (tree.edges, "<u4"),
                (tree.radius, "<f4"))))
    return len(labels)


def refer_to_skeletons(volume: Path, name: str) -> None:
    """Say in the ``info`` of a precomputed segmentation in which folder of it the skeletons are."""
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
