"""Scales come from training rows alone, blanks count for nothing, and intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.molecules.batches import collate
from apps.molecules.data import Features, samples
from apps.molecules.scaling import conformal_half_width, fit_scales
from apps.molecules.trained import DESCRIPTOR_LIMIT
from tests.apps.molecules.small import SMILES, example

NAN = np.nan


def test_targets_get_mean_0_and_deviation_1_and_classes_are_left_alone() -> None:
    rows = [(1.0, 1, 5), (2.0, 0, 5), (NAN, NAN, 5), (6.0, 1, NAN)]
    scales = fit_scales([example(text, targets=row) for text, row in zip(SMILES, rows, strict=False)],
                        ("regression", "classification", "regression"))
    np.testing.assert_allclose(scales.mean.numpy(), [3, 0, 5])
    np.testing.assert_allclose(scales.std.numpy(), [np.std([1, 2, 6]), 1, 1])
    scaled = scales.targets(np.array(rows), np.zeros((4, 0)))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(np.nanmean(scaled[:, 0]), 0, atol=1e-7)
    np.testing.assert_array_equal(scaled[:, 1], np.float32([1, 0, NAN, 1]))


@pytest.mark.parametrize("offset", ["elements", "counts"])
def test_an_offset_is_a_sum_over_counts(offset: str) -> None:
    features = Features(offset=offset)
    found = [example(text, features) for text in SMILES]
    weights = np.random.default_rng(0).normal(size=(features.count_width, 1)) * 100
    truth = np.stack([part.counts for part in found]) @ weights
    given = [example(text, features, targets=row) for text, row in zip(SMILES, truth, strict=True)]
    scales = fit_scales(given, ("regression",))
    rest = scales.targets(truth, np.stack([part.counts for part in found])) * scales.std.numpy()
    assert np.abs(rest).max() < 0.02 * np.std(truth)
    assert scales.offset.shape == (features.count_width, 1)


def test_descriptors_are_scaled_and_cut() -> None:
    found = [example(text, Features(descriptors=True), [0.0]) for text in SMILES]
    scales = fit_scales(found, ("regression",))
    stacked = np.stack([part.descriptors for part in found]).astype(np.float64)
    np.testing.assert_allclose(scales.descriptor_mean.numpy(), stacked.mean(axis=0), rtol=1e-6)
    spread = stacked.std(axis=0)
    np.testing.assert_allclose(scales.descriptor_std.numpy(), np.where(spread > 1e-12, spread, 1), rtol=1e-5)
    batch = scales.batch(collate(samples(found, np.zeros((8, 1))), 9))
    assert np.abs(batch.descriptors.numpy()).max() <= DESCRIPTOR_LIMIT


@pytest.mark.parametrize(("residuals", "coverage", "expected"), [
    (range(1, 10), 0.9, 9), (range(1, 10), 0.5, 5), (range(1, 20), 0.9, 18), (range(1, 9), 0.9, NAN), ([], 0.5, NAN),
    ([3.0, NAN, -1.0, 2.0], 0.5, 2), ([-4.0], 0.5, 4)])
def test_half_widths(residuals: list[float], coverage: float, expected: float) -> None:
    np.testing.assert_equal(conformal_half_width(np.array(residuals, np.float64), coverage), expected)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_hold_their_share_of_unseen_values(coverage: float) -> None:
    """On average over calibration sets, at least the share, and at most 1 / (n + 1) more (Lei et al. 2018)."""
    generator, n, repeats = np.random.default_rng(0), 30, 4000
    held = []
    for _ in range(repeats):
        errors = generator.standard_t(3, size=n + 20)
        held.append(np.mean(np.abs(errors[n:]) <= conformal_half_width(errors[:n], coverage)))
    noise = 4 * np.std(held) / repeats**0.5
    assert coverage - noise < np.mean(held) < coverage + 1 / (n + 1) + noise


@given(residuals=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), low=st.floats(0.01, 0.99),
       high=st.floats(0.01, 0.99))
def test_more_coverage_is_never_narrower(residuals: list[float], low: float, high: float) -> None:
    low, high = sorted((low, high))
    narrow, wide = (conformal_half_width(np.array(residuals), share) for share in (low, high))
    assert np.isnan(wide) or narrow <= wide
