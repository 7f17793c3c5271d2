"""Products of widened bfloat16: that narrow kernels run them, on every path of this machine, and what they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import chips
from core.accel.passes import recompute
from core.accel.plan import make_plan
from core.engine import ops
from core.engine.array import as_array
from core.engine.backends import Options
from core.engine.jit import close, jit
from tests.accel.agreement import assert_agree

PATHS = [chip.name for chip in chips.CHIPS if chip.features <= chips._features()]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Each family of processors that this machine can be."""
    monkeypatch.setenv("TILEWORK_CPU", request.param)
    chips.host.cache_clear()
    yield chips.host()
    chips.host.cache_clear()


def rounded(x):
    return x.astype("bf16").astype("f32")


def product(a, b):
    return rounded(a) @ rounded(b)


def conv(x, w, **given):
    plain = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "input_dilation": (1, 1), "groups": 1}
    return ops.conv(rounded(x), rounded(w), **(plain | given))


def conv_dw(x, ct):
    return ops.conv_dw(rounded(x), rounded(ct), kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)),
                       dilation=(1, 1), input_dilation=(1, 1), groups=1)


def steps(x, w):
    """Products in a loop, of which one only adds up and goes behind it."""
    def step(carry, row):
        state, total = carry
        return (product(state, w) / 64 + row, total + product(state.T, row)), None

    return ops.scan(step, (ops.zeros((3, 12)), ops.zeros((12, 12))), x)[0][1]


IMAGES, KERNELS = (2, 9, 8, 20), (3, 3, 20, 33)
CASES = {  # function, shapes, products of narrow and of wide numbers
    "dot": (product, ((20, 40), (40, 33)), 1, 0),
    "one row": (product, ((1, 40), (40, 33)), 1, 0),
    "one column": (product, ((17, 40), (40, 1)), 1, 0),
    "long": (product, ((7, 3100), (3100, 5)), 1, 0),
    "batch": (product, ((3, 9, 10), (3, 10, 5)), 1, 0),
    "looked at": (lambda a, b: rounded(a).T @ rounded(b).reshape(40, 33), ((40, 20), (33, 40)), 1, 0),
    "epilogue": (lambda a, b: ops.maximum(product(a, b) + b[0], 0), ((20, 40), (40, 33)), 1, 0),
    "two layers": (lambda a, b: product(ops.maximum(product(a, b), 0) / 64, b.T), ((20, 40), (40, 33)), 2, 0),
    "also wide": (lambda a, b: product(a, b) + a @ b + a[0, 0], ((20, 40), (40, 33)), 1, 1),
    "one wide operand": (lambda a, b: rounded(a) @ b, ((20, 40), (40, 33)), 0, 1),
    "conv": (conv, (IMAGES, KERNELS), 1, 0),
    "stride": (lambda x, w: conv(x, w, stride=(2, 1)), (IMAGES, KERNELS), 1, 0),
    "transposed": (lambda x, w: conv(x, w, input_dilation=(2, 2)), (IMAGES, KERNELS), 4, 0),
    "pixels": (lambda x, w: conv(x, w, padding=((0, 0), (0, 0))), (IMAGES, (1, 1, 20, 33)), 1, 0),
    "groups": (lambda x, w: conv(x, w, groups=2), (IMAGES, (3, 3, 10, 70)), 1, 0),
    "depthwise": (lambda x, w: conv(x, w, groups=20), (IMAGES, (3, 3, 1, 20)), 0, 1),
    "conv_dw": (conv_dw, (IMAGES, (2, 9, 8, 33)), 1, 0),
    "loop": (steps, ((97, 3, 12), (12, 12)), 2, 0),
}


def drawn(shape, whole, seed):
    """Small integers, whose sums are exact, or numbers that bfloat16 rounds."""
    numbers = np.random.default_rng(seed)
    return as_array(numbers.integers(-8, 9, shape) if whole else numbers.normal(size=shape)).astype("f32")


