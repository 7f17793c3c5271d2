"""Matrix products against numpy in float64, whole and in pieces."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.accel import chips
from core.accel.kernels import float_panels, gemm, thin
from core.engine import dtypes
from tests.accel.stepping import Memory

SHAPES = [  # batch, M, K, N
    ((), 1, 1, 1), ((), 14, 3, 32), ((), 15, 7, 33), ((), 13, 40, 31), ((), 28, 64, 64), ((), 4, 4, 4),
    ((), 1, 300, 300), ((), 3, 70, 130), ((), 5, 20, 700), ((), 64, 300, 1), ((), 2, 300, 64), ((), 64, 1, 300),
    ((), 29, 1100, 45), ((), 300, 64, 1), ((), 33, 0, 5), ((), 2, 0, 3), ((), 0, 4, 4), ((), 4, 4, 0),
    ((), 37, 64, 2), ((), 40, 70, 3), ((2,), 33, 50, 4), ((), 16, 33, 8),
    ((), 40, 2, 64), ((), 70, 1, 33), ((2,), 33, 4, 16), ((), 100, 3, 50),
    ((3,), 16, 24, 40), ((2, 3), 7, 9, 5), ((2, 1, 2), 1, 17, 19), ((0,), 3, 3, 3),
]


def product(a, b, dtype=None, pieces=1, is_fixed=False):
    """a @ b by the kernels, into NaN."""
    memory = Memory()
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = memory.garbage((*batch, a.shape[-2], b.shape[-1]), dtype or a.dtype)
    out.fill(np.nan if out.dtype.kind == "f" else -77)
    views = []
    for array in (a, b):
        view = memory.view(np.broadcast_to(array, (*batch, *array.shape[-2:])))
        views.append(replace(view, dtype=dtypes.bfloat16) if array.dtype == np.uint16 else view)
    memory.run(gemm.matmul(*views, memory.view(out), is_fixed=is_fixed), pieces)
    return out


def assert_product(a, b, **options):
    """The product is right to rounding, and has the same bits in one, two and seven pieces."""
    found = product(a, b, **options)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    bound = (np.abs(a64) @ np.abs(b64)) * np.finfo(found.dtype).eps * (a.shape[-1] + 1)
    assert (np.abs(found - a64 @ b64) <= bound).all()
    for pieces in (2, 7):
        assert found.tobytes() == product(a, b, pieces=pieces, **options).tobytes()


def laid_out(array, layout):
    """The same values with other strides in memory."""
    if layout == "transposed":
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "gapped":
        gapped = np.zeros([2 * extent + 1 for extent in array.shape], array.dtype)
        gapped[tuple(slice(0, 2 * extent, 2) for extent in array.shape)] = array
        return gapped[tuple(slice(0, 2 * extent, 2) for extent in array.shape)]
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
    return array


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layouts", [("plain", "plain"), ("transposed", "plain"), ("plain", "transposed"),
                                     ("gapped", "reversed")], ids=" ".join)
def test_shapes(dtype, layouts):
    rng = np.random.default_rng(0)
    for batch, m, k, n in SHAPES:
        a = laid_out(rng.standard_normal((*batch, m, k)).astype(dtype), layouts[0])
        b = laid_out(rng.standard_normal((*batch, k, n)).astype(dtype), layouts[1])
        assert_product(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes_and_strides(seed):
    rng = np.random.default_rng(seed)
    for _ in range(15):
        batch = tuple(rng.integers(1, 4, rng.integers(0, 3)))
        m, k, n = (int(rng.choice([1, 2, 3, 5, 14, 15, 31, 32, 33, 70])) for _ in range(3))
        dtype = rng.choice(["float32", "float64"])
        b_batch = tuple(1 if rng.random() < 0.5 else extent for extent in batch)
        a = laid_out(rng.standard_normal((*batch, m, k)).astype(dtype), rng.choice(["plain", "transposed", "gapped"]))
        b = laid_out(rng.standard_normal((*b_batch, k, n)).astype(dtype), rng.choice(["plain", "transposed", "gapped"]))
        assert_product(a, b)


@pytest.mark.parametrize("m, k, n", [(70, 1200, 65), (40, 1750, 300), (200, 33, 1100), (2, 1000, 600),
                                     (5, 20_000, 17)])
def test_sums_cut_into_passes(m, k, n):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    assert_product(a, b)
    assert_product(laid_out(a, "transposed"), b)


@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_blocks_of_every_chip(chip, monkeypatch):
    for module in (gemm, float_panels, thin):
        monkeypatch.setattr(module, "host", lambda: chip)
    rng = np.random.default_rng(2)
    for m, k, n in [(31, 37, 75), (2, 30, 150), (9, 500, 5), (40, 37, 3), (40, 3, 75)]:
        assert_product(rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32))


@pytest.mark.parametrize(("depth", "stride", "rows"), [(300, 300, 14), (512, 512, 14), (1024, 1024, 8), (512, 1024, 8),
                                                       (1032, 1032, 14), (64, 3072, 8), (64, 2560, 14)])
def test_a_block_has_no_more_rows_than_a_set_of_the_cache(depth, stride, rows, monkeypatch):
    """Rows of 4096 bytes all fall into one set, those of 2048 into two."""
    monkeypatch.setattr(gemm, "host", lambda: next(chip for chip in chips.CHIPS if chip.name == "avx512"))
    memory = Memory()
    a, b, out = (np.zeros(shape, np.float32) for shape in ((50, stride), (depth, 40), (50, 40)))
    multiply = gemm.matmul(memory.view(a[:, :depth]), memory.view(b), memory.view(out))[-1]
    assert f"Block(element='f32', lanes=16, heights=({rows}," in multiply.kernel


@pytest.mark.parametrize(("batch", "m", "k", "n"), [
    ((), 1, 300, 300), ((), 3, 70, 130), ((), 1, 0, 99), ((), 2, 1000, 65), ((2, 3), 1, 17, 190),
    ((), 1, 1100, 500), ((), 1, 5, 64), ((), 2, 7, 1)])
@pytest.mark.parametrize("layout", ["plain", "transposed", "gapped"])
def test_thin_products_are_the_same_whether_b_is_packed(batch, m, k, n, layout):
    rng = np.random.default_rng(7)
    a = rng.standard_normal((*batch, m, k)).astype(np.float32)
    b = laid_out(rng.standard_normal((*batch, k, n)).astype(np.float32), layout)
    assert product(a, b).tobytes() == product(a, b, is_fixed=True).tobytes()
    assert_product(a, b, is_fixed=True)


def test_a_fixed_factor_of_a_thin_product_is_packed():
    memory = Memory()
    views = [memory.view(np.zeros(shape, np.float32)) for shape in ((1, 50), (50, 200), (1, 200))]
    assert [step.name for step in gemm.matmul(*views, is_fixed=True)] == ["pack", "matmul thin"]
    assert [step.name for step in gemm.matmul(*views)] == ["matmul thin"]


@pytest.mark.parametrize(("m", "k", "n", "layout", "name"), [
    (40, 64, 1, "plain", "dots"), (40, 64, 8, "plain", "dots"), (40, 5, 1, "plain", "dots"), (40, 5, 2, "plain", ""),
    (40, 64, 9, "plain", ""), (3, 64, 2, "plain", "thin"), (40, 64, 2, "transposed", ""),
    (40, 4, 20, "plain", "outer"), (40, 12, 20, "transposed", "outer"), (40, 13, 20, "plain", ""),
    (31, 4, 20, "plain", "")])
def test_few_columns_are_sums_along_rows_and_short_sums_outer_products(m, k, n, layout, name, monkeypatch):
    for module in (gemm, float_panels, thin):
        monkeypatch.setattr(module, "host", lambda: next(chip for chip in chips.CHIPS if chip.name == "avx512"))
    memory = Memory()
    a, b, out = (np.zeros(shape, np.float32) for shape in ((m, k), (k, n), (m, n)))
    steps = gemm.matmul(memory.view(laid_out(a, layout)), memory.view(b), memory.view(out))
    assert steps[-1].name == f"matmul {name}".strip()


def test_rows_that_are_summed_need_not_be_beside_each_other():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((50, 90)).astype(np.float32), rng.standard_normal((70, 3)).astype(np.float32)
    assert_product(a[:, 5:75], b)
    assert_product(np.broadcast_to(a[:1, :70], (50, 70)), b)


def test_products_of_rows_in_one_set():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((45, 2048)).astype(np.float32), rng.standard_normal((2048, 75)).astype(np.float32)
    assert_product(a, b)
    assert_product(a[:, :1000], b[:1000])


def test_broadcast_b_is_packed_once_and_batch_becomes_rows():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((5, 3, 20)), rng.standard_normal((20, 9))
    memory = Memory()
    views = [memory.view(array) for array in (a, np.broadcast_to(b, (5, 20, 9)), memory.garbage((5, 3, 9), "float64"))]
    pack, multiply = gemm.matmul(*views)
    assert pack.name == "pack"
    assert pack.operands[1].buffer.nbytes == float_panels.pack(memory.view(b))[0].buffer.nbytes
    assert multiply.flops == 2 * 15 * 20 * 9
    assert_product(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, k, n", [(20, 70, 40), (2, 70, 200), (20, 70, 1), (20, 70, 3)])
def test_nan_and_infinity_reach_their_rows_and_columns_only(dtype, m, k, n):
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    a[0, 3], a[1, 5], b[7, n - 1] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = a @ b
    found = product(a, b)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


@pytest.mark.parametrize("m, k, n", [(20, 30, 40), (2, 30, 40), (20, 30, 1), (20, 30, 2), (40, 2, 40), (2, 0, 40)])
def test_rows_of_a_larger_array_leave_the_rest_alone(m, k, n):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    memory = Memory()
    whole = memory.garbage((m, n + 11), "float64")
    whole.fill(7)
    memory.run(gemm.matmul(memory.view(a), memory.view(b), memory.view(whole[:, 4:4 + n])), 3)
    np.testing.assert_allclose(whole[:, 4:4 + n], a @ b, atol=1e-12)
    assert (whole[:, :4] == 7).all() and (whole[:, 4 + n:] == 7).all()


def test_packed_once_serves_many():
    rng = np.random.default_rng(6)
    b = rng.standard_normal((50, 70)).astype(np.float32)
    memory = Memory()
    packed, steps = float_panels.pack(memory.view(b))
    memory.run(steps, 2)
    for m in (1, 14, 40):
        a, out = rng.standard_normal((m, 50)).astype(np.float32), memory.garbage((m, 70), "float32")
        memory.run(gemm.matmul_packed(memory.view(a), packed, memory.view(out)), 2)
        np.testing.assert_allclose(out, a @ b, atol=1e-4)


@pytest.mark.parametrize("m, k, n", [(20, 70, 40), (1, 70, 40), (20, 1300, 1)])
def test_bfloat16_operands_sum_in_float32(m, k, n):
    rng = np.random.default_rng(7)
    a, b = (dtypes.encode_bfloat16(rng.standard_normal(shape).astype(np.float32)) for shape in ((m, k), (k, n)))
    exact = dtypes.decode_bfloat16(a).astype(np.float64) @ dtypes.decode_bfloat16(b).astype(np.float64)
    for layout in ("plain", "transposed"):
        found = product(laid_out(a, layout), laid_out(b, layout), dtype="float32", pieces=2)
        np.testing.assert_allclose(found, exact, atol=k * 1e-5)


def test_int8_operands_sum_exactly():
    rng = np.random.default_rng(8)
    a, b = (rng.integers(-128, 128, shape, np.int8) for shape in ((2, 9, 200), (2, 200, 33)))
    for layout in ("plain", "transposed", "gapped"):
        found = product(laid_out(a, layout), laid_out(b, layout), dtype="int32", pieces=3)
        np.testing.assert_array_equal(found, a.astype(np.int32) @ b.astype(np.int32))


def test_thin_products_have_work_for_every_thread():
    memory = Memory()
    a, b = np.zeros((8, 64), np.float32), np.zeros((64, 1024), np.float32)
    steps = gemm.matmul(memory.view(a), memory.view(b), memory.view(np.zeros((8, 1024), np.float32)))
    assert steps[-1].extent >= 8


def test_columns_of_out_must_be_neighbours():
    memory = Memory()
    square = memory.view(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="last stride of out must be 1; it is 4"):
        gemm.matmul(square, square, memory.view(np.zeros((4, 4)).T))


def test_planning_needs_no_compiler():
    code = "import sys, core.accel.kernels.conv; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
