"""Speed of the molecules app against chemprop: whole commands, in turn, on the same file with the same settings.

    python -m tests.bench.molecules_speed CSV --target COLUMN --chemprop .venv-bench/bin/chemprop [--rounds 3]
        [--predict OTHER.csv]

Both train a directed network of width 300, depth 3, one read-out layer of 300, 50 epochs, batches of 64, two threads,
no molecule descriptors. Ratios are chemprop's seconds over ours, median of the rounds; above 1 we are faster.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--chemprop", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--predict", type=Path, help="file to predict; the training file if not given")
    parser.add_argument("--rows", type=int, default=20_000, help="rows to predict at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(arguments, Path(folder)), indent=2))


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Median seconds and ratios of training and of prediction."""
    table, many = folder / "train.csv", folder / "many.csv"
    _copy(arguments.csv, table, arguments.target, None)
    count = _copy(arguments.predict or arguments.csv, many, None, arguments.rows)
    one = folder / "one.csv"
    _copy(arguments.csv, one, None, 64)
    seconds: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        ours, theirs = folder / f"ours-{number}", folder / f"theirs-{number}"
        tilework = [sys.executable, "-m", "apps.cli", "molecules"]
        commands = {
            "train ours": [*tilework, "train", str(table), "--target", arguments.target, "--epochs",
                           str(arguments.epochs), "--no-descriptors", "--out", str(ours)],
            "train chemprop": [arguments.chemprop, "train", "-i", str(table), "--smiles-columns", "smiles",
                               "--target-columns", arguments.target, "--task-type", "regression", "--epochs",
                               str(arguments.epochs), "--accelerator", "cpu", "--num-workers", "0", "-o", str(theirs)],
        }
        for name, source in (("start", one), ("predict", many)):
            commands[f"{name} ours"] = [*tilework, "predict", str(ours), str(source), "--out", str(folder / "ours.csv")]
            commands[f"{name} chemprop"] = [arguments.chemprop, "predict", "-i", str(source), "--smiles-columns",
                                            "smiles", "--accelerator", "cpu", "--num-workers", "0", "--model-paths",
                                            str(theirs), "-o", str(folder / "theirs.csv")]
        for name, command in commands.items():
            seconds.setdefault(name, []).append(_timed(command))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rate = {who: count / max(medians[f"predict {who}"] - medians[f"start {who}"], 1e-9) for who in ("ours", "chemprop")}
    return {"seconds": medians, "rounds": arguments.rounds, "molecules predicted": count,
            "training ratio": medians["train chemprop"] / medians["train ours"],
            "prediction ratio, whole command": medians["predict chemprop"] / medians["predict ours"],
            "molecules per second without start-up": rate, "prediction ratio": rate["ours"] / rate["chemprop"]}


def _copy(source: Path, out: Path, target: str | None, rows: int | None) -> int:
    """SMILES, and the target if one is named, of the usable rows."""
    from rdkit import Chem, rdBase

    count = 0
    open_text = gzip.open if source.suffix == ".gz" else open
    with open_text(source, "rt") as file, out.open("w", newline="") as copy, rdBase.BlockLogs():
        writer = csv.writer(copy)
        writer.writerow(["smiles", *([target] if target else [])])
        for row in csv.DictReader(file):
            if count == rows:
                break
            if Chem.MolFromSmiles(row["smiles"]) is not None:
                writer.writerow([row["smiles"], *([row[target]] if target else [])])
                count += 1
    return count


def _timed(command: list[str]) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TILEWORK_THREADS": "2"}
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
