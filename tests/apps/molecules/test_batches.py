"""Batches: every molecule can be cut out again, padding points past the end, shapes are few, a seed fixes the order."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from apps.molecules.batches import DEGREES, Batch, Sample, batches, bucket, collate
from apps.molecules.features import featurise
from core.engine.errors import ConfigError

SMILES = ["C", "CCO", "c1ccccc1", "[Na+].[Cl-]", "CC(=O)Oc1ccccc1C(=O)O", "C" * 40, "N[C@@H](C)C(=O)O"]
GRAPHS = [featurise(Chem.MolFromSmiles(smiles)) for smiles in SMILES]
SAMPLES = [Sample(graph, np.array([row, np.nan if row % 2 else -1.5]), np.full(3, row), weight=row + 0.5, row=row)
           for row, graph in enumerate(GRAPHS)]


def cut_out(batch: Batch, place: int) -> dict[str, np.ndarray]:
    """The arrays of one molecule of a batch, with indices counted from its own first atom and edge."""
    atoms = np.flatnonzero(batch.molecule == place)
    edges = np.flatnonzero(np.isin(batch.target, atoms))
    first_edge = edges[0] if len(edges) else 0
    return {"atoms": batch.atoms[atoms], "edges": batch.edges[edges], "source": batch.source[edges] - atoms[0],
            "target": batch.target[edges] - atoms[0], "reverse": batch.reverse[edges] - first_edge}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=12), st.integers(0, 5))
def test_every_molecule_can_be_cut_out_again(samples: list[Sample], spare: int) -> None:
    size = len(samples) + spare
    batch = collate(samples, size)
    for place, sample in enumerate(samples):
        for name, values in cut_out(batch, place).items():
            np.testing.assert_array_equal(values, getattr(sample.graph, name), err_msg=name)
        assert batch.rows[place] == sample.row and batch.weights[place] == sample.weight
        np.testing.assert_array_equal(batch.descriptors[place], sample.descriptors)
        np.testing.assert_array_equal(batch.mask[place], np.isfinite(sample.targets))
        np.testing.assert_array_equal(batch.targets[place], np.nan_to_num(sample.targets))
    atoms, edges = sum(len(s.graph.atoms) for s in samples), sum(len(s.graph.source) for s in samples)
    assert (batch.molecule[atoms:] == size).all() and (batch.molecule[:atoms] < len(samples)).all()
    for index in (batch.source, batch.target):
        assert (index[edges:] == len(batch.atoms)).all() and (index[:edges] < atoms).all()
    assert (batch.reverse[edges:] == len(batch.edges)).all() and (batch.reverse[:edges] < edges).all()
    listed = [ends[ends < len(batch.edges)] for ends in batch.arriving]
    for atom, ends in enumerate(listed):
        np.testing.assert_array_equal(ends, np.flatnonzero(batch.target == atom))
    assert batch.arriving.shape == (len(batch.atoms), bucket(max(map(len, listed)), DEGREES, DEGREES))
    assert (np.diff(batch.target) >= 0).all() and (np.diff(batch.molecule) >= 0).all()
    assert not batch.atoms[atoms:].any() and not batch.edges[edges:].any()
    assert not batch.weights[len(samples):].any() and not batch.mask[len(samples):].any()
    assert (batch.rows[len(samples):] == -1).all()
    assert len(batch.atoms) == bucket(atoms) and len(batch.edges) == bucket(edges)


def test_dtypes_are_single_precision() -> None:
    batch = collate(SAMPLES, 8)
    for field in fields(batch):
        integer = field.name in ("source", "target", "reverse", "arriving", "molecule", "rows")
        assert getattr(batch, field.name).dtype == (np.int32 if integer else np.float32), field.name


def test_a_batch_may_have_no_bond_target_or_descriptor() -> None:
    bare = Sample(GRAPHS[0], np.zeros(0), np.zeros(0))
    batch = collate([bare], 2)
    assert batch.edges.shape == (bucket(0), 17) and batch.targets.shape == (2, 0) and batch.descriptors.shape == (2, 0)


@settings(max_examples=300)
@given(st.integers(0, 10**7))
def test_buckets_hold_and_waste_little(count: int) -> None:
    assert bucket(count) >= count and bucket(bucket(count)) == bucket(count) and bucket(count) % 16 == 0
    assert count < 32 or bucket(count) <= 1.5 * count
    assert count < 1000 or bucket(count) <= 1.27 * count


def test_buckets_are_few() -> None:
    assert len({bucket(count) for count in range(100_000)}) < 45
    assert sorted({bucket(count, DEGREES, DEGREES) for count in range(30)}) == [4, 8, 12, 16, 20, 24, 32]


def test_streams_keep_their_order_and_end_padded() -> None:
    found = list(batches((sample for sample in SAMPLES), 3))
    assert [batch.rows.tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


def test_streams_are_taken_one_batch_at_a_time() -> None:
    taken = []
    stream = (taken.append(sample.row) or sample for sample in SAMPLES)
    next(batches(stream, 3))
    assert taken == [0, 1, 2]


def test_shuffling_depends_on_seed_and_epoch_alone() -> None:
    samples = [replace(SAMPLES[0], row=row) for row in range(50)]

    def order(**options: int) -> list[int]:
        return [row for batch in batches(samples, 8, **options) for row in batch.rows.tolist() if row >= 0]

    assert order(seed=1) == order(seed=1, epoch=0) == order(seed=1)
    assert sorted(order(seed=1)) == list(range(50))
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(seed=1)[:4] == [3, 5, 24, 27], "the same on every platform and for every version of numpy"


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="found a batch size of 0"):
        next(batches(SAMPLES, 0))
