"""Score: a segmentation beside the truth, as VOI, Rand and expected run lengths under every mask and setting by name.

Invariant: volumes are compared block by block; what is held does not grow with them, table and skeletons aside.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import Report
from apps.connectomics.agreement import ContingencyTable, Mask
from apps.connectomics.blocks import boxes
from apps.connectomics.config import ScoreSettings
from apps.connectomics.runlength import Definition, run_length
from apps.connectomics.skeletons import Skeletons, read_skeletons, skeletonize
from apps.connectomics.volumes import Volume, check_same_shape, common_voxel_size, open_volume
from apps.progress import LOGGER
from core.engine.errors import DataError, compose
from core.engine.refusals import Refusals

BLOCK = 256
"""Side of a block in voxels: a whole number of the usual chunks."""

MAX_SKELETONIZED = 1 << 27
"""Most voxels of a truth that is made into skeletons; it is held as a whole, and its largest body 300 times over."""


def score_addresses(input: str, out: Path, refused: Refusals, settings: ScoreSettings) -> Report:
    """Compare the segmentation at an address with the truth; writes a folder. Nothing is refused one by one."""
    segmentation, truth = (open_volume(address, axes=settings.axes, voxel_size=settings.voxel_size)
                           for address in (input, settings.truth))
    no_merge = open_volume(settings.no_merge, axes=settings.axes) if settings.no_merge else None
    report = score(segmentation, truth, settings, no_merge)
    report.save(out)
    return report


def score(segmentation: Volume, truth: Volume, settings: ScoreSettings, no_merge: Volume | None = None) -> Report:
    """Compare a segmentation with the truth.

    Parameters
    ----------
    segmentation, truth : labels, 0 for none
    no_merge : mask of what no skeleton may be merged with, above 0

    Returns
    -------
    report with the tables ``agreement``, a row a mask, and ``run_lengths``, a row for each minimum radius, merge
    threshold and definition; of these the numbers have the lowest and the highest

    Raises
    ------
    DataError
        If the shapes differ, nothing is left within the margin, labels are no labels, or run lengths are asked for and
        no voxel size is known or no skeleton lies inside.
    """
    check_same_shape(segmentation, truth, *([no_merge] if no_merge else []))
    low, high = (settings.margin,) * 3, tuple(size - settings.margin for size in truth.shape)
    if min(high) <= settings.margin:
        raise DataError(f"a margin of {settings.margin} voxels leaves nothing of {truth.shape} voxels")
    # Run lengths first: most mistakes in the settings show there.
    runs = _run_lengths(segmentation, truth, no_merge, settings, low, high) if settings.erl else []
    rows = _agreement(segmentation, truth, low, high)
    numbers: dict[str, Any] = {f"{name} ({row['mask']})": row[name] for row in rows
                               for name in ("voxels", "voi_split", "voi_merge", "voi", "arand")}
    for definition in Definition if runs else ():
        found = [row["nerl"] for row in runs if row["definition"] == definition]
        numbers |= {f"nerl lowest, {definition}": min(found), f"nerl highest, {definition}": max(found)}
    return Report(numbers, {"agreement": rows, **({"run_lengths": runs} if runs else {})})


def _agreement(segmentation: Volume, truth: Volume, low: Sequence[int], high: Sequence[int]) -> list[dict[str, Any]]:
    """A row of scores a mask."""
    table = ContingencyTable.empty()
    for block in boxes(low, high, BLOCK):
        table += ContingencyTable.of(segmentation.read(*block), truth.read(*block))
    return agreement_rows(table)


def agreement_rows(table: ContingencyTable) -> list[dict[str, Any]]:
    """A row of scores a mask."""
    rows = []
    for mask in Mask:
        found = table.agreement(mask)
        rows.append({"mask": str(mask), "voxels": found.voxels, "voi_split": found.voi_split,
                     "voi_merge": found.voi_merge, "voi": found.voi, "arand": found.arand,
                     "rand_split": found.rand_split, "rand_merge": found.rand_merge, "nid": found.nid})
    return rows


def _run_lengths(segmentation: Volume, truth: Volume, no_merge: Volume | None, settings: ScoreSettings,
                 low: Sequence[int], high: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each minimum radius, merge threshold and definition."""
    skeletons, voxels = _skeletons(truth, _voxel_size(segmentation, truth), settings, low, high)
    segments = _segments_at(segmentation, voxels, low, high)
    shared = _shared(segmentation, no_merge, low, high) if no_merge else {}
    rows = []
    for radius in settings.minimum_radius:
        kept = (skeletons.radius >= radius) | (radius == 0)
        inner = skeletons.subset(kept)
        if not inner.lengths.any():
            LOGGER.warning("no edge of the skeletons is %g nm from the surface: no run length for that radius", radius)
            continue
        for threshold, definition in itertools.product(settings.merge_threshold, Definition):
            found = run_length(inner, segments[kept], definition, merge_threshold=threshold, no_merge=shared)
            rows.append({"definition": str(definition), "minimum_radius_nm": radius, "merge_threshold": threshold,
                         "erl_nm": found.erl, "perfect_erl_nm": found.perfect, "nerl": found.normalized,
                         "correct_nm": found.correct, "split_nm": found.split, "merged_nm": found.merged,
                         "omitted_nm": found.omitted, "mergers": found.mergers})
    if not rows:
        raise DataError(compose("no skeleton is left to measure", [
            ("found", f"{len(skeletons.label)} nodes, {len(skeletons.edges)} edges inside the margin"),
            ("hint", "try a smaller --minimum-radius, --minimum-voxels or --margin")]))
    return rows


