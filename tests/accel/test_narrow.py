"""Products and convolutions of bfloat16 and 8-bit integers on every unit, against numpy in float64 and int64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.accel import chips, threads
from core.accel.kernels import conv, float_panels, gemm, grouped, narrow, narrow_panels, thin
from core.engine import dtypes
from core.engine.errors import ConfigError
from core.engine.jit import jit
from core.engine.ops import contract
from tests.accel.stepping import Memory
from tests.accel.test_conv import CASES, expected_conv

KINDS = {  # element types of a, b and out
    "bf16": ("bf16", "bf16", "f32"), "bf16 rounded": ("bf16", "bf16", "bf16"),
    "i8": ("i8", "i8", "i32"), "u8": ("u8", "i8", "i32"),
}
SHAPES = [  # batch, M, K, N
    ((), 1, 1, 1), ((), 16, 32, 16), ((), 32, 64, 32), ((), 33, 65, 70), ((), 31, 40, 33), ((), 17, 300, 5),
    ((), 3, 7, 64), ((), 1, 500, 40), ((), 40, 1, 1), ((), 5, 0, 3), ((), 0, 4, 4), ((), 4, 4, 0), ((), 70, 2000, 150),
    ((), 32, 3100, 32), ((3,), 16, 24, 40), ((2, 3), 7, 9, 5), ((0,), 3, 3, 3),
    ((), 40, 64, 1), ((), 37, 70, 2), ((2,), 33, thin.EXACT_DEPTH, 2), ((), 40, thin.EXACT_DEPTH + 1, 1),
]
LAYOUTS = [("plain", "plain"), ("transposed", "transposed"), ("within", "within"), ("gapped", "plain")]


@pytest.fixture(params=chips.CHIPS, ids=lambda chip: chip.name)
def chip(request, monkeypatch):
    """A chip that the kernels take for this machine, as far as its units are there."""
    if request.param.name == "amx" and not request.param.features <= chips._features():
        pytest.skip("this machine has no tiles")
    for module in (narrow, narrow_panels, grouped, conv, thin, float_panels):
        monkeypatch.setattr(module, "host", lambda: request.param)
    return request.param


def values(rng, shape, element):
    """Random storage of an element type, over all of its numbers if they are integers."""
    if element == "bf16":
        return dtypes.encode_bfloat16(rng.standard_normal(shape).astype(np.float32))
    limits = np.iinfo(dtypes.as_dtype(element).storage)
    return rng.integers(limits.min, limits.max + 1, shape).astype(limits.dtype)


def factors(rng, batch, m, k, n, kind):
    """Random a and b of a kind."""
    left, right, _ = KINDS[kind]
    return values(rng, (*batch, m, k), left), values(rng, (*batch, k, n), right)


def laid_out(array, layout):
    """The same values with other strides; what lies between and around them is NaN, or the largest integer."""
    poison = 0x7FC0 if array.dtype == np.uint16 else np.iinfo(array.dtype).max
    if layout == "transposed":
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "plain":
        return array
    step = 2 if layout == "gapped" else 1
    around = np.full([step * extent + 6 for extent in array.shape], poison, array.dtype)
    inside = around[tuple(slice(3, 3 + step * extent, step) for extent in array.shape)]
    inside[...] = array
    return inside


def view(memory, array, element):
    return replace(memory.view(array), dtype=dtypes.as_dtype(element))


def numbers(array, element):
    """Storage as float64, or as int64."""
    if element == "bf16":
        return dtypes.decode_bfloat16(array).astype(np.float64)
    return array.astype(np.float64 if element == "f32" else np.int64)


def run(build, arrays, shape, kind, pieces):
    """The output of the steps of ``build(a, b, out)``, begun as NaN."""
    memory = Memory()
    out = memory.garbage(shape, dtypes.as_dtype(KINDS[kind][2]).storage)
    out.view(np.uint8)[...] = 0xFF
    operands = [view(memory, array, element) for array, element in zip((*arrays, out), KINDS[kind], strict=True)]
    memory.run(build(*operands), pieces)
    return out


def assert_near(found, expected, magnitude, terms, kind):
    """Integers are equal modulo 2^32; bfloat16 sums are right to the rounding of their additions, and of the result."""
    if kind in ("i8", "u8"):
        np.testing.assert_array_equal(found, expected.astype(np.int32))
        return
    element = KINDS[kind][2]
    bound = magnitude * np.finfo(np.float32).eps * (terms + 1)
    if element == "bf16":
        bound = bound * 2 + np.abs(expected) * 2.0**-8
    assert (np.abs(numbers(found, element) - expected) <= bound).all()


def assert_product(a, b, kind):
    """The product is right, and has the same bits in one and in five pieces."""
    left, right, _ = KINDS[kind]
    shape = (*a.shape[:-1], b.shape[-1])
    found = run(gemm.matmul, (a, b), shape, kind, 1)
    a64, b64 = numbers(a, left), numbers(b, right)
    assert_near(found, a64 @ b64, np.abs(a64) @ np.abs(b64), a.shape[-1], kind)
    assert found.tobytes() == run(gemm.matmul, (a, b), shape, kind, 5).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_products(chip, kind):
    rng = np.random.default_rng(0)
    for number, (batch, m, k, n) in enumerate(SHAPES):
        a, b = factors(rng, batch, m, k, n, kind)
        for layouts in LAYOUTS if m * k * n < 50_000 else LAYOUTS[number % 2:number % 2 + 1]:
            assert_product(laid_out(a, layouts[0]), laid_out(b, layouts[1]), kind)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_random_products(kind, seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        batch = tuple(rng.integers(1, 4, rng.integers(0, 3)))
        m, k, n = (int(rng.choice([1, 2, 15, 16, 17, 31, 32, 33, 70, 130])) for _ in range(3))
        a, b = factors(rng, batch, m, k, n, kind)
        layouts = rng.choice(["plain", "transposed", "within", "gapped"], 2)
        assert_product(laid_out(a, layouts[0]), laid_out(b, layouts[1]), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, k, n", [(300, 1700, 330), (600, 64, 1100), (40, 9000, 40)])
def test_products_in_groups_bands_and_passes(m, k, n, kind):
    rng = np.random.default_rng(1)
    assert_product(*factors(rng, (), m, k, n, kind), kind)


@pytest.mark.parametrize("kind", ["bf16", "bf16 rounded", "i8"])
def test_products_whose_rows_collide_or_are_few(kind):
    rng = np.random.default_rng(2)
    for m, k, n in [(20, 4096, 20), (35, 4096, 7), (16, 300, 16)]:
        assert_product(*factors(rng, (), m, k, n, kind), kind)


@pytest.mark.parametrize(("m", "k", "n", "heights"), [
    (50, 4096, 40, "8, 4, 1"), (50, 4032, 40, "14, 8, 4, 1"), (50, 2048, 16, "14, 8, 4, 1"), (16, 64, 40, "8, 4, 1"),
    (17, 64, 40, "14, 8, 4, 1")])
def test_a_block_is_low_where_rows_collide_or_are_few(m, k, n, heights, monkeypatch):
    """Rows of 4096 bytes all fall into one set of the cache, those of 2048 into two."""
    avx512 = next(chip for chip in chips.CHIPS if chip.name == "avx512")
    for module in (narrow, narrow_panels):
        monkeypatch.setattr(module, "host", lambda: avx512)
    memory = Memory()
    a, b, out = np.zeros((m, k), np.int8), np.zeros((k, n), np.int8), np.zeros((m, n), np.int32)
    text = gemm.matmul(memory.view(a), memory.view(b), memory.view(out))[-1].kernel
    assert f"heights=({heights}), vectors={1 if n <= 16 else 2})" in text


@pytest.mark.parametrize("kind", ["i8", "u8"])
def test_sums_of_extreme_integers_wrap(chip, kind):
    for low in (True, False):
        limits = np.iinfo(dtypes.as_dtype(KINDS[kind][0]).storage)
        a = np.full((3, 140_000), limits.min if low else limits.max, limits.dtype)
        assert_product(a, np.full((140_000, 2), -128, np.int8), kind)


@pytest.mark.parametrize("kind", ["bf16", "bf16 rounded"])
def test_nan_and_infinity_reach_their_rows_and_columns_only(chip, kind):
    rng = np.random.default_rng(4)
    a, b = values(rng, (40, 70), "bf16"), values(rng, (70, 40), "bf16")
    a[0, 3], a[1, 5], a[20, 69], b[7, 39] = 0x7FC0, 0x7F80, 0x7FC0, 0xFF80
    with np.errstate(invalid="ignore"):
        expected = numbers(a, "bf16") @ numbers(b, "bf16")
    found = numbers(run(gemm.matmul, (a, b), (40, 40), kind, 2), KINDS[kind][2])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
    assert np.isfinite(found[np.isfinite(expected)]).all()


def test_packed_once_serves_many(chip):
    rng = np.random.default_rng(6)
    b = values(rng, (50, 70), "i8")
    memory = Memory()
    packed, steps = narrow_panels.pack(memory.view(b), dtypes.int8)
    memory.run(steps, 2)
    for m in (1, 16, 40):
        a, out = values(rng, (m, 50), "i8"), memory.garbage((m, 70), np.int32)
        memory.run(narrow.matmul_packed(memory.view(a), packed, memory.view(out)), 2)
        np.testing.assert_array_equal(out, a.astype(np.int32) @ b)


def test_columns_of_out_must_be_neighbours():
    memory = Memory()
    square = memory.view(np.zeros((4, 4), np.int8))
    with pytest.raises(ValueError, match="last stride of out must be 1; it is 4"):
        gemm.matmul(square, square, memory.view(np.zeros((4, 4), np.int32).T))


MORE_CASES = {
    "even chunks": ((2, 9, 9, 48), (3, 3, 48, 40), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "tiles across lines": ((2, 15, 15, 64), (3, 3, 64, 64), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "wide lines": ((1, 6, 50, 32), (3, 3, 32, 32), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "passes": ((1, 7, 6, 512), (3, 3, 512, 40), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "strided": ((1, 20, 41, 64), (3, 3, 64, 32), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "groups of tiles": ((1, 9, 9, 64), (3, 3, 32, 96), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 2),
}


def assert_convolutions(kind):
    """All cases are right, and have the same bits in one and in five pieces."""
    rng = np.random.default_rng(7)
    left, right, _ = KINDS[kind]
    for x_shape, w_shape, *settings, groups in (CASES | MORE_CASES).values():
        x, w = laid_out(values(rng, x_shape, left), "within"), values(rng, w_shape, right)
        x64, w64 = numbers(x, left), numbers(w, right)
        expected = expected_conv(x64, w64, *settings, groups=groups)
        magnitude = expected_conv(np.abs(x64), np.abs(w64), *settings, groups=groups)

        def build(x, w, out, settings=settings, groups=groups):
            return conv.conv(x, w, out, *settings, groups)

        found = run(build, (x, w), expected.shape, kind, 1)
        assert_near(found, expected, magnitude, w[..., 0].size, kind)
        assert found.tobytes() == run(build, (x, w), expected.shape, kind, 5).tobytes()


@pytest.mark.parametrize("kind", ["bf16", "i8"])
def test_convolutions(chip, kind):
    assert_convolutions(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_few_outputs_of_pixels_are_sums_along_them(chip, kind):
    rng = np.random.default_rng(11)
    left, right, _ = KINDS[kind]
    x, w = values(rng, (2, 5, 7, 44), left), values(rng, (1, 1, 44, 2), right)
    settings = ((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
    names, shape = [], (2, 5, 7, 2)

    def build(*views):
        steps = conv.conv(*views, *settings)
        names.extend(step.name for step in steps)
        return steps

    found = run(build, (x, w), shape, kind, 1)
    assert "matmul dots" in names
    x64, w64 = numbers(x, left), numbers(w, right)[0, 0]
    assert_near(found, x64 @ w64, np.abs(x64) @ np.abs(w64), 44, kind)


@pytest.mark.parametrize("kind, number", [("i8", -128), ("u8", 255)])
def test_the_largest_sums_of_float32_are_exact(chip, kind, number):
    a = np.full((32, thin.EXACT_DEPTH), number, KINDS[kind][0].replace("i", "int").replace("u", "uint"))
    a[:, -1] -= np.sign(number).astype(a.dtype)  # so that an odd number is lost if the sum rounds
    assert_product(a, np.full((thin.EXACT_DEPTH, 1), -127, np.int8), kind)


@pytest.fixture
def small_caches(monkeypatch):
    """This machine with caches so small that little of B stays near: long bands, narrow groups and many passes."""
    small = replace(chips.host(), first_cache=2 << 10, second_cache=48 << 10)
    monkeypatch.setattr(narrow, "host", lambda: small)


@pytest.mark.parametrize("kind", KINDS)
def test_panels_from_afar(small_caches, kind):
    rng = np.random.default_rng(9)
    for batch, m, k, n in [((), 700, 1000, 400), ((3,), 70, 900, 330), ((), 33, 2000, 40)]:
        assert_product(*factors(rng, batch, m, k, n, kind), kind)
    assert_convolutions(kind)


@pytest.mark.parametrize("kind", ["bf16 rounded", "u8"])
@pytest.mark.parametrize("size", [100, 10_000])
def test_convolutions_in_strips(monkeypatch, size, kind):
    monkeypatch.setattr(conv, "STRIPS_FROM", size)
    assert_convolutions(kind)


def test_strips_share_their_scratch():
    memory = Memory()
    x, w = np.zeros((2, 300, 300, 32), np.int8), np.zeros((3, 3, 32, 32), np.int8)
    views = [memory.view(array) for array in (x, w, x.astype(np.int32))]
    steps = conv.conv(*views, (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    strips = {step.operands[1].buffer for step in steps if step.name == "pad"}
    assert len(steps) > 2 * len(strips) + 1
    assert [buffer.nbytes <= conv.STRIPS_FROM for buffer in strips] == [True]


def test_products_of_plans_have_the_same_bits_on_every_number_of_threads():
    rng = np.random.default_rng(8)
    a, b = values(rng, (300, 200), "i8"), values(rng, (200, 500), "i8")
    program = jit(lambda b, a: contract.dot(a, b, contract=((1,), (0,)), batch=((), ()))).bind(b)
    before = threads.pool().threads
    try:
        for count in (1, 3):
            threads.set_threads(count)
            for _ in range(5):
                np.testing.assert_array_equal(program(a), a.astype(np.int32) @ b)
    finally:
        threads.set_threads(before)


@pytest.fixture
def fresh_host():
    """`chips.host` looks again, now and after the test."""
    chips.host.cache_clear()
    yield chips.host
    chips.host.cache_clear()


def test_a_chip_can_be_chosen(fresh_host, monkeypatch):
    monkeypatch.setenv("TILEWORK_CPU", "generic")
    assert fresh_host().name == "generic"
    assert chips.unit_for(fresh_host(), "bf16") == chips.VECTORS


def test_a_chip_that_this_machine_lacks_is_refused(fresh_host, monkeypatch):
    monkeypatch.setenv("TILEWORK_CPU", "abacus")
    with pytest.raises(ConfigError, match=r"TILEWORK_CPU cannot be 'abacus'\n.*generic, which this machine can run"):
        fresh_host()


def test_kernels_of_other_chips_have_other_texts():
    memory = Memory()
    square = memory.view(np.zeros((4, 4), np.int8))
    texts = []
    for chip in chips.CHIPS:
        with pytest.MonkeyPatch.context() as patch:
            for module in (narrow, narrow_panels):
                patch.setattr(module, "host", lambda chip=chip: chip)
            texts.append(gemm.matmul(square, square, memory.view(np.zeros((4, 4), np.int32)))[-1].kernel)
    blocks = {chips.narrow_block_for(chip, "i8", columns=4) for chip in chips.CHIPS}
    assert len(set(texts)) == len(blocks) > 3
