"""Examples for training: classes of surroundings, and batches that depend on the epoch alone."""

from __future__ import annotations

import itertools
from itertools import islice

import numpy as np
import pytest

from apps.connectomics.sampling import (
    INSIDE,
    OUTSIDE,
    THRESHOLDS,
    Labelled,
    Sampler,
    centres,
    partitions,
    without_borders,
)
from core.engine.errors import DataError

FIELD, DELTAS = (7, 7, 7), (2, 2, 2)
RADIUS = (5, 5, 5)


def volume() -> Labelled:
    """A slab, a thread through it, and a crumb; the image says which is which."""
    labels = np.zeros((30, 28, 26), np.int64)
    labels[:, 4:16] = 7
    labels[:, 20:22, 12:14] = 9
    labels[0, 0, 0] = 11
    return Labelled(labels.astype(np.float32), labels)


def test_classes_are_shares_of_the_surroundings() -> None:
    labels = volume().labels
    kinds = partitions(labels, RADIUS, least=10)
    assert (kinds[labels == 0] == 0).all() and (kinds[labels == 11] == 0).all()
    assert not kinds[:5].any() and not kinds[:, :, -5:].any()
    for place in [(15, 10, 13), (15, 15, 13), (15, 20, 12), (7, 9, 20)]:
        around = labels[tuple(slice(p - r, p + r + 1) for p, r in zip(place, RADIUS, strict=True))]
        share = np.float32((around == labels[place]).mean())
        assert kinds[place] == 1 + sum(share >= threshold for threshold in THRESHOLDS)


def test_thin_objects_are_drawn_as_often_as_thick_ones() -> None:
    found = centres([volume()], RADIUS, least=10)
    generator = np.random.default_rng(0)
    drawn = [volume().labels[found.draw(generator)[1]] for _ in range(2000)]
    classes = len(found.starts) - 1
    thin = sum(label == 9 for label in drawn) / len(drawn)
    of_thin = {1 + np.searchsorted(found.starts, place, side="right") for place, row in enumerate(found.places)
               if volume().labels[tuple(row[1:])] == 9}
    assert abs(thin - len(of_thin) / classes) < 0.05


def test_a_volume_without_objects_is_refused() -> None:
    empty = Labelled(np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), np.int64))
    with pytest.raises(DataError, match="no object can be learned from"):
        centres([empty], RADIUS, least=1)


def sampler(seed: int = 0) -> Sampler:
    return Sampler([volume()], centres([volume()], RADIUS, least=10), FIELD, DELTAS, 3, seed)


def test_moments_are_of_one_object_until_the_next_begins() -> None:
    label = np.zeros(3)
    for number, moment in enumerate(islice(sampler().epoch(0, 60), 60)):
        assert moment.image.shape == moment.target.shape == (3, 11, 11, 11)
        image, target = (moment.fields(whole, FIELD) for whole in (moment.image, moment.target))
        assert image.shape == target.shape == (3, *FIELD)
        assert number > 0 or moment.fresh.all()
        centre = image[:, 3, 3, 3]
        label = np.where(moment.fresh, centre, label)
        np.testing.assert_array_equal(centre, label)
        inside = image == label[:, None, None, None]
        np.testing.assert_array_equal(target, np.where(inside, np.float32(INSIDE), np.float32(OUTSIDE)))
        assert (moment.offsets[moment.fresh] == DELTAS).all()
        assert set(moment.offsets.ravel().tolist()) <= {0, 2, 4}


def test_each_position_comes_once_those_outside_as_rivals() -> None:
    moments = list(islice(sampler().epoch(0, 200), 200))
    begins = np.flatnonzero([moment.fresh[0] for moment in moments])
    assert len(begins) > 5
    rivals = 0
    for begin, end in itertools.pairwise(begins):
        looks = moments[begin + 1:end]
        inside = [tuple(look.offsets[0, 0].tolist()) for look in looks]
        outside = [offset for look in looks for offset in map(tuple, look.offsets[0, 1:].tolist())
                   if offset != tuple(look.offsets[0, 0].tolist())]
        if looks:
            assert sorted(inside + outside) == sorted(set(itertools.product((0, 2, 4), repeat=3)) - {DELTAS})
            middles = looks[0].target[0][2:9, 2:9, 2:9]  # centres of fields of view are 3 to 7
            assert all(middles[tuple(np.add(offset, 1))] == np.float32(INSIDE) for offset in inside)
            assert all(middles[tuple(np.add(offset, 1))] == np.float32(OUTSIDE) for offset in outside)
            rivals += len(outside)
    assert rivals > 10


@pytest.mark.parametrize("axes, field, exchanged", [
    ((), FIELD, ()), ((1, 2), FIELD, (1, 2)), ((0, 1, 2), FIELD, (0, 1, 2)), ((0, 1, 2), (7, 5, 7), (0, 2)),
    ((1, 2), (7, 5, 7), ())])
def test_axes_are_exchanged_if_they_may_be(axes: tuple[int, ...], field: tuple[int, int, int],
                                           exchanged: tuple[int, ...]) -> None:
    steps = np.indices((30, 30, 30)) * np.array([1, 100, 10000])[:, None, None, None]
    ramp = Labelled(steps.sum(axis=0).astype(np.float32), np.ones((30, 30, 30), np.int64))
    brings = Sampler([ramp], centres([ramp], RADIUS, least=10), field, DELTAS, 1, 0, axes)
    orders = set()
    for moment in islice(brings.epoch(0, 2000), 2000):
        image = moment.image[0]
        orders.add(tuple(abs(round(float(np.diff(image, axis=axis).flat[0]))) for axis in range(3)))
    expected = {tuple(order) for order in itertools.permutations((1, 100, 10000))
                if all(order[axis] == (1, 100, 10000)[axis] for axis in range(3) if axis not in exchanged)}
    assert orders == expected


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def images(seed: int, epoch: int) -> np.ndarray:
        return np.stack([moment.image for moment in sampler(seed).epoch(epoch, 5)])

    np.testing.assert_array_equal(images(0, 3), images(0, 3))
    assert not np.array_equal(images(0, 3), images(0, 4)) and not np.array_equal(images(0, 3), images(1, 3))


@pytest.mark.parametrize("border", [0, 1, 2, 3])
def test_objects_lose_what_is_near_another_label(border: int) -> None:
    whole = Labelled(np.zeros((5, 6, 7), np.float32), np.random.default_rng(0).integers(0, 3, (5, 6, 7)))
    whole.labels[:, :, 2:] = 4
    found = without_borders(whole, border).labels
    places = np.argwhere(np.ones_like(whole.labels))
    for place in places:
        steps = np.abs(places - place).sum(axis=1)
        near = {int(whole.labels[tuple(other)]) for other in places[steps <= border]}
        assert found[tuple(place)] == (whole.labels[tuple(place)] if len(near) == 1 else 0)
    assert (found == 4).any()
