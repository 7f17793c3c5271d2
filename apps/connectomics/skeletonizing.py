"""Skeletonize: a segmentation in, the skeletons of its segments out, as SWC files.

Invariant: the folder of skeletons appears whole or not at all.
"""

from __future__ import annotations

import math
from pathlib import Path

from apps.app import Report
from apps.connectomics.config import SkeletonizeSettings
from apps.connectomics.outputs import made_whole
from apps.connectomics.scoring import MAX_SKELETONIZED
from apps.connectomics.skeletons import Skeletons, skeletonize, write_swc
from apps.connectomics.volumes import Volume, check_sized_labels, known_voxel_size, open_volume, read_labels
from core.engine.errors import DataError, compose
from core.engine.refusals import Refusals


def skeletonize_address(input: str, out: Path, refused: Refusals, settings: SkeletonizeSettings) -> Report:
    """Write the skeletons of a segmentation, one SWC file a segment. Nothing is refused one by one."""
    volume = open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size)
    check_skeletonizable(volume)
    with made_whole(out) as folder:
        skeletons = skeletons_of(volume, settings)
        folder.mkdir()
        written = write_swc(skeletons, folder)
    return Report({"skeletons": len(written), **measures(skeletons)})


def skeletons_of(volume: Volume, settings: SkeletonizeSettings) -> Skeletons:
    """The skeletons of the segments of a volume that `check_skeletonizable` lets pass."""
    labels = read_labels(volume, (0, 0, 0), volume.shape)
    return skeletonize(labels, known_voxel_size(volume), scale=settings.scale, constant=settings.constant,
                       minimum_voxels=settings.minimum_voxels)


def measures(skeletons: Skeletons) -> dict[str, float | int]:
    """What is said of skeletons."""
    return {"nodes": len(skeletons.label), "cable length (um)": float(skeletons.lengths.sum()) / 1000}


def check_skeletonizable(volume: Volume) -> None:
    """Raise `DataError` if a volume is no segmentation, says no voxel size, or is too large to be held."""
    check_sized_labels(volume)
    if math.prod(volume.shape) > MAX_SKELETONIZED:
        raise DataError(compose(f"{volume.address} is too large to be made into skeletons in one piece", [
            ("found", f"{volume.shape} voxels"), ("expected", f"at most {MAX_SKELETONIZED} voxels")]))
