"""Metrics: how good predictions are, in numpy, for reports.

Invariant: entries whose target is NaN are left out. A metric that is undefined for what is left is NaN, for the reason
that its text gives; a prediction of NaN where the target is known makes the metric NaN, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def rmse(prediction: ArrayLike, target: ArrayLike) -> float:
    """Root mean squared error, in the unit of the target; NaN without known targets.

    Parameters
    ----------
    prediction, target : float[...] of one shape; all their axes are pooled. The other metrics take them alike
    """
    predicted, known = _known(target, prediction)
    return float(np.sqrt(_mean((predicted - known) ** 2)))


def mae(prediction: ArrayLike, target: ArrayLike) -> float:
    """Mean absolute error, in the unit of the target; NaN without known targets."""
    predicted, known = _known(target, prediction)
    return _mean(np.abs(predicted - known))


def r2(prediction: ArrayLike, target: ArrayLike) -> float:
    """Coefficient of determination, 1 - residual / total sum of squares; NaN if the targets do not vary."""
    predicted, known = _known(target, prediction)
    if _is_constant(known):
        return np.nan
    return float(1.0 - np.sum((known - predicted) ** 2) / np.sum((known - known.mean()) ** 2))


def pearson(prediction: ArrayLike, target: ArrayLike) -> float:
    """Linear correlation in -1..1; NaN if predictions or targets do not vary."""
    return _correlation(*_known(target, prediction))


def spearman(prediction: ArrayLike, target: ArrayLike) -> float:
    """Correlation of ranks in -1..1, ties sharing their mean rank; NaN if predictions or targets do not vary."""
    predicted, known = _known(target, prediction)
    return _correlation(rankdata(predicted), rankdata(known))


def roc_auc(score: ArrayLike, label: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN unless both classes are present.

    By the rank sum of Mann and Whitney (Hanley and McNeil 1982).

    Parameters
    ----------
    score : float[...], larger for positives
    label : 0 (negative), 1 (positive) or NaN (unknown), of the same shape
    """
    scores, labels = _known(label, score)
    positives = float(np.sum(labels == 1))
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return np.nan
    rank_sum = np.sum(rankdata(scores)[labels == 1])
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def pr_auc(score: ArrayLike, label: ArrayLike) -> float:
    """Average precision: the sum over thresholds of precision times the gain of recall; NaN without positives.

    Equal scores are one threshold, and there is no interpolation, which would be too kind (Davis and Goadrich 2006).
    Parameters as for `roc_auc`.
    """
    scores, labels = _known(label, score)
    if not np.any(labels == 1) or np.any(np.isnan(scores)):
        return np.nan
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels[order] == 1)[last_of_ties]
    taken = np.flatnonzero(last_of_ties) + 1
    return float(np.sum(found / taken * np.diff(found, prepend=0)) / found[-1])


def accuracy(prediction: ArrayLike, label: ArrayLike) -> float:
    """Fraction of predicted classes that equal the label; NaN without known labels.

    Parameters
    ----------
    prediction : class number[...]
    label : class number or NaN (unknown), of the same shape
    """
    predicted, known = _known(label, prediction)
    return _mean(np.where(np.isnan(predicted), np.nan, predicted == known))


def coverage(lower: ArrayLike, upper: ArrayLike, target: ArrayLike) -> float:
    """Fraction of targets inside their interval, bounds included; NaN without known targets.

    Parameters
    ----------
    lower, upper, target : float[...] of one shape
    """
    low, known = _known(target, lower)
    high, _ = _known(target, upper)
    return _mean(np.where(np.isnan(low) | np.isnan(high), np.nan, (low <= known) & (known <= high)))


def rankdata(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks, and one NaN makes all of them NaN."""
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], np.float64)


def _known(target: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Predictions and targets in f64, flat, where the target is not NaN.

    Raises
    ------
    ValueError
        If the shapes differ: numpy would pair every prediction with every target.
    """
    predicted, targets = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if predicted.shape != targets.shape:
        raise ValueError(f"predictions and targets have one shape, found {predicted.shape} and {targets.shape}")
    known = ~np.isnan(targets)
    return predicted[known], targets[known]


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if values.size else np.nan


def _is_constant(values: Floats) -> bool:
    return values.size == 0 or bool(np.all(values == values[0]))


def _correlation(a: Floats, b: Floats) -> float:
    if _is_constant(a) or _is_constant(b):
        return np.nan
    a, b = a - a.mean(), b - b.mean()
    # Scaled first, so that squares of tiny or huge values neither vanish nor overflow.
    a, b = a / np.max(np.abs(a)), b / np.max(np.abs(b))
    return float(np.clip(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)), -1.0, 1.0))
