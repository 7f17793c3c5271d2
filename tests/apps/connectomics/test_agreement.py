"""Contingency tables, VOI and Rand against exact fractions, a slow count of every pair, and published scores.

Invariant: expected numbers come from formulas in this file or from the literature, never from the code under test.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.metrics import variation_of_information

from apps.connectomics.agreement import ContingencyTable, Mask
from apps.connectomics.scoring import agreement_rows
from core.engine.errors import DataError

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
LABELS = st.integers(0, 4)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A segmentation and a truth, with at least one voxel that both label."""
    shape = draw(SHAPES)
    segmentation, truth = (draw(arrays.arrays(np.uint16, shape, elements=LABELS)) for _ in range(2))
    segmentation[0, 0, 0] = truth[0, 0, 0] = 1
    return segmentation, truth


def entropy(labels: list[object]) -> float:
    return -sum(count / len(labels) * math.log2(count / len(labels)) for count in Counter(labels).values())


def slowly(segmentation: np.ndarray, truth: np.ndarray, mask: Mask) -> tuple[float, ...]:
    """VOI split and merge, Rand split and merge, NID, voxel by voxel."""
    voxels: list[tuple[object, object]] = []
    for place, (segment, body) in enumerate(zip(segmentation.flat, truth.flat, strict=True)):
        if body == 0 or (segment == 0 and mask is Mask.BOTH):
            continue
        single = segment == 0 and mask is Mask.SINGLETONS
        voxels.append((("single", place) if single else int(segment), int(body)))
    segments, bodies = [segment for segment, _ in voxels], [body for _, body in voxels]
    together = entropy(list(voxels))
    split, merge = together - entropy(bodies), together - entropy(segments)
    squares = [sum(count**2 for count in Counter(labels).values()) for labels in (voxels, bodies, segments)]
    largest = max(entropy(bodies), entropy(segments))
    nid = 1 - (entropy(bodies) + entropy(segments) - together) / largest if largest else 0.0
    return split, merge, squares[0] / squares[1], squares[0] / squares[2], nid


def scores(segmentation: np.ndarray, truth: np.ndarray, mask: Mask) -> tuple[float, ...]:
    found = ContingencyTable.of(segmentation, truth).agreement(mask)
    return found.voi_split, found.voi_merge, found.rand_split, found.rand_merge, found.nid


def test_the_vectors_of_funlib_evaluate() -> None:
    truth, segmentation = np.array([1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]), np.array([3, 3, 3, 3, 4, 5, 6, 6, 5, 5, 5])
    found = ContingencyTable.of(segmentation, truth).agreement(Mask.ONE_LABEL)
    # Shared voxels 2 | 2 1 | 2 2 | 2, of bodies of 2 3 4 2 and segments of 4 1 4 2.
    together = (5 * 2 * math.log2(11 / 2) + math.log2(11)) / 11
    of_bodies = (2 * 2 * math.log2(11 / 2) + 3 * math.log2(11 / 3) + 4 * math.log2(11 / 4)) / 11
    of_segments = (2 * 4 * math.log2(11 / 4) + 2 * math.log2(11 / 2) + math.log2(11)) / 11
    expected = {"rand_split": Fraction(21, 33), "rand_merge": Fraction(21, 37), "arand": Fraction(2, 5),
                "voi_split": together - of_bodies, "voi_merge": Fraction(8, 11),
                "nid": 1 - (of_bodies + of_segments - together) / max(of_bodies, of_segments)}
    published = {"rand_split": 0.6363636, "rand_merge": 0.5675676, "voi_split": 0.6140807, "voi_merge": 0.7272727,
                 "nid": 0.3756070}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(float(value), abs=1e-12), name
    for name, rounded in published.items():
        assert getattr(found, name) == pytest.approx(rounded, abs=5e-8), name
    assert found.voi == found.voi_split + found.voi_merge
    assert (found.mask, found.voxels) == (Mask.ONE_LABEL, 11)


@pytest.mark.parametrize(("mask", "voxels", "split", "merge", "precision", "recall"), [
    # Truth 1 1 2 2 and one voxel without; segments 5 0 5 0 and one that is not compared.
    (Mask.BOTH, 2, 0.0, 1.0, Fraction(2, 4), Fraction(2, 2)),
    (Mask.ONE_LABEL, 4, 1.0, 1.0, Fraction(4, 8), Fraction(4, 8)),
    (Mask.SINGLETONS, 4, 1.0, 0.5, Fraction(4, 6), Fraction(4, 8)),
])
def test_a_score_depends_on_its_mask(mask: Mask, voxels: int, split: float, merge: float, precision: Fraction,
                                     recall: Fraction) -> None:
    found = ContingencyTable.of(np.array([5, 0, 5, 0, 7]), np.array([1, 1, 2, 2, 0])).agreement(mask)
    assert (found.mask, found.voxels) == (mask, voxels)
    assert (found.voi_split, found.voi_merge) == pytest.approx((split, merge), abs=1e-12)
    assert (found.rand_merge, found.rand_split) == pytest.approx((float(precision), float(recall)), abs=1e-12)
    assert found.arand == pytest.approx(float(1 - 2 * precision * recall / (precision + recall)), abs=1e-12)


