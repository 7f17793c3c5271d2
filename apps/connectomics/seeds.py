"""Seeds: the voxels from which objects are grown, in the order in which they are tried.

A policy is a function of the image; `POLICIES` lists them by their names in google/ffn (``inference/seed.py``).

Invariant: the same image gives the same seeds in the same order, none so near the faces of the volume that a field of
view around it would leave the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.int64]
"""i64[seed, 3]: voxels, z y x."""

_SIGMA = 49.0 / 6.0
"""Voxels of the Gaussian of the threshold for edges."""
_SPACING = 16
_NOISE_SEED = 42
_NOISE = 1e-4


def peaks(image: NDArray[np.float32]) -> Seeds:
    """``PolicyPeaks``: where the distance to edges is largest, in ascending order.

    Edges are where the Sobel gradient is above its Gaussian mean; peaks of their distance transform, with a little
    noise against plateaus, are at least three voxels apart.

    Parameters
    ----------
    image : f32[z, y, x], normalised
    """
    return _ascending(_edge_peaks(image, min_distance=3, threshold=0.0))


def peaks_2d(image: NDArray[np.float32]) -> Seeds:
    """``PolicyPeaks2d``: like `peaks` in each section alone, at least seven voxels apart and 2.5 from an edge."""
    sections = [np.insert(_edge_peaks(section, min_distance=7, threshold=2.5), 0, z, axis=1)
                for z, section in enumerate(image)]
    return _ascending(np.concatenate(sections))


def image_peaks(image: NDArray[np.float32]) -> Seeds:
    """``PolicyImagePeaks2D3D``'s simplest case: the brightest voxels of their neighbourhood, the brightest first."""
    from skimage.feature import peak_local_max

    return np.asarray(peak_local_max(image, min_distance=3, threshold_abs=0, threshold_rel=0), np.int64).reshape(-1, 3)


def grid(image: NDArray[np.float32]) -> Seeds:
    """``PolicyGrid3d``: every `_SPACING` voxels along each axis, in ascending order."""
    places = [np.arange(_SPACING // 2, size, _SPACING) for size in image.shape]
    return np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def _edge_peaks(image: NDArray[np.float32], min_distance: int, threshold: float) -> Seeds:
    """Peaks of the distance to edges; 2-D or 3-D."""
    from scipy import ndimage
    from skimage.feature import peak_local_max

    edges = ndimage.generic_gradient_magnitude(image.astype(np.float32), ndimage.sobel)
    mean = np.zeros(edges.shape, np.float32)
    ndimage.gaussian_filter(edges, _SIGMA, output=mean, mode="reflect")
    distance = ndimage.distance_transform_edt(1 - (edges > mean)).astype(np.float32)
    noise = np.random.RandomState(_NOISE_SEED).rand(*distance.shape) * _NOISE
    found = peak_local_max(distance + noise, min_distance=min_distance, threshold_abs=threshold, threshold_rel=0)
    return np.asarray(found, np.int64).reshape(-1, image.ndim)


def _ascending(seeds: Seeds) -> Seeds:
    return seeds[np.lexsort(seeds.T[::-1])]


Policy = Callable[[NDArray[np.float32]], Seeds]
POLICIES: Mapping[str, Policy] = {
    "PolicyPeaks": peaks, "PolicyPeaks2d": peaks_2d, "PolicyImagePeaks": image_peaks, "PolicyGrid3d": grid}


def within(seeds: Seeds, shape: Sequence[int], margin: Sequence[int]) -> Seeds:
    """Seeds at least `margin` voxels, z y x, from every face of a volume."""
    low, high = np.array(margin), np.array(shape) - margin
    return seeds[((seeds >= low) & (seeds < high)).all(axis=1)]
