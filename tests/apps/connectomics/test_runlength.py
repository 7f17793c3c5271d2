"""Expected run lengths against exact vectors, published figures, and an oracle that walks edge by edge.

Invariant: the oracle follows the two published definitions in plain loops and shares no code with what it checks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.connectomics.runlength import Definition, run_length
from apps.connectomics.skeletons import Skeletons, read_skeletons, skeletonize
from core.engine.errors import DataError

EDGES, SKELETONS = Definition.MERGED_EDGES, Definition.MERGED_SKELETONS
SQRT2 = math.sqrt(2)


def graph(positions: list[tuple[float, ...]], edges: list[tuple[int, int]], labels: list[int]) -> Skeletons:
    return Skeletons(np.array(positions, float).reshape(-1, 3), np.array(edges, np.int64).reshape(-1, 2),
                     np.array(labels, np.uint64), np.zeros(len(labels), np.float32))


def chains(*sizes: int) -> Skeletons:
    """Straight skeletons of so many nodes each, 1 nm apart."""
    labels = [label for label, size in enumerate(sizes, start=1) for _ in range(size)]
    places = [(10.0 * label, 0.0, float(place)) for label, size in enumerate(sizes) for place in range(size)]
    edges = [(node, node + 1) for node in range(len(labels) - 1) if labels[node] == labels[node + 1]]
    return graph(places, edges, labels)


TWO = graph([(0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1), (0, 0, 1)], [(0, 1), (1, 2), (3, 4)], [1, 1, 1, 2, 2])
"""Skeletons of two edges and of one, each of the length sqrt 2."""


def oracle(skeletons: Skeletons, segments: np.ndarray, definition: Definition, threshold: int,
           no_merge: Mapping[int, int]) -> float:
    """ERL in loops over nodes and edges."""
    nodes: dict[int, Counter[int]] = defaultdict(Counter)
    for label, segment in zip(skeletons.label.tolist(), segments.tolist(), strict=True):
        if segment:
            nodes[segment][label] += 1
    joins = {segment for segment, count in nodes.items() if sum(size >= threshold for size in count.values()) > 1}
    forbidden = {segment for segment in nodes if no_merge.get(segment, 0) > threshold}
    lost = {label for segment in joins for label in nodes[segment]}
    lost |= {label for segment in forbidden for label, size in nodes[segment].items() if size >= threshold}
    total, runs = 0.0, defaultdict(float)
    for start, end in skeletons.edges.tolist():
        length = math.dist(skeletons.positions[start], skeletons.positions[end])
        total += length
        label, segment = int(skeletons.label[start]), int(segments[start])
        if segment == 0 or segment != segments[end]:
            continue
        if (segment in joins | forbidden) if definition is EDGES else (label in lost):
            continue
        runs[label, segment] += length
    return sum(run**2 for run in runs.values()) / total


@pytest.mark.parametrize(("skeletons", "segments", "expected"), [
    (chains(5), [1, 1, 1, 2, 2], 1.25),
    (chains(5), [1, 1, 1, 1, 2], 2.25),
    (chains(5), [7, 7, 7, 7, 7], 4.0),
    (chains(5), [1, 0, 0, 0, 1], 0.0),
    (TWO.subset(TWO.label == 1), [10, 10, 10], 2 * SQRT2),
    (TWO.subset(TWO.label == 1), [10, 10, 20], 0.5 * SQRT2),
    (TWO, [10, 10, 30, 20, 40], 2 / 3 * 0.5 * SQRT2),
    (TWO, [10, 10, 10, 10, 10], 0.0),
])
@pytest.mark.parametrize("definition", Definition)
def test_vectors_on_which_the_definitions_agree(skeletons: Skeletons, segments: list[int], expected: float,
                                                definition: Definition) -> None:
    found = run_length(skeletons, np.array(segments, np.uint64), definition)
    assert found.erl == pytest.approx(expected, abs=1e-12)
    assert found.definition is definition


MERGED = [5, 5, 5, 9, 9, 9, 9, 8, 8, 8]
"""Segments along chains of 5 and 5 nodes, of which 9 has two nodes of either."""


@pytest.mark.parametrize(("definition", "threshold", "no_merge", "expected"), [
    # Correct runs of 2 nm on each of the two skeletons of 4 nm; the run of 1 nm in the merger counts on neither.
    (EDGES, 1, {}, (4 + 4) / 8),
    (EDGES, 2, {}, (4 + 4) / 8),
    (EDGES, 3, {}, (4 + 1 + 4 + 1) / 8),
    (EDGES, 3, {5: 3}, (4 + 1 + 4 + 1) / 8),
    (EDGES, 3, {5: 4}, (1 + 4 + 1) / 8),
    (SKELETONS, 1, {}, 0.0),
    (SKELETONS, 2, {}, 0.0),
    (SKELETONS, 3, {}, (4 + 1 + 4 + 1) / 8),
    (SKELETONS, 3, {5: 3}, (4 + 1 + 4 + 1) / 8),
    (SKELETONS, 3, {5: 4}, (4 + 1) / 8),
    (SKELETONS, 3, {9: 4, 0: 100}, (4 + 1 + 4 + 1) / 8),  # forbidden, but with two nodes in either skeleton
])
def test_what_a_merger_costs(definition: Definition, threshold: int, no_merge: dict[int, int], expected: float) -> None:
    found = run_length(chains(5, 5), np.array(MERGED), definition, merge_threshold=threshold, no_merge=no_merge)
    assert found.erl == pytest.approx(expected, abs=1e-12)
    assert found.perfect == 4.0
    assert found.normalized == found.erl / 4.0


@pytest.mark.parametrize("definition", Definition)
def test_the_background_is_no_segment(definition: Definition) -> None:
    found = run_length(chains(3, 3), np.array([0, 0, 4, 0, 0, 6]), definition)
    assert (found.erl, found.omitted, found.mergers) == (0.0, 4.0, 0)
    found = run_length(chains(4, 4), np.array([0, 0, 4, 4, 6, 6, 0, 0]), definition)
    assert (found.erl, found.correct, found.omitted) == (2 / 6, 2.0, 4.0)


def test_every_edge_is_of_one_kind() -> None:
    segments = np.array([1, 1, 2, 0, 3, 3, 2, 2])
    found = run_length(chains(6, 2), segments, EDGES)
    assert (found.correct, found.split, found.merged, found.omitted, found.mergers) == (2.0, 1.0, 1.0, 2.0, 1)
    found = run_length(chains(6, 2), segments, SKELETONS)
    assert (found.correct, found.split, found.merged, found.omitted, found.mergers) == (0.0, 1.0, 3.0, 2.0, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Skeletons, np.ndarray, int, dict[int, int]]:
    """A forest with segments, a threshold and voxels in a mask."""
    count = draw(st.integers(2, 14))
    parents = [-1, *(draw(st.integers(-1, node - 1)) for node in range(1, count - 1)), count - 2]
    labels = list(range(count))
    for node, parent in enumerate(parents):
        labels[node] = draw(st.integers(0, 3)) if parent < 0 else labels[parent]
    places = [(float(node), draw(st.floats(0, 9)), 0.0) for node in range(count)]
    segments = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), np.uint64)
    no_merge = draw(st.dictionaries(st.integers(0, 4), st.integers(0, 5)))
    edges = [(node, parent) for node, parent in enumerate(parents) if parent >= 0]
    return graph(places, edges, labels), segments, draw(st.integers(0, 4)), no_merge


@given(cases(), st.sampled_from(Definition))
def test_run_lengths_are_those_of_the_oracle(case: tuple[Skeletons, np.ndarray, int, dict[int, int]],
                                             definition: Definition) -> None:
    skeletons, segments, threshold, no_merge = case
    found = run_length(skeletons, segments, definition, merge_threshold=threshold, no_merge=no_merge)
    assert found.erl == pytest.approx(oracle(*case[:2], definition, threshold, no_merge), abs=1e-9)
    kinds = found.correct + found.split + found.merged + found.omitted
    assert kinds == pytest.approx(skeletons.lengths.sum())
    assert 0 <= found.erl <= found.perfect + 1e-9


@given(cases())
def test_merged_skeletons_cost_no_less_than_merged_edges(
        case: tuple[Skeletons, np.ndarray, int, dict[int, int]]) -> None:
    skeletons, segments, threshold, _ = case
    strict, lenient = (run_length(skeletons, segments, definition, merge_threshold=threshold).erl
                       for definition in (SKELETONS, EDGES))
    assert strict <= lenient + 1e-9


@pytest.mark.parametrize("skeletons", [chains(), chains(1, 1), graph([(0, 0, 0), (0, 0, 0)], [(0, 1)], [1, 1])])
def test_skeletons_without_length(skeletons: Skeletons) -> None:
    with pytest.raises(DataError, match=rf"no length: {len(skeletons.label)} nodes, {len(skeletons.edges)} edges"):
        run_length(skeletons, np.ones(len(skeletons.label), np.uint64), EDGES)


# The volumes of em_erl

README = {"vol_gt": 4275, "vol_pred": 3054, "vol_no-mask": 1176}
"""Published ERL in nm of the truth itself, of the prediction, and of the prediction with the mask."""

GIVEN = {"vol_gt": 4167, "vol_pred": 2952, "vol_no-mask": 1170}
"""The same with the graph that is kept beside the volumes."""


@pytest.fixture(scope="module")
def volumes(realdata: Path) -> dict[str, np.ndarray]:
    with h5py.File(realdata / "connectomics/erl_eval/erl_eval_volumes.h5") as file:
        return {name: file[name][()] for name in README}


def measured(skeletons: Skeletons, volumes: dict[str, np.ndarray], name: str) -> tuple[float, float]:
    """ERL of merged skeletons in nm, and what the oracle says."""
    at = tuple(np.rint(skeletons.positions / 30).astype(int).T)
    no_merge: dict[int, int] = {}
    if name == "vol_no-mask":
        no_merge = Counter(volumes["vol_pred"][volumes[name] > 0].tolist())
    segments = volumes["vol_gt" if name == "vol_gt" else "vol_pred"][at]
    found = run_length(skeletons, segments, SKELETONS, merge_threshold=0, no_merge=no_merge)
    return found.erl, oracle(skeletons, segments, SKELETONS, 0, no_merge)


@pytest.mark.parametrize("name", GIVEN)
def test_em_erl_on_the_given_graph(realdata: Path, volumes: dict[str, np.ndarray], name: str) -> None:
    skeletons = read_skeletons(realdata / "connectomics/erl_eval/gt_graph_kimimaro_here.npz")
    found, expected = measured(skeletons, volumes, name)
    assert found == pytest.approx(expected, abs=1e-9)
    assert round(found) == GIVEN[name]


@pytest.mark.parametrize("name", README)
def test_em_erl_on_our_own_skeletons(volumes: dict[str, np.ndarray], name: str) -> None:
    found, expected = measured(skeletonize(volumes["vol_gt"], (30.0, 30.0, 30.0)), volumes, name)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found == pytest.approx(README[name], rel=0.03)
