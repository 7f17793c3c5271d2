"""Segment by blocks: volumes larger than memory, by several processes or machines, in pieces that are joined at last.

Each block is filled in by itself, from seeds of its own; `reconcile` tells which objects are one.

Invariant: the result depends on the volume, the network and the settings, not on who computes which block and when.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import Report, load_config
from apps.connectomics.blocks import Block, Grid, triple
from apps.connectomics.config import ConnectomicsConfig, SegmentSettings, given
from apps.connectomics.formats import Address
from apps.connectomics.ledger import Ledger
from apps.connectomics.reconcile import GlobalIds, assemble, reconcile
from apps.connectomics.segment import (
    as_network_sees,
    check_field_of_view,
    fill,
    policy_seeds,
    program_of,
    refuse_not_finite,
    rows_of,
)
from apps.connectomics.segmentations import ORIGIN, written_segmentation
from apps.connectomics.volumes import Volume, known_voxel_size, open_volume
from apps.connectomics.workers import run_blocks
from core.engine.errors import ConfigError
from core.engine.run import RunDirectory

_DECIDING = ("axes", "voxel_size", "precision", "seed_policy", "reverse", "move_threshold", "segment_threshold",
             "disco_seed_threshold", "min_segment_size", "min_boundary_dist")
"""Settings on which the labels of a block depend, besides the model."""


def segment_blocks(volume: Volume, out: Path, settings: SegmentSettings) -> Report:
    """Fill in a volume block by block and join the blocks; writes an HDF5 file, and a ledger beside it.

    Raises
    ------
    ConfigError
        If a setting needs the whole volume at once.
    DataError
        If no voxel size is known.
    """
    if settings.init or settings.seeds or settings.origins:
        raise ConfigError("--init, --seeds and --origins are for whole volumes; leave out --block, or these")
    known_voxel_size(volume)
    config = load_config(ConnectomicsConfig, RunDirectory.open(settings.model).config_path)
    check_field_of_view(volume, config)
    if config.clahe:
        raise ConfigError("blocks cannot have their contrast evened out one by one; do it to the volume first, or "
                          "leave out --block")
    grid = Grid(volume.shape, triple(settings.block), triple(settings.overlap))
    ledger = Ledger(out.with_suffix(".blocks"))
    arguments = {"input": address_anywhere(volume), "changed": changed(volume), "model": str(settings.model.absolute()),
                 "digest": digest_of(settings.model), "settings": given(settings, _DECIDING)}
    run_blocks("apps.connectomics.blocked:segment_block", arguments, grid, ledger, settings.workers,
               settings.scheduler or None)
    ids = reconcile(grid, ledger, settings.agreement)
    origins = _origins(grid, ledger, ids)
    with written_segmentation(out, volume.shape, volume.voxel_size, precision=settings.precision) as file:
        assemble(grid, ledger, ids, file)
        file.write_origins(origins)
    return Report({"blocks": len(grid), "segments of blocks": len(origins), "objects": len(np.unique(origins["id"])),
                   "moves of objects": int(origins["moves"].sum()), "precision": settings.precision})


def segment_block(block: Block, arguments: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Fill in one block: ``labels`` u32[z, y, x] and ``origins``, whose positions are those of the whole volume."""
    settings = load_config(SegmentSettings, None, {**arguments["settings"], "model": arguments["model"]})
    run = RunDirectory.open(settings.model)
    config = load_config(ConnectomicsConfig, run.config_path)
    volume = open_volume(arguments["input"], axes=settings.axes, voxel_size=settings.voxel_size)
    image = volume.read(block.start, block.stop)
    refuse_not_finite(image, volume.address, block.start)
    empty = {"labels": np.zeros(block.shape, np.uint32), "origins": np.zeros(0, ORIGIN)}
    if image.min() == image.max():  # outside of what was imaged
        return empty
    normal = as_network_sees(image, config)
    nothing = np.zeros(block.shape, np.int32)
    seeds = policy_seeds(normal, nothing, config, settings)
    if not len(seeds):
        return empty
    program = program_of(run, config, settings.precision, normal)
    canvas, origins = fill(normal, nothing, program, config, settings, seeds)
    return {"labels": np.maximum(canvas.labels, 0).astype(np.uint32), "origins": rows_of(origins, block.start)}


def _origins(grid: Grid, ledger: Ledger, ids: GlobalIds) -> NDArray[Any]:
    """How all objects of all blocks came to be, by global id; an object of several blocks has several rows."""
    parts = []
    for block in grid:
        rows = ledger.load(block.number, "origins")
        rows["id"] = ids.of(block.number, rows["id"].astype(np.uint32))
        parts.append(rows)
    return np.sort(np.concatenate(parts), order=("id", "z", "y", "x"))


def address_anywhere(volume: Volume) -> str:
    """The address of a volume for processes that run in another folder."""
    return volume.address if "://" in volume.address else os.path.abspath(volume.address)


def changed(volume: Volume) -> list[int]:
    """Bytes and time of the last change of the file that a volume lies in; of a folder, its own; none elsewhere."""
    place = Path(Address.parse(volume.address).place)
    return [place.stat().st_size, place.stat().st_mtime_ns] if place.exists() else []


def digest_of(run: Path) -> str:
    """Of the network and its settings."""
    opened = RunDirectory.open(run)
    return hashlib.sha256(opened.model_path.read_bytes() + opened.config_path.read_bytes()).hexdigest()
