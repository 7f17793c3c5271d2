"""Plain baselines that stand beside every learned number: the mean, and a ridge on descriptors and fingerprints.

Invariant: a baseline sees the training and validation rows that the network sees, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PENALTIES = 10.0 ** np.arange(-1, 6)


def mean_predictor(targets: np.ndarray, count: int) -> np.ndarray:
    """The mean of each target over the training rows, f64[count, target]; for classes their share."""
    with np.errstate(all="ignore"):
        known = np.isfinite(targets)
        means = np.where(known, targets, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.tile(means, (count, 1))


def ridge(train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], test: np.ndarray) -> np.ndarray:
    """Ridge regression of each target, its penalty chosen on the validation rows.

    Parameters
    ----------
    train, valid : features f32[row, feature] and targets f64[row, target], NaN where blank
    test : features f32[row, feature]

    Returns
    -------
    f64[row, target]
    """
    features, targets = train
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.where(std > 1e-9, std, np.inf)
    parts = [np.clip((part - mean) / std, -5, 5) for part in (features, valid[0], test)]
    columns = [_ridge_column(parts, targets[:, index], valid[1][:, index]) for index in range(targets.shape[1])]
    return np.stack(columns, axis=1)


def _ridge_column(parts: Sequence[np.ndarray], targets: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """One target: the dual form where there are fewer rows than features, else the normal equations."""
    known = np.isfinite(targets)
    if not known.any():
        return np.full(len(parts[2]), np.nan)
    x, y = parts[0][known], targets[known]
    mean = y.mean()
    matrix, right = (x @ x.T, y - mean) if len(x) < x.shape[1] else (x.T @ x, x.T @ (y - mean))
    values, vectors = np.linalg.eigh(matrix)
    turned = vectors.T @ right
    best: tuple[float, np.ndarray] = (np.inf, np.full(len(parts[2]), mean))
    checked = np.isfinite(valid)
    for penalty in PENALTIES:
        solved = vectors @ (turned / (np.maximum(values, 0) + penalty))
        weights = x.T @ solved if len(x) < x.shape[1] else solved
        error = float(np.mean((parts[1][checked] @ weights + mean - valid[checked]) ** 2)) if checked.any() else 0.0
        if error < best[0]:
            best = (error, parts[2] @ weights + mean)
    return best[1]
