"""A rehearsal of everything that the molecules app computes, so that its kernels are compiled before they are needed.

Invariant: what kernels depend on (the networks, the kinds of targets, the options of a training) is tried here with few
small molecules; sizes are those of the defaults where they decide which kernel runs.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.app import config_values, dump_config
from apps.molecules import sample
from apps.molecules.app import APP
from apps.molecules.config import MODELS, MoleculesConfig
from apps.molecules.explain import Explainer
from apps.molecules.predict import example_of
from apps.molecules.readers import DEFAULT_LIMITS
from apps.molecules.train import train
from apps.molecules.trained import Trained
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

ROWS = 90
"""Enough for a full batch and a shorter one, and for rows to validate and to test on."""
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {"targets": ("tpsa",)}, {"targets": ("polar",), "descriptors": False},
    {"targets": ("tpsa", "polar"), "dropout": 0.1, "clip": 1.0})
"""One value, one class, and both together with what else a training may be told."""


def rehearse() -> None:
    """Train each network for an epoch in several variants, predict, and explain a prediction."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "molecules.csv"
        first = _write(data)
        for model in MODELS:
            for number, variant in enumerate(VARIANTS):
                run = _trained(data, Path(folder) / f"{model}-{number}", {"model": model, **variant})
                trained = Trained.load(run)
                Explainer(trained, 0)(example_of(trained, first, DEFAULT_LIMITS))
                run.close()


def _write(path: Path) -> str:
    """Write the table of molecules; gives the first molecule."""
    sample.write(path, ROWS)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "polar"])
        writer.writeheader()
        writer.writerows({**row, "polar": int(float(row["tpsa"]) > 40)} for row in rows)
    return rows[0]["smiles"]


def _trained(data: Path, out: Path, settings: Mapping[str, Any]) -> RunDirectory:
    """A run of one epoch."""
    config = MoleculesConfig(epochs=1, **settings)
    run = RunDirectory.create(out, app=APP.name, command=["rehearse"], config=config_values(config),
                              config_text=dump_config(config), data=[data])
    with run.training(), Refusals(run.path / "refused.csv") as refused:
        for _ in train((data,), config, run, refused):
            pass
    return run
