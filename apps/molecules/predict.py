"""Prediction: a file of molecules to a file of values, streamed, in the order of the input.

A file is cut into parts, and a long file's parts are predicted by several processes. This module is also their program.

Invariant: memory does not depend on the length of the file, a row is either written or listed as refused, and what is
written does not depend on the number of processes, bit for bit.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from apps.app import Report
from apps.molecules.config import MoleculesConfig, PredictSettings
from apps.molecules.data import AT_ONCE, Example, limits_of
from apps.molecules.formats import Row
from apps.molecules.readers import (
    Limits,
    Record,
    Refusal,
    check_units,
    columns,
    no_usable_row,
    parse_reaction,
    parse_smiles,
    read_row,
    text_column,
    text_rows,
)
from apps.molecules.trained import Description, Prediction, Trained, interval
from apps.molecules.workers import Workers, serve
from core.engine import checkpoint
from core.engine.errors import DataError
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

LARGEST_PART = 1 << 20
"""Characters; a part ends with the row that passes this."""
FEW_PARTS = 16
"""So many are predicted here in the time that other processes take to start."""
MOST_PROCESSES = 32
"""More would wait for this one, which reads and writes."""


@dataclass(frozen=True)
class Part:
    """Rows of a file that follow each other and make one batch; `first` is the number of the first."""

    first: int
    rows: Sequence[Row]

    def dump(self) -> bytes:
        """As a line of JSON."""
        return json.dumps([self.first, [[row.text, row.columns, row.lines, row.reason] for row in self.rows]]).encode()

    @classmethod
    def parse(cls, line: bytes) -> Part:
        first, rows = json.loads(line)
        return cls(first, [Row(*row) for row in rows])


@dataclass(frozen=True)
class Answer:
    """What became of a part: the cells of the rows that are written, and the other rows."""

    predicted: Sequence[Sequence[str]]
    refused: Sequence[Refusal]

    def dump(self) -> bytes:
        """As a line of JSON."""
        return json.dumps([self.predicted, [[row.row, row.text, row.reason] for row in self.refused]]).encode()

    @classmethod
    def parse(cls, line: bytes) -> Answer:
        predicted, refused = json.loads(line)
        return cls(predicted, [Refusal(*row) for row in refused])


def predict(run: RunDirectory, config: MoleculesConfig, input: Path, out: Path, refused: Refusals,
            settings: PredictSettings) -> Report:
    """Write a CSV of the SMILES column, a column a target, and two more for its interval where the model holds one."""
    trained = Trained.load(run, config.device)
    description = trained.description
    check_units(dict(_unit(entry) for entry in settings.units), description.units, description.targets)
    column = settings.smiles or input_column(description, input)
    name = text_column(input, column)
    count, first_reason = 0, "it holds none at all"
    with contextlib.closing(answers(trained, run, config, text_rows(input, column))) as found, \
            checkpoint.written_whole(out, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header(trained, name))
        for part in found:
            writer.writerows(part.predicted)
            count += len(part.predicted)
            if part.refused and not refused.count:
                first_reason = f"row {part.refused[0].row}: {part.refused[0].reason}"
            for row in part.refused:
                refused.add(row.row, row.reason, row.text)
        if not count:
            raise no_usable_row(input, refused.count, first_reason)
    return Report({"predicted": count, "refused": refused.count})


def answers(trained: Trained, run: RunDirectory, config: MoleculesConfig, rows: Iterable[Row]) -> Generator[Answer]:
    """What becomes of rows, in their order; a model's run is where other processes find it."""
    limits, rest = limits_of(config), parts(rows)
    first = list(islice(rest, FEW_PARTS))
    # By name: apps otherwise know nothing of how a model runs.
    processes = min(importlib.import_module("core.accel.threads").pool().threads, MOST_PROCESSES)
    if processes == 1 or len(first) < FEW_PARTS:
        yield from (answer(trained, limits, part) for part in chain(first, rest))
        return
    words = (__name__, run.path.resolve(), config.device, limits.heavy_atoms, limits.fragments)
    with Workers([*map(str, words)], processes) as workers:
        yield from map(Answer.parse, workers.answers(part.dump() for part in chain(first, rest)))


def parts(rows: Iterable[Row]) -> Iterator[Part]:
    """The rows of a file in parts."""
    held: list[Row] = []
    characters = 0
    for number, row in enumerate(rows, 1):
        held.append(row)
        characters += row.characters
        if len(held) == AT_ONCE or characters > LARGEST_PART:
            yield Part(number + 1 - len(held), held)
            held, characters = [], 0
    if held:
        yield Part(number + 1 - len(held), held)


def answer(trained: Trained, limits: Limits, part: Part) -> Answer:
    """What becomes of a part."""
    description = trained.description
    records = [read_row(number, row, limits) for number, row in enumerate(part.rows, part.first)]
    found = list(description.features.examples(records))
    usable = [row for row in found if isinstance(row, Example)]
    predicted = [cells(prediction, description) for prediction in trained.predict(usable, AT_ONCE)]
    return Answer(predicted, [row for row in found if isinstance(row, Refusal)])


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


def main(words: Sequence[str]) -> None:
    """What another process does: parts of a file come in as lines, and answers go out."""
    run, device, heavy_atoms, fragments = words
    trained = Trained.load(RunDirectory.open(Path(run)), device)
    limits = Limits(int(heavy_atoms), int(fragments))
    serve(lambda line: answer(trained, limits, Part.parse(line)).dump())


if __name__ == "__main__":
    main(sys.argv[1:])
