"""Prediction: a file of molecules to a file of values, streamed, in the order of the input.

Invariant: memory does not depend on the length of the file, and a row is either written or listed as refused.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from apps.app import Report
from apps.molecules.config import MoleculesConfig, PredictSettings
from apps.molecules.data import Example, examples, limits_of, open_rows
from apps.molecules.readers import Limits, Record, check_units, columns, parse_reaction, parse_smiles, text_column
from apps.molecules.trained import Description, Prediction, Trained, interval
from core.engine import checkpoint
from core.engine.errors import DataError
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

BATCH_SIZE = 128


def predict(run: RunDirectory, config: MoleculesConfig, input: Path, out: Path, refused: Refusals,
            settings: PredictSettings) -> Report:
    """Write a CSV of the SMILES column, a column a target, and two more for its interval where the model holds one."""
    trained = Trained.load(run, config.device)
    description = trained.description
    check_units(dict(_unit(entry) for entry in settings.units), description.units)
    column = settings.smiles or input_column(description, input)
    rows = open_rows(input, smiles=column, limits=limits_of(config))
    found = examples(rows, description.features, refused)
    count = 0
    with checkpoint.written_whole(out, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header(trained, text_column(input, column)))
        for prediction in trained.predict(found, BATCH_SIZE):
            writer.writerow(cells(prediction, description))
            count += 1
    return Report({"predicted": count, "refused": refused.count})


def input_column(description: Description, input: Path) -> str | None:
    """The SMILES column that the training was told, if the input has it too; None to find one by its name."""
    return description.smiles if description.smiles in columns(input) else None


def header(trained: Trained, smiles: str) -> list[str]:
    """Names of the columns."""
    names = [smiles]
    for index, target in enumerate(trained.description.targets):
        names.append(target)
        if np.isfinite(trained.ensemble.half_width.numpy()[index]):
            names += [f"{target}_low", f"{target}_high"]
    return names


def cells(prediction: Prediction, description: Description) -> list[str]:
    """One row, numbers with the digits that a float32 has."""
    row = [prediction.example.text]
    for index, _ in enumerate(description.targets):
        bounds = interval(prediction, index, description.tasks) or ()
        row += [f"{value:.10g}" for value in (float(prediction.values[index]), *bounds)]
    return row


def _unit(entry: str) -> tuple[str, str]:
    name, _, unit = entry.partition("=")
    if not unit:
        raise DataError(f"units are COLUMN=UNIT; found {entry!r}")
    return name, unit


def example_of(trained: Trained, text: str, limits: Limits) -> Example:
    """One SMILES or reaction as the model takes it; raises `DataError` with the reason if it cannot be used."""
    molecule, products = parse_reaction(text, limits) if ">>" in text else (parse_smiles(text, limits), None)
    return trained.description.features.example(Record(1, text, molecule, products, None, np.zeros(0), {}), keyed=False)


def predict_smiles(trained: Trained, text: str, limits: Limits) -> Prediction:
    """The prediction for one SMILES or reaction; raises `DataError` with the reason if it cannot be used."""
    return next(trained.predict([example_of(trained, text, limits)], 1))
