"""Cycles of products: SCALE-Sim's numbers, and what must hold for any product."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.tpu.machine import changed, machine
from core.accel.tpu.systolic import DATAFLOWS, Product, convolution, cycles, full_cycles, utilisation
from core.accel.tpu.timeline import Timeline

SIDES = st.integers(1, 3000)
ARRAYS = st.integers(2, 300)
FLOWS = st.sampled_from(DATAFLOWS)
V1 = machine("tpu-v1")


@pytest.mark.parametrize(("dataflow", "expected"), [("ws", 52447 - 41248), ("os", 52447 - 42272), ("is", 19984 - 5777)])
def test_goldens_of_scale_sim(dataflow, expected):
    """M, N, K = 256, 128, 256 on 32 x 32, as the repository's own tests have it: total less stalls."""
    assert cycles(256, 256, 128, 32, 32, dataflow) == expected


def test_a_convolution_of_scale_sim():
    product = convolution(224, 224, (11, 11), 3, 96, (4, 4))
    assert product == Product(3025, 363, 96)
    assert cycles(product.m, product.k, product.n, 32, 32, "ws") == 112283
    assert convolution(5, 9, (3, 3), 1, 1, (1, 3)) == Product(3 * 3, 9, 1)


@given(SIDES, SIDES, SIDES, ARRAYS, ARRAYS, FLOWS)
def test_pipelined_is_no_slower_and_nothing_is_faster_than_the_array(m, k, n, rows, columns, dataflow):
    whole = cycles(m, k, n, rows, columns, dataflow)
    pipelined = cycles(m, k, n, rows, columns, dataflow, "pipelined")
    assert pipelined <= whole
    assert m * k * n <= rows * columns * pipelined
    assert 0 < utilisation(m * k * n, rows, columns, pipelined) <= 1


@given(SIDES, SIDES, SIDES, ARRAYS, ARRAYS)
def test_pipelined_is_the_timeline_without_memory(m, k, n, rows, columns):
    """Tiles that are in the FIFO at once take what the formula says, but for the last row on its way out."""
    chip = changed(V1, {"array.rows": rows, "array.columns": columns, "array.weight_shift": rows})
    timeline = Timeline(chip)
    timeline.tiles(-(-k // rows) * -(-n // columns), m, 0.0, 0.0)
    assert timeline.ended + rows + columns - 3 == cycles(m, k, n, rows, columns, "ws", "pipelined")


@given(SIDES, SIDES, SIDES, FLOWS)
def test_full_is_no_faster_than_pipelined_and_monotone_in_bandwidth(m, k, n, dataflow):
    product = Product(m, k, n)
    chips = [changed(V1, {"memory.bandwidth": 34e9 * 2**power, "memory.streaming": 32e9 * 2**power})
             for power in range(0, 12, 3)]
    times = [full_cycles(product, chip, dataflow) for chip in chips]
    assert times == sorted(times, reverse=True)
    assert times[-1] >= cycles(m, k, n, 256, 256, dataflow, "pipelined")


def test_arrays_give_what_single_products_give_exactly():
    sides = np.random.default_rng(0).integers(1, 10**6, (5, 200))
    flows = np.array(DATAFLOWS)[np.arange(200) % 3]
    for mode in ("stall-free", "pipelined"):
        found = cycles(*sides, flows, mode)
        assert list(found) == [cycles(*map(int, row), str(flow), mode)
                               for row, flow in zip(sides.T, flows, strict=True)]


def test_counts_are_exact_beyond_64_bits():
    huge = 10**15
    assert cycles(huge, huge, huge, 1, 1, "ws") == (huge + 1) * huge**2 - 1


def test_a_published_table_of_55_000_rows_takes_less_than_a_second():
    sides = np.random.default_rng(0).integers(1, 5000, (5, 55_000))
    begun = time.process_time()
    cycles(*sides, np.array(DATAFLOWS)[np.arange(55_000) % 3])
    assert time.process_time() - begun < 1
