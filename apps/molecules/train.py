"""Training on molecules: read, divide, scale, fit the members, calibrate, and report beside the baselines.

Invariant: the test rows are looked at once, after everything is fitted and calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from apps.app import Report
from apps.molecules import baselines
from apps.molecules.batches import Batch, Sample, Values, batches, collate
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import Example, Features, first_record, limits_of, read_examples, samples
from apps.molecules.descriptors import counts, fingerprint
from apps.molecules.evaluate import coverage, numbers, prediction_rows, score
from apps.molecules.formats import format_of
from apps.molecules.model import Predictor
from apps.molecules.readers import text_column
from apps.molecules.scaling import conformal_half_width, fit_scales
from apps.molecules.splits import Split, k_folds, split
from apps.molecules.trained import Architecture, Description, Ensemble, Member, Scales, Trained, classes_of
from core.engine import checkpoint, losses, ops, random, tree
from core.engine.array import Array, as_array
from core.engine.errors import ConfigError, DataError
from core.engine.jit import jit
from core.engine.optim import AdamW, clip_by_global_norm
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory
from core.engine.schedule import noam_like
from core.engine.train import Fitted, Monitor, Progress, State, fit, gradient_step, shifted

VALIDATION_LOSS = "validation loss"


@dataclass(frozen=True)
class Part:
    """One fold: its rows, scales, and the networks trained on it."""

    split: Split
    scales: Scales
    members: tuple[Member, ...]


def train(data: tuple[Path, ...], config: MoleculesConfig, run: RunDirectory,
          refused: Refusals) -> Generator[Progress, None, Report]:
    """Train the networks of a run; yields progress, writes the model, and gives the report on the test rows."""
    description = describe(data, config)
    found = read(data, config, description.features, refused)
    return (yield from learn(found, description, config, run))


def learn(found: Sequence[Example], description: Description, config: MoleculesConfig,
          run: RunDirectory) -> Generator[Progress, None, Report]:
    """Train on examples: divide, scale, fit the members, calibrate, save the model, and report on the test rows."""
    description = replace(description, tasks=tasks_of(found, config))
    parts = []
    divisions = divide(found, config)
    for fold, division in enumerate(divisions):
        _check_rows(found, division, description)
        scales = fit_scales([found[row] for row in division.train], description.tasks)
        members = []
        for member in range(config.ensemble):
            place = fold * config.ensemble + member
            fitted = yield from _fit_member(found, division, scales, description, config, run, place, len(divisions))
            members.append(Member(fitted, scales, classes_of(description.tasks)))
        parts.append(Part(division, scales, tuple(members)))
    return _finish(found, parts, description, config, run)


def dry_run(data: tuple[Path, ...], config: MoleculesConfig) -> Mapping[str, str]:
    """The first usable molecule through every stage, with the shapes it has there."""
    description = describe(data, config)
    limits = limits_of(config)
    record = first_record(data[0], smiles=config.smiles, targets=config.targets, limits=limits)
    example = description.features.example(record, keyed=True)
    predictor = description.architecture.build(random.key(config.seed), description.features, len(config.targets))
    batch = collate(samples([example], example.targets[None].astype(np.float32)), 1)
    result = jit(lambda network, batch: network(batch), device="null")(predictor, batch)
    size = sum(leaf.size for leaf in tree.leaves(predictor))
    return {"row": f"{record.row}: {record.text}", "targets": str(example.targets.tolist()),
            "atoms": _shape(example.graph.atoms), "edges": _shape(example.graph.edges),
            "descriptors": _shape(example.descriptors), "batch atoms": _shape(batch.atoms),
            "batch edges": _shape(batch.edges), "parameters": f"{size:,}", "prediction": str(result.aval)}


def _shape(array: Values) -> str:
    return str(as_array(array).aval)


def describe(data: Sequence[Path], config: MoleculesConfig) -> Description:
    """The model that a config asks for; the first usable row tells reactions and coordinates."""
    record = first_record(data[0], smiles=config.smiles, targets=config.targets, limits=limits_of(config))
    reaction = record.products is not None
    distances = record.coordinates is not None and config.model == "mpnn"
    if reaction and (config.offset != "none" or config.explicit_hydrogens):
        raise ConfigError("reactions have neither an offset nor explicit hydrogens of their own; leave both out")
    features = Features(descriptors=config.descriptors and not reaction, explicit_hydrogens=config.explicit_hydrogens,
                        offset=config.offset, distances=distances, reaction=reaction)
    architecture = Architecture(config.model, config.hidden, config.depth, (config.head_hidden,) * config.head_layers,
                                aggregation=config.aggregation, dropout=config.dropout)
    return Description(architecture, features, config.targets, ("regression",) * len(config.targets), config.unit_of,
                       config.ensemble * config.folds, config.coverage,
                       text_column(data[0], config.smiles) if format_of(data[0]) == "csv" else config.smiles)


def read(data: Sequence[Path], config: MoleculesConfig, features: Features, refused: Refusals) -> list[Example]:
    """The rows of a training, with the split's column where one is asked for."""
    extras = (config.split_column,) if config.split == "column" else ()
    return read_examples(data, features, refused, column_of=lambda path: config.smiles, targets=config.targets,
                         extras=extras, limits=limits_of(config))


