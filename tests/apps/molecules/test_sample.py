"""`tilework molecules sample`: real molecules, and a command that works on them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from apps.molecules import sample
from core.engine.errors import DataError
from tests.apps.molecules.small import molecules, table


def test_the_sample_trains_as_it_says(tmp_path: Path) -> None:
    outcome = molecules("sample", "--out", tmp_path / "data", "--json")
    assert outcome.code == 0
    rows = table(tmp_path / "data" / "nci_tpsa.csv")
    assert len(rows) == outcome.numbers["molecules"] == 500
    program, app, *words = shlex.split(outcome.numbers["try"])
    assert (program, app, words[-2:]) == ("tilework", "molecules", ["--out", "run"])
    assert molecules(*words[:-1], tmp_path / "run", "--epochs", "1", "--hidden", "16").code == 0


def test_the_values_are_polar_surface_areas() -> None:
    """Of Daylight's tool; RDKit's own differ for a few tautomers and charged atoms."""
    rows = [row for row, _ in zip(sample.rows(), range(300), strict=False)]
    areas = [(float(area), rdMolDescriptors.CalcTPSA(Chem.MolFromSmiles(smiles))) for smiles, area in rows]
    assert sum(abs(given - found) < 0.5 for given, found in areas) > 270


def test_it_writes_as_many_as_there_are(tmp_path: Path) -> None:
    assert sample.write(tmp_path / "all.csv", 10**6) == len(table(tmp_path / "all.csv")) > 4900


def test_an_rdkit_without_its_data_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rdkit.RDConfig.RDDataDir", str(tmp_path))
    outcome = molecules("sample", "--out", tmp_path / "data")
    assert (outcome.code, "install rdkit as a wheel" in outcome.err) == (3, True)
    with pytest.raises(DataError, match="this installation of rdkit has no"):
        next(sample.rows())
