"""Metrics: numbers by definition, by scipy, and their properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core.engine import metrics

NAN = np.nan
GENERATOR = np.random.default_rng(0)
PREDICTION, TARGET = GENERATOR.normal(size=(2, 40))
REGRESSION = [metrics.rmse, metrics.mae, metrics.r2, metrics.pearson, metrics.spearman]
CLASSES = [metrics.roc_auc, metrics.pr_auc]

VALUES = [
    (metrics.rmse, [1, 2, 3], [1, 4, 3], np.sqrt(4 / 3)),
    (metrics.mae, [1, 2, 3], [1, 4, 3], 2 / 3),
    (metrics.r2, [1, 2, 3], [1, 2, 3], 1.0),
    (metrics.r2, [2, 2, 2], [1, 2, 3], 0.0),
    (metrics.r2, [3, 2, 1], [1, 2, 3], -3.0),
    (metrics.pearson, [2, 4, 6.5], [1, 2, 3], stats.pearsonr([2, 4, 6.5], [1, 2, 3]).statistic),
    (metrics.spearman, [2, 4, 4, 9], [1, 3, 2, 2], stats.spearmanr([2, 4, 4, 9], [1, 3, 2, 2]).statistic),
    (metrics.roc_auc, [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
    (metrics.roc_auc, [0.5, 0.5, 0.5], [0, 1, 1], 0.5),
    (metrics.roc_auc, [1, 1, 2], [0, 1, 1], 0.75),
    (metrics.pr_auc, [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.5 + 0.5 * 2 / 3),
    (metrics.pr_auc, [0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], 0.25),
    (metrics.pr_auc, [3, 2, 1], [1, 1, 1], 1.0),
    (metrics.accuracy, [0, 1, 2, 2], [0, 1, 1, 2], 0.75),
]

UNDEFINED = [
    (metrics.rmse, [1], [NAN]), (metrics.mae, [], []), (metrics.r2, [1, 2], [3, 3]), (metrics.r2, [1], [3]),
    (metrics.pearson, [1, 1], [1, 2]), (metrics.pearson, [1, 2], [1, 1]), (metrics.spearman, [], []),
    (metrics.roc_auc, [1, 2], [1, 1]), (metrics.roc_auc, [1, 2], [0, 0]), (metrics.roc_auc, [1, 2], [0, NAN]),
    (metrics.pr_auc, [1, 2], [0, 0]), (metrics.accuracy, [1], [NAN]),
]


@pytest.mark.parametrize(("metric", "prediction", "target", "expected"), VALUES)
def test_values(metric, prediction, target, expected):
    assert metric(prediction, target) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("metric", "prediction", "target"), UNDEFINED)
def test_undefined_is_nan(metric, prediction, target):
    assert np.isnan(metric(prediction, target))


@pytest.mark.parametrize("metric", [*REGRESSION, *CLASSES, metrics.accuracy])
def test_unknown_targets_are_left_out_and_nan_predictions_are_not(metric):
    target = (TARGET > 0).astype(float) if metric not in REGRESSION else TARGET
    prediction = np.round(PREDICTION) if metric is metrics.accuracy else PREDICTION
    blank, spoiled = target.copy(), prediction.copy()
    blank[::3], spoiled[::3] = NAN, NAN
    known = ~np.isnan(blank)
    assert metric(spoiled.reshape(8, 5), blank.reshape(8, 5)) == metric(prediction[known], target[known])
    assert np.isnan(metric(spoiled, target))


@pytest.mark.parametrize("metric", [*REGRESSION, *CLASSES, metrics.accuracy])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match=r"found \(4, 1\) and \(4,\)"):
        metric(np.zeros((4, 1)), np.zeros(4))


scores = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=12)


@given(scores)
def test_roc_auc_counts_pairs(rows):
    score, label = np.array(rows, float).T
    pairs = list(itertools.product(score[label == 1], score[label == 0]))
    found = metrics.roc_auc(score, label)
    if not pairs:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
        assert metrics.roc_auc(-score, label) == pytest.approx(1 - found)
        assert metrics.roc_auc(np.exp(score), label) == found


@given(scores)
def test_pr_auc_sums_over_thresholds(rows):
    score, label = np.array(rows, float).T
    if not label.any():
        return
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        above = score >= threshold
        now = np.sum(label[above]) / np.sum(label)
        total, recall = total + np.mean(label[above]) * (now - recall), now
    assert metrics.pr_auc(score, label) == pytest.approx(total)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlations_do_not_depend_on_scale(scale):
    assert metrics.pearson(PREDICTION * scale, TARGET) == pytest.approx(stats.pearsonr(PREDICTION, TARGET).statistic)
    assert metrics.spearman(PREDICTION * scale, TARGET) == pytest.approx(stats.spearmanr(PREDICTION, TARGET).statistic)


def test_coverage():
    assert metrics.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0.5, 1.0, 2.0, NAN]) == pytest.approx(2 / 3)
    assert np.isnan(metrics.coverage([NAN, 0], [1, 1], [0.5, 0.5]))
    assert np.isnan(metrics.coverage([0], [1], [NAN]))
