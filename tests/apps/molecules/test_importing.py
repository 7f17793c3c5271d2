"""`tilework molecules import-chemprop`: the run it makes predicts what chemprop does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.molecules.trained import Trained
from core.engine.run import RunDirectory
from tests.apps.molecules.small import lines, molecules, predicted, table

FIXTURES = Path("molecules") / "chemprop_fixtures"


def imported(path: Path, run: Path) -> dict[str, object]:
    outcome = molecules("import-chemprop", path, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.numbers


@pytest.mark.realdata
def test_version_1_gives_its_published_predictions(realdata: Path, tmp_path: Path) -> None:
    """Largest difference 1e-6 log units, the tolerance of chemprop's own conversion test."""
    published, run = realdata / FIXTURES / "chemprop_v1_esol_predictions_50.csv", tmp_path / "run"
    assert imported(realdata / FIXTURES / "example_model_v1_regression_mol.pt", run)["targets"] == "logSolubility"
    assert molecules("predict", run, published, "--out", tmp_path / "out.csv").code == 0
    assert lines(tmp_path / "out.csv")[0] == ["smiles", "logSolubility"]
    assert [row["smiles"] for row in table(tmp_path / "out.csv")] == [row["smiles"] for row in table(published)]
    found, expected = predicted(tmp_path / "out.csv", "logSolubility"), predicted(published, "logSolubility")
    assert len(found) == 50
    assert np.abs(found - expected).max() <= 1e-6
    numbers = molecules("evaluate", run, published, "--out", tmp_path / "report", "--json").numbers
    assert (numbers["n"], numbers["r2"]) == (50, pytest.approx(1, abs=1e-9))
    assert molecules("explain", published, "--run", run, "--out", tmp_path / "page.html").code == 0


@pytest.mark.realdata
def test_version_2_predicts_with_its_own_column_of_targets(realdata: Path, tmp_path: Path) -> None:
    """A sanity check on the numbers alone: test_chemprop.py holds the network to the file's weights."""
    run, data = tmp_path / "run", realdata / FIXTURES / "mol.csv"
    imported(realdata / FIXTURES / "example_model_v2_regression_mol.pt", run)
    description = Trained.load(RunDirectory.open(run)).description
    assert (description.architecture.name, description.precision) == ("dmpnn", "f64")
    assert molecules("predict", run, data, "--out", tmp_path / "out.csv").code == 0
    values = predicted(tmp_path / "out.csv", description.targets[0])
    assert len(values) == 100 and np.isfinite(values).all() and np.ptp(values) > 0.01


def test_what_is_not_a_model_is_refused(tmp_path: Path, nci: Path) -> None:
    outcome = molecules("import-chemprop", nci, "--out", tmp_path / "run")
    assert (outcome.code, outcome.out) == (3, "")
    assert "nci.csv" in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.realdata
def test_a_run_is_not_replaced(realdata: Path, run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    outcome = molecules("import-chemprop", realdata / FIXTURES / "example_model_v1_regression_mol.pt", "--out", run)
    assert (outcome.code, "holds a run already" in outcome.err) == (2, True)
    assert (run / "model.safetensors").read_bytes() == before
