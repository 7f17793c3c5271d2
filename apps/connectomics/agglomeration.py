"""Agglomerate: a segmentation in, one out whose segments are joined where the network, asked again, sees one object.

Wherever two segments come nearest (`decisionpoints`), both are grown once more (`resegmentation`); what the scores of
all these places say is then joined by union-find.

Invariant: an id stays or becomes a smaller one of its group; no voxel gains or loses a segment. Decisions depend on
segmentation, image, network and settings, not on who comes to them and when.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import Report, load_config
from apps.connectomics.blocked import address_anywhere, changed, digest_of
from apps.connectomics.blocks import Block, Grid, boxes, triple
from apps.connectomics.canvas import Canvas
from apps.connectomics.config import AgglomerateSettings, ConnectomicsConfig, given
from apps.connectomics.decisionpoints import POINT, find_decision_points
from apps.connectomics.expansion import factors_between
from apps.connectomics.ledger import Ledger
from apps.connectomics.reconcile import DisjointSets
from apps.connectomics.resegmentation import Subvolume, resegment
from apps.connectomics.segment import (
    as_network_sees,
    check_field_of_view,
    equalised,
    options_of,
    program_of,
    refuse_not_finite,
)
from apps.connectomics.segmentations import written_segmentation
from apps.connectomics.volumes import (
    Volume,
    VoxelSize,
    check_labels,
    check_same_shape,
    common_voxel_size,
    known_voxel_size,
    open_volume,
    read_labels,
)
from apps.connectomics.workers import run_blocks
from apps.progress import LOGGER
from core.engine.checkpoint import written_whole
from core.engine.errors import ConfigError, DataError, compose
from core.engine.jit import Program
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

BLOCK = 64
"""Side in voxels of a block; its decision points are what a worker takes at once."""

COPIED = 256
"""Side in voxels of what is copied at once."""

_DECIDING = ("axes", "voxel_size", "precision", "move_threshold", "segment_threshold", "disco_seed_threshold",
             "radius", "analysis_radius", "max_retry_iters", "exclusion_radius", "segment_recovery_fraction",
             "terminate_early")
"""Settings on which scores depend, besides image, model and points. The rule is applied to the scores afterwards."""

_FROM = [*((f"origin.{axis}", np.int64) for axis in "zyx"), ("num_voxels", np.int64), ("deleted_voxels", np.int64),
         ("segment_a_consistency", np.float64), ("segment_b_consistency", np.float64)]
DECISION = np.dtype([*POINT.descr, ("num_voxels_a", np.int64), ("num_voxels_b", np.int64), ("iou", np.float64),
                     *((f"from_{which}.{name}", kind) for which in "ab" for name, kind in _FROM)])
"""A decision point and what it shows, see `EvalResult`; origins are voxels of the volume, -1 where no mask grew."""


def agglomerate_address(input: str, out: Path, refused: Refusals, settings: AgglomerateSettings) -> Report:
    """Join segments of a volume; writes an HDF5 file, and beside it the table of decisions as CSV.

    Blocks of decision points that are done stay done in a ledger beside it. Nothing is refused one by one.

    Raises
    ------
    ConfigError
        If the field of view of the network does not fit into the subvolume around a point.
    DataError
        If the volumes differ, one is smaller than the field of view, no voxel size is known, or there is no segment.
    """
    segmentation, image = (open_volume(address, axes=settings.axes, voxel_size=settings.voxel_size)
                           for address in (input, settings.image))
    check_labels(segmentation)
    check_same_shape(segmentation, image)
    joined = segmentation
    if settings.fine:
        joined = open_volume(settings.fine, axes=settings.axes)
        check_labels(joined)
        factors_between(joined, segmentation)
    voxel_size = common_voxel_size(segmentation, image) or known_voxel_size(segmentation)
    config = load_config(ConnectomicsConfig, RunDirectory.open(settings.model).config_path)
    check_field_of_view(image, config)
    settings = replace(settings, voxel_size=voxel_size, analysis_radius=_analysis_radius(settings, config))
    # Of a segment that is farther away nothing would be seen.
    reach = float(np.linalg.norm(np.multiply(settings.analysis_radius, voxel_size)))
    farthest = reach if settings.max_distance is None else min(settings.max_distance, reach)
    points, segments = find_decision_points(segmentation, voxel_size, farthest)
    if settings.min_size > 1:
        looked_at = _large_ids(segmentation, settings.min_size)
        points = points[np.isin(points["id_a"], looked_at) & np.isin(points["id_b"], looked_at)]
    if not segments:
        raise DataError(f"{input} holds no segment: all its voxels are 0")
    LOGGER.info("%d segments meet at %d decision points", segments, len(points))
    decisions = _decisions(segmentation, image, points, settings, Ledger(out.with_suffix(".blocks")))
    one = are_one(decisions, settings)
    ids, smallest = groups(decisions[one])
    _write_table(out.with_suffix(".decisions.csv"), decisions, one)
    _write_segmentation(out, joined, joined.voxel_size if settings.fine else voxel_size, ids, smallest)
    return Report({"segments before": segments, "decision points": len(points),
                   "decided": int(np.count_nonzero(np.isfinite(decisions["iou"]))),
                   "merged pairs": int(np.count_nonzero(one)),
                   "segments after": segments - int(np.count_nonzero(ids != smallest)),
                   "precision": settings.precision})


def _large_ids(volume: Volume, least: int) -> NDArray[Any]:
    """The segments of at least so many voxels, ascending."""
    ids, voxels = np.zeros(0, volume.dtype), np.zeros(0, np.int64)
    for start, stop in boxes((0, 0, 0), volume.shape, COPIED):
        here, counts = np.unique(read_labels(volume, start, stop), return_counts=True)
        ids, where = np.unique(np.concatenate([ids, here]), return_inverse=True)
        voxels = np.bincount(where, np.concatenate([voxels, counts])).astype(np.int64)
    return ids[voxels >= least]


def _analysis_radius(settings: AgglomerateSettings, config: ConnectomicsConfig) -> tuple[int, ...]:
    """The radius within which masks are compared; raises `ConfigError` if it, or the field of view, does not fit."""
    seen = tuple(size // 2 for size in config.field_of_view)
    if any(radius < half for radius, half in zip(settings.radius, seen, strict=True)):
        raise ConfigError(compose("the network sees more than the subvolume around a decision point", [
            ("found", f"a radius of {settings.radius} voxels (z y x), a field of view of {config.field_of_view}"),
            ("expected", f"a radius of at least {seen}"), ("hint", "choose a larger --radius")]))
    inner = settings.analysis_radius or tuple(
        radius - half for radius, half in zip(settings.radius, seen, strict=True))
    if not all(1 <= part <= whole for part, whole in zip(inner, settings.radius, strict=True)):
        raise ConfigError(compose("masks cannot be compared around a decision point", [
            ("found", f"an analysis radius of {inner} voxels (z y x)"),
            ("expected", f"1 to the radius, {settings.radius}"),
            ("hint", "choose a larger --radius, or another --analysis-radius")]))
    return inner


def _decisions(segmentation: Volume, image: Volume, points: NDArray[Any], settings: AgglomerateSettings,
               ledger: Ledger) -> NDArray[Any]:
    """What each point shows, `DECISION`[point], ascending by ids."""
    if not len(points):
        return np.zeros(0, DECISION)
    grid = Grid(segmentation.shape, (BLOCK,) * 3, (1, 1, 1))
    run_blocks("apps.connectomics.agglomeration:decide_block", {
        "input": address_anywhere(segmentation), "image": address_anywhere(image),
        "changed": [changed(segmentation), changed(image)],
        "model": str(settings.model.absolute()), "digest": digest_of(settings.model),
        "settings": given(settings, _DECIDING), "points": points.tolist()},
        grid, ledger, settings.workers, settings.scheduler or None)
    return np.sort(np.concatenate([ledger.load(block.number, "decisions") for block in grid]), order=("id_a", "id_b"))


def decide_block(block: Block, arguments: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Look at the decision points in the core of a block: ``decisions``, `DECISION`[point]."""
    settings = load_config(AgglomerateSettings, None, {
        **arguments["settings"], "image": arguments["image"], "model": arguments["model"]})
    points = np.array([tuple(point) for point in arguments["points"]], POINT)
    for axis, first, behind in zip("zyx", block.core_start, block.core_stop, strict=True):
        points = points[(points[axis] >= first) & (points[axis] < behind)]
    if not len(points):
        return {"decisions": np.zeros(0, DECISION)}
    segmentation, image = (open_volume(arguments[name], axes=settings.axes, voxel_size=settings.voxel_size)
                           for name in ("input", "image"))
    return {"decisions": np.array([_decision(point, segmentation, image, settings) for point in points], DECISION)}


