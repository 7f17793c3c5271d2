"""Products with long sums: cut into slices or not, they are products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.accel import slices, threads
from core.engine import ops
from core.engine.array import as_array
from core.engine.grad import vjp
from core.engine.jit import jit

LONG = 35937


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("rows, columns", [(64, 80), (128, 512), (288, 48), (16, 16), (1, 300), (33, 1), (7, 5)])
@pytest.mark.parametrize("depth", [42632, 6272, LONG, 8192, 8191])
def test_slices_divide_the_sum_and_repay_themselves(rows: int, columns: int, depth: int) -> None:
    count = slices.slices(rows, columns, depth)
    assert depth % count == 0
    if count > 1:
        assert depth // count >= max(128, 4 * rows * columns // (rows + columns))


@pytest.mark.parametrize("rows, columns, depth", [(1, 1024, 1024), (3, 300, 4096), (1024, 1, 8192), (1, 4096, LONG)])
def test_wide_thin_products_are_not_cut(rows: int, columns: int, depth: int) -> None:
    assert slices.slices(rows, columns, depth) == 1


def test_long_thin_products_of_few_outputs_are_cut_for_the_threads() -> None:
    assert slices.slices(1, 16, 100000) > 1


@pytest.mark.parametrize("rows, columns, depth", [
    (64, 80, 42632), (128, 300, 6272), (5, 33, LONG), (48, 17, LONG), (40, 40, 8191), (300, 64, 9800),
    (64, 2, 32768), (33, 1, LONG), (50, 7, 30000), (2, 60, 40000)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_that_of_numpy(rows: int, columns: int, depth: int, turned: bool) -> None:
    a, b = drawn(depth, rows) if turned else drawn(rows, depth), drawn(depth, columns)
    result = jit(lambda a, b: (a.T if turned else a) @ b)(a, b).numpy()
    left = a.T if turned else a
    np.testing.assert_allclose(result, left.astype(np.float64) @ b, rtol=1e-5, atol=4e-5 * np.sqrt(depth))


@pytest.mark.parametrize("rows, columns, turned, name", [
    (64, 2, True, "thin"), (64, 2, False, "dots"), (2, 64, False, "thin"), (64, 12, True, ""), (64, 80, True, "")])
def test_few_rows_or_columns_are_thin_products(rows: int, columns: int, turned: bool, name: str) -> None:
    a, b = drawn(32768, rows) if turned else drawn(rows, 32768), drawn(32768, columns)
    report = jit(lambda a, b: (a.T if turned else a) @ b, device="null").report(a, b)
    assert [step[0] for step in report.steps][-2:] == [f"matmul {name}".strip(), "add slices"]


def test_bits_do_not_depend_on_the_threads() -> None:
    x, ct = drawn(8, 73, 73, 20), drawn(8, 73, 73, 24)
    assert slices.slices(20, 24, 8 * 73 * 73) > 1

    def gradient(x: Any, ct: Any) -> Any:
        def forward(w: Any) -> Any:
            return ops.conv(x, w, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1),
                            groups=1)

        return vjp(forward, as_array(np.zeros((1, 1, 20, 24), np.float32)))[1](ct)

    before, found = threads.pool().threads, []
    for count in (1, 2, 3):
        threads.set_threads(count)
        found.append(jit(gradient)(x, ct).numpy())
    threads.set_threads(before)
    expected = np.einsum("nyxi,nyxo->io", x.astype(np.float64), ct)
    np.testing.assert_allclose(found[0][0, 0], expected, atol=0.02)
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("taps, groups, padding", [(2, 2, ((1, 0),)), (1, 1, ((1, -1),)), (1, 1, ((0, 0),))])
def test_what_only_looks_like_one_tap_is_none(taps: int, groups: int, padding: tuple[tuple[int, int], ...]) -> None:
    """As many weights as for one tap, and as many pixels out as in."""
    x, ct = drawn(3, 7, 4), drawn(3, 7, 6)

    def gradient(x: Any, ct: Any) -> Any:
        def forward(w: Any) -> Any:
            return ops.conv(x, w, stride=(1,), padding=padding, dilation=(1,), input_dilation=(1,), groups=groups)

        return vjp(forward, as_array(np.zeros((taps, 4 // groups, 6), np.float32)))[1](ct)

    mine, expected = (jit(gradient, device=device)(x, ct).numpy() for device in ("cpu", "reference"))
    np.testing.assert_allclose(mine, expected, atol=1e-5)
