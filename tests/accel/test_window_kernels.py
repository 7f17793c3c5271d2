"""window, window_grad, cumsum and argreduce against loops in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from core.accel.kernels.argreduce import argreduce
from core.accel.kernels.cumsum import cumsum
from core.accel.kernels.window import fits, window, window_grad
from tests.accel.stepping import evaluate

NUMBERS = ("float32", "float64", "int32", "int64")
NONE = (0, 0)

WINDOWS = [  # shape, size, stride, padding
    ((7,), (3,), (1,), (NONE,)),
    ((8,), (3,), (2,), ((1, 1),)),
    ((9,), (2,), (3,), ((0, 2),)),
    ((1,), (1,), (1,), (NONE,)),
    ((5,), (2,), (1,), ((3, 3),)),  # windows wholly in the padding
    ((3, 5), (1, 1), (1, 1), (NONE, NONE)),
    ((2, 6, 5, 3), (1, 2, 2, 1), (1, 2, 2, 1), (NONE,) * 4),
    ((2, 7, 5, 19), (1, 3, 3, 1), (1, 2, 1, 1), (NONE, (1, 1), (0, 2), NONE)),
    ((1, 3, 6, 6), (1, 1, 3, 2), (1, 1, 2, 2), (NONE, NONE, (1, 0), (0, 1))),  # channels first
    ((2, 4, 5, 3, 2), (1, 2, 3, 2, 1), (1, 2, 1, 1, 1), (NONE, (1, 0), (1, 1), (0, 1), NONE)),
    ((3, 1, 4, 2), (3, 1, 1, 2), (1, 1, 1, 1), (NONE,) * 4),
    ((4, 3), (2, 1), (2, 2), (NONE, NONE)),  # a stride without a window
]


def values(rng, shape, dtype):
    """Few different numbers, so that there are equals; floats hold NaN and infinities."""
    numbers = rng.integers(-4, 5, shape).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        special = np.array([np.nan, np.inf, -np.inf], dtype)
        numbers = np.where(rng.random(shape) < 0.15, special[rng.integers(0, 3, shape)], numbers)
    return numbers.astype(dtype)


def out_shape(shape, size, stride, padding):
    return tuple((n + sum(pad) - k) // s + 1 for n, k, s, pad in zip(shape, size, stride, padding, strict=True))


def covers(shape, size, stride, padding):
    """Every output position and the input positions in its window, both in row-major order."""
    for place in np.ndindex(out_shape(shape, size, stride, padding)):
        spans = []
        for i, n, k, s, (front, _) in zip(place, shape, size, stride, padding, strict=True):
            spans.append([j for j in range(i * s - front, i * s - front + k) if 0 <= j < n])
        yield place, list(itertools.product(*spans))


def extreme(x, positions, kind):
    """The first position where x is extreme, not-a-number before all."""
    numbers = np.array([x[position] for position in positions])
    return positions[int(numbers.argmax() if kind == "max" else numbers.argmin())]


def identity(dtype, kind):
    if kind == "sum":
        return 0
    sign = -1 if kind == "max" else 1
    if np.issubdtype(dtype, np.floating):
        return sign * np.inf
    return np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max


def windowed(x, y, kind, *geometry):
    out = np.full(out_shape(x.shape, *geometry), identity(x.dtype, kind), x.dtype)
    for place, positions in covers(x.shape, *geometry):
        if kind == "sum":
            for position in positions:
                out[place] += x[position]
        elif positions:
            out[place] = y[extreme(x, positions, kind)]
    return out


def adjoint(x, ct, kind, *geometry):
    out = np.zeros(x.shape, ct.dtype)
    for place, positions in covers(x.shape, *geometry):
        for position in positions if kind == "sum" else [extreme(x, positions, kind)] if positions else []:
            out[position] += ct[place]
    return out


@pytest.mark.parametrize("shape,size,stride,padding", WINDOWS)
@pytest.mark.parametrize("kind", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_window_equals_a_loop(shape, size, stride, padding, kind, dtype):
    rng = np.random.default_rng(len(shape) + size[0])
    x = values(rng, shape, np.dtype(dtype).type)
    y = rng.integers(-99, 99, shape).astype(dtype)
    geometry = (size, stride, padding)
    out = [(out_shape(shape, *geometry), dtype)]
    with np.errstate(invalid="ignore"):
        for other in [None] if kind == "sum" else [None, y]:
            found, = evaluate(lambda *views: window(*views, kind, *geometry), [x, other], out)
            np.testing.assert_array_equal(found, windowed(x, x if other is None else other, kind, *geometry))


@pytest.mark.parametrize("shape,size,stride,padding", WINDOWS)
@pytest.mark.parametrize("kind", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_window_grad_equals_a_scattering_loop_bit_for_bit(shape, size, stride, padding, kind, dtype):
    rng = np.random.default_rng(len(shape) + size[0])
    geometry = (size, stride, padding)
    x = values(rng, shape, np.dtype(dtype).type)
    ct = (rng.normal(size=out_shape(shape, *geometry)) * 100).astype(dtype)
    found, = evaluate(lambda *views: window_grad(*views, kind, *geometry), [x, ct], [(shape, dtype)])
    np.testing.assert_array_equal(found, adjoint(x, ct, kind, *geometry))


@pytest.mark.parametrize("seed", range(25))
def test_window_of_random_geometry(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = tuple(int(n) for n in rng.integers(1, 7, rank))
    padding = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (rank, 2)))
    size = tuple(int(rng.integers(1, n + sum(pad) + 1)) for n, pad in zip(shape, padding, strict=True))
    stride = tuple(int(s) for s in rng.integers(1, 4, rank))
    geometry = (size, stride, padding)
    x = values(rng, shape, np.float32)
    ct = rng.normal(size=out_shape(shape, *geometry)).astype(np.float32)
    for kind in ("sum", "max", "min"):
        found, = evaluate(lambda *views, kind=kind: window(*views, kind, *geometry), [x, None], [(ct.shape, "float32")])
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(found, windowed(x, x, kind, *geometry))
        found, = evaluate(lambda *views, kind=kind: window_grad(*views, kind, *geometry), [x, ct], [(shape, "float32")])
        np.testing.assert_array_equal(found, adjoint(x, ct, kind, *geometry))


def test_windows_over_five_axes_do_not_fit_and_over_four_do():
    stride = (1,) * 6
    assert not fits((3,) * 6, (2, 2, 2, 2, 2, 1), stride, (NONE,) * 6)
    assert not fits((3,) * 6, (1, 2, 2, 2, 2, 1), stride, (NONE,) * 6)  # the batch in front counts as an axis
    assert fits((3,) * 6, (2, 2, 2, 2, 1, 1), stride, (NONE,) * 6)


AXES = [((1,), 0), ((6,), 0), ((3, 63), 1), ((5, 64, 1), 1), ((4, 777), 1), ((5, 40), 1), ((40, 5), 0), ((3, 7, 70), 1),
        ((2, 3, 4, 5), 2), ((3, 0), 0)]


@pytest.mark.parametrize("shape,axis", AXES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_cumsum_equals_numpy_bit_for_bit(shape, axis, reverse, dtype):
    rng = np.random.default_rng(axis)
    x = (rng.normal(size=shape) * 100).astype(dtype)
    found, = evaluate(lambda *views: cumsum(*views, axis, reverse), [x], [(shape, dtype)])
    ahead = np.flip(x, axis) if reverse else x
    total = np.cumsum(ahead, axis=axis, dtype=dtype)
    np.testing.assert_array_equal(found, np.flip(total, axis) if reverse else total)


@pytest.mark.parametrize("shape,axis", AXES)
@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_argreduce_finds_the_first_extreme(shape, axis, kind, dtype):
    x = values(np.random.default_rng(axis), shape, np.dtype(dtype).type)
    expected = (np.argmax if kind == "max" else np.argmin)(x, axis=axis).astype(np.int32)
    found, = evaluate(lambda *views: argreduce(*views, axis, kind), [x], [(expected.shape, "int32")])
    np.testing.assert_array_equal(found, expected)
