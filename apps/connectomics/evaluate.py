"""Evaluate: labelled volumes segmented with a run, and how far the result agrees with the labels.

Invariant: every score names its mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import Report
from apps.connectomics.agreement import ContingencyTable
from apps.connectomics.config import ConnectomicsConfig, EvaluateSettings
from apps.connectomics.scoring import agreement_rows
from apps.connectomics.segment import fill, policy_seeds, program_of
from apps.connectomics.train import labelled
from core.engine.errors import ConfigError
from core.engine.jit import Program
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory


def evaluate(run: RunDirectory, config: ConnectomicsConfig, data: tuple[Path, ...], out: Path, refused: Refusals,
             settings: EvaluateSettings) -> Report:
    """Segment a part of each volume and compare it with its labels; tables of all volumes are added up.

    Raises
    ------
    ConfigError
        If a setting is given that belongs to one volume alone.
    """
    if settings.seeds or settings.init or settings.axes or settings.voxel_size:
        raise ConfigError("evaluate reads volumes as the training did and grows objects from seeds of its own; leave "
                          "out --seeds, --init, --axes and --voxel-size")
    return measured(lambda image: program_of(run, config, settings.precision, image), config, data, settings)


def measured(program_for: Callable[[NDArray[np.float32]], Program], config: ConnectomicsConfig, data: tuple[Path, ...],
             settings: EvaluateSettings) -> Report:
    """See `evaluate`; the program for an image is that of `program_of`."""
    table, objects, moves = ContingencyTable.empty(), 0, 0
    middles: dict[str, Any] = {}
    for number, path in enumerate(data):
        volume = labelled(path, replace(config, begin=settings.begin, end=settings.end))
        nothing = np.zeros(volume.image.shape, np.int32)
        canvas, origins = fill(volume.image, nothing, program_for(volume.image), config, settings,
                               policy_seeds(volume.image, nothing, config, settings))
        found = np.maximum(canvas.labels, 0)
        table = table.beside(ContingencyTable.of(found, volume.labels))
        objects, moves = objects + len(origins), moves + canvas.counters.moves
        middle = len(found) // 2
        middles |= {f"image {number}": volume.image[middle], f"labels {number}": volume.labels[middle],
                    f"segmentation {number}": found[middle].astype(np.int64)}
    rows = agreement_rows(table)
    numbers = {f"{name} ({row['mask']})": row[name] for row in rows for name in ("voi", "arand")}
    return Report({"objects": objects, "moves": moves, **numbers}, {"agreement": rows}, middles)
