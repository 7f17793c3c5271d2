"""Decision points: those of google/ffn's own cases, and what they are on any labels."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.spatial.distance import cdist

from apps.connectomics import decisionpoints
from apps.connectomics.decisionpoints import decision_points, find_decision_points
from apps.connectomics.volumes import open_volume

SIZES = st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (4.0, 2.0, 1.0)])
LABELS = arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=6),
                elements=st.sampled_from([0, 0, 0, 0, 0, 1, 2, 5]))


def as_dict(points: np.ndarray) -> dict[tuple[int, int], tuple[float, tuple[int, int, int]]]:
    """Distance and z, y, x of each pair."""
    found = {(int(p["id_a"]), int(p["id_b"])): (float(p["distance"]), (int(p["z"]), int(p["y"]), int(p["x"])))
             for p in points}
    assert len(found) == len(points)
    return found


Place = tuple[int, ...]


def slowly(labels: np.ndarray, voxel_size: tuple[float, ...], limit: float) -> tuple[
        dict[tuple[int, int], dict[Place, float]], bool]:
    """All contacts of each pair and their distances, and whether a voxel is as near to two segments, and so of both."""
    places = np.argwhere(np.ones(labels.shape)) * np.array(voxel_size)
    ids = np.unique(labels[labels > 0])
    away = np.stack([cdist(places, np.argwhere(labels == label) * np.array(voxel_size)).min(axis=1) for label in ids])
    nearest = away.min(axis=0)
    mine = np.isclose(away, nearest) & (nearest <= limit)
    owners = {place: (ids[mine[:, number]].tolist(), nearest[number])
              for number, place in enumerate(np.ndindex(labels.shape))}
    contacts: dict[tuple[int, int], dict[Place, float]] = {}
    for place, step in itertools.product(owners, itertools.product((0, 1), repeat=3)):
        beside = tuple(at + ahead for at, ahead in zip(place, step, strict=True))
        if any(step) and beside in owners:
            (of_first, first), (of_second, second) = owners[place], owners[beside]
            for a, b in itertools.product(of_first, of_second):
                if a != b:
                    found = contacts.setdefault((min(a, b), max(a, b)), {})
                    found[place] = min(found.get(place, np.inf), (first + second) / 2)
    return contacts, bool((mine.sum(axis=0) > 1).any())


# The cases of ffn/utils/tests/decision_point_test.py


def test_two_slabs() -> None:
    labels = np.zeros((100, 80, 60), np.uint64)
    labels[:40], labels[60:] = 1, 2
    assert as_dict(decision_points(labels, (1, 1, 1))) == {(1, 2): (10, (49, 39, 29))}


def test_three_squares() -> None:
    labels = np.zeros((1, 100, 100), np.uint64)
    labels[0, :20, :20], labels[0, :20, -20:], labels[0, -20:, 40:60] = 1, 2, 3
    found = as_dict(decision_points(labels, (1, 1, 1)))
    assert {pair: place for pair, (_, place) in found.items()} == {
        (1, 2): (0, 9, 49), (1, 3): (0, 49, 29), (2, 3): (0, 49, 69)}
    assert as_dict(decision_points(labels, (1, 1, 1), 30.0)).keys() == {(1, 2)}


# Any labels


@given(LABELS, SIZES, st.sampled_from([1.0, 2.5, np.inf]))
def test_points_are_nearest_and_in_the_middle(labels: np.ndarray, voxel_size: tuple[float, float, float],
                                              limit: float) -> None:
    found = as_dict(decision_points(labels, voxel_size, limit))
    contacts, in_doubt = slowly(labels, voxel_size, limit) if labels.any() else ({}, False)
    for pair, (distance, place) in found.items():
        assert contacts[pair][place] <= distance + 1e-9
        a, b = (np.argwhere(labels == label) * voxel_size for label in pair)
        assert 2 * distance >= cdist(a, b).min() - np.linalg.norm(voxel_size) - 1e-9
    if in_doubt:
        return
    assert found.keys() == contacts.keys()
    for pair, (distance, place) in found.items():
        assert distance == pytest.approx(min(contacts[pair].values()))
        nearest = np.array([at for at, away in contacts[pair].items() if np.isclose(away, distance)])
        off = np.linalg.norm(nearest - nearest.mean(axis=0), axis=1)
        assert np.linalg.norm(place - nearest.mean(axis=0)) == pytest.approx(off.min())


@given(LABELS, SIZES, st.permutations([1, 2, 5]))
def test_points_do_not_depend_on_names(labels: np.ndarray, voxel_size: tuple[float, float, float],
                                       names: list[int]) -> None:
    table = np.zeros(6, np.int64)
    table[[1, 2, 5]] = names
    found, renamed = (as_dict(decision_points(some, voxel_size)) for some in (labels, table[labels]))
    assert renamed == {tuple(sorted((int(table[a]), int(table[b])))): found[a, b] for a, b in found}


@given(data=st.data())
@settings(max_examples=30)
def test_boxes_give_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    labels, voxel_size = data.draw(LABELS), data.draw(SIZES)
    limit, side = data.draw(st.sampled_from([1.0, 2.5, 4.0])), data.draw(st.integers(1, 4))
    path = tmp_path_factory.mktemp("v") / "v.h5"
    with h5py.File(path, "w") as file:
        file["v"] = labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisionpoints, "BLOCK", side)
        points, segments = find_decision_points(open_volume(f"{path}:v"), voxel_size, limit)
    np.testing.assert_array_equal(points, decision_points(labels, voxel_size, limit))
    assert segments == len(set(labels.ravel().tolist()) - {0})
