"""Seeds: the voxels from which objects are grown, in the order in which they are tried.

A policy is a function of what is `Given`; `POLICIES` lists them by their names in google/ffn, whose
``ffn/inference/seed.py`` (at 6f61f6e) says what each does. Its ``ReverseCoords``, any policy from its end, is the
setting ``reverse``.

Invariant: what is given decides the seeds and their order alone; `within` leaves none so near the faces of the volume
that a field of view around it would leave the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.int64]
"""i64[seed, 3]: voxels, z y x."""

_SIGMA = 49.0 / 6.0
"""Voxels of the Gaussian of the threshold for edges."""
_STEP = 16
"""Voxels between points of a grid."""
_OFFSETS_3D = (0, 8, 4, 12, 2, 10, 14)
_OFFSETS_2D = (0, 8, 4, 12, 2, 6, 10, 14)
"""Where the grids begin that are tried one after the other."""
_NOISE_SEED = 42
_NOISE = 1e-4


@dataclass(frozen=True)
class Given:
    """What a policy may look at.

    Attributes
    ----------
    image : f32[z, y, x], normalised
    labels : i32[z, y, x], positive where a segmentation is kept
    origins : of an earlier segmentation, in the order in which its objects were made
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    origins: Seeds | None = None


def peaks(given: Given) -> Seeds:
    """``PolicyPeaks``: where the distance to edges is largest, in ascending order.

    Edges are where the Sobel gradient is above its Gaussian mean; peaks of their distance transform, with a little
    noise against plateaus, are at least three voxels apart. What is kept does not matter, as when FIB-25 was published;
    today's google/ffn has no peaks there.
    """
    return _ascending(_noisy_peaks(_distance_to_edges(given.image), 3, 0.0))


def peaks_2d(given: Given) -> Seeds:
    """``PolicyPeaks2d``: like `peaks` in each section alone, at least seven voxels apart and 2.5 from an edge."""
    return _ascending(_by_section(given.image, lambda section: _noisy_peaks(_distance_to_edges(section), 7, 2.5)))


def fill_empty_space(given: Given) -> Seeds:
    """``PolicyFillEmptySpace``: where the distance to what is kept is largest, in ascending order, two voxels apart."""
    from scipy import ndimage

    return _ascending(_noisy_peaks(ndimage.distance_transform_edt(given.labels == 0).astype(np.float32), 2, 0.5))


def largest(given: Given) -> Seeds:
    """``PolicyMax``: all voxels, the brightest first; of equals the last first."""
    order = np.argsort(given.image, axis=None, kind="stable")[::-1]
    return np.stack(np.unravel_index(order, given.image.shape), axis=1).astype(np.int64)


def largest_peaks(given: Given) -> Seeds:
    """``PolicyMaxPeaks``: peaks of the image above 0, three voxels apart, in ascending order; what is kept is 0."""
    return _ascending(_noisy_peaks(np.where(given.labels > 0, np.float32(0), given.image), 3, 0.0))


def image_peaks(given: Given) -> Seeds:
    """``PolicyImagePeaks3D2D``: peaks of the image four voxels apart, the brightest first, then those of each section,
    two voxels apart."""
    return np.concatenate([_peaks(given.image, min_distance=4),
                           _by_section(given.image, lambda section: _peaks(section, min_distance=2))])


def disk_peaks(given: Given) -> Seeds:
    """``PolicyImagePeaks2DDisk``: in each section voxels brighter than their four neighbours and than half of the
    brightest voxel, three voxels apart, the brightest first."""
    from skimage.morphology import disk

    return _by_section(given.image, lambda section: _peaks(section, min_distance=3, threshold_rel=0.5, p_norm=2,
                                                           footprint=disk(1)))


def grid(given: Given) -> Seeds:
    """``PolicyGrid3d``: points 16 voxels apart along each axis, of seven grids one after the other."""
    depth, *sizes = given.image.shape
    return np.concatenate([_points(range(offset, depth, _STEP), offset, sizes) for offset in _OFFSETS_3D])


def grid_2d(given: Given) -> Seeds:
    """``PolicyGrid2d``: points 16 voxels apart in each section, of eight grids one after the other."""
    depth, *sizes = given.image.shape
    return np.concatenate([_points(range(depth), offset, sizes) for offset in _OFFSETS_2D])


def inverted_origins(given: Given) -> Seeds:
    """``PolicyInvertOrigins``: where the objects of an earlier segmentation began, the last object first."""
    assert given.origins is not None  # the settings see to it
    return given.origins[::-1]


Policy = Callable[[Given], Seeds]
POLICIES: Mapping[str, Policy] = {
    "PolicyPeaks": peaks, "PolicyPeaks2d": peaks_2d, "PolicyFillEmptySpace": fill_empty_space, "PolicyMax": largest,
    "PolicyMaxPeaks": largest_peaks, "PolicyImagePeaks3D2D": image_peaks, "PolicyImagePeaks2DDisk": disk_peaks,
    "PolicyGrid3d": grid, "PolicyGrid2d": grid_2d, "PolicyInvertOrigins": inverted_origins}


def within(seeds: Seeds, shape: Sequence[int], margin: Sequence[int]) -> Seeds:
    """Seeds at least `margin` voxels, z y x, from every face of a volume."""
    low, high = np.array(margin), np.array(shape) - margin
    return seeds[((seeds >= low) & (seeds < high)).all(axis=1)]


def _distance_to_edges(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Voxels from each voxel to the nearest edge; 2-D or 3-D."""
    from scipy import ndimage

    edges = ndimage.generic_gradient_magnitude(image.astype(np.float32), ndimage.sobel)
    mean = np.zeros(edges.shape, np.float32)
    ndimage.gaussian_filter(edges, _SIGMA, output=mean, mode="reflect")
    distance: NDArray[np.float32] = ndimage.distance_transform_edt(1 - (edges > mean)).astype(np.float32)
    return distance


def _noisy_peaks(values: NDArray[np.float32], min_distance: int, threshold: float) -> Seeds:
    """Peaks above a threshold of values with a little noise, which is always the same."""
    noise = np.random.RandomState(_NOISE_SEED).rand(*values.shape) * _NOISE
    return _peaks(values + noise, min_distance=min_distance, threshold_abs=threshold, threshold_rel=0)


def _peaks(values: NDArray[np.floating], **options: object) -> Seeds:
    """Peaks, the largest first; see `skimage.feature.peak_local_max`."""
    from skimage.feature import peak_local_max

    return np.asarray(peak_local_max(values, **options), np.int64).reshape(-1, values.ndim)


def _by_section(image: NDArray[np.float32], find: Callable[[NDArray[np.float32]], Seeds]) -> Seeds:
    """What is found in each section, one section after the other."""
    return np.concatenate([np.insert(find(section), 0, z, axis=1) for z, section in enumerate(image)])


def _points(sections: range, offset: int, sizes: Sequence[int]) -> Seeds:
    """The points of one grid in some sections, in ascending order."""
    places = [sections, *(range(offset, size, _STEP) for size in sizes)]
    return np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def _ascending(seeds: Seeds) -> Seeds:
    return seeds[np.lexsort(seeds.T[::-1])]