def tasks_of(found: Sequence[Example], config: MoleculesConfig) -> tuple[str, ...]:
    """``regression`` or ``classification`` for each target; raises `DataError` for classes that are not 0 and 1."""
    tasks = []
    for index, name in enumerate(config.targets):
        values = {value for value in (float(example.targets[index]) for example in found) if np.isfinite(value)}
        binary = values <= {0.0, 1.0} and len(values) == 2
        if config.task == "classification" and not values <= {0.0, 1.0}:
            raise DataError(f"classes are 0 and 1; '{name}' has {sorted(values - {0.0, 1.0})[:3]}")
        tasks.append("classification" if config.task == "classification" or (config.task == "auto" and binary)
                     else "regression")
    return tuple(tasks)


def divide(found: Sequence[Example], config: MoleculesConfig) -> list[Split]:
    """One split, or one a fold."""
    keys = [example.key for example in found]
    if config.folds > 1:
        return k_folds(keys, config.folds, config.seed, kind=config.split, valid_fraction=config.fractions[1])
    column = [example.extras[config.split_column] for example in found] if config.split == "column" else None
    fractions = (config.fractions[0], config.fractions[1], config.fractions[2])
    return [split(keys, fractions, kind=config.split, seed=config.seed, column=column)]


def _check_rows(found: Sequence[Example], division: Split, description: Description) -> None:
    for index, name in enumerate(description.targets):
        if not any(np.isfinite(found[row].targets[index]) for row in division.train):
            raise DataError(f"no training row has a value in '{name}'; give more rows or another split")


def loss(predictor: Predictor, batch: Batch, classes: tuple[bool, ...], key: Array | None = None) -> Array:
    """Mean over the known targets of the squared error, or of the cross-entropy where the target is a class."""
    raw = predictor(batch, key)
    count, width = raw.shape
    weight = as_array(batch.mask) * as_array(batch.weights).reshape(count, 1)
    if not any(classes):
        return losses.mse(raw, batch.targets, weight)
    if all(classes):
        return losses.binary_cross_entropy(raw, batch.targets, weight)
    mask = ops.broadcast_to(np.array(classes, np.float32), (count, width))
    share = ops.sum(weight * mask) / ops.maximum(ops.sum(weight), 1.0)
    return losses.binary_cross_entropy(raw, batch.targets, weight * mask) * share + \
        losses.mse(raw, batch.targets, weight * (1 - mask)) * (1 - share)


def start_of(network: Predictor, config: MoleculesConfig) -> State:
    """Where the training of a network begins."""
    return State(network, AdamW(weight_decay=config.weight_decay).init(network))


def step_of(scales: Scales, classes: tuple[bool, ...], config: MoleculesConfig) -> Callable[..., tuple[State, Array]]:
    """The step of the training of a network."""
    optimiser = AdamW(weight_decay=config.weight_decay)

    def update(gradients: Any, state: Any, parameters: Any, rate: Array) -> Any:
        if config.clip:
            gradients, _ = clip_by_global_norm(gradients, config.clip)
        return optimiser.update(gradients, state, parameters, rate)

    def member_loss(parameters: Predictor, step_key: Array, batch: Batch) -> Array:
        return loss(parameters, scales.batch(batch), classes, step_key if config.dropout else None)

    return gradient_step(member_loss, update)


def count_of(batch: Batch) -> int:
    """Molecules of a batch, without its padding."""
    return int((batch.weights > 0).sum())


