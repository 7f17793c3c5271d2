"""Rehearsal: a little of everything that the app asks of the machine, so that kernels are compiled beforehand.

Invariant: what it writes is gone when it ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py

from apps.app import config_values, dump_config
from apps.connectomics.app import APP
from apps.connectomics.config import PRECISIONS, ConnectomicsConfig, FloodSettings
from apps.connectomics.sample import synthetic_volume
from apps.connectomics.segment import predict
from apps.connectomics.train import train
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

SHAPE = (56, 56, 56)
CONFIG = ConnectomicsConfig(depth=3, epochs=1, steps=3, min_object=100)
"""The published network but for its depth: other layers are like these."""


def rehearse() -> None:
    """Train a network for a few steps and fill in a small volume in each precision."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.h5"
        image, labels = synthetic_volume(SHAPE, 0)
        with h5py.File(path, "w") as file:
            file["raw"], file["labels"] = image, labels
        run = RunDirectory.create(Path(folder) / "run", app=APP.name, command=["rehearse"],
                                  config=config_values(CONFIG), config_text=dump_config(CONFIG), data=[path])
        with run.training(), Refusals(run.path / "refused.csv") as refused:
            for _ in train((path,), CONFIG, run, refused):
                pass
        for precision in PRECISIONS:
            with Refusals(Path(folder) / "refused.csv") as refused:
                settings = FloodSettings(precision=precision, voxel_size=(10.0, 10.0, 10.0), min_segment_size=1,
                                         seed_policy="PolicyGrid3d")
                predict(run, CONFIG, f"{path}:raw", Path(folder) / f"{precision}.h5", refused, settings)
        run.close()
