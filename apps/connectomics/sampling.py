"""Examples for training: where in labelled volumes a network learns, and the positions it takes there.

Centres are drawn evenly over classes of how full of its object the surroundings of a voxel are, so that thin neurites
count as much as thick ones (``compute_partitions`` and ``build_coordinates`` in google/ffn). Around a centre the field
of view takes the 26 steps of one delta in any direction, in random order (its policy "fixed"). It goes where the object
is, and not, as there, where the network has found it so far: no step is lost, and batches do not depend on what is
learned.

Invariant: what an epoch brings depends on the volumes, the key and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.engine.errors import DataError, compose

THRESHOLDS = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Between classes of voxels: shares of the surroundings that are of the same object."""
INSIDE, OUTSIDE = 0.95, 0.05
"""What the mask shall be in and out of the object."""
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Labelled:
    """A volume to learn from.

    Attributes
    ----------
    image : f32[z, y, x], normalised
    labels : i64[z, y, x], 0 for no object
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """What a network sees in one step of a batch.

    Attributes
    ----------
    image : f32[batch, z, y, x] of the field of view
    target : f32[batch, z, y, x], INSIDE or OUTSIDE
    offset : i32[batch, 3], of the field of view in the mask that is carried along
    fresh : bool[batch], whether an object begins, whose mask is its centre
    """

    image: NDArray[np.float32]
    target: NDArray[np.float32]
    offset: NDArray[np.int32]
    fresh: NDArray[np.bool_]


@dataclass(frozen=True)
class Centres:
    """Voxels by class.

    Attributes
    ----------
    places : i32[voxel, 4]: volume, z, y, x
    starts : where each class begins in `places`, and the end of the last one; none is empty
    """

    places: NDArray[np.int32]
    starts: NDArray[np.int64]

    def draw(self, generator: np.random.Generator) -> tuple[int, Triple]:
        """A volume's number and a voxel, each class as likely as another."""
        chosen = generator.integers(len(self.starts) - 1)
        volume, z, y, x = self.places[generator.integers(self.starts[chosen], self.starts[chosen + 1])]
        return int(volume), (int(z), int(y), int(x))


def centres(volumes: Sequence[Labelled], radius: Sequence[int], least: int) -> Centres:
    """The voxels of all objects around which a box fits into its volume, by class.

    Parameters
    ----------
    radius : of the box whose share of the object decides the class, voxels z y x
    least : voxels of the smallest object that counts

    Raises
    ------
    DataError
        If there are none.
    """
    classes: list[list[NDArray[np.int32]]] = [[] for _ in range(len(THRESHOLDS) + 1)]
    for number, volume in enumerate(volumes):
        kinds = partitions(volume.labels, radius, least)
        for kind in range(1, len(classes) + 1):
            places = np.argwhere(kinds == kind).astype(np.int32)
            if len(places):
                classes[kind - 1].append(np.insert(places, 0, number, axis=1))
    kept = [np.concatenate(parts) for parts in classes if parts]
    if not kept:
        raise DataError(compose("no object can be learned from", [
            ("expected", f"objects of at least {least} voxels, and around some of their voxels "
                         f"{' x '.join(str(2 * r + 1) for r in radius)} voxels (z y x) inside the volume"),
            ("hint", "lower --min-object, or choose a smaller --field-of-view and --deltas")]))
    return Centres(np.concatenate(kept), np.cumsum([0, *map(len, kept)]))


def without_borders(volume: Labelled, border: int) -> Labelled:
    """A volume whose objects lose what is at most `border` steps along axes from another label, none (0) included."""
    if border == 0:
        return volume
    cross = ndimage.generate_binary_structure(3, 1)
    inside = (ndimage.maximum_filter(volume.labels, footprint=cross)
              == ndimage.minimum_filter(volume.labels, footprint=cross))
    if border > 1:  # no iterations at all would mean to erode until nothing changes
        inside = ndimage.binary_erosion(inside, cross, iterations=border - 1, border_value=1)
    return Labelled(volume.image, np.where(inside, volume.labels, 0))


def partitions(labels: NDArray[np.int64], radius: Sequence[int], least: int) -> NDArray[np.uint8]:
    """Class of each voxel, from 1 on; 0 without an object, in small ones, and near the faces of the volume.

    Parameters
    ----------
    labels : i64[z, y, x]
    radius, least : as in `centres`
    """
    kinds = np.zeros(labels.shape, np.uint8)
    size = [2 * r + 1 for r in radius]
    names, counts = np.unique(labels, return_counts=True)
    relabelled = np.searchsorted(names, labels).astype(np.int32) + 1
    boxes = ndimage.find_objects(relabelled)
    for number, (name, count) in enumerate(zip(names, counts, strict=True), 1):
        if name == 0 or count < least:
            continue
        box = boxes[number - 1]
        mask = relabelled[box] == number
        share = ndimage.uniform_filter(mask.astype(np.float32), size, mode="constant")
        kinds[box][mask] = 1 + np.searchsorted(THRESHOLDS, share[mask], side="right")
    inner = tuple(slice(r, n - r) for r, n in zip(radius, labels.shape, strict=True))
    kept = np.zeros_like(kinds)
    kept[inner] = kinds[inner]
    return kept


@dataclass(frozen=True)
class Sampler:
    """Batches of moments, each place of a batch an object that grows step by step.

    Attributes
    ----------
    field_of_view, deltas : voxels, z y x
    """

    volumes: Sequence[Labelled]
    centres: Centres
    field_of_view: Triple
    deltas: Triple
    batch_size: int
    seed: int

    def epoch(self, number: int, steps: int) -> Iterator[Moment]:
        """The moments of an epoch."""
        generators = [np.random.default_rng((self.seed, number, place)) for place in range(self.batch_size)]
        growing = [self._moments(generator) for generator in generators]
        for _ in range(steps):
            image, target, offset, fresh = zip(*map(next, growing), strict=True)
            yield Moment(np.stack(image), np.stack(target), np.array(offset, np.int32), np.array(fresh))

    def _moments(self, generator: np.random.Generator) -> Iterator[
            tuple[NDArray[np.float32], NDArray[np.float32], Triple, bool]]:
        """Image, target and offset of one object after the other, and whether one begins."""
        while True:
            image, mask = self._example(generator)
            shifts = [shift for shift in product((-1, 0, 1), repeat=3) if any(shift)]
            order = [(0, 0, 0), *(shifts[number] for number in generator.permutation(len(shifts)))]
            for place, shift in enumerate(order):
                offset = tuple(d * (s + 1) for d, s in zip(self.deltas, shift, strict=True))
                box = tuple(slice(o, o + f) for o, f in zip(offset, self.field_of_view, strict=True))
                seen = mask[box]
                if seen[tuple(f // 2 for f in self.field_of_view)]:
                    yield image[box], np.where(seen, np.float32(INSIDE), np.float32(OUTSIDE)), offset, place == 0

    def _example(self, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Image and mask around a centre, mirrored and with y and x exchanged at random."""
        number, centre = self.centres.draw(generator)
        volume = self.volumes[number]
        box = tuple(slice(c - f // 2 - d, c + f // 2 + d + 1)
                    for c, f, d in zip(centre, self.field_of_view, self.deltas, strict=True))
        image, mask = volume.image[box], volume.labels[box] == volume.labels[centre]
        mirrored = tuple(axis for axis in range(3) if generator.random() < 0.5)
        image, mask = np.flip(image, mirrored), np.flip(mask, mirrored)
        if generator.random() < 0.5 and image.shape[1] == image.shape[2]:
            image, mask = image.swapaxes(1, 2), mask.swapaxes(1, 2)
        return image, mask
