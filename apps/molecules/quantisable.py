"""A trained model of molecules as `quantize` sees it.

Invariant: every row is predicted by networks that were not trained on it, unless other data is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from apps.app import Quantisable
from apps.molecules.batches import Batch
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import Example, limits_of, read_examples
from apps.molecules.evaluate import numbers, score
from apps.molecules.predict import input_column
from apps.molecules.train import divide, read
from apps.molecules.trained import Ensemble, Trained
from apps.quantizing import own_data
from core.engine.errors import DataError
from core.engine.module import replace
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

CALIBRATED = 512
"""Molecules that the ranges of activations are taken from, at most."""
BATCH = 64


def quantisable(run: RunDirectory, config: MoleculesConfig, data: tuple[Path, ...], refused: Refusals) -> Quantisable:
    """See `apps.app.App`."""
    trained = Trained.load(run, config.device)
    description = trained.description
    if data:
        learned = read_examples(data, description.features, refused, smiles=input_column(description, data[0]),
                                targets=description.targets, extras=(), limits=limits_of(config))
        parts = [(learned, slice(None))]
    else:
        found = read(own_data(run), config, description.features, refused)
        divisions = divide(found, config)
        learned = [found[row] for row in divisions[0].train]
        parts = [([found[row] for row in division.test], slice(fold * config.ensemble, (fold + 1) * config.ensemble))
                 for fold, division in enumerate(divisions) if len(division.test)]
    if not parts:
        raise DataError(f"{run.path} has held no rows out; give data to measure on: quantize RUN DATA --out RUN8")
    targets = np.stack([example.targets for held, _ in parts for example in held])

    def metrics(ensemble: Ensemble) -> Mapping[str, float]:
        values = np.concatenate([Trained(description, replace(ensemble, members=ensemble.members[own]),
                                         config.device).values(held) for held, own in parts])
        scores = score(values, targets, description.tasks)
        return {name: value for name, value in numbers(description.targets, scores).items() if name.split()[-1] != "n"}

    return Quantisable(trained.ensemble, lambda ensemble, batch: ensemble(batch), calibration(trained, learned),
                       metrics, lambda made, ensemble: Trained(description, ensemble, config.device).save(made))


def calibration(trained: Trained, learned: Sequence[Example]) -> list[Batch]:
    """Batches without padded molecules, if there is a whole one; training rows come in the order of the file."""
    some = learned[::max(len(learned) // CALIBRATED, 1)][:CALIBRATED]
    chunks = [some[begin:begin + BATCH] for begin in range(0, len(some), BATCH)]
    return [trained.batch(chunk, len(chunk)) for chunk in chunks if len(chunk) == BATCH or len(chunks) == 1]
