"""Convolutions and their weight gradients against a loop over taps in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from core.accel.kernels.conv import conv, conv_dw
from core.engine import dtypes, ops
from core.engine.grad import vjp
from core.engine.jit import jit
from core.engine.ops import mirror
from tests.accel.stepping import Memory


def padded(x, padding, input_dilation):
    """x as a convolution sees it."""
    for axis, (spread, (low, high)) in enumerate(zip(input_dilation, padding, strict=True), start=1):
        size = x.shape[axis]
        positions = np.arange(size) * spread + low
        total = ((size - 1) * spread + 1 if size else 0) + low + high
        inside = (positions >= 0) & (positions < total)
        spread_out = np.zeros((*x.shape[:axis], total, *x.shape[axis + 1:]))
        np.moveaxis(spread_out, axis, 0)[positions[inside]] = np.moveaxis(x, axis, 0)[inside]
        x = spread_out
    return x


def out_space(space, kernel, stride, dilation):
    return tuple((size - (k - 1) * d - 1) // s + 1
                 for size, k, s, d in zip(space, kernel, stride, dilation, strict=True))


def windows(x, kernel, stride, padding, dilation, input_dilation):
    """For each tap, the input pixels that it meets."""
    x = padded(x.astype(np.float64), padding, input_dilation)
    space = out_space(x.shape[1:-1], kernel, stride, dilation)
    for tap in itertools.product(*map(range, kernel)):
        yield tap, x[(slice(None), *(slice(k * d, k * d + (n - 1) * s + 1, s)
                                     for k, d, n, s in zip(tap, dilation, space, stride, strict=True)))]


def expected_conv(x, w, *settings, groups):
    parts = []
    for xs, ws in zip(np.split(x, groups, -1), np.split(w.astype(np.float64), groups, -1), strict=True):
        parts.append(sum(seen @ ws[tap] for tap, seen in windows(xs, w.shape[:-2], *settings)))
    return np.concatenate(parts, -1)


def expected_conv_dw(x, ct, kernel, *settings, groups):
    out = np.zeros((*kernel, x.shape[-1] // groups, ct.shape[-1]))
    cts = np.split(ct.astype(np.float64), groups, -1)
    for group, xs in enumerate(np.split(x, groups, -1)):
        columns = slice(group * cts[0].shape[-1], (group + 1) * cts[0].shape[-1])
        for tap, seen in windows(xs, kernel, *settings):
            out[tap][:, columns] = np.tensordot(seen, cts[group], (range(seen.ndim - 1), range(seen.ndim - 1)))
    return out


def evaluate(build, inputs, shape, dtype, arguments):
    """The output of a kernel, begun as NaN; the same bits whole, in two and in seven pieces."""
    outputs = []
    for pieces in (1, 2, 7):
        memory = Memory()
        out = memory.garbage(shape, dtype)
        out.fill(np.nan)
        views = [memory.view(array) for array in inputs]
        views = [replace(view, dtype=dtypes.bfloat16) if view.dtype is dtypes.uint16 else view for view in views]
        memory.run(build(*views, memory.view(out), *arguments), pieces)
        outputs.append(out)
    assert outputs[0].tobytes() == outputs[1].tobytes() == outputs[2].tobytes()
    return outputs[0]


def assert_conv(rng, x, w, stride, padding, dilation, input_dilation, groups):
    """Both kernels agree with the loop over taps."""
    settings = (stride, padding, dilation, input_dilation)
    expected = expected_conv(x, w, *settings, groups=groups)
    bound = expected_conv(np.abs(x), np.abs(w), *settings, groups=groups) * np.finfo(x.dtype).eps * w[..., 0].size
    found = evaluate(conv, [x, w], expected.shape, x.dtype, (*settings, groups))
    assert (np.abs(found - expected) <= bound).all()
    ct = laid_out(rng, rng.standard_normal(expected.shape).astype(x.dtype))
    expected = expected_conv_dw(x, ct, w.shape[:-2], *settings, groups=groups)
    bound = expected_conv_dw(np.abs(x), np.abs(ct), w.shape[:-2], *settings, groups=groups)
    found = evaluate(conv_dw, [x, ct], expected.shape, x.dtype, (*settings, groups))
    assert (np.abs(found - expected) <= bound * np.finfo(x.dtype).eps * ct[..., 0].size).all()


def laid_out(rng, array):
    """The same values: contiguous, channels first in memory, or with gaps."""
    layout = rng.integers(3)
    if layout == 1:
        return np.ascontiguousarray(array.T).T
    if layout == 2:
        gapped = np.zeros([2 * extent for extent in array.shape], array.dtype)
        gapped[tuple(slice(None, None, 2) for _ in array.shape)] = array
        return gapped[tuple(slice(None, None, 2) for _ in array.shape)]
    return array


CASES = {  # x, w, stride, padding, dilation, input dilation, groups
    "pointwise": ((2, 5, 6, 40), (1, 1, 40, 70), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "3x3 same": ((1, 9, 11, 33), (3, 3, 33, 65), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "stem 7x7": ((2, 32, 30, 3), (7, 7, 3, 64), (2, 2), ((3, 3), (3, 3)), (1, 1), (1, 1), 1),
    "atrous": ((1, 14, 14, 8), (3, 3, 8, 16), (1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), 1),
    "transposed": ((1, 7, 7, 16), (4, 4, 16, 8), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2), 1),
    "transposed without overlap": ((2, 3, 5, 8), (4, 4, 8, 40), (1, 1), ((3, 3), (3, 3)), (1, 1), (4, 4), 1),
    "gradient of a strided pointwise": ((2, 4, 4, 40), (1, 1, 40, 33), (1, 1), ((0, 1), (0, 0)), (1, 1), (2, 2), 1),
    "gradient of a strided 3x3": ((2, 5, 5, 20), (3, 3, 20, 48), (1, 1), ((1, 2), (1, 1)), (1, 1), (2, 2), 1),
    "spread beyond the kernel": ((1, 4, 3, 9), (2, 2, 9, 7), (1, 1), ((1, 3), (4, 0)), (1, 1), (5, 3), 1),
    "spread, one pixel": ((2, 1, 2, 34), (2, 1, 17, 66), (3, 3), ((2, 2), (0, 0)), (2, 2), (1, 2), 2),
    "spread and strided alike": ((1, 6, 5, 6), (3, 4, 6, 8), (2, 4), ((2, 2), (3, 3)), (1, 1), (2, 6), 1),
    "spread and atrous alike": ((1, 6, 5, 6), (3, 3, 6, 8), (1, 3), ((3, 1), (5, 3)), (2, 3), (4, 3), 1),
    "spread in groups": ((2, 4, 5, 12), (3, 3, 6, 80), (1, 1), ((1, 1), (2, 0)), (1, 1), (2, 3), 2),
    "depthwise gradient": ((1, 5, 5, 24), (3, 3, 1, 24), (1, 1), ((1, 2), (1, 2)), (1, 1), (2, 2), 24),
    "spread sequence": ((3, 7, 12), (5, 12, 20), (1,), ((4, -3),), (1,), (3,), 1),
    "spread volume": ((1, 3, 2, 4, 16), (3, 3, 3, 16, 32), (1, 1, 1), ((1, 2),) * 3, (1, 1, 1), (2, 2, 2), 1),
    "cropped": ((1, 9, 9, 5), (2, 3, 5, 6), (1, 2), ((-1, -2), (-2, 0)), (1, 1), (1, 1), 1),
    "cropped and spread": ((1, 6, 4, 5), (2, 3, 5, 6), (1, 1), ((-3, 1), (2, -1)), (1, 1), (3, 2), 1),
    "depthwise": ((2, 8, 8, 24), (3, 3, 1, 24), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 24),
    "depthwise x2": ((1, 8, 8, 6), (3, 3, 1, 12), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 6),
    "wide groups": ((1, 6, 6, 10), (3, 3, 5, 80), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 2),
    "one pixel": ((3, 1, 1, 4), (3, 3, 4, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "sequence": ((3, 50, 12), (5, 12, 20), (2,), ((4, 0),), (2,), (1,), 1),
    "volume": ((1, 6, 7, 8, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), (1, 1, 1), 1),
    "pointwise to few": ((2, 5, 6, 40), (1, 1, 40, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "pointwise to two, padded": ((2, 5, 7, 37), (1, 1, 37, 2), (1, 1), ((1, 0), (0, 2)), (1, 1), (1, 1), 1),
    "pointwise from two": ((2, 5, 6, 2), (1, 1, 2, 35), (1, 1), ((0, 0), (1, 0)), (1, 1), (1, 1), 1),
    "pointwise to one": ((2, 5, 7, 33), (1, 1, 33, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "pointwise to one, padded": ((2, 5, 7, 16), (1, 1, 16, 1), (1, 1), ((1, 0), (0, 1)), (1, 1), (1, 1), 1),
    "pointwise to one, spread": ((2, 5, 7, 16), (1, 1, 16, 1), (1, 1), ((1, 0), (0, 1)), (1, 1), (2, 3), 1),
    "pointwise, many pixels": ((2, 20, 25, 20), (1, 1, 20, 70), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "strided, many pixels": ((2, 31, 40, 17), (1, 1, 17, 66), (2, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "pointwise in groups": ((2, 21, 20, 20), (1, 1, 10, 40), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 2),
    "short": ((2, 9, 40, 1), (3, 3, 1, 70), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "short, strided and atrous": ((1, 20, 37, 1), (3, 4, 1, 34), (2, 3), ((2, 2), (1, 3)), (2, 2), (1, 1), 1),
    "short, spread": ((2, 9, 35, 2), (2, 2, 2, 40), (1, 1), ((1, 1), (1, 0)), (1, 1), (2, 2), 1),
    "short sequence": ((2, 77, 2), (5, 2, 40), (1,), ((4, 0),), (1,), (1,), 1),
    "short volume": ((1, 4, 5, 33, 3), (2, 2, 1, 3, 17), (1, 2, 1), ((0, 1),) * 3, (1, 1, 1), (1, 1, 1), 1),
    "one channel": ((1, 20, 20, 1), (5, 5, 1, 6), (1, 1), ((2, 2), (2, 2)), (1, 1), (1, 1), 1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_table(case, dtype):
    x_shape, w_shape, *settings = CASES[case]
    rng = np.random.default_rng(0)
    assert_conv(rng, rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype), *settings)


@pytest.mark.parametrize("seed", range(20))
def test_random_settings_and_strides(seed):
    rng = np.random.default_rng(seed)
    done = 0
    while done < 10:
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation = (tuple(rng.integers(1, high, rank).tolist()) for high in (4, 4, 3))
        input_dilation = tuple(rng.integers(1, 5, rank).tolist()) if rng.random() < 0.4 else (1,) * rank
        padding = tuple(map(tuple, rng.integers(-1, 3, (rank, 2)).tolist()))
        groups, group_in, group_out = (int(rng.choice(few)) for few in ([1, 1, 2, 4], [1, 3, 17], [1, 3, 33]))
        shape = (int(rng.integers(1, 4)), *rng.integers(1, 9, rank).tolist(), group_in * groups)
        dtype = rng.choice(["float32", "float64"])
        sizes = [(n - 1) * spread + 1 + low + high
                 for n, spread, (low, high) in zip(shape[1:-1], input_dilation, padding, strict=True)]
        if min(sizes) < 1 or min(out_space(sizes, kernel, stride, dilation)) < 1:
            continue
        w = laid_out(rng, rng.standard_normal((*kernel, group_in, group_out * groups)).astype(dtype))
        if rng.random() < 0.5:
            w = w[tuple(slice(None, None, -1) for _ in kernel)]
        x = laid_out(rng, rng.standard_normal(shape).astype(dtype))
        assert_conv(rng, x, w, stride, padding, dilation, input_dilation, groups)
        done += 1


SAME = ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1))


@pytest.mark.parametrize("groups", [1, 6])
def test_nan_stays_within_the_kernel(groups):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 9, 9, 6)), rng.standard_normal((3, 3, 6 // groups, 6))
    x[0, 4, 4] = np.nan
    found = evaluate(conv, [x, w], x.shape, x.dtype, (*SAME, groups))
    hit = np.zeros(x.shape, bool)
    hit[:, 3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(found), hit)


@pytest.mark.parametrize("groups", [1, 6])
def test_empty_sums_are_zero(groups):
    nothing = np.zeros((0, 5, 5, 6))
    found = evaluate(conv_dw, [nothing, nothing], (3, 3, 6 // groups, 6), "float64", (*SAME, groups))
    assert (found == 0).all()
    w = np.ones((3, 3, 6 // groups, 6))
    assert evaluate(conv, [nothing, w], nothing.shape, "float64", (*SAME, groups)).size == 0


def test_no_channels_give_zeros():
    found = evaluate(conv, [np.zeros((1, 4, 4, 0)), np.zeros((3, 3, 0, 5))], (1, 4, 4, 5), "float64", (*SAME, 1))
    assert (found == 0).all()


@pytest.mark.parametrize("groups", [1, 8])
def test_bfloat16_operands_sum_in_float32(groups):
    rng = np.random.default_rng(2)
    x, w, ct = (dtypes.encode_bfloat16(rng.standard_normal(shape).astype(np.float32))
                for shape in ((1, 9, 9, 8), (3, 3, 8 // groups, 8), (1, 9, 9, 8)))
    x32, w32, ct32 = map(dtypes.decode_bfloat16, (x, w, ct))
    found = evaluate(conv, [x, w], x.shape, "float32", (*SAME, groups))
    np.testing.assert_allclose(found, expected_conv(x32, w32, *SAME, groups=groups), atol=1e-4)
    found = evaluate(conv_dw, [x, ct], w.shape, "float32", (*SAME, groups))
    np.testing.assert_allclose(found, expected_conv_dw(x32, ct32, (3, 3), *SAME, groups=groups), atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("spread", [2, 3])
def test_zeros_between_pixels_are_not_multiplied(kernel, spread):
    memory = Memory()
    full = kernel - 1
    out_size = 4 * spread + 1 + full
    x, w, out = (memory.view(np.zeros(shape)) for shape in ((1, 5, 5, 2), (kernel, kernel, 2, 3),
                                                            (1, out_size, out_size, 3)))
    steps = conv(x, w, out, (1, 1), ((full, full),) * 2, (1, 1), (spread, spread), 1)
    met = sum((pixel + tap - full) % spread == 0 for pixel in range(out_size) for tap in range(kernel))
    assert sum(step.flops for step in steps) == 2 * 2 * 3 * met**2


@pytest.mark.parametrize("channels, names", [(20, ["conv_dw"]), (400, ["pack", "conv_dw"])])
def test_a_gradient_of_few_rows_reads_its_columns_where_they_lie(channels, names):
    memory = Memory()
    x, ct, out = (memory.view(np.zeros(shape, np.float32)) for shape in ((1, 5, 5, channels), (1, 5, 5, 40),
                                                                         (1, 1, channels, 40)))
    steps = conv_dw(x, ct, out, (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
    assert [step.name for step in steps] == names


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_reads_a_mirrored_kernel_where_it_lies(groups):
    def gradient(ct, w):
        return vjp(lambda x: ops.conv(x, w, stride=(2, 1), padding=((1, 1), (1, 1)), dilation=(1, 1),
                                      input_dilation=(1, 1), groups=groups), np.zeros((1, 7, 6, 8), np.float32))[1](ct)

    rng = np.random.default_rng(4)
    ct, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 6, 66), (3, 3, 8 // groups, 66)))
    expected = jit(gradient, device="reference")(ct, w).numpy()
    np.testing.assert_allclose(jit(gradient)(ct, w).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert "gather" not in [name for name, *_ in jit(gradient).report(ct, w).steps]


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1, 2)])
def test_a_mirrored_array_is_a_view(axes):
    x = np.random.default_rng(5).standard_normal((3, 4, 33)).astype(np.float32)

    def functions(x):
        mirrored = mirror(x, axes)
        return (mirrored, mirrored * 2 + x, ops.sum(mirrored, axis=2), ops.exp(mirrored[:, 1:]),
                ops.reshape(mirrored, shape=(12, 33)) @ ops.transpose(x[0], axes=(1, 0)), mirror(mirrored, axes[:1]))

    for found, expected in zip(jit(functions)(x), jit(functions, device="reference")(x), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_an_input_without_borders_is_not_copied():
    memory = Memory()
    x, w, out = (memory.view(np.zeros(shape)) for shape in ((1, 6, 6, 4), (3, 3, 4, 4), (1, 3, 4, 4)))
    steps = conv(x, w, out, (1, 1), ((-1, 0), (0, 0)), (1, 1), (1, 1), 1)
    assert [step.name for step in steps] == ["pack", "conv"]
    assert steps[-1].operands[0].buffer is x.buffer


def test_out_must_be_contiguous():
    memory = Memory()
    x, w = memory.view(np.zeros((1, 4, 4, 2))), memory.view(np.zeros((1, 1, 2, 2)))
    out = memory.view(np.zeros((1, 4, 4, 2)).transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="contiguous array"):
        conv(x, w, out, (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
