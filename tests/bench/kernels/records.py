"""The file of records: one JSON object a line, the newest of a row last.

Invariant: the file only grows, a line is written whole, and the newest record of a row counts; a damaged line, of a
run that was killed, is passed over.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.bench.kernels.measure import Record

MACHINE = "machine"
"""Kind of the line that describes what the records after it were measured on."""


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * begun + json.dumps(entry, ensure_ascii=False) + "\n")


def read(path: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """The newest record of each row by its name, and the newest description of the machine."""
    records: dict[str, Record] = {}
    machine: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if MACHINE in entry:
            machine = entry[MACHINE]
        else:
            records[entry["name"]] = _record(entry)
    return records, machine


def _record(entry: dict[str, Any]) -> Record:
    names = {field.name for field in dataclasses.fields(Record)}
    record = Record(**{name: value for name, value in entry.items() if name in names})
    record.load = (record.load[0], record.load[1])
    return record
