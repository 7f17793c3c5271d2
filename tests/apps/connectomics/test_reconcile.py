"""`apps.connectomics.reconcile`: union-find against scipy, what counts as one segment, and blocked equals whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, sparse

from apps.connectomics.blocks import Grid, Triple
from apps.connectomics.reconcile import DisjointSets, GlobalIds, agreements, assemble, reconcile
from core.engine.errors import ConfigError
from tests.apps.connectomics.segmenters import labelled
from tests.apps.connectomics.test_blocks import triples, whole


class Held:
    """Results of blocks in memory."""

    def __init__(self, results: Mapping[int, NDArray[np.uint32]]) -> None:
        self.results = results

    def load(self, number: int, name: str) -> NDArray[Any]:
        assert name == "labels"
        return self.results[number]


class Volume:
    """A volume in memory that counts how often its voxels are written."""

    def __init__(self, shape: Triple, dtype: type) -> None:
        self.labels = np.zeros(shape, dtype)
        self.times = np.zeros(shape, np.int64)
        self.dtype = self.labels.dtype

    def write(self, start: Triple, array: NDArray[Any]) -> None:
        box = tuple(slice(low, low + size) for low, size in zip(start, array.shape, strict=True))
        self.labels[box] = array
        self.times[box] += 1


def blocked(foreground: NDArray[np.bool_], grid: Grid, connectivity: int, fraction: float = 0.5) -> NDArray[np.uint64]:
    """Segment block by block, under local labels that are shuffled and have gaps, and assemble."""
    results = {}
    for block in grid:
        labels = labelled(foreground[whole(block)], connectivity)
        names = np.random.default_rng(block.number).choice(2**32 - 1, labels.max(initial=0), replace=False) + 1
        results[block.number] = np.concatenate([[0], names]).astype(np.uint32)[labels]
    volume = Volume(grid.shape, np.uint64)
    assemble(grid, Held(results), reconcile(grid, Held(results), fraction), volume)
    assert (volume.times == 1).all()
    return volume.labels


def same_up_to_renaming(first: NDArray[Any], second: NDArray[Any]) -> bool:
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return (bool(np.array_equal(first == 0, second == 0))
            and all(len(np.unique(side)) == len(side) for side in pairs))


def tubes(shape: Triple, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Long branched paths: random walks from wherever an earlier one has been."""
    volume = np.zeros(shape, np.bool_)
    visited = [generator.integers(shape)]
    for _ in range(generator.integers(1, 12)):
        place = visited[generator.integers(len(visited))] if generator.random() < 0.7 else generator.integers(shape)
        for _ in range(generator.integers(1, 3 * max(shape))):
            volume[tuple(place)] = True
            visited.append(place)
            step = np.zeros(3, np.int64)
            step[generator.integers(3)] = generator.choice((-1, 1))
            place = np.clip(place + step, 0, np.array(shape) - 1)
    return volume


