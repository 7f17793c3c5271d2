"""Consensus: of two segmentations of a volume, what both agree belongs together.

A false merge is rarely made twice, by seeds in another order or by another network. What either keeps apart stays
apart, so that the result has fewer merges and more splits, which agglomeration can mend (Januszewski et al. 2018,
Nature Methods 15:605, "oversegmentation consensus"; ``split_segmentation_by_intersection`` of google/ffn).

Invariant: voxels of one segment of the result are of one segment of the first input, and of one or none of the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import Report
from apps.connectomics.config import ConsensusSettings
from apps.connectomics.segmentations import written_segmentation
from apps.connectomics.volumes import Volume, open_volume
from core.engine.errors import DataError, compose
from core.engine.refusals import Refusals


def consensus_addresses(input: str, out: Path, refused: Refusals, settings: ConsensusSettings) -> Report:
    """Split the segments of one volume by those of another; writes an HDF5 file. Nothing is refused one by one."""
    first, second = (open_volume(address, axes=settings.axes, voxel_size=settings.voxel_size)
                     for address in (input, settings.other))
    if first.shape != second.shape:
        raise _differ("shape", first, second, f"{first.shape} voxels", f"{second.shape} voxels")
    sizes = sorted({volume.voxel_size for volume in (first, second) if volume.voxel_size})
    if len(sizes) > 1:
        raise _differ("voxel size", first, second, f"{first.voxel_size} nm", f"{second.voxel_size} nm")
    a, b = (_labels(volume) for volume in (first, second))
    labels = consensus(a, b, settings.min_size)
    with written_segmentation(out, first.shape, sizes[0] if sizes else None) as file:
        file.write((0, 0, 0), labels)
    return Report({"segments before": _count(a), "segments of the other": _count(b), "segments after": _count(labels),
                   "voxels before": int(np.count_nonzero(a)), "voxels after": int(np.count_nonzero(labels))})


def consensus(a: NDArray[Any], b: NDArray[Any], least: int) -> NDArray[np.uint32]:
    """Split the segments of one segmentation by those of another.

    The voxels of each segment of `a` and each of `b`, or none of `b`, become a segment. That of the largest partner,
    among equals that of the smallest id, keeps the id of `a`. The others get new ids, from the largest of `a` on, in
    the order of the ids of `a` and `b`.

    Parameters
    ----------
    a, b : integers[z, y, x] from 0, 0 for none
    least : voxels; smaller segments become 0

    Returns
    -------
    u32[z, y, x]

    Raises
    ------
    DataError
        If ids do not fit.
    """
    ids_a, where_a = np.unique(a, return_inverse=True)
    ids_b, where_b = np.unique(b, return_inverse=True)
    pairs, where, voxels = np.unique(where_a.ravel() * len(ids_b) + where_b.ravel(), return_inverse=True,
                                     return_counts=True)
    owner = pairs // len(ids_b)  # ascending, and for each owner its partners ascending
    largest = np.zeros(len(pairs), bool)
    largest[largest_of_each(owner, voxels)] = True
    kept = (voxels >= least) & (ids_a[owner] > 0)
    new = kept & ~largest
    highest = int(ids_a[-1]) + np.count_nonzero(new)
    if highest > np.iinfo(np.uint32).max:
        raise DataError(f"the consensus has ids up to {highest}; they must be below 2^32: number the segments anew")
    ids = np.where(kept, ids_a[owner], 0).astype(np.uint32)
    ids[new] = np.arange(1, np.count_nonzero(new) + 1) + int(ids_a[-1])
    return ids[where].reshape(a.shape)


def largest_of_each(owner: NDArray[Any], voxels: NDArray[Any]) -> NDArray[np.intp]:
    """Of pairs in ascending order of their owner, the place of each owner's one of most voxels, the first of equals."""
    largest_first = np.lexsort((-voxels, owner))  # which is stable
    places: NDArray[np.intp] = largest_first[np.unique(owner, return_index=True)[1]]
    return places


def _labels(volume: Volume) -> NDArray[Any]:
    """The voxels of a whole segmentation."""
    labels = volume.read((0, 0, 0), volume.shape)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{volume.address} holds {labels.dtype} from {labels.min()}; labels are integers from 0")
    return labels


def _count(labels: NDArray[Any]) -> int:
    """The number of segments."""
    return int(np.count_nonzero(np.unique(labels)))


def _differ(what: str, first: Volume, second: Volume, of_first: str, of_second: str) -> DataError:
    return DataError(compose(f"the segmentations differ in {what}", [
        (first.address, of_first), (second.address, of_second), ("expected", "the same volume, z y x")]))
