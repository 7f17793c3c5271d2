"""Segment: a volume of images in, the objects that a trained network fills in out.

Invariant: the output appears whole or not at all; what a stopped run had found is not lost (`interim`).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import Report, load_config
from apps.connectomics.blocks import triple
from apps.connectomics.canvas import Canvas, Counters, FloodOptions, Origin
from apps.connectomics.config import ConnectomicsConfig, FloodSettings, MaskSettings, SegmentSettings
from apps.connectomics.interim import Interim, Standing
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.quantisation import quantised
from apps.connectomics.seeds import POLICIES, Given, Seeds, within
from apps.connectomics.segmentations import ORIGIN, read_origins, written_segmentation
from apps.connectomics.volumes import Volume, open_volume
from apps.progress import LOGGER
from core.engine import random, tree
from core.engine.array import Array
from core.engine.errors import ConfigError, DataError, compose
from core.engine.jit import Program, jit
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

ABSURD = 4.0
"""Standard deviations by which the mean of a normalised image may lie off, and times its deviation may be too large."""


def segment(input: str, out: Path, refused: Refusals, settings: SegmentSettings) -> Report:
    """Fill in the objects of the volume at an address, whole or by blocks; writes an HDF5 file."""
    run = RunDirectory.open(settings.model)
    if settings.block:
        from apps.connectomics.blocked import segment_blocks

        return segment_blocks(open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size), out, settings)
    return flood(run, load_config(ConnectomicsConfig, run.config_path), input, out, refused, settings)


def predict(run: RunDirectory, config: ConnectomicsConfig, input: str, out: Path, refused: Refusals,
            settings: FloodSettings) -> Report:
    """Fill in the objects of the volume at an address with the network of a run; writes an HDF5 file."""
    return flood(run, config, input, out, refused, settings)


def flood(run: RunDirectory, config: ConnectomicsConfig, input: str, out: Path, refused: Refusals,
          settings: FloodSettings) -> Report:
    """See `segment`."""
    volume = open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size)
    check_field_of_view(volume, config)
    if volume.voxel_size is None:
        LOGGER.warning("%s does not say how large a voxel is, nor will the segmentation; see --voxel-size", input)
    image = normalised(volume.read((0, 0, 0), volume.shape), config, input)
    labels = initial_labels(settings.init, volume.shape)
    seeds = policy_seeds(image, labels, config, settings) if settings.seeds is None else read_seeds(
        settings.seeds, image.shape, config, refused)
    program = program_of(run, config, settings.precision, image)
    with Interim(out, [image, labels, seeds, run.model_path.read_bytes(), config.field_of_view, config.device,
                       _options(config, settings), settings.reverse, settings.precision]) as interim:
        canvas, origins = fill(image, labels, program, config, settings, seeds, interim)
        with written_segmentation(out, volume.shape, volume.voxel_size, precision=settings.precision) as file:
            file.write((0, 0, 0), np.maximum(canvas.labels, 0))
            file.write_origins(rows_of(origins))
    counters = canvas.counters
    return Report({"seeds": len(seeds), "objects": len(origins), "moves": counters.moves,
                   "moves of objects": sum(origin.moves for origin in origins),
                   "voxels": sum(origin.voxels for origin in origins),
                   "overlapping": sum(origin.overlap for origin in origins), "tried": counters.tried,
                   "too weak": counters.too_weak, "too small": counters.too_small, "precision": settings.precision})


def fill(image: NDArray[np.float32], labels: NDArray[np.int32], program: Program, config: ConnectomicsConfig,
         settings: FloodSettings, seeds: Seeds, interim: Interim | None = None) -> tuple[Canvas, list[Origin]]:
    """A canvas with its objects filled in, and these objects.

    Parameters
    ----------
    image : f32[z, y, x], normalised
    labels : i32[z, y, x], of what is kept
    program : see `program_of`
    interim : where to go on from, and to note what is done
    """
    found = interim.load() if interim else None
    start = found or Standing(labels, Counters(), (), 0)
    if found:
        LOGGER.info("goes on behind seed %d of %d, with %d objects", found.next, len(seeds), len(found.origins))
    canvas = Canvas(image, start.labels, program, triple(config.field_of_view), _options(config, settings),
                    start.counters)
    origins = list(start.origins)
    ordered = seeds[::-1] if settings.reverse else seeds
    for number, (z, y, x) in enumerate(ordered[start.next:], start.next):
        for origin in canvas.segment([(int(z), int(y), int(x))]):
            if origin is not None:
                origins.append(origin)
                LOGGER.info("object %d: %d voxels from %s in %d moves", origin.id, origin.voxels, origin.seed,
                            origin.moves)
        if interim:
            interim.note(canvas, origins, number + 1)
    return canvas, origins


def rows_of(origins: Sequence[Origin], start: Sequence[int] = (0, 0, 0)) -> NDArray[Any]:
    """Objects of a part of a volume, which begins at a voxel z y x, as `ORIGIN`[object]."""
    rows = [(origin.id, *np.add(origin.seed, start), origin.moves, origin.voxels) for origin in origins]
    return np.array(rows, ORIGIN)


def program_of(run: RunDirectory, config: ConnectomicsConfig, precision: str,
               image: NDArray[np.float32] | None = None) -> Program:
    """The network of a run, bound; takes and gives f32[1, z, y, x] of the field of view.

    Parameters
    ----------
    precision : of `PRECISIONS`
    image : f32[z, y, x], normalised, whose activations are to fit into 8 bits; for int8 alone
    """
    network = run.load_model(FloodFillingNetwork.init(random.key(0), config.depth, config.features))
    if run.is_quantised and precision != "f32":
        raise ConfigError(compose(f"{run.path} has weights of few bits already", [
            ("found", f"--precision {precision}"),
            ("hint", f"leave --precision out, or use the run that it was made from, {run.record['origin']['run']}")]))
    if precision == "bf16":
        network = tree.map(lambda leaf: leaf.astype(precision), network)
    elif precision == "int8":
        assert image is not None
        network = quantised(network, image, config)
    return bound(network, config)


def bound(network: FloodFillingNetwork, config: ConnectomicsConfig) -> Program:
    """A network of any precision, as `program_of` gives it."""
    return jit(_apply, device=config.device).bind(network)


def _apply(network: FloodFillingNetwork, image: Array, logits: Array) -> Array:
    result: Array = network(image, logits)
    return result


def _options(config: ConnectomicsConfig, settings: FloodSettings) -> FloodOptions:
    """The options of filling in objects: those of growing a mask, and which masks become objects."""
    return replace(options_of(config, settings), min_segment_size=settings.min_segment_size,
                   min_boundary_dist=triple(settings.min_boundary_dist))


def options_of(config: ConnectomicsConfig, settings: MaskSettings) -> FloodOptions:
    """The options of growing a mask: those of the training and those of the command."""
    moves_from = config.move_threshold if settings.move_threshold is None else settings.move_threshold
    return FloodOptions(
        init_activation=config.init_activation, pad_value=config.pad_value, move_threshold=moves_from,
        segment_threshold=settings.segment_threshold, disco_seed_threshold=settings.disco_seed_threshold,
        deltas=triple(config.deltas))


def normalised(image: NDArray[Any], config: ConnectomicsConfig, source: str) -> NDArray[np.float32]:
    """An image as the network takes it.

    Raises
    ------
    DataError
        If it holds NaN, is empty, or lies far from what the network was trained on.
    """
    refuse_not_finite(image, source)
    image = equalised(image) if config.clahe else image
    mean, deviation = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
    if deviation == 0.0:
        raise DataError(f"the image {source} has the value {mean:g} everywhere; there is nothing to segment")
    off = abs(mean - config.image_mean) / config.image_stddev
    if off > ABSURD or not 1 / ABSURD < deviation / config.image_stddev < ABSURD:
        raise DataError(compose(f"the image {source} is not like the images of the training", [
            ("found", f"mean {mean:.4g}, standard deviation {deviation:.4g}"),
            ("expected", f"about {config.image_mean:g} and {config.image_stddev:g}"),
            ("hint", "is it another modality, inverted, or of another range (16 bits)? rescale it first")]))
    return as_network_sees(image, config)


def equalised(image: NDArray[Any]) -> NDArray[np.float32]:
    """An image whose contrast is evened out section by section, 0..255 (CLAHE, Zuiderveld 1994, Graphics Gems IV)."""
    from skimage.exposure import equalize_adapthist

    return np.stack([equalize_adapthist(section) for section in image]).astype(np.float32) * 255


def refuse_not_finite(image: NDArray[Any], source: str, start: Sequence[int] = (0, 0, 0)) -> None:
    """Raise `DataError` if a part of an image, which begins at a voxel z y x, holds NaN or infinities."""
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        where = np.argwhere(~np.isfinite(image))
        raise DataError(f"the image {source} has {len(where)} voxels that are no finite number, the first at "
                        f"{tuple(map(int, where[0] + start))} (z y x)")


def as_network_sees(image: NDArray[Any], config: ConnectomicsConfig) -> NDArray[np.float32]:
    """An image less the mean and over the deviation of the training, in f32 from the first step on."""
    centred = image.astype(np.float32) - np.float32(config.image_mean)
    result: NDArray[np.float32] = centred / np.float32(config.image_stddev)
    return result


def initial_labels(address: str, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """The segmentation that is kept, or none."""
    if not address:
        return np.zeros(shape, np.int32)
    volume = open_volume(address)
    if volume.shape != shape:
        raise DataError(f"{address} has {_sizes(volume.shape)} voxels, the image has {_sizes(shape)} (z y x)")
    labels = volume.read((0, 0, 0), shape)
    lowest, highest = labels.min(initial=0), labels.max(initial=0)
    if labels.dtype.kind not in "iu" or lowest < 0 or highest >= np.iinfo(np.int32).max:
        raise DataError(f"{address} holds {labels.dtype} from {lowest} to {highest}; labels are integers from 0 to "
                        "below 2^31")
    return labels.astype(np.int32)


def policy_seeds(image: NDArray[np.float32], labels: NDArray[np.int32], config: ConnectomicsConfig,
                 settings: FloodSettings) -> Seeds:
    """The seeds of a policy, none outside the margin of half a field of view; see `Given`."""
    given = Given(image, labels, None if settings.origins is None else read_origins(settings.origins))
    return within(POLICIES[settings.seed_policy](given), image.shape, [size // 2 for size in config.field_of_view])


def read_seeds(path: Path, shape: tuple[int, ...], config: ConnectomicsConfig, refused: Refusals) -> Seeds:
    """Seeds of a CSV file with columns z, y, x; rows that cannot be are refused.

    Raises
    ------
    DataError
        If the file lacks a column or holds no usable seed.
    """
    margin = [size // 2 for size in config.field_of_view]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            names = {name.strip(): name for name in rows.fieldnames or ()}
            if not {"z", "y", "x"} <= names.keys():
                raise DataError(f"{path} needs the columns z, y, x; found {', '.join(names) or 'none'}")
            found = [_seed(row, names, number, shape, margin, refused) for number, row in enumerate(rows, 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}") from None
    seeds = [seed for seed in found if seed]
    if not seeds:
        raise DataError(f"{path} holds no seed that a field of view fits around, in a volume of {_sizes(shape)} voxels")
    return np.array(seeds, np.int64)


def _seed(row: dict[str, str], names: dict[str, str], number: int, shape: tuple[int, ...], margin: list[int],
          refused: Refusals) -> list[int] | None:
    """The seed of a row, or None if it is refused."""
    words = [(row[names[axis]] or "").strip() for axis in "zyx"]
    shown = ",".join(words)
    try:
        seed = [int(word) for word in words]
    except ValueError:
        refused.add(number, "not three whole numbers", shown)
        return None
    for axis, place, size, least in zip("zyx", seed, shape, margin, strict=True):
        if not least <= place < size - least:
            refused.add(number, f"{axis} is {place}; a field of view fits around {least}..{size - least - 1}", shown)
            return None
    return seed


def check_field_of_view(volume: Volume, config: ConnectomicsConfig) -> None:
    """Raise `DataError` if a volume is smaller than what the network sees."""
    if any(size < field for size, field in zip(volume.shape, config.field_of_view, strict=True)):
        raise DataError(f"{volume.address} has {_sizes(volume.shape)} voxels (z y x); the network sees "
                        f"{_sizes(config.field_of_view)} at once")


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