@st.composite
def foregrounds(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Noise about the density at which components begin to run through the whole volume (0.31 for faces), or tubes."""
    shape = draw(triples(1, 16))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from((None, 0.1, 0.2, 0.3, 0.35, 0.5)))
    return tubes(shape, generator) if density is None else generator.random(shape) < density


@settings(max_examples=200)
@given(foreground=foregrounds(), core=triples(1, 9), overlap=triples(1, 6), connectivity=st.integers(1, 3),
       fraction=st.sampled_from((0.0, 0.5, 1.0)))
def test_blocked_is_whole_up_to_renaming(foreground: NDArray[np.bool_], core: Triple, overlap: Triple,
                                         connectivity: int, fraction: float) -> None:
    found = blocked(foreground, Grid(foreground.shape, core, overlap), connectivity, fraction)
    assert same_up_to_renaming(found, labelled(foreground, connectivity))


def test_a_component_that_closes_far_away_is_one() -> None:
    """A comb: its teeth cross all blocks and are joined only along the last plane."""
    foreground = np.zeros((40, 1, 21), np.bool_)
    foreground[:, 0, ::2] = True
    foreground[39] = True
    found = blocked(foreground, Grid(foreground.shape, (8, 1, 5), (3, 1, 2)), 1)
    assert same_up_to_renaming(found, foreground.astype(np.uint32))


def test_ids_are_numbered_by_first_block_and_label() -> None:
    grid = Grid((1, 1, 8), (1, 1, 4), (1, 1, 2))
    left, right = [9, 0, 7, 2, 2], [1, 8, 0, 5, 1]  # they share x 3 and 4: 2 2 and 1 8
    results = Held({number: np.array(row, np.uint32).reshape(1, 1, -1) for number, row in enumerate((left, right))})
    ids = reconcile(grid, results)
    assert ids.count == 5  # 2 = 1, 7, 9; 5, 8
    assert [table.tolist() for table in ids.labels] == [[2, 7, 9], [1, 5, 8]]
    assert [table.tolist() for table in ids.ids] == [[1, 2, 3], [1, 4, 5]]
    volume = Volume(grid.shape, np.uint8)
    assemble(grid, results, ids, volume)
    assert volume.labels.tolist() == [[[3, 0, 2, 1, 5, 0, 4, 1]]]


@pytest.mark.parametrize(("first", "second", "fraction", "expected"), [
    ("aa", "bb", 0.5, "ab"),
    ("..", "bb", 0.5, ""),
    ("..", "..", 0.5, ""),
    ("aaa.", ".bbb", 0.5, "ab"),  # two of three
    ("aaa.", ".bbb", 0.7, ""),
    ("aaaaaaaa", "b.......", 1.0, "ab"),  # the smaller one lies wholly in the larger one
    ("aaaaaaaa", "bbbbbccc", 0.5, "ab"),  # a contradiction: only the best partners are one
    ("bbbbbccc", "aaaaaaaa", 0.5, "ba"),
    ("aaaaaaaa", "bbbbcccc", 0.5, "ab"),  # of equal ones the first
    ("aaaa.aaaa", "bbbb.cccc", 0.5, "ab ac"),  # two crossings that meet outside
    ("aa.aa.dd", "bb.cc.cc", 0.5, "ab ac dc"),  # and on, from block to block
    ("aaabb", "ccddd", 0.5, "ac bd"),  # a border that is seen elsewhere
])
def test_what_is_one_segment(first: str, second: str, fraction: float, expected: str) -> None:
    sides = [np.array([ord(mark) if mark != "." else 0 for mark in side], np.uint32).reshape(1, -1, 1)
             for side in (first, second)]
    found = agreements(*sides, fraction)
    assert found.dtype == np.uint32
    assert " ".join(chr(one) + chr(other) for one, other in found) == expected
    mirrored = agreements(*reversed(sides), fraction)
    assert {tuple(pair[::-1]) for pair in mirrored} == set(map(tuple, found))


@given(seed=st.integers(0, 2**32), shift=st.integers(0, 2))
def test_neurites_whose_border_is_drawn_differently_stay_apart(seed: int, shift: int) -> None:
    """A ragged border leaves specks of either neurite on the other side of it."""
    ragged = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(8, 20, 20)), 1) * 4
    sides = [(np.arange(20)[:, None] + ragged + offset > 10).astype(np.uint32) + 1 for offset in (0, shift)]
    assert agreements(*sides).tolist() == [[1, 1], [2, 2]]


@given(count=st.integers(1, 40), data=st.data())
def test_union_find_is_connected_components(count: int, data: st.DataObject) -> None:
    numbers = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), max_size=60))
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    sets = DisjointSets(count)
    sets.join(first, second)
    graph = sparse.coo_array((np.ones(len(pairs)), (first, second)), (count, count))
    _, expected = sparse.csgraph.connected_components(graph, directed=False)
    roots = sets.roots()
    assert all(root == np.flatnonzero(expected == expected[number])[0] for number, root in enumerate(roots))
    again = DisjointSets(count)
    again.join(second[::-1], first[::-1])
    assert np.array_equal(again.roots(), roots)


def test_long_chains_are_found_in_time() -> None:
    numbers = np.arange(100_000)
    for first, second in ((numbers[:-1], numbers[1:]), (numbers[-2::-1], numbers[:0:-1])):
        sets = DisjointSets(len(numbers))
        sets.join(first, second)
        assert not sets.roots().any()


def test_a_volume_that_cannot_hold_the_ids_is_refused() -> None:
    grid, volume = Grid((1, 1, 1), (1, 1, 1), (1, 1, 1)), Volume((1, 1, 1), np.uint8)
    with pytest.raises(ConfigError, match="uint8, which cannot number 256 segments"):
        assemble(grid, Held({}), GlobalIds(256, [], []), volume)
    assert not volume.times.any()


@example(np.zeros((3, 3, 3), np.bool_))
@given(foreground=foregrounds())
def test_an_empty_or_single_block_is_itself(foreground: NDArray[np.bool_]) -> None:
    found = blocked(foreground, Grid(foreground.shape, (99, 99, 99), (1, 1, 1)), 1)
    assert same_up_to_renaming(found, labelled(foreground, 1))