@given(pairs(), st.sampled_from(Mask))
def test_scores_are_those_of_a_slow_count(pair: tuple[np.ndarray, np.ndarray], mask: Mask) -> None:
    assert scores(*pair, mask) == pytest.approx(slowly(*pair, mask), abs=1e-12)


@given(pairs())
def test_voi_is_that_of_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    segmentation, truth = (labels[(pair[0] > 0) & (pair[1] > 0)].astype(np.int64) for labels in pair)
    expected = variation_of_information(truth, segmentation)
    assert scores(*pair, Mask.BOTH)[:2] == pytest.approx(tuple(expected), abs=1e-12)


@given(pairs(), st.integers(0, 2), st.data())
def test_blocks_add_up_to_the_whole(pair: tuple[np.ndarray, np.ndarray], axis: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, pair[0].shape[axis]))
    table = ContingencyTable.empty()
    for part in range(2):
        table += ContingencyTable.of(*(np.split(labels, [cut], axis)[part] for labels in pair))
    whole = ContingencyTable.of(*pair)
    for name in ("bodies", "segments", "voxels"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name))


@given(pairs(), st.sampled_from(Mask), st.permutations(range(1, 5)), st.sampled_from([np.uint8, np.int64, np.uint64]))
def test_names_and_types_of_labels_do_not_matter(pair: tuple[np.ndarray, np.ndarray], mask: Mask, names: list[int],
                                                 dtype: type) -> None:
    lowest = 2**64 - 10 if dtype is np.uint64 else 100
    renamed = np.array([0, *(lowest + name for name in names)], dtype)[pair[0]]
    assert scores(renamed, pair[1], mask) == pytest.approx(scores(*pair, mask), abs=1e-12)


@given(pairs())
def test_a_perfect_segmentation(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = ContingencyTable.of(pair[1], pair[1]).agreement(Mask.BOTH)
    assert (found.voi, found.arand, found.nid) == pytest.approx((0, 0, 0), abs=1e-12)


def test_huge_counts_do_not_overflow() -> None:
    count = 2**40
    table = ContingencyTable(np.array([1, 2], np.uint64), np.array([1, 1], np.uint64), np.array([count, count]))
    found = table.agreement(Mask.BOTH)
    assert (found.voxels, found.voi_merge, found.rand_merge) == (2 * count, 1.0, 0.5)


@pytest.mark.parametrize(("segmentation", "truth", "message"), [
    (np.zeros((2, 3, 4), int), np.zeros((2, 3, 5), int), r"shape\n.*\(2, 3, 4\)\n.*\(2, 3, 5\)"),
    (np.array([1, -1]), np.array([1, 1]), r"segmentation does not hold labels\n.*lowest -1"),
    (np.array([1, 1]), np.array([1, -7]), r"truth does not hold labels\n.*lowest -7"),
    (np.array([1.0, 1.0]), np.array([1, 1]), r"segmentation does not hold labels\n.*float64"),
])
def test_what_cannot_be_compared(segmentation: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ContingencyTable.of(segmentation, truth)


@pytest.mark.parametrize(("segmentation", "truth", "mask", "message"), [
    ([0, 0], [1, 1], Mask.BOTH, r"no voxel is labelled in both\n.*2 voxels with truth"),
    ([1, 1], [0, 0], Mask.ONE_LABEL, r"unsegmented as one label\n.*0 voxels with truth"),
])
def test_an_empty_mask(segmentation: list[int], truth: list[int], mask: Mask, message: str) -> None:
    table = ContingencyTable.of(np.array(segmentation), np.array(truth))
    with pytest.raises(DataError, match=message):
        table.agreement(mask)


def test_the_watershed_of_fib25(realdata: Path) -> None:
    with h5py.File(realdata / "connectomics/fib25_training2.h5") as file:
        table = ContingencyTable.of(file["watershed"][()], file["groundtruth"][()])
    for mask in Mask:  # every voxel has a segment
        found = table.agreement(mask)
        assert found.voxels == 15_624_750
        assert (found.voi_split, found.voi_merge, found.voi, found.arand) == pytest.approx(
            (2.4075, 0.3295, 2.7370, 0.2712), abs=5e-5)


def test_labels_of_two_volumes_are_different_objects():
    """Equal numbers in two volumes are no one body: the scores are those of the volumes with labels of their own."""
    generator = np.random.default_rng(5)
    truth, found = generator.integers(0, 6, (2, 2, 9, 9, 9)).astype(np.uint64)
    truth[1][truth[1] > 0] += np.uint64(2**63)
    apart = [np.where(array > 0, array + np.array([[[[0]]], [[[100]]]], np.uint64), 0) for array in (found, truth)]
    expected = ContingencyTable.of(*(np.concatenate(list(array)) for array in apart))
    table = ContingencyTable.empty()
    for one, other in zip(found, truth, strict=True):
        table = table.beside(ContingencyTable.of(one, other))
    assert agreement_rows(table) == agreement_rows(expected)