def _decision(point: Any, segmentation: Volume, image: Volume, settings: AgglomerateSettings) -> tuple[Any, ...]:
    """What one point shows, as a row of `DECISION`."""
    program, config = _network(settings.model, settings.precision)
    around = Subvolume.around([int(point[axis]) for axis in "zyx"], segmentation.shape, settings.radius,
                              settings.analysis_radius)
    labels = read_labels(segmentation, around.start, around.stop)
    segment_a, segment_b = (labels == labels.dtype.type(point[name]) for name in ("id_a", "id_b"))
    others = (labels > 0) & ~segment_a & ~segment_b
    canvas = Canvas(_seen(image, around, config), others.astype(np.int32), program, triple(config.field_of_view),
                    options_of(config, settings))
    found = resegment(canvas, segment_a, segment_b, around.analysis, settings.voxel_size, settings)
    row = [*point.tolist(), found.num_voxels_a, found.num_voxels_b, found.iou]
    for grown in (found.from_a, found.from_b):
        row += [-1, -1, -1, 0, 0, np.nan, np.nan] if grown is None else [
            *np.add(grown.origin, around.start), grown.num_voxels, grown.deleted_voxels, grown.segment_a_consistency,
            grown.segment_b_consistency]
    return tuple(row)


@functools.lru_cache(maxsize=1)
def _network(model: Path, precision: str) -> tuple[Program, ConnectomicsConfig]:
    """The network of a run, bound, and its settings."""
    run = RunDirectory.open(model)
    config = load_config(ConnectomicsConfig, run.config_path)
    return program_of(run, config, precision), config


