"""Ridge regression and the mean predictor on the project's random splits: what a deep model must beat.

Invariant: nothing is fitted on the validation part but the penalty, and nothing at all on the test part.

From the root of the repository::

    python -m tests.bench.ridge_baseline esol.csv --target "measured log solubility in mols per litre" \\
        --out ridge_esol.jsonl
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from tests.bench.chemprop_baseline import (
    append_line,
    describe,
    parse_split_arguments,
    parts_of,
    print_summary,
    read_lines,
    read_table,
    score,
)

# Size, lipophilicity, polarity, hydrogen bonding, flexibility, rings and branching: the usual few of solubility models.
COMMON_DESCRIPTORS = (
    "MolWt", "HeavyAtomCount", "NumHeteroatoms", "MolLogP", "MolMR", "TPSA", "LabuteASA", "NumHDonors",
    "NumHAcceptors", "NumRotatableBonds", "RingCount", "NumAromaticRings", "FractionCSP3", "BertzCT",
)  # fmt: skip
PENALTIES = 10.0 ** np.arange(-1.0, 4.5, 0.5)
FARTHEST = 5.0  # standard deviations: a few descriptors (Ipc, partial charges) have outliers that would rule the fit


def descriptors(molecules: list[Chem.Mol]) -> tuple[list[str], NDArray[np.float64]]:
    """All of RDKit's 2-D descriptors: their names, and f64[molecule, descriptor] with 0 where one is undefined."""
    found = [Descriptors.CalcMolDescriptors(molecule, missingVal=0.0, silent=True) for molecule in molecules]
    values = np.array([list(row.values()) for row in found], np.float64)
    return list(found[0]), np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def fingerprints(molecules: list[Chem.Mol]) -> NDArray[np.float64]:
    """Morgan counts of radius 2 folded to 2,048 bins, f64[molecule, bin] (Rogers and Hahn 2010)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.array([generator.GetCountFingerprintAsNumPy(molecule) for molecule in molecules], np.float64)


def standardise(
    described: NDArray[np.float64], counted: NDArray[np.float64], train: NDArray[np.int64]
) -> NDArray[np.float64]:
    """f64[molecule, feature]: descriptors by the training part's mean and deviation, counts by its mean only."""
    deviation = described[train].std(axis=0)
    deviation[deviation < 1e-9] = 1.0
    scaled = np.clip((described - described[train].mean(axis=0)) / deviation, -FARTHEST, FARTHEST)
    return np.hstack([scaled, counted - counted[train].mean(axis=0)])


def ridge_path(
    features: NDArray[np.float64], target: NDArray[np.float64], asked: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Predictions f64[penalty, molecule] for `asked`, one row for each of `PENALTIES`, from one factorisation.

    With X = U S V', the ridge prediction is mean(y) + X_asked V (S / (S^2 + penalty)) U' (y - mean(y))
    (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed., eq. 3.47).
    """
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    projected = left.T @ (target - target.mean())
    shrunk = singular / (singular**2 + PENALTIES[:, None]) * projected
    return target.mean() + shrunk @ (asked @ right.T).T


def run_ridge(
    features: NDArray[np.float64], target: NDArray[np.float64], parts: dict[str, NDArray[np.int64]]
) -> dict[str, object]:
    """Fit on the training part, choose the penalty on the validation part, score the test part."""
    start = time.perf_counter()
    train, val, test = parts["train"], parts["val"], parts["test"]
    predicted = ridge_path(features[train], target[train], features[np.concatenate([val, test])])
    best = int(np.argmin(np.mean((predicted[:, : len(val)] - target[val]) ** 2, axis=1)))
    fitted = {**score(predicted[best, len(val) :], target[test]), "penalty": float(PENALTIES[best])}
    return fitted | {"train_seconds": {"wall": round(time.perf_counter() - start, 2)}}


def run_mean(target: NDArray[np.float64], parts: dict[str, NDArray[np.int64]]) -> dict[str, object]:
    """Score the mean of the training part on the test part."""
    return {**score(np.full(len(parts["test"]), target[parts["train"]].mean()), target[parts["test"]])}


def main() -> None:
    arguments = parse_split_arguments(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    table = read_table(arguments.csv, arguments.smiles, arguments.target)
    done = {(line["model"], line["seed"]) for line in read_lines(arguments.out)}
    molecules = [Chem.MolFromSmiles(smiles) for smiles in table.smiles]
    names, described = descriptors(molecules)
    counted = fingerprints(molecules)
    common = described[:, [names.index(name) for name in COMMON_DESCRIPTORS]]
    ridges = {f"ridge on {chosen.shape[1]} descriptors and Morgan counts": chosen for chosen in (common, described)}
    for seed in range(arguments.splits):
        parts = parts_of(table, seed, arguments.kind)
        line = describe(table, parts, seed, arguments.kind)
        for model in ("mean", *ridges):
            if (model, seed) in done:
                continue
            if model == "mean":
                result = run_mean(table.target, parts)
            else:
                result = run_ridge(standardise(ridges[model], counted, parts["train"]), table.target, parts)
            append_line(arguments.out, line | {"model": model} | result)
    print_summary(arguments.out)


if __name__ == "__main__":
    main()
