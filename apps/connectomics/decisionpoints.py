"""Decision points: where two segments come nearest, so that a closer look there can tell whether they are one.

All segments grow at one rate into what has none, as far as a limit. Where two of them meet, the mean of the distances
that they came is half of that between them; a pair's decision point is where it is smallest. The rules are those of
``find_decision_points`` in google/ffn (``ffn/utils/decision_point.py``), except that a voxel goes to the segment that
is nearest by the distance transform itself, not by a watershed of it.

Invariant: a pair has one point, whatever its segments are called, and however the volume is cut into boxes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.connectomics.blocks import boxes, triple
from apps.connectomics.volumes import Volume, read_labels

POINT = np.dtype([("id_a", np.uint64), ("id_b", np.uint64), *((axis, np.int64) for axis in "zyx"),
                  ("distance", np.float64)])
"""A decision point: the smaller and the larger id, the voxel, and how many nm it is from either segment."""

BLOCK = 256
"""Side in voxels of the boxes in which contacts are looked for, without what is read around them."""

_STEPS = [step for step in itertools.product((0, 1), repeat=3) if any(step)]
"""From a voxel to those of its neighbours that do not lie before it along any axis."""


def decision_points(labels: NDArray[Any], voxel_size: Sequence[float], max_distance: float = np.inf) -> NDArray[Any]:
    """The decision points of all pairs of segments that meet.

    Parameters
    ----------
    labels : integers[z, y, x] from 0, 0 for none
    voxel_size : nm along z, y, x
    max_distance : nm, as far as segments grow

    Returns
    -------
    `POINT`[pair], ascending by ids. The voxel is the first of two that touch; of several contacts at the same distance
    it is that of the one nearest to their mean
    """
    return _chosen(_contacts(labels, (0, 0, 0), labels.shape, voxel_size, max_distance))


def find_decision_points(volume: Volume, voxel_size: Sequence[float],
                         max_distance: float) -> tuple[NDArray[Any], int]:
    """The decision points of a volume, see `decision_points`, and the number of its segments; read box by box.

    Parameters
    ----------
    max_distance : nm, finite: as much is read around each box
    """
    margin = [int(max_distance // size) + 1 for size in voxel_size]
    found, ids = np.zeros(0, POINT), {0}
    for start, stop in boxes((0, 0, 0), volume.shape, BLOCK):
        low = np.maximum(np.subtract(start, margin), 0)
        high = np.minimum(np.add(stop, margin) + 1, volume.shape)
        labels = read_labels(volume, low.tolist(), high.tolist())
        ids.update(np.unique(labels).tolist())
        contacts = _contacts(labels, np.subtract(start, low), np.subtract(stop, start), voxel_size, max_distance)
        for axis, first in zip("zyx", start, strict=True):
            contacts[axis] += first
        found = _closest(np.concatenate([found, contacts]))
    return _chosen(found), len(ids) - 1


def _contacts(labels: NDArray[Any], first: Iterable[int], size: Iterable[int], voxel_size: Sequence[float],
              max_distance: float) -> NDArray[Any]:
    """Where pairs of segments meet at their smallest distance, `POINT`[contact], in a part of some labels.

    Parameters
    ----------
    first, size : of the part, voxels z, y, x; positions count from `first`
    """
    first, size = triple(first), triple(size)
    found = [np.zeros(0, POINT)]
    if not labels.any():
        return found[0]
    distance, nearest = ndimage.distance_transform_edt(labels == 0, sampling=voxel_size, return_indices=True)
    part = tuple(slice(begin, begin + length + 1) for begin, length in zip(first, size, strict=True))  # and one behind
    distance, nearest = distance[part], nearest[:, *part]
    grown = np.where(distance <= max_distance, labels[tuple(nearest)], 0)
    for step in _STEPS:
        lengths = [min(length, there - ahead) for length, there, ahead in zip(size, grown.shape, step, strict=True)]
        here = tuple(map(slice, lengths))
        beside = tuple(slice(ahead, ahead + length) for ahead, length in zip(step, lengths, strict=True))
        a, b = grown[here], grown[beside]
        touching = (a != b) & (a > 0) & (b > 0)
        points = np.zeros(np.count_nonzero(touching), POINT)
        points["id_a"] = np.minimum(a[touching], b[touching])
        points["id_b"] = np.maximum(a[touching], b[touching])
        points["distance"] = (distance[here][touching] + distance[beside][touching]) / 2
        points["z"], points["y"], points["x"] = np.nonzero(touching)
        found.append(_closest(points))
    return _closest(np.concatenate(found))


def _closest(points: NDArray[Any]) -> NDArray[Any]:
    """The points of each pair at its smallest distance, each once, ascending by pair and voxel."""
    points = points[np.lexsort([points[name] for name in ("x", "y", "z", "distance", "id_b", "id_a")])]
    begins = _differs(points, "id_a", "id_b")
    smallest = points["distance"][begins][np.cumsum(begins) - 1]
    points = points[points["distance"] == smallest]
    return points[_differs(points, "id_a", "id_b", *"zyx")]


def _chosen(points: NDArray[Any]) -> NDArray[Any]:
    """Of the points of each pair, ascending by pair and voxel, the one nearest to their mean."""
    begins = np.flatnonzero(_differs(points, "id_a", "id_b"))
    middles = []
    for begin, contacts in zip(begins, np.split(points, begins)[1:], strict=True):
        places = np.stack([contacts[axis] for axis in "zyx"], axis=1)
        middles.append(begin + np.square(places - places.mean(axis=0)).sum(axis=1).argmin())
    return points[np.array(middles, np.int64)]


def _differs(points: NDArray[Any], *names: str) -> NDArray[np.bool_]:
    """Whether a point differs in some field from the one before it, bool[point]; the first does."""
    differs = np.ones(len(points), np.bool_)
    differs[1:] = np.any([points[name][1:] != points[name][:-1] for name in names], axis=0)
    return differs
