"""A core-hour of training on one part of FIB-25, and what the network makes of the rest.

    python -m tests.bench.core_hour DATA/connectomics/fib25_training2.h5 FOLDER [--test]

The half z < 150 is for everything that is learned and chosen: the network, the thresholds of `segment` and the rule of
`agglomerate`. With `--test`, what was chosen is done once on z >= 150. The network sees voxels of 20 nm. Scores are on
the voxels with truth of 10 nm. What is in FOLDER is not done again; each step is a command that is printed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from apps.connectomics.agglomeration import DECISION, are_one, groups
from apps.connectomics.agreement import Agreement, ContingencyTable, Mask
from apps.connectomics.config import AgglomerateSettings
from apps.connectomics.expansion import finer_labels
from tests.bench.watershed_baseline import segment

SPLIT = 150
TRAINING = {"depth": 4, "features": 32, "field-of-view": "17,17,17", "deltas": "4,4,4", "border": 1, "min-object": 200,
            "batch-size": 4, "pad-value": 0.5, "move-threshold": 0.6, "permutable-axes": "0,1,2", "rate": 0.001,
            "epochs": 26, "steps": 1000}
FILLS = ((0.5, 0.5), (0.6, 0.6), (0.7, 0.5), (0.8, 0.5))
"""Move threshold and segment threshold."""
PARTS = ((40, 0.5), (40, 0.3), (20, 0.3), (20, 0.5))
"""How far objects grow before they take parts, nm, and the share that they must have."""
OWN = (1.0, 130, 2.0)
"""Smoothing, threshold and depth of a watershed of our own (`watershed_baseline`), the best of nine on z < 150."""
LOOKS = {"radius": "16,16,16", "max-retry-iters": 2, "min-size": 100}
RULES = {"min-iou": (0, 0.5, 0.6, 0.7, 0.8, 0.9), "min-consistency": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
         "max-deleted": (0.02, 0.1, 1, 100)}


def halves(volume: Path, folder: Path) -> None:
    """Write ``train.h5`` and ``test.h5``: image, truth, the given watershed and our own, in voxels of 20 and 10 nm."""
    with h5py.File(volume) as file:
        image, truth, given = (file[name][:] for name in ("raw", "groundtruth", "watershed"))
    for name, part in (("train", slice(SPLIT)), ("test", slice(SPLIT, None))):
        z, y, x = (size // 2 for size in image[part].shape)
        mean = image[part].reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5)).round().astype(np.uint8)
        labels = {"labels": truth[part], "watershed": given[part], "own": segment(image[part], *OWN).astype(np.uint16)}
        coarse = {"raw": mean, **{kind: data[::2, ::2, ::2] for kind, data in labels.items()}}
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for size, group, kinds in ((20.0, "", coarse), (10.0, "fine/", {"raw": image[part], **labels})):
                for kind, data in kinds.items():
                    file.create_dataset(group + kind, data=data, compression="gzip").attrs["voxel_size"] = (size,) * 3


def options(values: Mapping[str, object]) -> list[str]:
    """Settings as words of a command."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def done(out: Path, command: str, *words: object) -> Path:
    """`out`, made by a command if it is not there; prints the command and its CPU seconds."""
    mark = out / "model.safetensors" if command == "train" else out
    if not mark.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call = [sys.executable, "-m", "apps.cli", "connectomics", command, *map(str, words), "--out", str(out)]
        subprocess.run(call, check=True, env={**os.environ, "TILEWORK_THREADS": "1"}, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{seconds:.0f} CPU seconds: tilework connectomics {' '.join(call[4:])}", flush=True)
    return out


def segmentation(path: Path) -> NDArray[np.integer]:
    """The labels of a file."""
    with h5py.File(path) as file:
        labels: NDArray[np.integer] = file["segmentation"][:]
    return labels


def score(name: str, labels: NDArray[np.integer] | Path, truth: NDArray[np.integer],
          mask: Mask = Mask.ONE_LABEL) -> Agreement:
    """How a segmentation agrees with the bodies, by default on all voxels that have one."""
    labels = segmentation(labels) if isinstance(labels, Path) else labels
    found = ContingencyTable.of(labels, truth).agreement(mask)
    print(f"{name}: VOI {found.voi:.4f} = {found.voi_split:.4f} split + {found.voi_merge:.4f} merge, "
          f"ARAND {found.arand:.4f}", flush=True)
    return found


def objects(folder: Path, half: str, fill: tuple[float, float]) -> Path:
    """The objects of a half that the network fills in."""
    move, least = fill
    return done(folder / f"{half}-objects-{move}.h5", "segment", folder / f"{half}.h5:raw", *options({
        "model": folder / "hour", "move-threshold": move, "segment-threshold": least, "min-segment-size": 50}))


def filled(folder: Path, half: str, fill: tuple[float, float]) -> Path:
    """A half as the network fills it in, each voxel of 10 nm with its nearest object."""
    return done(folder / f"{half}-filled-{fill[0]}.h5", "expand", f"{objects(folder, half, fill)}:segmentation",
                "--like", folder / f"{half}.h5:fine/raw")


def taken(folder: Path, half: str, kind: str, fill: tuple[float, float], part: tuple[float, float]) -> Path:
    """A watershed of a half, whose segments go to the objects that the network fills in."""
    fine = f"{folder / half}.h5:fine"
    return done(folder / f"{half}-taken-{kind}-{fill[0]}-{part[0]}-{part[1]}.h5", "expand",
                f"{objects(folder, half, fill)}:segmentation", *options({
                    "like": f"{fine}/raw", "parts": f"{fine}/{kind}", "max-distance": part[0], "min-share": part[1]}))


def joined(folder: Path, half: str, rule: tuple[float, ...]) -> Path:
    """The given watershed of a half, in voxels of 10 nm, joined where the network and a rule say so."""
    volume = folder / f"{half}.h5"
    return done(folder / f"{half}-joined.h5", "agglomerate", f"{volume}:watershed", *options({
        "image": f"{volume}:raw", "model": folder / "hour", "fine": f"{volume}:fine/watershed", **LOOKS,
        **dict(zip(RULES, rule, strict=True))}))


def best_rule(decisions: Path, given: NDArray[np.integer], truth: NDArray[np.integer]) -> tuple[float, ...]:
    """The rule by which a watershed is joined best."""
    with open(decisions, newline="") as file:
        rows = [tuple(float(row[name] or "nan") for name in DECISION.names or ()) for row in csv.DictReader(file)]
    scores, table, found = np.array(rows, DECISION), ContingencyTable.of(given, truth), {}
    for rule in itertools.product(*RULES.values()):
        settings = AgglomerateSettings(image="", model=Path(),
                                       **dict(zip((name.replace("-", "_") for name in RULES), rule, strict=True)))
        ids, smallest = groups(scores[are_one(scores, settings)])
        names = np.arange(int(table.segments.max()) + 1, dtype=np.uint64)
        names[ids] = smallest
        whole = ContingencyTable.empty() + ContingencyTable(table.bodies, names[table.segments], table.voxels)
        found[rule] = whole.agreement(Mask.ONE_LABEL).voi
    best = min(found, key=found.__getitem__)
    print(f"{', '.join(RULES)} {best}: VOI {found[best]:.4f}", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if not (folder / "test.h5").exists():
        halves(arguments.volume, folder)
    done(folder / "hour", "train", folder / "train.h5", *options(TRAINING))
    made: dict[str, dict[str, NDArray[np.integer]]] = {}
    for half in ("train", "test"):
        with h5py.File(folder / f"{half}.h5") as file:
            made[half] = {kind: file[f"fine/{kind}"][:] for kind in ("labels", "watershed", "own")}
    truth = made["train"]["labels"]

    def voi(name: str, labels: NDArray[np.integer] | Path) -> float:
        return score(f"z < {SPLIT}: {name}", labels, truth).voi

    fill = min(FILLS, key=lambda fill: voi(f"filled in {fill}", filled(folder, "train", fill)))
    takes = min(FILLS, key=lambda fill: voi(f"taken {fill}", taken(folder, "train", "watershed", fill, PARTS[0])))
    part = {}
    for kind in ("watershed", "own"):
        scores = {tried: voi(f"{kind}, taken {tried}", taken(folder, "train", kind, takes, tried)) for tried in PARTS}
        part[kind] = min(scores, key=scores.__getitem__)
    voi("our own watershed", made["train"]["own"])
    voi("given watershed", made["train"]["watershed"])
    rule = best_rule(joined(folder, "train", (0.8, 0.6, 0.02)).with_suffix(".decisions.csv"),
                     made["train"]["watershed"], truth)
    if arguments.test:
        for name, labels in ((f"filled in {fill}", filled(folder, "test", fill)),
                             ("our own watershed", made["test"]["own"]),
                             ("our own watershed, taken", taken(folder, "test", "own", takes, part["own"])),
                             ("given watershed", made["test"]["watershed"]),
                             ("given watershed, taken", taken(folder, "test", "watershed", takes, part["watershed"])),
                             ("given watershed, joined", joined(folder, "test", rule))):
            score(f"z >= {SPLIT}: {name}", labels, made["test"]["labels"])
        bodies, given = made["test"]["labels"], made["test"]["watershed"]
        found = finer_labels(segmentation(objects(folder, "test", fill)), (2, 2, 2), bodies.shape)
        print(f"{np.mean(found[bodies > 0] > 0):.3f} of the voxels with truth have an object; there:")
        for name, labels in (("objects", found), ("given watershed", np.where(found > 0, given, 0))):
            score(f"z >= {SPLIT}: {name}", labels, bodies, Mask.BOTH)


if __name__ == "__main__":
    main()