def _segments_at(segmentation: Volume, voxels: np.ndarray, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
    """The segment at each voxel of i64[node, zyx] within a region, u64[node]."""
    segments = np.zeros(len(voxels), np.uint64)
    for start, stop in boxes(low, high, BLOCK):
        here = np.flatnonzero(np.all((voxels >= start) & (voxels < stop), axis=1))
        if here.size:
            segments[here] = segmentation.read(start, stop)[tuple((voxels[here] - start).T)]
    return segments


def _shared(segmentation: Volume, no_merge: Volume, low: Sequence[int], high: Sequence[int]) -> Mapping[int, int]:
    """How many voxels each segment shares with a mask."""
    shared: Counter[int] = Counter()
    for block in boxes(low, high, BLOCK):
        segments, voxels = np.unique(segmentation.read(*block)[no_merge.read(*block) > 0], return_counts=True)
        shared.update(dict(zip(segments.tolist(), voxels.tolist(), strict=True)))
    return shared


def _voxel_size(segmentation: Volume, truth: Volume) -> tuple[float, float, float]:
    """The voxel size that the volumes agree on."""
    size = common_voxel_size(segmentation, truth)
    if size is None:
        raise DataError(compose("run lengths need the size of a voxel, which neither volume gives", [
            ("found", f"none in {segmentation.address} and {truth.address}"),
            ("hint", "add --voxel-size, in nm, z y x, such as 10,10,10")]))
    return size


def _skeletons(truth: Volume, voxel_size: tuple[float, float, float], settings: ScoreSettings, low: Sequence[int],
               high: Sequence[int]) -> tuple[Skeletons, np.ndarray]:
    """The skeletons of the truth within a region, and the voxels of their nodes, i64[node, zyx]."""
    if settings.skeletons:
        skeletons = read_skeletons(settings.skeletons)
        if max(settings.minimum_radius) > 0 and np.isnan(skeletons.radius).any():
            raise DataError(compose(f"{settings.skeletons} does not say how far nodes are from the surface", [
                ("found", f"--minimum-radius {', '.join(f'{radius:g}' for radius in settings.minimum_radius)}"),
                ("hint", "add --minimum-radius 0, or give skeletons with radii (SWC)")]))
    elif np.prod(truth.shape, dtype=float) > MAX_SKELETONIZED:
        raise DataError(compose(f"{truth.address} is too large to be made into skeletons in one piece", [
            ("found", f"{truth.shape} voxels"), ("expected", f"at most {MAX_SKELETONIZED}"),
            ("hint", "give skeletons with --skeletons")]))
    else:
        skeletons = skeletonize(truth.read((0, 0, 0), truth.shape), voxel_size, scale=settings.scale,
                                constant=settings.constant, minimum_voxels=settings.minimum_voxels)
    voxels = np.rint(skeletons.positions / voxel_size)
    outside: np.ndarray = np.any((voxels < 0) | (voxels >= truth.shape), axis=1)
    if outside.any():
        raise DataError(compose(f"{outside.sum()} of {len(outside)} nodes of the skeletons lie outside of the volume", [
            ("found", f"up to {skeletons.positions.max(axis=0).tolist()} nm, z y x"),
            ("expected", f"below {(np.array(truth.shape) * voxel_size).tolist()} nm"),
            ("hint", "skeletons are in nm; is the voxel size right?")]))
    kept: np.ndarray = np.all((voxels >= low) & (voxels < high), axis=1)
    return skeletons.subset(kept), voxels[kept].astype(np.int64)
