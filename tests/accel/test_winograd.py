"""Winograd's convolutions and weight gradients against loops over taps in float64, and against sums in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import chips
from core.accel.kernels import conv as conv_kernels
from core.accel.kernels import winograd, winograd_dw
from core.accel.kernels.tiles import Tiles, slots_of
from core.accel.plan import make_plan
from core.engine import ops
from core.engine.backends import Options
from core.engine.jit import close, jit
from tests.accel.stepping import Memory
from tests.accel.test_conv import evaluate, expected_conv, expected_conv_dw, laid_out


@pytest.fixture(params=[chip.name for chip in chips.CHIPS])
def chip(request, monkeypatch):
    chosen = next(chip for chip in chips.CHIPS if chip.name == request.param)
    if not chosen.features <= chips._features():
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("TILEWORK_CPU", request.param)
    chips.host.cache_clear()
    yield chosen
    chips.host.cache_clear()


def by_tiles(x, w, out, padding):
    """Steps of a convolution by tiles, however much work they are."""
    return winograd.conv(x, w, out, padding, None)


def gradient_by_tiles(x, ct, w, padding):
    """Steps of its weight gradient by tiles."""
    return winograd_dw.conv_dw(x, w, ct, padding)


def settings_of(padding):
    ones = (1,) * len(padding)
    return ones, padding, ones, ones


def out_shape(x, w, padding):
    space = [size + low + high - taps + 1
             for size, (low, high), taps in zip(x.shape[1:-1], padding, w.shape, strict=False)]
    return (x.shape[0], *space, w.shape[-1])


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def settings_at_random(rng):
    """Shapes of x and of the kernel, and the padding."""
    rank = int(rng.integers(1, 4))
    kernel = [int(taps) for taps in rng.choice([1, 3], rank)]
    kernel[int(rng.integers(rank))] = 3
    padding = tuple((0, 0) if taps == 1 else tuple(rng.integers(-1, 3, 2).tolist()) for taps in kernel)
    inputs, outputs = (int(rng.choice([1, 5, 16, 40])) for _ in range(2))
    return (int(rng.integers(1, 3)), *rng.integers(6, 12, rank).tolist(), inputs), (*kernel, inputs, outputs), padding


@pytest.mark.parametrize("seed", range(12))
def test_random_extents_and_strides(chip, seed):
    rng = np.random.default_rng(seed)
    x_shape, w_shape, padding = settings_at_random(rng)
    x, settings = numbers(rng, *x_shape), settings_of(padding)
    w = laid_out(rng, numbers(rng, *w_shape))[tuple(slice(None, None, -1) for _ in padding)]
    found = evaluate(by_tiles, [x, w], out_shape(x, w, padding), x.dtype, (padding,))
    magnitude = expected_conv(np.abs(x), np.abs(w), *settings, groups=1).max()
    expected = expected_conv(x, w, *settings, groups=1)
    assert np.abs(found - expected).max() <= 4 * np.finfo(np.float32).eps * magnitude


@pytest.mark.parametrize("seed", range(12))
def test_random_gradients(chip, seed, monkeypatch):
    monkeypatch.setattr(winograd_dw, "LEAST_AT_ONCE", 7)  # so that a run takes several lots of tiles
    monkeypatch.setattr(winograd_dw, "COLUMNS", 32)
    rng = np.random.default_rng(seed)
    x_shape, w_shape, padding = settings_at_random(rng)
    x, settings = numbers(rng, *x_shape), settings_of(padding)
    ct = numbers(rng, *out_shape(x, np.empty(w_shape), padding))
    found = evaluate(gradient_by_tiles, [x, ct], w_shape, x.dtype, (padding,))
    magnitude = expected_conv_dw(np.abs(x), np.abs(ct), w_shape[:-2], *settings, groups=1).max()
    expected = expected_conv_dw(x, ct, w_shape[:-2], *settings, groups=1)
    assert np.abs(found - expected).max() <= 4 * np.finfo(np.float32).eps * magnitude


LARGE = [((1, 33, 33, 33, 32), (3, 3, 3, 32, 32)), ((2, 28, 28, 128), (3, 3, 128, 128)),
         ((4, 8, 8, 384), (1, 3, 384, 384))]


def error(steps, expected):
    """Root mean square of what steps, which take memory and a view of the result, differ from float64."""
    memory, found = Memory(), np.empty(expected.shape, np.float32)
    memory.run(steps(memory, memory.view(found)), 1)
    return np.sqrt(np.mean((found - expected) ** 2))


@pytest.mark.parametrize("shape, kernel", LARGE)
def test_errors_are_those_of_the_sum_over_taps(shape, kernel, monkeypatch):
    rng = np.random.default_rng(0)
    x, w, ct = numbers(rng, *shape), numbers(rng, *kernel), numbers(rng, *shape[:-1], kernel[-1])
    padding, ones = tuple((taps // 2, taps // 2) for taps in kernel[:-2]), (1,) * (len(kernel) - 2)
    for files, views, expected in [
            ((winograd, conv_kernels.conv), (x, w), expected_conv(x, w, *settings_of(padding), groups=1)),
            ((winograd_dw, conv_kernels.conv_dw), (x, ct),
             expected_conv_dw(x, ct, kernel[:-2], *settings_of(padding), groups=1))]:
        file, build = files
        errors = []
        for by_tiles_chosen in (True, False):
            monkeypatch.setattr(file, "fits", lambda *arguments, chosen=by_tiles_chosen: chosen)
            errors.append(error(lambda memory, out, build=build, views=views: build(
                *map(memory.view, views), out, ones, padding, ones, ones, 1), expected))
        assert errors[0] <= 1.5 * errors[1]


def test_units_share_the_outputs_of_few_tiles():
    memory = Memory()
    x, w = (memory.view(np.zeros(shape, np.float32)) for shape in ((1, 4, 4, 4, 256), (3, 3, 3, 256, 256)))
    assert by_tiles(x, w, x, ((1, 1),) * 3)[-1].extent >= 4


def test_tiles_of_few_pixels_are_for_kernels_that_are_transformed_once():
    w, x = ops.zeros((3, 3, 3, 64, 64)), ops.zeros((1, 4, 4, 4, 64))
    stride, padding, dilation, input_dilation = settings_of(((1, 1),) * 3)
    graph = close(jit(lambda w, x: ops.conv(x, w, stride=stride, padding=padding, dilation=dilation,
                                            input_dilation=input_dilation, groups=1)).trace(w, x))
    by_held = {held: make_plan(graph, Options(held=held), "cpu") for held in (0, 1)}
    names = {held: [step.name for step in (*plan.prologue, *plan.body)] for held, plan in by_held.items()}
    assert "winograd conv" in names[1] and "winograd conv" not in names[0]


@pytest.mark.parametrize("extent", [2, 3, 4, 7, 8])
def test_slots_hold_the_pixels_of_successive_tiles_wherever_they_begin(extent):
    memory = Memory()
    x, w = (memory.view(np.zeros(shape, np.float32)) for shape in ((1, 9, extent, 1), (3, 3, 1, 1)))
    along, starts = -(-extent // 2), [min(tile, extent - 2) for tile in range(0, extent, 2)]
    for count in range(1, 12):
        met = [len({(tile // along, starts[tile % along] + pixel) for tile in range(first, first + count)
                    for pixel in range(4)}) for first in range(along)]
        slots = slots_of(Tiles.over(x, w, x, ((1, 1), (1, 1))), count)
        assert slots == max(met) if extent % 2 == 0 else slots >= max(met)


def test_small_whole_numbers_are_exact(chip):
    rng = np.random.default_rng(1)
    x, w = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((2, 9, 7, 8, 20), (3, 3, 3, 20, 18)))
    padding = ((1, 1),) * 3
    found = evaluate(by_tiles, [x, w], (*x.shape[:-1], 18), x.dtype, (padding,))
    np.testing.assert_array_equal(found, expected_conv(x, w, *settings_of(padding), groups=1))
    gradient = evaluate(gradient_by_tiles, [x, found[..., :5]], (3, 3, 3, 20, 5), x.dtype, (padding,))
    expected = expected_conv_dw(x, found[..., :5], (3, 3, 3), *settings_of(padding), groups=1)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_what_is_not_finite_reaches_only_those_who_meet_it(chip, value):
    rng = np.random.default_rng(2)
    x, w = numbers(rng, 1, 9, 10, 17), np.abs(numbers(rng, 3, 3, 17, 33)) + 1
    x[0, 4, 5, 3] = value
    padding = ((1, 1), (1, 1))
    found = evaluate(by_tiles, [x, w], (1, 9, 10, 33), x.dtype, (padding,))
    with np.errstate(over="ignore"):
        expected = expected_conv(x, w, *settings_of(padding), groups=1).astype(np.float32)
    hit = np.zeros(found.shape, bool)
    hit[:, 3:6, 4:7] = True
    np.testing.assert_array_equal(found[hit], expected[hit])
    np.testing.assert_allclose(found[~hit], expected[~hit], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_only_the_gradients_that_meet_it(chip, value):
    rng = np.random.default_rng(2)
    x, ct, padding = numbers(rng, 2, 8, 9, 17), np.abs(numbers(rng, 2, 8, 9, 33)) + 1, ((1, 1), (1, 1))
    x[1, 0, 0, 3] = value  # a corner, which does not meet all taps
    found = evaluate(gradient_by_tiles, [x, ct], (3, 3, 17, 33), x.dtype, (padding,))
    expected = expected_conv_dw(x, ct, (3, 3), *settings_of(padding), groups=1).astype(np.float32)
    hit = ~np.isfinite(expected)
    assert hit.sum() == 4 * 33
    np.testing.assert_array_equal(found[hit], expected[hit])
    np.testing.assert_allclose(found[~hit], expected[~hit], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("extent", [8, 9])
def test_what_follows_a_convolution_is_done_with_it(extent):
    rng = np.random.default_rng(3)
    x, w = numbers(rng, 2, extent, extent, 64), numbers(rng, 3, 3, 64, 64)
    bias, other = numbers(rng, 64), numbers(rng, 2, extent, extent, 64)

    def layer(x, other):
        y = ops.conv(x, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), input_dilation=(1, 1), groups=1)
        return ops.maximum(y + bias, 0.0) + other

    names = [name for name, *_ in jit(layer).report(x, other).steps]
    assert names == ["pack", "winograd conv+add+max+add"]
    expected = jit(layer, device="reference")(x, other).numpy()
    np.testing.assert_allclose(jit(layer)(x, other).numpy(), expected, rtol=1e-4, atol=1e-4)


def fits(x_shape, w_shape, file=winograd, **changes):
    """Whether tiles are chosen for a convolution that keeps the extents, with one setting or another."""
    memory = Memory()
    dtype = changes.pop("dtype", np.float32)
    x, w, out = (memory.view(np.zeros(shape, dtype)) for shape in (x_shape, w_shape, (*x_shape[:-1], w_shape[-1])))
    x = replace(x, strides=changes.pop("strides", x.strides))
    rank = len(x_shape) - 2
    given = {"stride": (1,) * rank, "padding": tuple((taps // 2,) * 2 for taps in w_shape[:-2]),
             "dilation": (1,) * rank, "groups": 1} | changes
    return file.fits(x, w, out, **given)


LAYER = ((8, 28, 28, 64), (3, 3, 64, 64))


BOTH = pytest.mark.parametrize("file", [winograd, winograd_dw], ids=["conv", "conv_dw"])


@BOTH
@pytest.mark.parametrize("x, w", [((8, 28, 28, 64), (3, 3, 64, 64)), ((8, 56, 56, 64), (1, 3, 64, 64)),
                                  ((8, 56, 56, 64), (3, 1, 64, 64)), ((1, 17, 17, 17, 32), (3, 3, 3, 32, 32))])
def test_layers_with_three_taps_go_by_tiles(file, x, w):
    assert fits(x, w, file)


@BOTH
@pytest.mark.parametrize("x, w", [((1, 28, 28, 64), (1, 1, 64, 64)), ((1, 28, 28, 64), (5, 3, 64, 64)),
                                  ((1, 1, 28, 64), (3, 3, 64, 64)), ((1, 4, 4, 512), (3, 3, 512, 512)),
                                  ((1, 64, 64, 1), (3, 3, 1, 64))])
def test_other_kernels_and_few_tiles_or_channels_do_not(file, x, w):
    assert not fits(x, w, file)


@BOTH
@pytest.mark.parametrize("changes", [{"stride": (2, 1)}, {"dilation": (1, 2)}, {"groups": 2}, {"dtype": np.float64},
                                     {"strides": (50176, 1, 28, 784)}])
def test_other_settings_do_not(file, changes):
    assert not fits(*LAYER, file, **changes)