def products(report):
    """How many products of narrow and of wide numbers a report lists."""
    names = [name for name, *_ in report.steps if name.split("+")[0] in
             ("matmul", "matmul dot", "matmul dots", "matmul thin", "conv", "conv_dw", "depthwise conv")]
    narrow = [name for name in names if "'bf16'" in report.sources[name]]
    return len(narrow), len(names) - len(narrow)


@pytest.mark.parametrize("name", CASES)
def test_narrow_kernels_run_them(name, path):
    function, shapes, narrow, wide = CASES[name]
    exact = name not in ("two layers", "loop")
    arguments = [drawn(shape, exact, seed) for seed, shape in enumerate(shapes)]
    found, expected = jit(function)(*arguments), jit(function, device="reference")(*arguments)
    if exact:
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    else:
        assert_agree(expected, found)
    assert products(jit(function).report(*arguments)) == (narrow, wide)


@pytest.mark.parametrize("name", ["dot", "two layers", "also wide", "conv", "conv_dw", "depthwise"])
def test_nothing_removes_the_rounding(name, path):
    function, shapes, *_ = CASES[name]
    arguments = [drawn(shape, False, seed) for seed, shape in enumerate(shapes)]
    expected = jit(function, device="reference")(*arguments)
    assert_agree(expected, jit(function)(*arguments), 1e-5 if name != "two layers" else 3e-5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="off by"):
        patch.setitem(globals(), "rounded", lambda x: x)
        assert_agree(expected, jit(lambda *given: function(*given))(*arguments), 3e-5)


@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_the_unit_of_every_chip(chip, monkeypatch):
    """Plans for machines that this one is not: they need no compiler."""
    monkeypatch.setenv("TILEWORK_CPU", chip.name)
    monkeypatch.setattr(chips, "_features", lambda: chip.features | {feature for *_, feature in chip.narrow})
    chips.host.cache_clear()
    try:
        for function, shapes, narrow, _ in (CASES["epilogue"], CASES["conv"], CASES["pixels"]):
            report = jit(function, device="null").report(*(drawn(shape, True, 0) for shape in shapes))
            unit = {"amx": "tiles", "avx512": "avx512"}.get(chip.name, "vectors")
            texts = [text for text in report.sources.values() if "product_kernel" in text]
            assert [f"element='bf16', unit='{unit}'" in text for text in texts] == [True] * narrow
    finally:
        chips.host.cache_clear()


def test_what_is_made_again_is_rounded_again(monkeypatch):
    small = replace(chips.host(), second_cache=64)
    monkeypatch.setattr(recompute, "host", lambda: small)

    def function(x, w):
        shared = rounded(x * 1.7)
        return shared @ rounded(w), ops.sum(shared - x, 0), ops.exp(shared + x)

    arguments = drawn((300, 40), False, 0), drawn((40, 33), False, 1)
    for expected, found in zip(jit(function, device="reference")(*arguments), jit(function)(*arguments), strict=True):
        assert_agree(expected, found)


def test_held_weights_are_rounded_and_packed_once():
    def layer(w, x):
        return ops.maximum(product(x, w), 0)

    w, x = drawn((40, 33), True, 0), drawn((20, 40), True, 1)
    plan = make_plan(close(jit(layer).trace(w, x)), Options(held=1), "cpu")
    assert [step.name for step in plan.prologue] == ["convert", "pack"]
    assert [step.name for step in plan.body] == ["convert", "matmul+max"]
    np.testing.assert_array_equal(jit(layer).bind(w)(x).numpy(), jit(layer, device="reference")(w, x).numpy())


def test_a_layer_hands_rounded_numbers_to_the_next():
    def layers(x, *weights):
        for w in weights:
            x = ops.maximum(product(x, w), 0)
        return x

    arguments = [drawn(shape, True, 0) for shape in ((20, 40), (40, 48), (48, 32))]
    plan = make_plan(close(jit(layers).trace(*arguments)), Options(), "cpu")
    (first,) = (step for step in plan.body if step.name == "matmul+max+convert")
    assert {first.operands[index].dtype.short for index in first.writes} == {"bf16"}
