"""The plain baselines against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from apps.molecules.baselines import PENALTIES, mean_predictor, ridge

NAN = np.nan


def test_the_mean_leaves_blanks_out() -> None:
    means = mean_predictor(np.array([[1.0, 0.0, NAN], [3.0, NAN, NAN], [NAN, 1.0, NAN]]), 4)
    np.testing.assert_allclose(means, [[2.0, 0.5, 0.0]] * 4)


def solved(features: np.ndarray, targets: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """The normal equations, one target."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    scaled = np.clip((features - mean) / std, -5, 5)
    known = np.isfinite(targets)
    x, y = scaled[known], targets[known]
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return np.clip((test - mean) / std, -5, 5) @ weights + y.mean()


@pytest.mark.parametrize(("rows", "width"), [(40, 5), (12, 30)])
def test_it_is_the_ridge_of_the_best_penalty(rows: int, width: int) -> None:
    generator = np.random.default_rng(rows)
    weights = generator.normal(size=(width, 2))

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        features = generator.normal(size=(count, width)) * 3 + 1
        return features, features @ weights + generator.normal(size=(count, 2))

    train, valid, test = part(rows), part(20), part(7)[0]
    train[1][3, 0] = valid[1][2, 1] = NAN
    found = ridge(train, valid, test)
    for index in range(2):
        target, check = train[1][:, index], valid[1][:, index]
        errors = [np.nanmean((solved(train[0], target, valid[0], penalty) - check) ** 2) for penalty in PENALTIES]
        best = PENALTIES[int(np.argmin(errors))]
        np.testing.assert_allclose(found[:, index], solved(train[0], target, test, best), rtol=1e-6)


def test_a_constant_feature_and_an_unknown_target_do_no_harm() -> None:
    features = np.column_stack([np.arange(6.0), np.full(6, 7.0)])
    targets = np.column_stack([2 * np.arange(6.0), np.full(6, NAN)])
    found = ridge((features, targets), (features, targets), features)
    np.testing.assert_allclose(found[:, 0], targets[:, 0], atol=0.2)
    assert np.isnan(found[:, 1]).all()
