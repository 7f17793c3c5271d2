"""A small synthetic volume that looks like electron microscopy, with its labels, to try the app with.

Invariant: the same seed gives the same volume; every voxel belongs to one body, and every body is in one piece.

Bodies are the regions nearest to smooth random curves (so they are long, thin, and fill space), seen through a smooth
random displacement (so that their borders bend). Membranes are dark sheets where bodies meet; the inside has texture.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure, segmentation

from apps.app import Report
from core.engine.checkpoint import written_whole

SHAPE = (128, 128, 128)
SEED = 0
VOXEL_SIZE = (10.0, 10.0, 10.0)
"""nm along z, y, x."""
MEAN, DEVIATION = 128.0, 33.0
"""Of the grey values, as of FIB-25's."""

SMALL = "--depth 4 --features 16 --field-of-view 17,17,17 --deltas 4,4,4 --epochs 6"
"""Settings of a network that learns this volume in a few minutes."""

_BODY_VOXELS = 30_000
"""Of a body on average."""
_SMALLEST_VOXELS = 500
"""Smaller pieces go to the bodies around them."""
_STEP = 2.0  # voxels from point to point of a curve
_BEND = 0.15  # how much the direction changes at a point
_DISPLACEMENT = 4.0  # voxels, standard deviation
_MEMBRANE = 0.9  # voxels over which it fades, from the two at the border


def synthetic_volume(shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """An image and its labels.

    Parameters
    ----------
    shape : voxels along z, y, x
    seed : start of all random numbers

    Returns
    -------
    image : u8[z, y, x], bright inside of bodies and dark at membranes, mean about 128, standard deviation about 33
    labels : u16[z, y, x], bodies from 1
    """
    chance = np.random.default_rng(seed)
    labels = _bodies(shape, chance)
    return _image(labels, chance), labels


def sample(out: Path) -> Report:
    """A synthetic image with labels in one HDF5 file."""
    image, labels = synthetic_volume(SHAPE, SEED)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "synthetic.h5"
    with written_whole(path) as file, h5py.File(file, "w") as store:
        for name, values in (("raw", image), ("labels", labels)):
            dataset = store.create_dataset(name, data=values, chunks=(32, 32, 32), compression="gzip", shuffle=True)
            dataset.attrs.update(voxel_size=VOXEL_SIZE, synthetic=True)
    return Report({"file": str(path), "synthetic": "yes: made of random numbers, not of tissue", "image": f"{path}:raw",
                   "labels": f"{path}:labels", "voxels": " x ".join(map(str, SHAPE)), "bodies": int(labels.max()),
                   "voxel size in nm": " x ".join(f"{size:g}" for size in VOXEL_SIZE),
                   "try": f"tilework connectomics train {path} {SMALL} --out run"})


def _bodies(shape: tuple[int, int, int], chance: np.random.Generator) -> NDArray[np.uint16]:
    """Labels that fill space."""
    count = max(2, int(np.prod(shape)) // _BODY_VOXELS)
    curves = np.zeros(shape, np.int32)
    for body in range(1, count + 1):
        curves[tuple(_curve(shape, chance).T)] = body
    nearest = _spread(curves)
    places = np.indices(shape, np.float32)
    places += np.stack([_smooth(shape, 12.0, _DISPLACEMENT, chance) for _ in shape])
    warped = ndimage.map_coordinates(nearest, places, order=0, mode="nearest")
    pieces = measure.label(warped, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    pieces[sizes[pieces] < min(_SMALLEST_VOXELS, sizes.max())] = 0
    whole = measure.label(_spread(pieces), connectivity=1)
    return whole.astype(np.uint16)


def _curve(shape: tuple[int, int, int], chance: np.random.Generator) -> NDArray[np.intp]:
    """Voxels [point, 3] of a smooth curve that runs both ways from a random place until it leaves the volume."""
    middle = chance.uniform(0, shape)
    heading = chance.normal(size=3)
    points: list[NDArray[np.float64]] = []
    for way in (1.0, -1.0):
        place, direction = middle, way * heading / np.linalg.norm(heading)
        while ((place >= 0) & (place < shape)).all() and len(points) < sum(shape):
            points.append(place)
            direction = direction + _BEND * chance.normal(size=3)
            direction /= np.linalg.norm(direction)
            place = place + _STEP * direction
    return np.array(points).astype(np.intp)


def _spread(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels in which every voxel that had none has that of the nearest one."""
    places = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    spread: NDArray[np.int32] = labels[tuple(places)]
    return spread


def _image(labels: NDArray[np.uint16], chance: np.random.Generator) -> NDArray[np.uint8]:
    """Grey values of these bodies."""
    shape = labels.shape
    distance = ndimage.distance_transform_edt(~segmentation.find_boundaries(labels)).astype(np.float32)
    membrane = np.exp(-(distance / _MEMBRANE) ** 2)
    brightness = chance.normal(0.0, 0.12, int(labels.max()) + 1).astype(np.float32)[labels]
    inside = brightness + _smooth(shape, 3.0, 0.12, chance) + _smooth(shape, 1.0, 0.12, chance)
    signal = ndimage.gaussian_filter((1 - membrane) * (1 + inside), 0.6)
    signal += chance.normal(0.0, 0.06, shape).astype(np.float32)
    grey = MEAN + DEVIATION * (signal - signal.mean()) / signal.std()
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _smooth(shape: tuple[int, ...], width: float, deviation: float, chance: np.random.Generator) -> NDArray[np.float32]:
    """f32[z, y, x], random numbers of mean 0 and this standard deviation that are alike over `width` voxels."""
    noise = ndimage.gaussian_filter(chance.standard_normal(shape, np.float32), width)
    smooth: NDArray[np.float32] = noise * np.float32(deviation / noise.std())
    return smooth
