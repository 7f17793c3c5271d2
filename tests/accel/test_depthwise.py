"""Depthwise convolutions and their gradients: borders, leftovers of every register block, and all vector units."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel import chips
from core.accel.kernels import depthwise
from core.accel.kernels.conv import conv, conv_dw
from tests.accel.stepping import Memory, evaluate
from tests.accel.test_conv import expected_conv, expected_conv_dw, out_space

CHIPS = [chip for chip in chips.CHIPS if chip.name != "amx"]  # which has the blocks of avx512


def steps_of(function, *settings):
    """A function of views for `stepping.evaluate`, which must take the kernels under test."""
    def build(*views):
        steps = function(*views, *settings, views[0].shape[-1])
        assert {step.name for step in steps} <= {"depthwise conv", "depthwise conv_dw"}
        return steps

    return build


def assert_depthwise(shape, kernel, stride, padding, dilation, input_dilation, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    settings = (stride, padding, dilation, input_dilation)
    sizes = [(n - 1) * spread + 1 + low + high
             for n, spread, (low, high) in zip(shape[1:-1], input_dilation, padding, strict=True)]
    space = out_space(sizes, kernel, stride, dilation)
    x, w, ct = (rng.standard_normal(of).astype(dtype)
                for of in (shape, (*kernel, 1, channels), (shape[0], *space, channels)))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    found, = evaluate(steps_of(conv, *settings), [x, w], [(ct.shape, dtype)])
    expected = expected_conv(x, w, *settings, groups=channels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))
    found, = evaluate(steps_of(conv_dw, *settings), [x, ct], [(w.shape, dtype)])
    expected = expected_conv_dw(x, ct, kernel, *settings, groups=channels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))


def same(rank, stride=1, pad=1, dilation=1, input_dilation=1):
    return ((stride,) * rank, ((pad, pad),) * rank, (dilation,) * rank, (input_dilation,) * rank)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [2, 15, 16, 17, 31, 32, 63, 64, 65, 100, 200])
def test_all_numbers_of_channels(channels, dtype):
    assert_depthwise((2, 4, 9, channels), (3, 3), *same(2), dtype)


@pytest.mark.parametrize("width", range(1, 33))
def test_all_numbers_of_pixels(width):
    assert_depthwise((1, 2, width, 70), (3, 3), *same(2))
    assert_depthwise((1, 2, width, 20), (3, 3), *same(2))


@pytest.mark.parametrize("taps", range(1, 12))
@pytest.mark.parametrize("pad", [0, 1, 5])
def test_all_numbers_of_taps(taps, pad):
    assert_depthwise((2, 3, 12, 40), (2, taps), *same(2, pad=pad))


@pytest.mark.parametrize(("shape", "kernel", "settings"), [
    ((3, 21, 33), (4,), same(1, stride=3)),
    ((2, 5, 6, 7, 24), (3, 2, 3), same(3)),
    ((1, 1, 1, 48), (5, 5), same(2, pad=2)),
    ((1, 3, 2, 20), (3, 3), same(2, pad=7)),
    ((1, 20, 40, 20), (3, 3), same(2, stride=2, pad=3, dilation=4)),
    ((1, 9, 11, 20), (3, 2), ((1, 2), ((-1, -2), (-2, 3)), (2, 1), (1, 1))),
    ((2, 5, 6, 20), (3, 3), same(2, pad=2, input_dilation=2)),
    ((2, 5, 6, 20), (2, 1), same(2, pad=0, input_dilation=3)),
    ((1, 7, 6, 20), (5, 4), ((2, 1), ((3, 1), (2, 2)), (1, 2), (3, 2))),
], ids=["sequence", "volume", "one pixel", "all in the padding", "atrous", "cropped", "spread", "unmet taps", "mixed"])
def test_settings(shape, kernel, settings):
    assert_depthwise(shape, kernel, *settings)


@pytest.mark.parametrize("seed", range(20))
def test_random_settings(seed):
    rng = np.random.default_rng(seed)
    done = 0
    while done < 5:
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation, spread = (tuple(rng.integers(1, high, rank).tolist()) for high in (6, 4, 4, 4))
        padding = tuple(map(tuple, rng.integers(-2, 5, (rank, 2)).tolist()))
        shape = (int(rng.integers(1, 4)), *rng.integers(1, 14, rank).tolist(), int(rng.integers(2, 90)))
        sizes = [(n - 1) * apart + 1 + low + high
                 for n, apart, (low, high) in zip(shape[1:-1], spread, padding, strict=True)]
        if min(sizes) >= 1 and min(out_space(sizes, kernel, stride, dilation)) >= 1:
            assert_depthwise(shape, kernel, stride, padding, dilation, spread, seed=seed)
            done += 1


def test_a_mirrored_kernel_is_read_where_it_lies():
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 6, 7, 20), (3, 3, 1, 20)))
    mirrored = w[::-1, ::-1]
    found, = evaluate(steps_of(conv, *same(2)), [x, mirrored], [(x.shape, "float32")])
    np.testing.assert_allclose(found, expected_conv(x, mirrored, *same(2), groups=20), atol=1e-5)


def test_nan_stays_within_the_kernel_and_its_channel():
    x, w = np.ones((1, 9, 9, 70), np.float32), np.ones((3, 3, 1, 70), np.float32)
    x[0, 4, 4, 65] = np.nan
    x[0, 0, 0, 3] = np.inf
    found, = evaluate(steps_of(conv, *same(2)), [x, w], [(x.shape, "float32")])
    hit = np.zeros(x.shape, bool)
    hit[:, 3:6, 3:6, 65] = hit[:, :2, :2, 3] = True
    np.testing.assert_array_equal(np.isfinite(found), ~hit)


def test_nothing_is_copied():
    memory = Memory()
    x, w, out = (memory.view(np.zeros(shape, np.float32)) for shape in ((1, 6, 6, 4), (3, 3, 1, 4), (1, 6, 6, 4)))
    step, = conv(x, w, out, *same(2), 4)
    assert [view.buffer for view in step.operands] == [x.buffer, w.buffer, out.buffer]


@pytest.mark.parametrize(("x_shape", "w_shape", "dtype", "groups"), [
    ((1, 6, 6, 4), (3, 3, 2, 4), "float32", 2), ((1, 6, 6, 4), (3, 3, 1, 8), "float32", 4),
    ((1, 6, 6, 4), (3, 3, 1, 4), "int8", 4), ((1, 2, 2, 2, 2, 4), (1, 1, 1, 1, 1, 4), "float32", 4)],
    ids=["two channels a group", "two outputs a group", "narrow", "four axes"])
def test_what_is_left_to_others(x_shape, w_shape, dtype, groups):
    memory = Memory()
    x, w = memory.view(np.zeros(x_shape, dtype)), memory.view(np.zeros(w_shape, dtype))
    assert not depthwise.fits(x, w, memory.view(np.zeros((*x_shape[:-1], w_shape[-1]), dtype)), groups)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("channels", [3, 16, 41])
def test_blocks_of_other_chips(chip, channels, monkeypatch):
    monkeypatch.setattr(depthwise, "host", lambda: chip)
    for width in (3, 13, 16):
        assert_depthwise((2, 4, width, channels), (3, 4), *same(2))
    assert_depthwise((1, 5, 6, channels), (3, 6), *same(2, stride=2, pad=3))
