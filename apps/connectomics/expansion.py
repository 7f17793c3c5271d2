"""Expansion: segments that grow into the voxels without one, if asked on the finer voxels of another volume.

Flood filling leaves membranes and what it is not sure of empty; here each empty voxel goes to the nearest segment. A
network that was trained on coarse voxels sees more of an object at once and takes a fraction of the time; its segments
come back to the fine voxels on the way.

Where a fine oversegmentation is at hand, such as a watershed, its parts go to segments as a whole, which keeps their
boundaries.

Invariant: a voxel that has a segment keeps it, unless parts are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.app import Report
from apps.connectomics.blocks import Triple, triple
from apps.connectomics.config import ExpandSettings
from apps.connectomics.consensus import largest_of_each
from apps.connectomics.pyramid import coarser_shape
from apps.connectomics.segmentations import written_segmentation
from apps.connectomics.volumes import Volume, check_sized_labels, known_voxel_size, open_volume, read_labels
from core.engine.errors import DataError, compose
from core.engine.refusals import Refusals


def expand_address(input: str, out: Path, refused: Refusals, settings: ExpandSettings) -> Report:
    """Let the segments of a volume grow; writes an HDF5 file. Nothing is refused one by one."""
    volume = open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size)
    check_sized_labels(volume)
    voxel_size = known_voxel_size(volume)
    labels = read_labels(volume, (0, 0, 0), volume.shape)
    if settings.like:
        fine = open_volume(settings.like)
        factors = factors_between(fine, volume)
        labels = finer_labels(labels, factors, fine.shape)
        z, y, x = (size / factor for size, factor in zip(voxel_size, factors, strict=True))
        voxel_size = z, y, x
    distance = np.inf if settings.max_distance is None else settings.max_distance
    grown = expanded(labels, voxel_size, distance)
    if settings.parts:
        parts = open_volume(settings.parts)
        check_sized_labels(parts)
        if parts.shape != grown.shape:
            raise DataError(compose("the parts are not those of the volume that the result is like", [
                (parts.address, f"{parts.shape} voxels"), ("expected", f"{grown.shape} voxels, z y x")]))
        grown = of_parts(read_labels(parts, (0, 0, 0), parts.shape), grown, settings.min_share)
    with written_segmentation(out, triple(grown.shape), voxel_size, grown.dtype) as file:
        file.write((0, 0, 0), grown)
    return Report({"segments": int(np.count_nonzero(np.unique(labels))), "voxels before": int(np.count_nonzero(labels)),
                   "voxels after": int(np.count_nonzero(grown)), "voxels": grown.size})


def expanded(labels: NDArray[Any], voxel_size: Sequence[float], max_distance: float = np.inf) -> NDArray[Any]:
    """Labels in which each empty voxel has that of the nearest segment, if it is not too far.

    Parameters
    ----------
    labels : integers[z, y, x] from 0, 0 for none
    voxel_size : nm along z, y, x
    max_distance : nm between the middles of voxels

    Returns
    -------
    the same type and shape
    """
    if not labels.any():
        return labels
    distance, nearest = ndimage.distance_transform_edt(labels == 0, sampling=voxel_size, return_indices=True)
    return np.where(distance <= max_distance, labels[tuple(nearest)], labels.dtype.type(0))


def of_parts(parts: NDArray[Any], labels: NDArray[Any], least: float) -> NDArray[np.uint32]:
    """Parts by the segments that they belong to.

    Parameters
    ----------
    parts, labels : integers[z, y, x] from 0, 0 for none
    least : share of a part's voxels that a segment must have; of those with most, it is the one with the smallest id

    Returns
    -------
    u32[z, y, x]: where a part is, the id of its segment, or of parts that stay by themselves one from the largest id
    on; 0 elsewhere

    Raises
    ------
    DataError
        If ids do not fit.
    """
    ids, where = np.unique(parts, return_inverse=True)
    names, found = np.unique(labels, return_inverse=True)
    pairs, voxels = np.unique(where.ravel() * len(names) + found.ravel(), return_counts=True)
    part, name = np.divmod(pairs, len(names))
    sizes = np.bincount(part, voxels)
    voxels = np.where(names[name] > 0, voxels, 0)
    largest = largest_of_each(part, voxels)
    belongs = (voxels[largest] > 0) & (voxels[largest] >= least * sizes)
    new = np.where(belongs, names[name[largest]], 0).astype(np.int64)
    alone = ~belongs & (ids > 0)
    new[alone] = int(names[-1]) + 1 + np.arange(np.count_nonzero(alone))
    new[ids == 0] = 0
    if new.max() > np.iinfo(np.uint32).max:
        raise DataError(f"the parts have ids up to {new.max()}; they must be below 2^32: number the segments anew")
    result: NDArray[np.uint32] = new.astype(np.uint32)[where].reshape(parts.shape)
    return result


def finer_labels(labels: NDArray[Any], factors: Sequence[int], shape: Sequence[int]) -> NDArray[Any]:
    """Labels of the fine voxels that each coarse one covers.

    Parameters
    ----------
    factors : fine voxels in a coarse one, along z, y, x
    shape : fine voxels along z, y, x; the last coarse voxel may cover fewer
    """
    for axis, factor in enumerate(factors):
        labels = labels.repeat(factor, axis)
    return labels[tuple(map(slice, shape))]


def factors_between(fine: Volume, coarse: Volume) -> Triple:
    """How many voxels of one volume a voxel of the other covers along z, y, x.

    Raises
    ------
    DataError
        If no whole numbers make one shape of the other.
    """
    factors = triple(-(-length // fewer) for length, fewer in zip(fine.shape, coarse.shape, strict=True))
    if coarser_shape(fine.shape, factors) != coarse.shape:
        raise DataError(compose("the segmentation is no coarser scale of the volume that it shall be like", [
            (coarse.address, f"{coarse.shape} voxels"), (fine.address, f"{fine.shape} voxels"),
            ("expected", "the same region, in voxels that are longer by whole numbers, z y x")]))
    return factors
