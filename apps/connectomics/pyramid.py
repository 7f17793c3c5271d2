"""Pyramids: coarser scales of an image or of labels, each made from the one before.

Invariant: a voxel of a coarser scale depends on the voxels that it covers alone, so that blocks give what the whole
would; where a side is odd, the last voxel covers fewer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


def halved(shape: Sequence[int], voxel_size: Sequence[float]) -> Triple:
    """The factors, 1 or 2 along z, y, x, of the next coarser scale.

    Axes whose voxels are finer than the coarsest by more than the square root of 2 are halved; if there are none, the
    voxels are about as long as wide, and all are. An axis of one voxel is left as it is.
    """
    coarsest = max((size for length, size in zip(shape, voxel_size, strict=True) if length > 1), default=0.0)
    open_axes = [axis for axis in range(3) if shape[axis] > 1]
    finer = [axis for axis in open_axes if voxel_size[axis] * math.sqrt(2) < coarsest]
    z, y, x = (2 if axis in (finer or open_axes) else 1 for axis in range(3))
    return z, y, x


def coarser_shape(shape: Sequence[int], factors: Triple) -> Triple:
    """Voxels along z, y, x of the coarser scale."""
    z, y, x = (-(-length // factor) for length, factor in zip(shape, factors, strict=True))
    return z, y, x


def coarser_labels(labels: NDArray[Any], factors: Triple) -> NDArray[Any]:
    """The label that most of the voxels have that become one.

    Among labels of as many voxels it is the smallest, and none (0) only if there is no other.

    Parameters
    ----------
    labels : unsigned integers[z, y, x]
    factors : 1 or 2, along z, y, x

    Returns
    -------
    the same type, of `coarser_shape`
    """
    one = labels.dtype.type(1)
    covered = _covered(labels - one, factors)  # 0 becomes the largest, so that the smallest wins
    chosen = covered[0].copy()
    contested = np.any([other != chosen for other in covered], axis=0)  # few, inside of objects none
    chosen[contested] = _elected([label[contested] for label in covered])
    return chosen + one


def _elected(candidates: list[NDArray[Any]]) -> NDArray[Any]:
    """Of some labels a voxel the most frequent, among equals the smallest."""
    chosen, most = candidates[0], np.zeros(candidates[0].shape, np.uint8)
    for candidate in candidates:
        votes = np.sum([candidate == other for other in candidates], axis=0, dtype=np.uint8)
        better = (votes > most) | ((votes == most) & (candidate < chosen))
        chosen, most = np.where(better, candidate, chosen), np.where(better, votes, most)
    return chosen


def coarser_image(image: NDArray[Any], factors: Triple) -> NDArray[Any]:
    """The mean of the voxels that become one, of integers rounded half to even.

    Parameters
    ----------
    image : f32 or integers[z, y, x] of at most 32 bits
    factors : 1 or 2, along z, y, x

    Returns
    -------
    the same type, of `coarser_shape`
    """
    covered = _covered(image, factors)
    mean = np.mean(covered, axis=0, dtype=np.float64)  # exact for integers: their number is a power of two
    return (np.rint(mean) if image.dtype.kind in "iu" else mean).astype(image.dtype)


def _covered(values: NDArray[Any], factors: Triple) -> list[NDArray[Any]]:
    """The voxels that become one, as one array for each of their places.

    Where a side is odd the last voxel is doubled. This changes neither mean nor order of votes: the doubled voxels are
    all that the coarser voxel covers.
    """
    rims = [(0, -length % factor) for length, factor in zip(values.shape, factors, strict=True)]
    even = np.pad(values, rims, mode="edge")
    return [even[tuple(slice(first, None, factor) for first, factor in zip(place, factors, strict=True))]
            for place in itertools.product(*map(range, factors))]
