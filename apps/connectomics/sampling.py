"""Examples for training: where in labelled volumes a network learns, and the positions it takes there.

Centres are drawn evenly over classes of how full of its object the surroundings of a voxel are, so that thin neurites
count as much as thick ones (``compute_partitions`` and ``build_coordinates`` in google/ffn). Around a centre there are
26 positions one delta away in any direction. Those in the object are taken in random order, as in its policy "fixed",
but whether or not the network has found the object there: no step is lost. Those outside are dealt out among them as
rivals: the network looks at one of these instead where it believes the object to be there, and so learns to take back
what it should not have found. Batches do not depend on what is learned: they name positions, the step chooses.

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
POSITIONS = 26
"""Of the field of view around a centre."""
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
    """What a network may see in one step of a batch.

    Attributes
    ----------
    image : f32[batch, z, y, x], of all that the field of view reaches
    target : f32[batch, z, y, x], INSIDE or OUTSIDE
    offsets : i32[batch, POSITIONS, 3], of the field of view in image and mask: one in the object, then its rivals
        outside; the first one again where these are fewer
    fresh : bool[batch], whether an object begins, whose mask is its centre
    """

    image: NDArray[np.float32]
    target: NDArray[np.float32]
    offsets: NDArray[np.int32]
    fresh: NDArray[np.bool_]

    def fields(self, whole: NDArray[np.float32], size: Triple) -> NDArray[np.float32]:
        """What a field of view of a size sees of `image` or `target` in the object, f32[batch, z, y, x]."""
        return np.stack([part[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
                         for part, offset in zip(whole, self.offsets[:, 0].tolist(), strict=True)])


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
    permutable : axes, of 0 1 2, that examples exchange at random with those that have their field of view and delta
    """

    volumes: Sequence[Labelled]
    centres: Centres
    field_of_view: Triple
    deltas: Triple
    batch_size: int
    seed: int
    permutable: tuple[int, ...] = (1, 2)

    def epoch(self, number: int, steps: int) -> Iterator[Moment]:
        """The moments of an epoch."""
        generators = [np.random.default_rng((self.seed, number, place)) for place in range(self.batch_size)]
        growing = [self._moments(generator) for generator in generators]
        for _ in range(steps):
            image, target, offsets, fresh = zip(*map(next, growing), strict=True)
            yield Moment(np.stack(image), np.stack(target), np.array(offsets, np.int32), np.array(fresh))

    def _moments(self, generator: np.random.Generator) -> Iterator[
            tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], bool]]:
        """Image, target and offsets of one object after the other, and whether one begins."""
        shifts = np.array([shift for shift in product((-1, 0, 1), repeat=3) if any(shift)])
        middle = np.array([size // 2 for size in self.field_of_view])
        while True:
            image, mask = self._example(generator)
            target = np.where(mask, np.float32(INSIDE), np.float32(OUTSIDE))
            yield image, target, np.tile(self.deltas, (POSITIONS, 1)), True
            offsets = np.multiply(self.deltas, generator.permutation(shifts) + 1)
            found = mask[tuple((offsets + middle).T)]
            inside, rivals = offsets[found], offsets[~found]
            for number, offset in enumerate(inside):
                dealt = np.concatenate([[offset], rivals[number::len(inside)]])
                yield image, target, np.concatenate([dealt, np.tile(offset, (POSITIONS - len(dealt), 1))]), False

    def _exchanged(self) -> list[list[int]]:
        """The permutable axes, each with those that are like it."""
        found: dict[tuple[int, int], list[int]] = {}
        for axis in sorted(set(self.permutable)):
            found.setdefault((self.field_of_view[axis], self.deltas[axis]), []).append(axis)
        return list(found.values())

    def _example(self, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Image and mask around a centre, mirrored and with the permutable axes exchanged at random."""
        number, centre = self.centres.draw(generator)
        volume = self.volumes[number]
        box = tuple(slice(c - f // 2 - d, c + f // 2 + d + 1)
                    for c, f, d in zip(centre, self.field_of_view, self.deltas, strict=True))
        image, mask = volume.image[box], volume.labels[box] == volume.labels[centre]
        mirrored = tuple(axis for axis in range(3) if generator.random() < 0.5)
        image, mask = np.flip(image, mirrored), np.flip(mask, mirrored)
        axes = np.arange(3)
        for alike in self._exchanged():
            axes[alike] = generator.permutation(alike)
        return image.transpose(axes), mask.transpose(axes)