def _seen(image: Volume, around: Subvolume, config: ConnectomicsConfig) -> NDArray[np.float32]:
    """The image of a subvolume as the network takes it; contrast is evened out over whole sections."""
    start, stop = around.start, around.stop
    if not config.clahe:
        values = image.read(start, stop)
        refuse_not_finite(values, image.address, start)
        return as_network_sees(values, config)
    sections = image.read((start[0], 0, 0), (stop[0], *image.shape[1:]))
    refuse_not_finite(sections, image.address, (start[0], 0, 0))
    return as_network_sees(equalised(sections)[:, start[1]:stop[1], start[2]:stop[2]], config)


def are_one(decisions: NDArray[Any], settings: AgglomerateSettings) -> NDArray[np.bool_]:
    """Which pairs become one, bool[point]: the rule of google/ffn's ``doc/manual.md``, "Scoring", which avoids mergers.

    Both masks are nearly the same, both hold most of both segments, and one was hardly ever in doubt.
    """
    alike = decisions["iou"] > settings.min_iou
    whole = np.all([decisions[f"from_{which}.segment_{segment}_consistency"] > settings.min_consistency
                    for which in "ab" for segment in "ab"], axis=0)
    sure = np.any([decisions[f"from_{which}.deleted_voxels"]
                   < settings.max_deleted * decisions[f"from_{which}.num_voxels"] for which in "ab"], axis=0)
    one: NDArray[np.bool_] = alike & whole & sure
    return one


def groups(pairs: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The segments of some pairs, ascending, and for each the smallest of those that it is joined with."""
    ids = np.unique(np.concatenate([pairs["id_a"], pairs["id_b"]]))
    sets = DisjointSets(len(ids))
    sets.join(np.searchsorted(ids, pairs["id_a"]), np.searchsorted(ids, pairs["id_b"]))
    return ids, ids[sets.roots()]


def _write_table(path: Path, decisions: NDArray[Any], one: NDArray[np.bool_]) -> None:
    """Write a row a decision; what could not be told stays blank."""
    with written_whole(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow([*(DECISION.names or ()), "merged"])
        for row, merged in zip(decisions.tolist(), one.tolist(), strict=True):
            writer.writerow(["" if value != value else value for value in row] + [merged])


def _write_segmentation(out: Path, segmentation: Volume, voxel_size: VoxelSize | None, ids: NDArray[np.uint64],
                        smallest: NDArray[np.uint64]) -> None:
    """Write ``segmentation`` to an HDF5 file, in the type of the input, with `smallest` in the place of `ids`."""
    old, new = (values.astype(segmentation.dtype) for values in (ids, smallest))
    with written_segmentation(out, segmentation.shape, voxel_size, segmentation.dtype) as file:
        for start, stop in boxes((0, 0, 0), segmentation.shape, COPIED):
            labels = read_labels(segmentation, start, stop)
            if len(old):
                place = np.minimum(np.searchsorted(old, labels), len(old) - 1)
                labels = np.where(old[place] == labels, new[place], labels)
            file.write(start, labels)
