"""The tab Data: sections of a volume, with labels in colours over it.

Invariant: what is read is one section, and of a large one its middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.connectomics.app import APP
from apps.connectomics.hdf5 import volumes_of
from apps.connectomics.volumes import Volume, open_volume
from core.engine.errors import TileworkError
from ui import datasets
from ui.session import show_error

SUFFIXES = (".h5", ".hdf5", ".hdf")
LARGEST = 1024
"""Voxels of a side of what is shown."""
OPACITY = 0.4
NONE = "none"


def tab() -> None:
    """Show the tab."""
    path = datasets.choose(APP, SUFFIXES)
    if path is None:
        return
    try:
        _show(path)
    except TileworkError as error:
        show_error(error)


def _show(path: Path) -> None:
    names = volumes_of(path)
    if not names:
        st.info("This file holds no volume, which is a dataset of three axes.")
        return
    left, right = st.columns(2)
    image = open_volume(f"{path}:{left.selectbox('Image', names, key='connectomics-image')}")
    over = right.selectbox("Labels over it", [NONE, *names], key="connectomics-over")
    labels = None if over == NONE else open_volume(f"{path}:{over}")
    depth, rows, columns = image.shape
    first, second, third = st.columns(3)
    first.metric("Voxels (z, y, x)", f"{depth} x {rows} x {columns}")
    second.metric("Type", str(image.dtype))
    third.metric("Voxel size, nm", " x ".join(f"{size:g}" for size in image.voxel_size or ()) or "not said")
    z = st.slider("Section (z)", 0, depth - 1, depth // 2, key="connectomics-z") if depth > 1 else 0
    if labels is not None and labels.shape != image.shape:
        st.warning("The labels have another shape than the image, so they are not shown.")
        labels = None
    shown = grey(section(image, z)) if labels is None else coloured(section(image, z), section(labels, z))
    st.image(shown, width="stretch")


def section(volume: Volume, z: int) -> NDArray[Any]:
    """Section z of a volume, or its middle."""
    low = [max((size - LARGEST) // 2, 0) for size in volume.shape[1:]]
    high = [begin + min(size, LARGEST) for begin, size in zip(low, volume.shape[1:], strict=True)]
    return volume.read((z, *low), (z + 1, *high))[0]


def grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """u8[y, x]: from the darkest hundredth to the brightest."""
    dark, bright = np.percentile(image[np.isfinite(image)], [0.5, 99.5]) if np.isfinite(image).any() else (0, 1)
    scaled = (np.nan_to_num(image.astype(np.float32)) - dark) / max(bright - dark, 1e-6)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def coloured(image: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """u8[y, x, colour]: the image with each label in a colour of its own, which is the same in every section."""
    ids, where = np.unique(labels, return_inverse=True)
    palette = np.stack([np.random.default_rng(int(number)).integers(40, 256, 3) for number in ids])
    colours = palette[where.reshape(labels.shape)]
    base = np.repeat(grey(image)[..., None], 3, axis=-1)
    mixed = base * (1 - OPACITY) + colours * OPACITY
    return np.where(labels[..., None] > 0, mixed, base).astype(np.uint8)
