"""A trained flood-filling network as `quantize` sees it.

Invariant: the network is calibrated on fields of view around objects of the volumes that it is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.app import Quantisable
from apps.connectomics.config import ConnectomicsConfig, EvaluateSettings
from apps.connectomics.evaluate import measured
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.quantisation import Batch, apply, looks
from apps.connectomics.segment import bound
from apps.connectomics.train import labelled, sampler_of
from core.engine import random
from core.engine.errors import ConfigError
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

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

    return Quantisable(network, apply, calibration(network, data, replace(config, begin=(), end=())), metrics,
                       lambda made, network: made.save_model(network))


def calibration(network: FloodFillingNetwork, data: tuple[Path, ...], config: ConnectomicsConfig) -> list[Batch]:
    """Fields of view around objects of the volumes, each with the masks that the network makes there in turn."""
    sampler = sampler_of([labelled(path, config) for path in data], config)
    return [batch for moment in sampler.epoch(0, FIELDS) for batch in looks(network, moment.image, config, LOOKS)]
