"""Import: a chemprop model as a run of ours, which then predicts like any other.

Invariant: the imported network computes what chemprop computes, to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apps.app import Report, config_values, dump_config
from apps.molecules.chemprop import ChempropModel, read_chemprop
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import Features
from apps.molecules.model import DirectedEncoder, Predictor
from apps.molecules.trained import Architecture, Description, Ensemble, Member, Scales, Trained, activation_named
from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.nn import MLP, Linear
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory


def import_chemprop(input: Path, out: Path, refused: Refusals) -> Report:
    """Write the run `out` from a model file of chemprop v1 or v2."""
    model = read_chemprop(input)
    description = describe(model)
    outputs = len(model.targets)
    empty = ops.zeros((0,))
    scales = Scales(as_array(model.mean), as_array(model.std), ops.zeros((0, outputs), "f64"), empty, empty)
    member = Member(network(model), scales, (model.task == "classification",) * outputs)
    trained = Trained(description, Ensemble((member,), as_array(np.full(outputs, np.nan))))
    config = MoleculesConfig(targets=model.targets, task=model.task, hidden=model.hidden, depth=model.depth,
                             aggregation=model.aggregation, head_layers=len(model.ffn) - 1,
                             head_hidden=description.architecture.head[0] if description.architecture.head else 1,
                             dropout=model.dropout, descriptors=False, coverage=0.0)
    run = RunDirectory.create(out, app="molecules", command=sys.argv[1:], config=config_values(config),
                              config_text=dump_config(config), data=[input])
    trained.save(run)
    numbers: dict[str, int | str] = {
        "chemprop": model.version, "targets": ", ".join(model.targets), "task": model.task, "depth": model.depth,
        "hidden": model.hidden, "aggregation": model.aggregation}
    run.finish(numbers)
    run.close()
    return Report(numbers)


def describe(model: ChempropModel) -> Description:
    """The description of an imported model."""
    widths = tuple(len(bias) for _, bias in model.ffn[:-1])
    architecture = Architecture("dmpnn", model.hidden, model.depth, widths, model.aggregation, model.norm,
                                model.activation, model.dropout)
    tasks = (model.task,) * len(model.targets)
    return Description(architecture, Features(scheme=model.scheme), model.targets, tasks, {}, 1, precision="f64")


def network(model: ChempropModel) -> Predictor:
    """The network with chemprop's weights, whose W_i and W_o are split into their parts for atoms and for bonds."""
    weights = model.weights
    atom_width = weights["W_o"].shape[1] - model.hidden
    into, update, out = weights["W_i"].T, weights["W_h"].T, weights["W_o"].T
    function = activation_named(model.activation)
    encoder = DirectedEncoder(
        Linear(_array(into[:atom_width]), None), Linear(_array(into[atom_width:]), _optional(weights, "W_i_bias")),
        Linear(_array(update), _optional(weights, "W_h_bias")),
        Linear(_array(out[:atom_width]), _array(weights["W_o_bias"])), Linear(_array(out[atom_width:]), None),
        model.depth, model.aggregation, model.norm, function, model.dropout)
    head = MLP(tuple(Linear(_array(weight.T), _array(bias)) for weight, bias in model.ffn), function)
    return Predictor(encoder, head, model.dropout)


def _array(values: np.ndarray) -> Array:
    return as_array(np.ascontiguousarray(values, np.float32))


def _optional(weights: Mapping[str, np.ndarray], name: str) -> Array | None:
    return _array(weights[name]) if name in weights else None
