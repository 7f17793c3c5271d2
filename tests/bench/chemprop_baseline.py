"""chemprop with its own defaults on the project's random splits, one JSON line per split.

Invariant: every baseline and every model of ours sees the same molecules in the same part, because the parts come from
`apps.molecules.splits` alone; a line in the output file is a split that was trained, predicted and scored to its end.

chemprop is run as a command, so that it may live in an environment of its own. From the root of the repository::

    python -m tests.bench.chemprop_baseline esol.csv --target "measured log solubility in mols per litre" \\
        --out chemprop_esol.jsonl --chemprop CHEMPROP
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from apps.molecules.splits import molecule_key, split

FRACTIONS = (0.8, 0.1, 0.1)
SETTINGS = (
    "message-hidden-dim", "depth", "ffn-hidden-dim", "ffn-num-layers", "dropout", "activation", "aggregation",
    "aggregation-norm", "batch-size", "epochs", "warmup-epochs", "init-lr", "max-lr", "final-lr",
    "multi-hot-atom-featurizer-mode", "ensemble-size", "pytorch-seed",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The molecules of one CSV.

    Attributes
    ----------
    name : file name without its suffix
    smiles : as the file spells them
    keys : `molecule_key` of each molecule; rows of one key stay in one part
    target : f64[molecule], in the unit of the file
    """

    name: str
    smiles: list[str]
    keys: list[str]
    target: NDArray[np.float64]


def read_table(path: Path, smiles_column: str, target_column: str) -> Table:
    """The SMILES and the target of a CSV whose every molecule RDKit can read."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    smiles = [row[smiles_column].strip() for row in rows]
    return Table(
        path.stem,
        smiles,
        [molecule_key(Chem.MolFromSmiles(text)) for text in smiles],
        np.array([float(row[target_column]) for row in rows]),
    )


def parts_of(table: Table, seed: int, kind: str) -> dict[str, NDArray[np.int64]]:
    """Row numbers of ``train``, ``val`` and ``test``, as chemprop calls the parts."""
    rows = split(table.keys, FRACTIONS, kind=kind, seed=seed)
    return {"train": rows.train, "val": rows.valid, "test": rows.test}


def describe(table: Table, parts: dict[str, NDArray[np.int64]], seed: int, kind: str) -> dict[str, object]:
    """What a line says about its split, with a hash of the part of each row, by which two files can be compared."""
    part_of_row = np.full(len(table.keys), -1, np.int8)
    for number, rows in enumerate(parts.values()):
        part_of_row[rows] = number
    digest = hashlib.sha256(part_of_row.tobytes()).hexdigest()[:16]
    sizes = {part: len(rows) for part, rows in parts.items()}
    return {"data": table.name, "kind": kind, "seed": seed, "molecules": sizes, "split_sha256": digest}


def score(found: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    """Root mean square error and mean absolute error, in the unit of the target."""
    error = found - expected
    return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}


def read_lines(path: Path) -> list[dict[str, object]]:
    """The lines written so far; none when the file does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(path: Path, line: dict[str, object]) -> None:
    """Add one line to the output file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def print_summary(path: Path) -> None:
    """Mean and standard deviation over the splits of each model in the output file."""
    lines = read_lines(path)
    for model in dict.fromkeys(line["model"] for line in lines):
        rmse = np.array([line["rmse"] for line in lines if line["model"] == model], dtype=float)
        spread = f" +- {rmse.std(ddof=1):.3f}" if len(rmse) > 1 else ""
        print(f"{lines[0]['data']}  {model}  test RMSE {rmse.mean():.3f}{spread} over {len(rmse)} splits")


def timed(command: list[str], threads: int, log: Path) -> dict[str, float]:
    """Run a command to its end; its wall and processor seconds, start of Python and imports included."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {code}:\n{log.read_text()[-2000:]}")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"wall": round(wall, 2), "processor": round(processor, 2)}


def write_csv(path: Path, rows: Iterable[tuple[object, ...]], header: tuple[str, ...]) -> None:
    """A CSV for chemprop."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_settings(path: Path) -> dict[str, str]:
    """The settings that chemprop says it ran with, defaults included, from its ``config.toml``."""
    pairs = (line.partition(" = ") for line in path.read_text().splitlines())
    return {name: value for name, _, value in pairs if name in SETTINGS}


def run_split(
    table: Table, parts: dict[str, NDArray[np.int64]], seed: int, chemprop: str, threads: int
) -> dict[str, object]:
    """Train chemprop on one split with its defaults and score its prediction of the test part.

    The checkpoint that predicts is chemprop's choice: the epoch of least validation loss.
    """
    part_of_row = {row: part for part, rows in parts.items() for row in rows}
    common = ["--smiles-columns", "smiles", "--accelerator", "cpu", "--num-workers", "0"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbered = enumerate(zip(table.smiles, table.target, strict=True))
        rows = ((smiles, repr(float(target)), part_of_row[row]) for row, (smiles, target) in numbered)
        write_csv(folder / "data.csv", rows, ("smiles", "target", "split"))
        write_csv(folder / "test.csv", ((table.smiles[row],) for row in parts["test"]), ("smiles",))
        train = [chemprop, "train", "--data-path", str(folder / "data.csv"), "--output-dir", str(folder / "model")]
        train += [*common, "--target-columns", "target", "--splits-column", "split"]
        train += ["--data-seed", str(seed), "--pytorch-seed", str(seed)]
        training = timed(train, threads, folder / "train.log")
        predict = [chemprop, "predict", "--test-path", str(folder / "test.csv"), *common]
        predict += ["--model-paths", str(folder / "model/model_0/best.pt"), "--output", str(folder / "found.csv")]
        predicting = timed(predict, threads, folder / "predict.log")
        with (folder / "found.csv").open(newline="", encoding="utf-8") as file:
            found = np.array([float(row["target"]) for row in csv.DictReader(file)])
        settings = read_settings(folder / "model/config.toml")
    return {
        "model": "chemprop",
        **score(found, table.target[parts["test"]]),
        "train_seconds": training,
        "predict_seconds": predicting,
        "threads": threads,
        "settings": settings,
    }


def parse_split_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the arguments that all baselines share added to those of `parser`."""
    parser.add_argument("csv", type=Path, help="table with one molecule a row")
    parser.add_argument("--smiles", default="smiles", help="column of SMILES")
    parser.add_argument("--target", required=True, help="column to predict")
    parser.add_argument("--splits", type=int, default=10, help="number of splits, seeds 0, 1, ...")
    parser.add_argument("--kind", choices=("random", "scaffold"), default="random", help="see apps.molecules.splits")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; splits already in it are not run again")
    return parser.parse_args()


def main() -> None:
    parser = argparse.ArgumentParser(description="Test RMSE of chemprop's defaults on the project's splits.")
    parser.add_argument("--chemprop", default="chemprop", help="the chemprop command")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parse_split_arguments(parser)
    table = read_table(arguments.csv, arguments.smiles, arguments.target)
    done = {line["seed"] for line in read_lines(arguments.out)}
    for seed in (seed for seed in range(arguments.splits) if seed not in done):
        parts = parts_of(table, seed, arguments.kind)
        result = run_split(table, parts, seed, arguments.chemprop, arguments.threads)
        append_line(arguments.out, describe(table, parts, seed, arguments.kind) | result)
        print(f"{table.name}  seed {seed}  test RMSE {result['rmse']:.3f}", flush=True)
    print_summary(arguments.out)


if __name__ == "__main__":
    main()
