"""Small models, molecules and tables for tests of the molecules app.

Invariant: everything here follows from its arguments.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.cli import main
from apps.molecules.data import Example, Features
from apps.molecules.model import Predictor
from apps.molecules.readers import Record, parse_reaction, parse_smiles
from apps.molecules.trained import Architecture
from core.engine import random

MODELS = ("dmpnn", "mpnn", "ggnn")
QUICK = ("--hidden", "16", "--head-hidden", "16", "--no-descriptors", "--batch-size", "8", "--aggregation", "mean")
FAST = ("--rate", "0.01", "--final-rate", "0.01")
"""Settings of a network that trains in a moment, and of a learning rate for that."""

SMILES = ("CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1", "C[C@@H](N)C(=O)O", "C/C=C/C#N", "[Na+].[Cl-]",
          "CN1C=NC2=C1C(=O)N(C)C2=O", "OC1CCC(F)CC1")
PLAIN = Features()


@dataclass(frozen=True)
class Outcome:
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def numbers(self) -> dict[str, Any]:
        """The results, if it ran with ``--json``."""
        found: dict[str, Any] = json.loads(self.out)["numbers"]
        return found


def molecules(*words: object) -> Outcome:
    """Run ``tilework molecules`` in this process."""
    return tilework("molecules", *words)


def tilework(*words: object) -> Outcome:
    """Run a command in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*map(str, words)])
    return Outcome(int(code), out.getvalue(), err.getvalue())


def train(*words: object, says: int = 0) -> dict[str, Any]:
    """Train a small network; gives the results."""
    outcome = molecules("train", *words, *QUICK, "--json")
    assert outcome.code == says, outcome.err
    return outcome.numbers


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[list[str]]:
    """The cells of a CSV file, its header first."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def predicted(path: Path, target: str) -> np.ndarray:
    """A column of a file of predictions."""
    return np.array([float(row[target]) for row in table(path)])


def example(text: str, features: Features = PLAIN, targets: Sequence[float] = (), row: int = 1) -> Example:
    """A SMILES or a reaction as a model takes it."""
    molecule, products = parse_reaction(text) if ">>" in text else (parse_smiles(text), None)
    return features.example(Record(row, text, molecule, products, None, np.array(targets, np.float64), {}), keyed=False)


def network(name: str, features: Features = PLAIN, outputs: int = 1, seed: int = 0, **settings: Any) -> Predictor:
    """A small network with drawn parameters."""
    architecture = Architecture(name, **({"hidden": 16, "depth": 3, "head": (16,), "aggregation": "sum"} | settings))
    return architecture.build(random.key(seed), features, outputs)
