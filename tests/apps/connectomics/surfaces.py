"""What a closed surface is, told from corners and triangles alone.

Invariant: nothing of the app is used here.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners x, y, z and triangles of a binary PLY file of just these."""
    header, _, content = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (_, _, corners), (_, _, faces) = (line.split() for line in lines if line.startswith("element"))
    assert [line for line in lines if line.startswith("property")] == [
        "property float x", "property float y", "property float z", "property list uchar int vertex_indices"]
    split = 12 * int(corners)
    assert len(content) == split + 13 * int(faces)
    rows = list(struct.iter_unpack("<B3i", content[split:]))
    assert {row[0] for row in rows} == {3}
    return np.array(list(struct.iter_unpack("<3f", content[:split]))), np.array([row[1:] for row in rows])


def read_fragment(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners x, y, z and triangles of a part of a precomputed mesh."""
    content = path.read_bytes()
    (corners,) = struct.unpack_from("<I", content)
    assert (len(content) - 4 - 12 * corners) % 12 == 0
    return (np.array(list(struct.iter_unpack("<3f", content[4:4 + 12 * corners]))),
            np.array(list(struct.iter_unpack("<3I", content[4 + 12 * corners:]))))


def is_closed(triangles: np.ndarray) -> bool:
    """Whether each edge belongs to two triangles, which run along it in opposite directions."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).astype(np.int64)
    forth, back = (edges @ [np.max(edges) + 1, 1], edges[:, ::-1] @ [np.max(edges) + 1, 1])
    return len(np.unique(forth)) == len(edges) and np.array_equal(np.sort(forth), np.sort(back))


def euler_characteristic(triangles: np.ndarray) -> int:
    """Corners less edges plus triangles of a closed surface: 2 for a sphere, 0 for a torus, and their sum for more."""
    return len(np.unique(triangles)) - len(triangles) * 3 // 2 + len(triangles)


def volume(corners: np.ndarray, triangles: np.ndarray) -> float:
    """What is enclosed; above 0 if triangles are counter-clockwise from outside (the divergence theorem)."""
    a, b, c = corners[triangles].transpose(1, 0, 2)
    return float(np.einsum("ij,ij", a, np.cross(b, c)) / 6)


def area(corners: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = corners[triangles].transpose(1, 0, 2)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
