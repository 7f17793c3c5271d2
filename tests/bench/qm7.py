"""QM7 with coordinates: mean absolute errors of cross-validation, beside a linear fit over elements and a ridge.

    python -m tests.bench.qm7 DATA.xyz.gz --out FOLDER [NAME=VALUE ...]

DATA is in the extended XYZ format with the property hof_pbe0_kcal, the PBE0 atomisation energy in kcal/mol. The folds
are the app's, five if not said otherwise. Further words are settings of the app.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps import commands
from apps.app import load_config
from apps.molecules.app import APP
from apps.molecules.config import MoleculesConfig
from apps.molecules.scaling import fit_scales
from apps.molecules.train import describe, divide, read
from core.engine.refusals import Refusals

SETTINGS: dict[str, Any] = {
    "targets": ("hof_pbe0_kcal",), "units": ("hof_pbe0_kcal=kcal/mol",), "model": "mpnn", "offset": "counts",
    "descriptors": False, "folds": 5, "hidden": 64, "head_hidden": 128, "epochs": 30, "rate": 2e-3,
    "final_rate": 1e-5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True)
    given = dict(SETTINGS)
    for word in arguments.settings:
        name, _, value = word.partition("=")
        given[name] = json.loads(value) if value[:1] in "0123456789tf[" else value
    clock, wall = time.process_time(), time.monotonic()
    outcome = commands.train(APP, [arguments.data], arguments.out / "run", None, given, resume=False, json_lines=False,
                             words=[])
    clock, wall = time.process_time() - clock, time.monotonic() - wall
    linear = linear_errors(arguments.data, load_config(MoleculesConfig, None, given), arguments.out)
    with (arguments.out / "run" / "report" / "folds.csv").open(newline="") as file:
        folds = list(csv.DictReader(file))
    for name, errors in (("network", [float(fold["mae"]) for fold in folds]),
                         ("ridge", [float(fold["ridge baseline mae"]) for fold in folds]), ("linear fit", linear)):
        print(f"{name:<10} MAE {np.mean(errors):6.3f} sd {np.std(errors, ddof=1):5.3f} kcal/mol   "
              f"folds {' '.join(f'{error:6.3f}' for error in errors)}")
    print(f"{outcome.numbers['training rows']} training rows of the first fold; {outcome.refused} rows refused; "
          f"{wall / 60:.1f} min, {clock / 60:.1f} min of processor time")


def linear_errors(data: Path, config: MoleculesConfig, folder: Path) -> list[float]:
    """Mean absolute error of a constant for each element, on the test rows of each fold."""
    with Refusals(folder / "refused.csv") as refused:
        description = describe([data], config)
        found = read([data], config, description.features, refused)
    errors = []
    for division in divide(found, config):
        scales = fit_scales([found[row] for row in division.train], description.tasks)
        test = [found[row] for row in division.test]
        rest = scales.targets(np.stack([example.targets for example in test]),
                              np.stack([example.counts for example in test]))
        errors.append(float(np.abs(rest).mean() * scales.std.item()))
    return errors


if __name__ == "__main__":
    main()
