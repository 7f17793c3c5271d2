"""Real molecules in a small table, and small runs trained on it, one a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.molecules import sample
from apps.molecules.trained import Trained
from core.engine.run import RunDirectory
from tests.apps.molecules.small import FAST, MODELS, train


@pytest.fixture(scope="session")
def nci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty molecules and their polar surface areas."""
    path = tmp_path_factory.mktemp("data") / "nci.csv"
    assert sample.write(path, 60) == 60
    return path


@pytest.fixture(scope="session")
def runs(nci: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each model, with intervals that shall hold half of the values."""
    folder = tmp_path_factory.mktemp("runs")
    for model in MODELS:
        train(nci, "--target", "tpsa", "--units", "tpsa=A^2", "--model", model, "--epochs", "20", "--coverage", "0.5",
              *FAST, "--out", folder / model)
    return {model: folder / model for model in MODELS}


@pytest.fixture(scope="session")
def run(runs: dict[str, Path]) -> Path:
    return runs["dmpnn"]


@pytest.fixture(scope="session")
def models(runs: dict[str, Path]) -> dict[str, Trained]:
    """The trained models by name."""
    return {name: Trained.load(RunDirectory.open(path)) for name, path in runs.items()}
