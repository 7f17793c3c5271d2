"""A network that was not trained: what is bright and next to the mask belongs to it.

Invariant: its logits rise by 6 where the image is 1 and fall by 6 where it is -1.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from apps.app import config_values, dump_config
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.model import FloodFillingNetwork
from core.engine import random
from core.engine.array import as_array
from core.engine.module import replace
from core.engine.run import RunDirectory

CONFIG = ConnectomicsConfig(field_of_view=(7, 7, 7), deltas=(2, 2, 2), depth=1, features=2, image_mean=100.0,
                            image_stddev=50.0)


def network() -> FloodFillingNetwork:
    """Two features, the image and its negative, and nothing else."""
    blank = FloodFillingNetwork.init(random.key(0), 1, 2)
    first, second = (np.zeros((3, 3, 3, 2, 2), np.float32) for _ in range(2))
    first[1, 1, 1, 0] = [1, -1]
    second[1, 1, 1] = np.eye(2)
    last = np.array([6, -6], np.float32).reshape(1, 1, 1, 2, 1)
    return FloodFillingNetwork(replace(blank.first_a, kernel=as_array(first)),
                               replace(blank.first_b, kernel=as_array(second)), (),
                               replace(blank.last, kernel=as_array(last)))


def write_run(path: Path) -> Path:
    """A finished run of this network."""
    run = RunDirectory.create(path, app="connectomics", command=[], config=config_values(CONFIG),
                              config_text=dump_config(CONFIG))
    run.save_model(network())
    run.finish({})
    run.close()
    return path


def write_tubes(path: Path, voxel_size: tuple[float, float, float] | None = (10.0, 10.0, 10.0)) -> np.ndarray:
    """Three crooked bright tubes, 60 voxels long, and their labels; writes the image as ``raw``."""
    labels = np.zeros((60, 48, 48), np.int64)
    for z in range(60):
        bend = int(4 * np.sin(z / 8))
        for number, (y, x) in enumerate([(6, 6), (8 + bend, 28), (32, 14 + bend)], 1):
            labels[z, y:y + 7, x:x + 7] = number
    image = np.where(labels > 0, 150, 50).astype(np.uint8)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", data=image)
        if voxel_size:
            data.attrs["voxel_size"] = voxel_size
    return labels