def _fit_member(found: Sequence[Example], division: Split, scales: Scales, description: Description,
                config: MoleculesConfig, run: RunDirectory, place: int,
                folds: int) -> Generator[Progress, None, Predictor]:
    """Train network number `place` of the run, or take it from the file if it is done."""
    name = f"member {place + 1}"
    key = random.fold_in(random.key(config.seed), place)
    network = description.architecture.build(key, description.features, len(description.targets))
    path = run.path / "members" / f"{place + 1}.safetensors"
    if path.exists():
        done: Predictor = checkpoint.load_tree(path, network)
        return done
    train_rows = samples_of([found[row] for row in division.train], scales)
    valid_rows = samples_of([found[row] for row in division.valid], scales)
    classes = classes_of(description.tasks)
    steps = -(-len(train_rows) // config.batch_size)
    total = max(steps * config.epochs, 1)
    schedule = noam_like(config.rate / 10, config.rate, min(config.final_rate, config.rate),
                         warm_up_steps=min(round(steps * config.warm_up_epochs), total - 1), steps=total)

    measure = jit(lambda parameters, batch: loss(parameters, scales.batch(batch), classes), device=config.device)

    def validate(parameters: Predictor) -> dict[str, float]:
        if not valid_rows:
            return {}
        weighted = [(float(measure(parameters, batch)), float(batch.mask.sum())) for batch in
                    batches(valid_rows, config.batch_size)]
        return {VALIDATION_LOSS: sum(value * weight for value, weight in weighted) / sum(w for _, w in weighted)}

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        return batches(train_rows, config.batch_size, seed=config.seed * 1000 + place, epoch=epoch)

    if config.best_epoch and not valid_rows:
        raise ConfigError("the best epoch is chosen on validation rows, and the split has none; leave best_epoch out")
    training = fit(jit(step_of(scales, classes, config), device=config.device), start_of(network, config),
                   epoch_batches, epochs=config.epochs, schedule=schedule, key=random.fold_in(key, 1),
                   validate=validate, monitor=Monitor(VALIDATION_LOSS) if config.best_epoch else None, run=run,
                   name=name, items=count_of)
    before, whole = place * config.epochs, config.epochs * config.ensemble * folds
    fitted: Fitted = yield from shifted(training, before, whole)
    path.parent.mkdir(exist_ok=True)
    checkpoint.save_tree(path, fitted.parameters)
    parameters: Predictor = fitted.parameters
    return parameters


def samples_of(found: Sequence[Example], scales: Scales) -> list[Sample]:
    """Examples with their targets in the scale of a network."""
    if not found:
        return []
    targets = np.stack([example.targets for example in found])
    return samples(found, scales.targets(targets, np.stack([example.counts for example in found])))


def _finish(found: Sequence[Example], parts: Sequence[Part], description: Description, config: MoleculesConfig,
            run: RunDirectory) -> Report:
    """Calibrate, save, and report."""
    targets = np.stack([example.targets for example in found])
    blank = as_array(np.full(len(description.targets), np.nan))
    models = [Trained(description, Ensemble(part.members, blank), config.device) for part in parts]
    half_width = half_widths(found, [part.split for part in parts], models, description)
    everything = tuple(member for part in parts for member in part.members)
    Trained(description, Ensemble(everything, as_array(half_width)), config.device).save(run)
    return _report(found, targets, parts, models, description, half_width)


def half_widths(found: Sequence[Example], divisions: Sequence[Split], models: Sequence[Trained],
                description: Description) -> np.ndarray:
    """Half widths of intervals f64[target], from the errors of each fold's model on the validation rows of the fold."""
    errors = []
    for division, model in zip(divisions, models, strict=True):
        held = [found[row] for row in division.valid]
        if held:
            errors.append(np.stack([example.targets for example in held]) - model.values(held))
    half_width = np.full(len(description.targets), np.nan)
    for index, task in enumerate(description.tasks):
        if task == "regression" and description.coverage and errors:
            half_width[index] = conformal_half_width(np.concatenate(errors)[:, index], description.coverage)
    return half_width


def _report(found: Sequence[Example], targets: np.ndarray, parts: Sequence[Part], models: Sequence[Trained],
            description: Description, half_width: np.ndarray) -> Report:
    """Test metrics of each fold beside those of the baselines, their mean and spread, and every test prediction."""
    features = np.stack([_baseline_features(example) for example in found])
    folds: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for part, model in zip(parts, models, strict=True):
        test = part.split.test
        if not len(test):
            continue
        held = [found[row] for row in test]
        values = model.values(held)
        plain = {"mean": baselines.mean_predictor(targets[part.split.train], len(test)),
                 "ridge": baselines.ridge((features[part.split.train], targets[part.split.train]),
                                          (features[part.split.valid], targets[part.split.valid]), features[test])}
        result: dict[str, Any] = numbers(description.targets, score(values, targets[test], description.tasks))
        covered = coverage(values, targets[test], half_width)
        result |= {_named(name, "coverage", description): share
                   for name, share, half in zip(description.targets, covered, half_width, strict=True)
                   if np.isfinite(half)}
        for name, table in plain.items():
            result |= numbers(description.targets, score(table, targets[test], description.tasks), f"{name} baseline ")
        folds.append(result)
        rows += prediction_rows(held, description, values, half_width, plain)
    summary = _summary(folds) | {"training rows": len(parts[0].split.train),
                                 "test rows": sum(len(part.split.test) for part in parts)}
    return Report(summary, {"test_predictions": rows} | ({"folds": folds} if len(folds) > 1 else {}))


def _named(target: str, what: str, description: Description) -> str:
    return what if len(description.targets) == 1 else f"{target} {what}"


def _summary(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of one fold, or their means and standard deviations over those of several where they are defined."""
    if len(folds) <= 1:
        return dict(folds[0]) if folds else {}
    summary: dict[str, float] = {}
    for name in folds[0]:
        known = [fold[name] for fold in folds if np.isfinite(fold[name])]
        if name.split()[-1] == "n":
            summary[name] = sum(known)
            continue
        summary[name] = float(np.mean(known)) if known else np.nan
        summary[f"{name} sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else np.nan
    return summary


def _baseline_features(example: Example) -> np.ndarray:
    """What the ridge sees: Morgan fingerprint and counts of both sides of a reaction, and the network's descriptors."""
    columns = [example.descriptors]
    for side in example.key.split(">>"):
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(side)
        columns += [np.log1p(fingerprint(molecule)), counts(molecule)]
    return np.concatenate(columns)
