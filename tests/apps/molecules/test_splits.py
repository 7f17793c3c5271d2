"""Splits: complete, disjoint, no molecule on two sides, right sizes, the same for any order of rows and for ever."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from apps.molecules.readers import Record, read_rows
from apps.molecules.splits import Split, k_folds, molecule_key, split
from core.engine.errors import ConfigError, DataError


def assert_sound(parts: Split, keys: list[str]) -> None:
    rows = np.concatenate([parts.train, parts.valid, parts.test, parts.dropped])
    assert sorted(rows.tolist()) == list(range(len(keys)))
    sides = [{keys[row] for row in part} for part in (parts.train, parts.valid, parts.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=80, max_size=150), st.integers(0, 2**32), st.randoms())
def test_random_splits_are_sound(sizes: list[int], seed: int, shuffler: random.Random) -> None:
    keys = [f"C{number}" for number, size in enumerate(sizes) for _ in range(size)]
    parts = split(keys, seed=seed)
    assert_sound(parts, keys)
    assert abs(len(parts.train) - 0.8 * len(keys)) <= max(sizes)
    assert abs(len(parts.test) - 0.1 * len(keys)) <= max(sizes)
    order = list(range(len(keys)))
    shuffler.shuffle(order)
    again = split([keys[i] for i in order], seed=seed)
    assert {keys[order[row]] for row in again.train} == {keys[row] for row in parts.train}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(2, 7), st.integers(0, 2**32))
def test_folds_are_sound_and_test_every_row_once(numbers: list[int], k: int, seed: int) -> None:
    keys = [f"C{number}" for number in numbers]
    if len(set(keys)) <= k:
        with pytest.raises(DataError, match=f"{k} folds need more than {len(set(keys))} different molecules"):
            k_folds(keys, k, seed)
        return
    folds = k_folds(keys, k, seed)
    for fold in folds:
        assert_sound(fold, keys)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(keys)))


def test_a_seed_means_the_same_split_for_ever() -> None:
    keys = [f"C{number}" for number in range(20)]
    assert split(keys, seed=1).test.tolist() == [9, 12]
    assert split(keys, seed=2).test.tolist() == [16, 17]
    assert k_folds(keys, 5, 3)[0].test.tolist() == [1, 3, 8, 14]


@pytest.mark.parametrize("smiles", [
    "C[C@H](F)Cl", "C[C@@H](F)Cl", "CC(F)Cl", "[CH3:1]C(F)Cl", "[13CH3]C(F)Cl", "ClC(F)C"])
def test_stereoisomers_and_isotopologues_share_a_key(smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    assert molecule_key(molecule) == molecule_key(Chem.AddHs(molecule)) == "CC(F)Cl"


def test_reactions_have_keys_and_no_scaffold() -> None:
    key = molecule_key(Chem.MolFromSmiles("[CH3:1]Br"), Chem.MolFromSmiles("[CH3:1]O"))
    assert key == "CBr>>CO"
    with pytest.raises(DataError, match="Reactions have no Murcko scaffold"):
        split([key] * 20, kind="scaffold")


def test_folds_by_scaffold_keep_scaffolds_together() -> None:
    cores, tails = ("c1ccccc1", "c1ccncc1", "C1CCCC1", "C1CCNCC1", ""), ("C", "CC", "CCC", "CO")
    keys = [core + tail for core in cores for tail in tails]
    for fold in k_folds(keys, 3, kind="scaffold"):
        assert_sound(fold, keys)
        sides = [{row // 4 for row in part.tolist()} for part in (fold.train, fold.valid, fold.test)]
        assert sum(map(len, sides)) == 5
    with pytest.raises(DataError, match="6 folds need more than 5 different scaffolds"):
        k_folds(keys, 6, kind="scaffold")
    with pytest.raises(ConfigError, match="not by 'column'"):
        k_folds(keys, 3, kind="column")


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["delaney-processed.csv", "BBBP.csv"])
def test_scaffolds_stay_together(realdata: Path, file: str) -> None:
    records = [row for row in read_rows(realdata / "molecules/moleculenet" / file) if isinstance(row, Record)]
    keys = [molecule_key(record.molecule) for record in records]
    parts = split(keys, kind="scaffold")
    assert_sound(parts, keys)
    three = (parts.train, parts.valid, parts.test)
    assert [len(part) / len(keys) for part in three] == pytest.approx([0.8, 0.1, 0.1], abs=2e-3)
    sides = [{MurckoScaffold.MurckoScaffoldSmiles(keys[row]) for row in part} for part in three]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert "c1ccccc1" in sides[0] and "" in sides[0]


@pytest.mark.realdata
def test_the_published_split_of_bace(realdata: Path) -> None:
    records = list(read_rows(realdata / "molecules/moleculenet/bace.csv", extras=["Model"]))
    keys = [molecule_key(record.molecule) for record in records]
    parts = split(keys, kind="column", column=[record.extras["Model"] for record in records])
    assert_sound(parts, keys)
    assert [len(part) for part in (parts.train, parts.valid, parts.test, parts.dropped)] == [193, 45, 1265, 10]


def test_a_molecule_on_two_sides_of_a_column_stays_on_the_later() -> None:
    parts = split(["A", "B", "A", "C", "B"], kind="column", column=["train", "Training ", "TEST", "train", "val"])
    assert [part.tolist() for part in (parts.train, parts.valid, parts.test, parts.dropped)] == [[3], [4], [2], [0, 1]]


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"kind": "butina"}, ConfigError, "There is no split 'butina'; there are random, scaffold, column."),
    ({"fractions": (0.8, 0.1, 0.2)}, ConfigError, r"with sum 1; found \(0.8, 0.1, 0.2\)"),
    ({"fractions": (0, 0.5, 0.5)}, ConfigError, "the first above 0"),
    ({"kind": "column"}, ConfigError, "needs the column"),
    ({"kind": "column", "column": ["train", "fold3"]}, DataError, "'fold3' in usable row 2, not train, valid or test"),
    ({"kind": "column", "column": ["test", "test"]}, DataError, "no row for training"),
    ({}, DataError, "The random split of 2 rows leaves none for validation: they form only 2 groups"),
])
def test_errors(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        split(["C", "CC"], **options)


@pytest.mark.parametrize("options", [{"k": 1}, {"k": 3, "valid_fraction": 1.0}])
def test_impossible_folds(options: dict) -> None:
    with pytest.raises(ConfigError, match="Cross-validation takes at least 2 folds"):
        k_folds(["C", "CC", "CCC", "CCCC"], **options)
