"""A local segmenter that is exact, slow on demand and can fail: the connected components of a foreground.

Invariant: what it gives depends on the foreground inside the block alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.connectomics.blocks import Block
from core.engine.errors import DataError


def labelled(foreground: NDArray[np.bool_], connectivity: int) -> NDArray[np.uint32]:
    """Connected components, by faces (1), edges too (2) or corners too (3)."""
    labels, _ = ndimage.label(foreground, ndimage.generate_binary_structure(3, connectivity))
    return labels.astype(np.uint32)


def components(block: Block, arguments: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The components of bool[z, y, x] in the .npy file `volume`, after `seconds`; `trouble` may name a failure."""
    trouble = arguments.get("trouble") if block.number == 1 else None
    print("computing", block.number)
    time.sleep(arguments.get("seconds", 0))
    if trouble == "bad data":
        raise DataError("a chunk is missing at 1, 2, 3")
    if trouble == "bug":
        raise KeyError("the bug")
    if trouble == "memory":
        raise MemoryError("no room for 3 GB")
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "wrong shape":
        return {"labels": np.zeros((1, 2, 3), np.uint32)}
    foreground = np.load(arguments["volume"], mmap_mode="r")
    box = tuple(slice(start, stop) for start, stop in zip(block.start, block.stop, strict=True))
    labels = labelled(foreground[box], connectivity=1)
    return {"labels": labels, "threads": np.array(os.environ.get("TILEWORK_THREADS", "auto"))}
