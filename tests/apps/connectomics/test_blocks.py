"""`apps.connectomics.blocks`: what grids cover, how blocks overlap, and which are neighbours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.connectomics.blocks import Block, Grid, shared
from core.engine.errors import ConfigError


def triples(least: int, most: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(*[st.integers(least, most)] * 3)


grids = st.builds(Grid, triples(1, 13), triples(1, 8), triples(1, 6))


def whole(block: Block) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in zip(block.start, block.stop, strict=True))


def core(block: Block) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in zip(block.core_start, block.core_stop, strict=True))


@pytest.mark.parametrize(("index", "start", "stop", "core_start", "core_stop"), [
    (0, 0, 100, 0, 83), (1, 67, 183, 83, 166), (2, 150, 250, 166, 250)])
def test_an_axis_is_cut_evenly(index: int, start: int, stop: int, core_start: int, core_stop: int) -> None:
    block = Grid((10, 20, 250), (16, 20, 96), (5, 5, 33))[index]
    assert block == Block(index, (0, 0, start), (10, 20, stop), (0, 0, core_start), (10, 20, core_stop))
    assert block.shape == (10, 20, stop - start)


def test_numbers_are_in_raster_order() -> None:
    grid = Grid((4, 6, 8), (2, 2, 2), (1, 1, 1))
    assert grid.counts == (2, 3, 4) and len(grid) == 24
    assert [block.number for block in grid] == list(range(24))
    starts = [block.core_start for block in grid]
    assert starts == sorted(starts) and len(set(starts)) == 24
    expected = {0: [12, 4, 1], 3: [15, 7], 8: [20, 9], 12: [16, 13], 23: []}
    assert {number: list(grid.following(number)) for number in expected} == expected


@given(grid=grids)
def test_every_voxel_lies_in_one_core_and_every_core_in_its_block(grid: Grid) -> None:
    cores = np.zeros(grid.shape, np.int64)
    for block in grid:
        assert (np.zeros(grid.shape)[core(block)].shape == np.zeros(block.shape)[
            block.box(block.core_start, block.core_stop)].shape)
        cores[core(block)] += 1
        assert all(stop - start <= most for start, stop, most in
                   zip(block.core_start, block.core_stop, grid.core, strict=True))
    assert (cores == 1).all()


@given(grid=grids)
def test_cores_differ_by_one_voxel_at_most(grid: Grid) -> None:
    for axis in range(3):
        sizes = {block.core_stop[axis] - block.core_start[axis] for block in grid}
        assert max(sizes) - min(sizes) <= 1


@given(grid=grids)
def test_voxels_that_touch_lie_together_in_a_block(grid: Grid) -> None:
    together = np.zeros((*grid.shape, 2, 2, 2), np.bool_)  # with the voxel at this offset
    for block in grid:
        for offset in itertools.product((0, 1), repeat=3):
            box = tuple(slice(start, max(start, stop - step))
                        for start, stop, step in zip(block.start, block.stop, offset, strict=True))
            together[(*box, *offset)] = True
    for offset in itertools.product((0, 1), repeat=3):
        inside = tuple(slice(0, size - step) for size, step in zip(grid.shape, offset, strict=True))
        assert together[(*inside, *offset)].all()


@given(grid=grids)
def test_neighbours_share_the_overlap_unless_the_volume_ends(grid: Grid) -> None:
    for block in grid:
        for other in map(grid.__getitem__, grid.following(block.number)):
            axis = next(axis for axis in range(3) if block.core_start[axis] != other.core_start[axis])
            start, stop = shared(block, other)
            edge, overlap = other.core_start[axis], grid.overlap[axis]
            assert block.core_stop[axis] == edge
            assert start[axis] == max(0, edge - overlap // 2)
            assert stop[axis] == min(grid.shape[axis], edge - overlap // 2 + overlap)
            positions = np.arange(np.prod(grid.shape)).reshape(grid.shape)
            assert np.array_equal(positions[whole(block)][block.box(start, stop)],
                                  positions[whole(other)][other.box(start, stop)])


@given(grid=grids)
def test_blocks_that_share_a_voxel_are_linked_by_neighbours_that_have_it(grid: Grid) -> None:
    holders: dict[tuple[int, ...], set[int]] = {}
    for block in grid:
        for voxel in itertools.product(*(range(part.start, part.stop) for part in whole(block))):
            holders.setdefault(voxel, set()).add(block.number)
    for held in set(map(frozenset, holders.values())):
        reached = {min(held)}
        for number in sorted(held):  # neighbours have greater numbers
            if number in reached:
                reached |= held & set(grid.following(number))
        assert reached == held


@pytest.mark.parametrize(("name", "sizes"), [("shape", (0, 5, 5)), ("core", (5, 5, -1)), ("overlap", (1, 0, 1))])
def test_impossible_sizes_are_told(name: str, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        Grid(**{"shape": (9, 9, 9), "core": (3, 3, 3), "overlap": (1, 1, 1), name: sizes})
    assert f"{name} {' x '.join(map(str, sizes))} voxels" in str(caught.value)
    assert "at least 1 along each axis" in str(caught.value)
