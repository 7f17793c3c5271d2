"""Threshold and watershed, the segmentation that needs no learning, beside the watershed that FIB-25 comes with.

    python -m tests.bench.watershed_baseline DATA/connectomics/fib25_training2.h5

The image is smoothed and cut off at a threshold, which leaves the inside of neurites; connected parts that are deep
inside are markers, and a watershed of the distance to the outside gives every voxel to one. The settings are the best
ones on z < 150, the scores those on z >= 150, which no setting has seen.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from apps.connectomics.agreement import Agreement, ContingencyTable, Mask

SPLIT = 150
SMOOTHING = (1.0, 2.0)
"""Standard deviation of the Gaussian, voxels."""
THRESHOLDS = (110, 125, 140)
"""Membranes are darker."""
DEPTHS = (2.0, 3.0, 5.0)
"""Least distance of a marker from the outside, voxels."""


def segment(image: NDArray[np.uint8], smoothing: float, threshold: float, depth: float) -> NDArray[np.int32]:
    """Labels i32[z, y, x] from 1 on, of every voxel."""
    inside = ndimage.gaussian_filter(image.astype(np.float32), smoothing) > threshold
    distance = ndimage.distance_transform_edt(inside).astype(np.float32)
    markers, _ = ndimage.label(distance > depth)
    labels: NDArray[np.int32] = watershed(-distance, markers)
    return labels


def score(labels: NDArray[np.integer], truth: NDArray[np.integer]) -> Agreement:
    """How labels agree with the bodies, on all voxels that have one."""
    return ContingencyTable.of(labels, truth).agreement(Mask.ONE_LABEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    with h5py.File(parser.parse_args().volume) as file:
        image, truth, given = (file[name][:] for name in ("raw", "groundtruth", "watershed"))
    found = {}
    for settings in itertools.product(SMOOTHING, THRESHOLDS, DEPTHS):
        found[settings] = score(segment(image[:SPLIT], *settings), truth[:SPLIT]).voi
        print(f"z < {SPLIT}: smoothing, threshold, depth {settings}: VOI {found[settings]:.4f}", flush=True)
    best = min(found, key=found.__getitem__)
    for name, labels in ((f"threshold and watershed {best}", segment(image[SPLIT:], *best)), ("given", given[SPLIT:])):
        scores = score(labels, truth[SPLIT:])
        print(f"z >= {SPLIT}: {name}: VOI {scores.voi:.4f} = {scores.voi_split:.4f} split + {scores.voi_merge:.4f} "
              f"merge, ARAND {scores.arand:.4f}, {len(np.unique(labels))} segments")


if __name__ == "__main__":
    main()
