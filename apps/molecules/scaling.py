"""Scales fitted on training examples: targets, offsets and descriptors.

Invariant: fitted on training rows alone; blanks (NaN) count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.molecules.data import Example
from apps.molecules.trained import Scales
from core.engine.array import as_array

RIDGE = 1e-3
"""Penalty of an offset's fit, so that counts which never vary alone get finite weights."""


def fit_scales(train: Sequence[Example], tasks: Sequence[str]) -> Scales:
    """Scales of the training examples; classes are not scaled."""
    targets = np.stack([example.targets for example in train])
    counts = np.stack([example.counts for example in train]).astype(np.float64)
    offset = np.zeros((counts.shape[1], targets.shape[1]))
    mean, std = np.zeros(targets.shape[1]), np.ones(targets.shape[1])
    for index, task in enumerate(tasks):
        if task == "classification":
            continue
        known = np.isfinite(targets[:, index])
        if counts.shape[1]:
            offset[:, index] = _fit_offset(counts[known], targets[known, index])
        rest = targets[known, index] - counts[known] @ offset[:, index]
        mean[index], spread = rest.mean(), rest.std()
        std[index] = spread if spread > 0 else 1.0
    described = np.stack([example.descriptors for example in train]).astype(np.float64)
    spread = described.std(axis=0)
    centre, width = described.mean(axis=0), np.where(spread > 1e-12, spread, 1.0)
    return Scales(as_array(mean), as_array(std), as_array(offset), as_array(centre, "f32"), as_array(width, "f32"))


def _fit_offset(counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Least squares of the targets on the counts, without a constant."""
    normal = counts.T @ counts + RIDGE * np.eye(counts.shape[1])
    return np.linalg.solve(normal, counts.T @ targets)


def conformal_half_width(residuals: np.ndarray, coverage: float) -> float:
    """Half width that holds a share `coverage` of unseen values, from absolute residuals of calibration molecules.

    The ceil((n + 1) coverage)-th smallest residual (Vovk et al. 2005; Lei et al., JASA 113:1094, 2018, section 2.2);
    NaN where there are too few residuals for the coverage.
    """
    known = np.sort(np.abs(residuals[np.isfinite(residuals)]))
    rank = int(np.ceil((len(known) + 1) * coverage))
    return float(known[rank - 1]) if 0 < rank <= len(known) else float("nan")
