"""QM9 from SMILES alone: error ratios (mean absolute error over chemical accuracy) beside a ridge on counts.

    python -m tests.bench.qm9 DATA_DIR --out FOLDER [--targets gap,homo] [--gaps] [NAME=VALUE ...]

DATA_DIR holds qm9_13targets.csv.gz, qm9_extra_train_12targets.csv.gz and qm9_gap_extra_train.csv.gz. The test set is
2,000 of the first file's molecules, drawn by seed; 500 more are for calibration; all others train. One network learns
the targets that are named, by default all thirteen. With --gaps the third file, which has gaps only, trains too, and
the target is the gap alone unless others are named. Further words are settings of the app.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from apps import commands
from apps.molecules.app import APP
from apps.molecules.baselines import ridge
from apps.molecules.descriptors import counts
from apps.molecules.readers import parse_smiles
from apps.molecules.splits import molecule_key
from core.engine import random

HARTREE = 27.211386  # eV
ACCURACY = {"mu": 0.1, "alpha": 0.1, "homo": 0.043 / HARTREE, "lumo": 0.043 / HARTREE, "gap": 0.043 / HARTREE,
            "r2": 1.2, "zpve": 0.0012 / HARTREE, "u0_atom": 0.043 * 23.060548, "u298_atom": 0.043 * 23.060548,
            "h298_atom": 0.043 * 23.060548, "g298_atom": 0.043 * 23.060548, "cv": 0.050, "omega1": 10.0}
"""Chemical accuracy in the units of the files (Hartree, kcal/mol for atomisation energies; Gilmer et al., Table 2)."""
TEST, CALIBRATION = 2000, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--gaps", action="store_true")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True)
    targets = arguments.targets or (("gap",) if arguments.gaps else tuple(ACCURACY))
    rows = divided(arguments.data, arguments.gaps)
    table = arguments.out / "qm9.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["smiles", "split", *targets], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    given: dict[str, Any] = {"targets": targets, "split": "column", "offset": "counts", "descriptors": False}
    for word in arguments.settings:
        name, _, value = word.partition("=")
        given[name] = json.loads(value) if value[:1] in "0123456789tf[" else value
    outcome = commands.train(APP, [table], arguments.out / "run", None, given, resume=False, json_lines=False, words=[])
    plain = ridge_errors(rows, targets)
    for name in targets:
        key = "mae" if len(targets) == 1 else f"{name} mae"
        ours = outcome.numbers[key] / ACCURACY[name]
        print(f"{name:<10} error ratio {ours:8.3f}   ridge on counts {plain[name]:8.3f}   "
              f"ratio {plain[name] / ours:6.2f}")


def divided(data: Path, gaps: bool) -> list[dict[str, str]]:
    """All rows with their side; a molecule of the test or calibration set is nowhere else."""
    first = _read(data / "qm9_13targets.csv.gz")
    order = random.permutation(random.key(2017), len(first))
    for place, row in enumerate(order):
        first[row]["split"] = "test" if place < TEST else "valid" if place < TEST + CALIBRATION else "train"
    rows = first + [row | {"split": "train"} for row in _read(data / "qm9_extra_train_12targets.csv.gz")]
    if gaps:
        rows += [row | {"split": "train"} for row in _read(data / "qm9_gap_extra_train.csv.gz")]
    held = {molecule_key(parse_smiles(row["smiles"])) for row in rows if row["split"] != "train"}
    return [row for row in rows if row["split"] != "train" or molecule_key(parse_smiles(row["smiles"])) not in held]


def ridge_errors(rows: list[dict[str, str]], targets: tuple[str, ...]) -> dict[str, float]:
    """Error ratios of a ridge on counts of atoms, bonds and rings, on the test rows."""
    features = np.stack([counts(parse_smiles(row["smiles"])) for row in rows])
    values = np.array([[float(row.get(name) or "nan") for name in targets] for row in rows])
    side = np.array([row["split"] for row in rows])
    train, valid, test = (side == name for name in ("train", "valid", "test"))
    predicted = ridge((features[train], values[train]), (features[valid], values[valid]), features[test])
    errors = np.nanmean(np.abs(predicted - values[test]), axis=0)
    return {name: float(error / ACCURACY[name]) for name, error in zip(targets, errors, strict=True)}


def _read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
