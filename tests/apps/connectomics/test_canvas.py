"""Flood filling: the compiled loop fills in what the plainly written one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apps.connectomics.canvas import Canvas, FloodOptions, Origin
from core.engine.array import Array, as_array
from core.engine.jit import Program, jit
from tests.apps.connectomics.plainly import Plainly

FIELD = (9, 7, 5)
DELTAS = (3, 2, 1)


def follow(weight: Array, image: Array, logits: Array) -> Array:
    """A network that needs no training: the mask is where the image is bright, and remembers what it was."""
    return image * weight + logits * 0.4 - 1.0


def doubt(weight: Array, image: Array, logits: Array) -> Array:
    """A network that takes back what it said where the image is not very bright."""
    return image * weight - logits * 0.4 - 1.0


def network(device: str, rule: Callable[[Array, Array, Array], Array] = follow) -> Program:
    return jit(rule, device=device).bind(as_array(np.float32(3.0)))


def volume(seed: int, shape: tuple[int, int, int] = (24, 22, 20)) -> np.ndarray:
    """Smooth blobs around 0."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.6)
    return (smooth / smooth.std()).astype(np.float32)


def seeds_of(image: np.ndarray) -> list[tuple[int, int, int]]:
    return [(int(z), int(y), int(x)) for z, y, x in np.argwhere(image > 1.2)[::7]]


def filled(image: np.ndarray, device: str, options: FloodOptions, labels: np.ndarray) -> tuple[Canvas, list[Origin]]:
    canvas = Canvas(image, labels.copy(), network(device), FIELD, options)
    return canvas, [origin for origin in canvas.segment(seeds_of(image)) if origin is not None]


def plainly(image: np.ndarray, labels: np.ndarray, program: Program, **options: Any) -> Plainly:
    return Plainly(image, labels, lambda i, s: program(i[None], s[None]).numpy()[0].copy(), FIELD, DELTAS, **options)


@pytest.mark.parametrize("device", ["reference", "cpu", "tpu-v2"])
@pytest.mark.parametrize("disco", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_objects_are_those_of_the_plain_loop(seed: int, disco: float, device: str) -> None:
    image = volume(seed)
    labels = np.zeros(image.shape, np.int32)
    labels[:, :4] = 3  # an object that is kept
    options = FloodOptions(deltas=DELTAS, min_segment_size=40, disco_seed_threshold=disco, segment_threshold=0.7)
    canvas, origins = filled(image, device, options, labels)
    plain = plainly(image, labels.copy(), network("reference"), least=40, disco=disco, segment_from=0.7)
    expected = plain.segment(seeds_of(image))
    assert [(o.id, o.seed, o.moves, o.voxels) for o in origins] == expected
    np.testing.assert_array_equal(canvas.labels, plain.labels)
    assert len(expected) > 0 and max(moves for _, _, moves, _ in expected) > 5


def test_many_moves_go_on_where_they_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.connectomics import canvas as module

    image, labels, options = volume(1), np.zeros((24, 22, 20), np.int32), FloodOptions(deltas=DELTAS)
    whole, origins = filled(image, "cpu", options, labels)
    monkeypatch.setattr(module, "MOVES_AT_ONCE", 1)
    pieces, same = filled(image, "cpu", options, labels)
    np.testing.assert_array_equal(whole.labels, pieces.labels)
    assert origins == same and whole.counters == pieces.counters


def test_counters_add_up() -> None:
    image = volume(2)
    canvas, origins = filled(image, "cpu", FloodOptions(deltas=DELTAS, min_segment_size=40),
                             np.zeros(image.shape, np.int32))
    counters: Any = canvas.counters
    assert counters.tried == len(origins) + counters.too_weak + counters.too_small
    assert counters.moves >= sum(origin.moves for origin in origins)
    assert sum(origin.voxels for origin in origins) == np.count_nonzero(canvas.labels > 0)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("disco", [0.0, -1.0])
def test_a_mask_is_that_of_the_plain_loop_and_leaves_no_trace(disco: float, device: str) -> None:
    image = volume(0)
    labels = np.zeros(image.shape, np.int32)
    labels[:, :4] = 3
    canvas = Canvas(image, labels.copy(), network(device, doubt), FIELD,
                    FloodOptions(deltas=DELTAS, disco_seed_threshold=disco))
    plain = plainly(image, labels, network(device, doubt), disco=disco)
    deleted = 0
    for seed in [(0, 0, 0), (12, 3, 10), *seeds_of(image)[:40:4]]:  # no room; another object; any
        mask, (logits, moves) = canvas.segment_at(seed), plain.grow(seed)
        np.testing.assert_array_equal(mask.logits, logits)
        assert list(zip(map(tuple, mask.history.tolist()), mask.history_deleted.tolist(), strict=True)) == moves
        deleted += int(mask.history_deleted.sum())
    assert deleted > 0
    np.testing.assert_array_equal(canvas.labels, labels)
    assert np.isnan(canvas.logits).all()
