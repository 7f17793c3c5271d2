"""Test errors of the molecules app over several splits, one JSON line a split.

    python -m tests.bench.molecules_accuracy CSV --target COLUMN --out FILE.jsonl [--splits 10] [--first 0]
        [--SETTING ...]

Splits are those of the app for the seeds first, first + 1, ...; finished ones are skipped. Further options are settings
of the app, as on its command line, given as NAME=VALUE. The file holds the metrics on test and validation rows, the
settings and the processor seconds of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import load_config
from apps.molecules.config import MoleculesConfig
from apps.molecules.train import describe, divide, learn, read
from apps.molecules.trained import Trained
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_intermixed_args()
    given: dict[str, Any] = dict(entry.split("=", 1) for entry in arguments.settings)
    config = load_config(MoleculesConfig, None, {"targets": (arguments.target,), **{key: _value(value) for key, value in
                                                                                    given.items()}})
    done = {json.loads(line)["seed"] for line in arguments.out.open()} if arguments.out.exists() else set()
    with tempfile.TemporaryDirectory() as folder:
        with Refusals(Path(folder) / "refused.csv") as refused:
            description = describe([arguments.csv], config)
            found = read([arguments.csv], config, description.features, refused)
        for seed in range(arguments.first, arguments.first + arguments.splits):
            if seed not in done:
                line = measure(found, description, replace(config, seed=seed), Path(folder) / str(seed))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(line["seed"], line["test"].get("rmse"), line["valid_rmse"], flush=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(found: Any, description: Any, config: MoleculesConfig, folder: Path) -> dict[str, Any]:
    """Train on one split."""
    run = RunDirectory.create(folder, app="molecules", command=[], config={}, config_text="")
    clock, wall = time.process_time(), time.monotonic()
    training = learn(found, description, config, run)
    try:
        while True:
            next(training)
    except StopIteration as end:
        report = end.value
    run.close()
    trained = Trained.load(run)
    valid = divide(found, config)[0].valid
    errors = trained.values([found[row] for row in valid])[:, 0] - np.array([found[row].targets[0] for row in valid])
    return {"seed": config.seed, "test": dict(report.numbers), "valid_rmse": float(np.sqrt(np.mean(errors**2))),
            "processor_seconds": time.process_time() - clock, "seconds": time.monotonic() - wall,
            "settings": asdict(config)}


if __name__ == "__main__":
    main()
