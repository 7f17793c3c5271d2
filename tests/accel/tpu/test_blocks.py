"""Blocks, walks and places: every row once, and none that is taken."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.tpu.activation import FloatingPoint, Window
from core.accel.tpu.blocks import LARGEST_STRIDE, LONGEST, Walk, blocks, read, written
from core.accel.tpu.instructions import Pool
from core.accel.tpu.layers import Given, Layer, Store
from core.accel.tpu.placement import Lifetime, most, place

EXTENTS = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


def rows_of(walk: Walk) -> list[int]:
    return [walk.first + line * walk.pitch + row * walk.stride
            for line in range(walk.lines) for row in range(walk.length)]


def layer_of(dims, steps, taps=(0,)):
    return Layer("layer", "", Given(1, 1, True), tuple(dims), tuple(steps), taps, np.zeros((len(taps), 1, 1), np.int8))


@st.composite
def layers(draw):
    dims = draw(EXTENTS)
    steps = tuple(draw(st.sampled_from([0, 1, 2, 3, 7, LARGEST_STRIDE + 1, LONGEST + 1])) for _ in dims)
    return layer_of(dims, steps, tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=2))))


@given(layers(), st.integers(1, 40))
def test_walks_meet_the_rows_of_each_tap_in_their_order(layer, room):
    for tap, behind in enumerate(layer.taps):
        found = []
        for block in blocks(layer, None, room):
            walks = list(read(layer, block, tap))
            rows = [row for walk in walks for row in rows_of(walk)]
            assert len(rows) == block.rows <= room
            assert all(walk.lines <= LONGEST and walk.length <= LONGEST and walk.pitch <= LONGEST
                       and walk.stride <= LARGEST_STRIDE for walk in walks)
            found += rows
        assert found == [behind + sum(at * step for at, step in zip(place, layer.steps, strict=True))
                         for place in itertools.product(*map(range, layer.dims))]


@st.composite
def windows(draw, dims):
    size = tuple(draw(st.integers(1, extent)) for extent in dims[-2:])
    low, high = (tuple(draw(st.integers(0, one - 1)) for one in size) for _ in range(2))
    return Window(size, tuple(draw(st.integers(1, 3)) for _ in size), low, high)


@given(st.data(), EXTENTS)
def test_blocks_fill_a_padded_store_once_and_leave_its_border(data, dims):
    window = data.draw(st.one_of(st.none(), windows(dims)))
    low, high = (tuple(data.draw(st.integers(0, 2)) for _ in dims) for _ in range(2))
    layer = layer_of(dims, (1,) * len(dims))
    nothing = np.zeros(1, np.float32)
    store = Store(layer, FloatingPoint(nothing.astype(np.int32), nothing, np.float32(1)),
                  pool=Pool.NONE if window is None else Pool.MAX, window=window, low=low, high=high)
    most_lines = 1 if window is None else window.size[0] * dims[-1]
    filled = np.zeros(store.rows, int)
    for block in blocks(layer, window, data.draw(st.integers(most_lines, 60))):
        for walk in written(store, block):
            np.add.at(filled, rows_of(walk), 1)
    inside = tuple(slice(before, before + extent) for before, extent in zip(low, store.dims, strict=True))
    wanted = np.zeros(store.extents, int)
    wanted[inside] = 1
    np.testing.assert_array_equal(filled.reshape(store.extents), wanted)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=12))
def test_values_that_live_together_share_no_row(drawn):
    lifetimes = sorted((Lifetime(rows, begin, begin + more) for rows, begin, more in drawn), key=lambda one: one.begin)
    first = place(lifetimes)
    for (one, row), (other, row_of_other) in itertools.combinations(zip(lifetimes, first, strict=True), 2):
        apart = row + one.rows <= row_of_other or row_of_other + other.rows <= row
        assert apart or one.end < other.begin or other.end < one.begin
    step, needed = most(lifetimes, first)
    assert needed == max(row + one.rows for one, row in zip(lifetimes, first, strict=True))
    assert any(one.begin == step and row + one.rows == needed for one, row in zip(lifetimes, first, strict=True))


@pytest.mark.parametrize(("lifetimes", "first"), [
    ([Lifetime(4, 0, 1), Lifetime(3, 1, 2), Lifetime(4, 2, 3)], [0, 4, 0]),
    ([Lifetime(4, 0, 9), Lifetime(2, 1, 1), Lifetime(3, 2, 3)], [0, 4, 4]),
    ([Lifetime(2, 0, 1), Lifetime(2, 0, 9), Lifetime(3, 2, 3)], [0, 2, 4]),
])
def test_places(lifetimes, first):
    assert place(lifetimes) == first
