"""A trained model of molecules as `quantize` sees it.

Invariant: every row is predicted by networks that were not trained on it, unless other data is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from apps.app import FineTuning, Quantisable
from apps.molecules.batches import Batch, batches
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import Example, limits_of, read_examples
from apps.molecules.evaluate import numbers, score
from apps.molecules.predict import input_column
from apps.molecules.splits import Split
from apps.molecules.train import count_of, divide, half_widths, read, samples_of, start_of, step_of
from apps.molecules.trained import Ensemble, Member, Trained
from apps.quantizing import own_data
from core.engine import random
from core.engine.array import as_array
from core.engine.errors import DataError
from core.engine.module import replace
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

CALIBRATED = 512
"""Molecules that the ranges of activations are taken from, at most."""
BATCH = 64


def quantisable(run: RunDirectory, config: MoleculesConfig, data: tuple[Path, ...], refused: Refusals) -> Quantisable:
    """See `apps.app.App`."""
    subject = _Subject(run, config, data, refused)
    return Quantisable(subject.trained.ensemble, lambda ensemble, batch: ensemble(batch),
                       calibration(subject.trained, subject.learned), subject.metrics, subject.save,
                       subject.fine_tunings)


class _Subject:
    """A run, and the molecules that its model is measured on: those of `data`, or the held-out ones of its own."""

    def __init__(self, run: RunDirectory, config: MoleculesConfig, data: tuple[Path, ...], refused: Refusals) -> None:
        self.run, self.config, self.refused = run, config, refused
        self.trained = Trained.load(run, config.device)
        self.description = self.trained.description
        self.given = self._read(data) if data else None
        if self.given is None and not any(len(division.test) for division in self.own[1]):
            raise DataError(f"{run.path} has held no rows out; give data to measure on: quantize RUN DATA --out RUN8")

    @cached_property
    def own(self) -> tuple[list[Example], list[Split]]:
        """What the run was trained on, and its divisions."""
        found = read(own_data(self.run), self.config, self.description.features, self.refused)
        return found, divide(found, self.config)

    @property
    def learned(self) -> list[Example]:
        """What the ranges of activations are taken from: training rows, unless other data is given."""
        return self._rows(self.own[1][0].train) if self.given is None else self.given

    def metrics(self, ensemble: Ensemble) -> Mapping[str, float]:
        """See `Quantisable.score`."""
        if self.given is None:
            pairs = [(self._of_fold(ensemble, fold), self._rows(division.test))
                     for fold, division in enumerate(self.own[1]) if len(division.test)]
        else:
            pairs = [(Trained(self.description, ensemble, self.config.device), self.given)]
        values = np.concatenate([model.values(held) for model, held in pairs])
        targets = np.stack([example.targets for _, held in pairs for example in held])
        found = numbers(self.description.targets, score(values, targets, self.description.tasks))
        return {name: value for name, value in found.items() if name.split()[-1] != "n"}

    def save(self, made: RunDirectory, ensemble: Ensemble) -> None:
        """Write a model, with intervals of its own if there are rows that it was not trained on."""
        if self.given is None:
            found, divisions = self.own
            models = [self._of_fold(ensemble, fold) for fold in range(len(divisions))]
            ensemble = replace(ensemble, half_width=as_array(half_widths(found, divisions, models, self.description)))
        Trained(self.description, ensemble, self.config.device).save(made)

    def fine_tunings(self, paths: tuple[Path, ...]) -> list[FineTuning]:
        """One a network, on the rows that it was trained on unless others are given."""
        if paths:
            rows = [self._read(paths)] * self.description.members
        else:
            rows = [self._rows(division.train) for division in self.own[1] for _ in range(self.config.ensemble)]
        return [fine_tuning(place, member, learned, self.config)
                for place, (member, learned) in enumerate(zip(self.trained.ensemble.members, rows, strict=True))]

    def _read(self, paths: tuple[Path, ...]) -> list[Example]:
        description = self.description
        return read_examples(
            paths, description.features, self.refused, column_of=lambda path: input_column(description, path),
            targets=description.targets, extras=(), limits=limits_of(self.config))

    def _rows(self, numbers: np.ndarray) -> list[Example]:
        return [self.own[0][number] for number in numbers]

    def _of_fold(self, ensemble: Ensemble, fold: int) -> Trained:
        """The model of the networks that were trained without a fold."""
        members = ensemble.members[fold * self.config.ensemble:(fold + 1) * self.config.ensemble]
        return Trained(self.description, replace(ensemble, members=members), self.config.device)


def fine_tuning(place: int, member: Member, learned: Sequence[Example], config: MoleculesConfig) -> FineTuning:
    """How network number `place` is trained on."""
    rows = samples_of(learned, member.scales)
    return FineTuning(
        part=f"members.{place}.network", start=lambda network: start_of(network, config),
        step=step_of(member.scales, member.classes, config),
        batches=lambda epoch: batches(rows, config.batch_size, seed=config.seed * 1000 + place, epoch=epoch),
        steps=-(-len(rows) // config.batch_size), rate=config.rate, items=count_of,
        key=random.fold_in(random.fold_in(random.key(config.seed), place), 2))


def calibration(trained: Trained, learned: Sequence[Example]) -> list[Batch]:
    """Batches without padded molecules, if there is a whole one; training rows come in the order of the file."""
    some = learned[::max(len(learned) // CALIBRATED, 1)][:CALIBRATED]
    chunks = [some[begin:begin + BATCH] for begin in range(0, len(some), BATCH)]
    return [trained.batch(chunk, len(chunk)) for chunk in chunks if len(chunk) == BATCH or len(chunks) == 1]
