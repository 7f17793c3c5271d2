"""Export: a volume in another format, for Neuroglancer with coarser scales, skeletons and meshes.

Invariant: a volume is copied block by block, a whole number of the target's chunks each; what is held does not grow
with it, skeletons aside. The copy appears whole or not at all; in an object store a failure leaves nothing, either.
"""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import Report
from apps.connectomics.blocks import boxes
from apps.connectomics.config import ExportSettings, MeshSettings, SkeletonizeSettings
from apps.connectomics.formats import Address
from apps.connectomics.meshing import write_meshes
from apps.connectomics.neuroglancer import MESHES_INFO, refer_to, state_link, write_mesh, write_skeletons
from apps.connectomics.outputs import made_whole
from apps.connectomics.pyramid import coarser_image, coarser_labels, coarser_shape, halved
from apps.connectomics.skeletonizing import check_skeletonizable, measures, skeletons_of
from apps.connectomics.stores import new_place
from apps.connectomics.volumes import (
    Volume,
    WritableVolume,
    check_sized_labels,
    create_volume,
    known_voxel_size,
    open_volume,
)
from core.engine.errors import ConfigError, DataError, compose

CHUNK = 64
"""Side in voxels of the pieces in which an export is kept."""
BLOCK = 256
"""Side in voxels of what is read at once; a whole number of chunks, also when it is halved."""


def export(input: str, out: str, settings: ExportSettings) -> Report:
    """Copy a volume into another format.

    Parameters
    ----------
    out : an address; a new name on this machine, or a new place in an object store

    Raises
    ------
    ConfigError
        If nothing says which format, or there is something at `out`.
    DataError
        If the volume has no voxel size, cannot be read, or is not what the format can hold.
    """
    address = Address.parse(out)
    format = settings.format or address.format_to_write
    file = format in ("hdf5", "tiff")
    if (not format or bool(address.part) != (format == "hdf5") or (file and address.is_remote)
            or address.format not in ("", format)):
        raise ConfigError(compose(f"--out {out} does not say in which format to write", [
            ("expected", "FILE.h5:DATASET, FILE.tif, FOLDER.zarr, FOLDER.n5, the folders also at gs:// or s3://"),
            ("hint", "or a folder without a colon and --format, such as --format precomputed")]))
    for option in ("skeletons", "meshes"):
        if address.is_remote and getattr(settings, option):
            raise ConfigError(f"{option} are written to this machine only: choose a local folder, or leave out "
                              f"--{option}")
    volume = open_volume(input, axes=settings.axes, voxel_size=settings.voxel_size)
    known_voxel_size(volume)
    if settings.skeletons:
        check_skeletonizable(volume)
    if settings.meshes:
        check_sized_labels(volume)
    with _made(address) as made:
        if format == "precomputed":
            return _precomputed(volume, made, settings)
        place = f"{made}:{address.part}" if format == "hdf5" else made if file else f"{format}://{made}"
        _copy(volume, create_volume(place, volume.shape, volume.dtype, known_voxel_size(volume), (CHUNK,) * 3))
    return Report({"voxels": math.prod(volume.shape)})


@contextmanager
def _made(address: Address) -> Iterator[str]:
    """Where to write what is to be at an address when the block ends."""
    if address.is_remote:
        with new_place(address.text, address.place):
            yield address.place
    else:
        with made_whole(Path(address.place)) as made:
            yield str(made)


def _precomputed(volume: Volume, made: str, settings: ExportSettings) -> Report:
    """Write a precomputed volume with its scales, skeletons and meshes."""
    known = volume.dtype in (np.uint32, np.uint64, np.int64)
    labels = known or settings.labels or settings.skeletons or settings.meshes
    voxel_size = known_voxel_size(volume)
    finest = create_volume(f"precomputed://{made}", volume.shape, _label_type(volume) if labels else volume.dtype,
                           voxel_size, (CHUNK,) * 3)
    _copy(volume, finest)
    numbers: dict[str, float | int | str] = {
        "voxels": math.prod(volume.shape), "coarser scales": _add_scales(finest, labels, settings.scales)}
    if settings.skeletons:
        skeletons = skeletons_of(volume, SkeletonizeSettings())
        numbers |= {"skeletons": write_skeletons(skeletons, voxel_size, Path(made) / "skeletons"),
                    **measures(skeletons)}
        refer_to(Path(made), "skeletons")
    if settings.meshes:
        folder = Path(made) / "mesh"
        numbers |= write_meshes(volume, MeshSettings(), folder, partial(write_mesh, voxel_size=voxel_size))
        (folder / "info").write_text(json.dumps(MESHES_INFO), encoding="utf-8")
        refer_to(Path(made), "mesh")
    return Report(numbers | {"link": _link(made, labels, finest, settings)})


def _add_scales(finest: WritableVolume, labels: bool, most: int | None) -> int:
    """Write coarser scales of a precomputed volume, by default until one chunk holds all; gives their number."""
    smallest = CHUNK if most is None else 1
    scale, count = finest, 0
    while count != most and max(scale.shape) > smallest:
        count += 1
        voxel_size = known_voxel_size(scale)
        factors = halved(scale.shape, voxel_size)
        z, y, x = map(mul, voxel_size, factors)
        coarser = create_volume(f"{finest.address}:{count}", coarser_shape(scale.shape, factors), scale.dtype,
                                (z, y, x), (CHUNK,) * 3)
        for start, stop in boxes((0, 0, 0), coarser.shape, BLOCK // 2):
            covered = scale.read([*map(mul, start, factors)], [*map(min, map(mul, stop, factors), scale.shape)])
            coarser.write(start, coarser_labels(covered, factors) if labels else coarser_image(covered, factors))
        scale = coarser
    return count


def _copy(source: Volume, target: WritableVolume) -> None:
    """Copy all voxels; labels may change their type."""
    for start, stop in boxes((0, 0, 0), source.shape, BLOCK):
        values = source.read(start, stop)
        if values.dtype != target.dtype and values.min() < 0:
            raise DataError(f"{source.address} holds {values.min()}; labels are whole numbers from 0")
        target.write(start, values.astype(target.dtype, copy=False))


def _label_type(volume: Volume) -> np.dtype[Any]:
    """The type of the labels of a precomputed segmentation."""
    if volume.dtype.kind not in "iu":
        raise DataError(f"{volume.address} holds {volume.dtype}; labels are whole numbers from 0")
    return np.dtype(np.uint64 if volume.dtype.itemsize > 4 else np.uint32)


def _link(made: str, labels: bool, volume: Volume, settings: ExportSettings) -> str:
    """What opens the exported volume, and perhaps an image behind it, in Neuroglancer."""
    served = f"precomputed://{settings.url.rstrip('/')}/"
    name = made.rstrip("/").rpartition("/")[2]
    source = f"precomputed://{made}" if "://" in made else served + urllib.parse.quote(name)
    layers = [(name, "segmentation" if labels else "image", source)]
    if settings.image:
        source = settings.image if "://" in settings.image else served + urllib.parse.quote(settings.image)
        layers.insert(0, (settings.image.rstrip("/").rpartition("/")[2], "image", source))
    return state_link(layers, volume.shape, known_voxel_size(volume))
