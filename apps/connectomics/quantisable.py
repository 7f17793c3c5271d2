"""A trained flood-filling network as `quantize` sees it.

Invariant: the network is calibrated on fields of view around objects of the volumes that it is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.app import FineTuning, Quantisable
from apps.connectomics.config import ConnectomicsConfig, EvaluateSettings
from apps.connectomics.evaluate import measured
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.quantisation import Batch, apply, looks
from apps.connectomics.segment import bound
from apps.connectomics.train import arrays, labelled, sampler_of, start_of, step_of
from apps.quantizing import own_data
from core.engine import random
from core.engine.errors import ConfigError
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory
from core.engine.train import leading_extent

FIELDS, LOOKS = 8, 4
"""Batches of fields of view, and how often the network looks at each."""


def quantisable(run: RunDirectory, config: ConnectomicsConfig, data: tuple[Path, ...],
                refused: Refusals) -> Quantisable:
    """See `apps.app.App`; the volumes that it is measured on are those that it is calibrated on."""
    if not data:
        raise ConfigError("a training on volumes holds nothing out; give labelled volumes to measure on: "
                          "quantize RUN DATA --out RUN8")
    network = run.load_model(FloodFillingNetwork.init(random.key(0), config.depth, config.features))
    settings = EvaluateSettings()

    def metrics(network: FloodFillingNetwork) -> Mapping[str, Any]:
        program = bound(network, config)
        numbers = measured(lambda image: program, config, data, settings).numbers
        return {name: value for name, value in numbers.items() if isinstance(value, float)}

    whole = replace(config, begin=(), end=())

    def fine_tunings(paths: tuple[Path, ...]) -> list[FineTuning]:
        """One, on the part of the volumes that the network was trained on or on all of the given ones."""
        return [fine_tuning(paths, whole) if paths else fine_tuning(own_data(run), config)]

    return Quantisable(network, apply, calibration(network, data, whole), metrics,
                       lambda made, network: made.save_model(network), fine_tunings)


def fine_tuning(paths: tuple[Path, ...], config: ConnectomicsConfig) -> FineTuning:
    """How the network is trained on: with masks that it grows itself, as before."""
    sampler = sampler_of([labelled(path, config) for path in paths], config)
    return FineTuning(
        part="", start=lambda network: start_of(network, config), step=step_of(config),
        batches=lambda epoch: map(arrays, sampler.epoch(epoch, config.steps)), steps=config.steps, rate=config.rate,
        items=leading_extent)


def calibration(network: FloodFillingNetwork, data: tuple[Path, ...], config: ConnectomicsConfig) -> list[Batch]:
    """Fields of view around objects of the volumes, each with the masks that the network makes there in turn."""
    sampler = sampler_of([labelled(path, config) for path in data], config)
    return [batch for moment in sampler.epoch(0, FIELDS)
            for batch in looks(network, moment.fields(moment.image, sampler.field_of_view), config, LOOKS)]
