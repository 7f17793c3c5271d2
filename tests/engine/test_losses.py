"""Losses: values, gradients, weights and targets that are not known."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine import losses, ops
from core.engine.array import as_array
from core.engine.grad import grad
from core.engine.nn import log_softmax

LOGITS = np.array([-40.0, -1.0, 0.0, 2.0, 40.0])
TARGET = np.array([0.0, 1.0, 0.3, 0.0, 1.0])
CLASS_LOGITS = 5 * np.sin(0.7 * np.arange(12)).reshape(4, 3)
LABELS = np.array([0, 2, 1, 1], np.int32)

# Of PyTorch 2.13, in f64: mse_loss, l1_loss, huber_loss with delta 1.5, binary_cross_entropy_with_logits,
# gaussian_nll_loss with full=True and var=exp(target), cross_entropy.
GOLDEN = {
    "mse": (lambda: losses.mse(as_array(LOGITS), TARGET), 625.818),
    "mae": (lambda: losses.mae(as_array(LOGITS), TARGET), 16.66),
    "huber": (lambda: losses.huber(as_array(LOGITS), TARGET, delta=1.5), 24.009),
    "binary": (lambda: losses.binary_cross_entropy(as_array(LOGITS), TARGET),
               (1.3132616875182228 + 0.6931471805599453 + 2.1269280110429727) / 5),
    "gaussian": (lambda: losses.gaussian_nll(as_array(LOGITS / 10), as_array(TARGET), TARGET), 3.1352108066268505),
    "classes": (lambda: losses.cross_entropy(as_array(CLASS_LOGITS), LABELS), 3.8054672653077857),
}

# name: loss(prediction, target, weight), a prediction, a target, and the target of an entry of weight 0
FAMILY = {
    "mse": (losses.mse, LOGITS, TARGET, np.nan),
    "mae": (losses.mae, LOGITS, TARGET, np.nan),
    "huber": (losses.huber, LOGITS, TARGET, np.nan),
    "binary": (losses.binary_cross_entropy, LOGITS, TARGET, np.nan),
    "gaussian": (lambda p, t, w: losses.gaussian_nll(p, p * 0.1, t, w), LOGITS, TARGET, np.nan),
    "classes": (losses.cross_entropy, CLASS_LOGITS, LABELS, -1),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_values(name):
    loss, expected = GOLDEN[name]
    assert loss().item() == pytest.approx(expected, rel=1e-12)
    assert loss().shape == ()


@pytest.mark.parametrize("name", FAMILY)
def test_unknown_targets_change_neither_value_nor_gradient(name):
    loss, prediction, target, unknown = FAMILY[name]
    weight = np.ones(len(target))
    weight[1] = 0
    hidden = target.copy()
    hidden[1] = unknown
    rest, known = np.delete(prediction, 1, 0), np.delete(target, 1)
    whole = loss(as_array(prediction), hidden, weight)
    assert whole.item() == pytest.approx(loss(as_array(rest), known, None).item(), rel=1e-12)
    slopes = grad(lambda p: loss(p, hidden, weight != 0))(as_array(prediction)).numpy()
    assert np.all(slopes[1] == 0)
    np.testing.assert_allclose(np.delete(slopes, 1, 0), grad(lambda p: loss(p, known, None))(as_array(rest)))


@pytest.mark.parametrize("name", FAMILY)
def test_gradient_equals_finite_difference(name):
    loss, prediction, target, _ = FAMILY[name]
    prediction = prediction * 0.05 + 0.01
    weight = 1.0 + np.arange(len(target))
    direction = np.random.default_rng(0).normal(size=prediction.shape)
    up, down = (loss(as_array(prediction + sign * 1e-5 * direction), target, weight).item() for sign in (1, -1))
    exact = np.sum(grad(lambda p: loss(p, target, weight))(as_array(prediction)).numpy() * direction)
    assert exact == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_weighted_mean():
    values = as_array(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert losses.weighted_mean(values, np.array([[1.0], [3.0]])).item() == (3 + 3 * 7) / 8
    assert losses.weighted_mean(values, np.array([[True, False], [False, True]])).item() == 2.5
    assert losses.weighted_mean(values, np.zeros((2, 2))).item() == 0
    assert losses.weighted_mean(values, np.full((2, 2), 0.125)).item() == 10 * 0.125


def test_binary_cross_entropy_of_sure_answers():
    def each(z, t):
        return losses.binary_cross_entropy(as_array(np.array([z], np.float32)), np.array([t], np.float32)).item()

    assert each(40, 1) == pytest.approx(np.exp(-40), rel=1e-6)
    assert each(-40, 0) == pytest.approx(np.exp(-40), rel=1e-6)
    assert each(3e38, 0) == pytest.approx(3e38, rel=1e-6)
    assert grad(lambda z: losses.binary_cross_entropy(z, as_array(0.0)))(as_array(0.0)).item() == 0.5


def test_cross_entropy_skips_forbidden_classes():
    logits = as_array(np.array([[2.0, -np.inf, 1.0]]))
    assert losses.cross_entropy(logits, np.array([0], np.int32)).item() == pytest.approx(np.log1p(np.exp(-1)))


def test_cross_entropy_keeps_axes_of_space():
    logits, label = as_array(np.random.default_rng(0).normal(size=(2, 3, 4, 5))), np.arange(24).reshape(2, 3, 4) % 5
    picked = np.take_along_axis(log_softmax(logits).numpy(), label[..., None], -1)
    assert losses.cross_entropy(logits, label).item() == pytest.approx(-picked.mean(), rel=1e-12)
    assert ops.sum(grad(lambda z: losses.cross_entropy(z, label))(logits)).item() == pytest.approx(0, abs=1e-12)
