"""Evaluation: metrics of predictions beside those of plain baselines.

Invariant: a metric counts the rows whose target is known, and names how many those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import Report
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import Example, limits_of, read_examples
from apps.molecules.predict import input_column
from apps.molecules.trained import Description, Trained
from core.engine import metrics
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory


def _accuracy(probability: np.ndarray, label: np.ndarray) -> float:
    return metrics.accuracy(np.where(np.isnan(probability), np.nan, probability >= 0.5), label)


REGRESSION = {"rmse": metrics.rmse, "mae": metrics.mae, "r2": metrics.r2}
CLASSIFICATION = {"roc_auc": metrics.roc_auc, "pr_auc": metrics.pr_auc, "accuracy": _accuracy}


def score(values: np.ndarray, targets: np.ndarray, tasks: Sequence[str]) -> list[dict[str, float]]:
    """Metrics of each target.

    Parameters
    ----------
    values, targets : f64[row, target], targets NaN where blank; values are probabilities where the task is a class
    """
    scores = []
    for index, task in enumerate(tasks):
        rules = CLASSIFICATION if task == "classification" else REGRESSION
        column, known = values[:, index], targets[:, index]
        scores.append({"n": int(np.isfinite(known).sum()),
                       **{name: rule(column, known) for name, rule in rules.items()}})
    return scores


def numbers(names: Sequence[str], scores: Sequence[Mapping[str, float]], prefix: str = "") -> dict[str, float]:
    """Scores in one flat mapping: ``rmse`` for one target, ``NAME rmse`` for each of several, and their means."""
    if len(names) == 1:
        return {prefix + key: value for key, value in scores[0].items()}
    flat = {f"{prefix}{name} {key}": value for name, entry in zip(names, scores, strict=True)
            for key, value in entry.items()}
    for key in dict.fromkeys(key for entry in scores for key in entry if key != "n"):
        column = [entry[key] for entry in scores if key in entry and np.isfinite(entry[key])]
        flat[f"{prefix}mean {key}"] = float(np.mean(column)) if column else np.nan
    return flat


def coverage(values: np.ndarray, targets: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """Share of known values inside the interval, f64[target]; NaN where there is none."""
    return np.array([metrics.coverage(values[:, index] - half, values[:, index] + half, targets[:, index])
                     if np.isfinite(half) else np.nan for index, half in enumerate(half_width)])


def prediction_rows(found: Sequence[Example], description: Description, values: np.ndarray, half_width: np.ndarray,
                    baselines: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row an example and known target: what was measured, what is predicted, and what the baselines say."""
    rows = []
    for place, example in enumerate(found):
        for index, name in enumerate(description.targets):
            if not np.isfinite(example.targets[index]):
                continue
            row = {"row": example.row, "molecule": example.text, "target": name, "measured": example.targets[index],
                   "predicted": values[place, index]}
            if np.isfinite(half_width).any():
                low, high = values[place, index] + half_width[index] * np.array([-1, 1])
                row |= {"low": low, "high": high} if np.isfinite(half_width[index]) else {"low": "", "high": ""}
            rows.append(row | {key: table[place, index] for key, table in baselines.items()})
    return rows


def evaluate(run: RunDirectory, config: MoleculesConfig, data: tuple[Path, ...], out: Path,
             refused: Refusals) -> Report:
    """Metrics of a run's model on files with measured values."""
    trained = Trained.load(run, config.device)
    description = trained.description
    found = read_examples(data, description.features, refused, column_of=lambda path: input_column(description, path),
                          targets=description.targets, extras=(), limits=limits_of(config))
    values = trained.values(found)
    targets = np.stack([example.targets for example in found])
    half_width = trained.ensemble.half_width.numpy()
    result: dict[str, Any] = numbers(description.targets, score(values, targets, description.tasks))
    for name, share in zip(description.targets, coverage(values, targets, half_width), strict=True):
        if np.isfinite(share):
            result["coverage" if len(description.targets) == 1 else f"{name} coverage"] = float(share)
    rows = prediction_rows(found, description, values, half_width, {})
    return Report(result, {"predictions": rows})
