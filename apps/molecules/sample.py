"""A small real data set: molecules of the NCI set inside the rdkit package, with their polar surface areas.

Invariant: nothing is downloaded and nothing is invented; values are those of rdkit's file (Daylight's TPSA tool).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from rdkit import RDConfig

from apps.app import Report
from core.engine.checkpoint import written_whole
from core.engine.errors import DataError

COLUMNS = ("smiles", "tpsa")
UNIT = "A^2"
SAMPLE_ROWS = 500


def rows() -> Iterator[tuple[str, str]]:
    """SMILES and topological polar surface area in square Angstrom of the first 5,000 molecules of the NCI set."""
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5k.tpsa.csv"
    if not path.exists():
        raise DataError(f"this installation of rdkit has no {path}; install rdkit as a wheel")
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.reader(line for line in file if not line.startswith("#")):
            if len(row) == len(COLUMNS):
                yield row[0], row[1]


def write(path: Path, count: int) -> int:
    """Write the first `count` molecules as a CSV; gives how many there were."""
    written = 0
    with written_whole(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows():
            if written == count:
                break
            writer.writerow(row)
            written += 1
    return written


def sample(out: Path) -> Report:
    """A CSV of molecules to try the app with."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "nci_tpsa.csv"
    count = write(path, SAMPLE_ROWS)
    words = f"tilework molecules train {path} --target tpsa --units tpsa={UNIT} --no-descriptors --out run"
    return Report({"file": str(path), "molecules": count, "target": "tpsa", "unit": UNIT, "try": words})
