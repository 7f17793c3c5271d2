"""A trained network in 8 bits, for an image that it is to segment.

Invariant: the network is calibrated on masks as it grows them itself, from the seed on, in fields of view that are
spread evenly over the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from apps.connectomics.canvas import logit
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.model import FloodFillingNetwork
from core.engine.array import Array, as_array
from core.engine.jit import jit
from core.engine.precision import calibrate, quantise

Batch = tuple[Array, Array]
"""Image and logits, f32[batch, z, y, x]."""

_IN_FLOAT = "last"
"""The layer that gives the logits: what it takes reaches to 40, so that 8 bits would be coarse, and it is small."""
_SIDE = 2
"""Fields of view along each axis that are looked at."""
_LOOKS = 2
"""Times that the network looks at each, so that it sees a mask that has begun to grow."""


def apply(network: FloodFillingNetwork, batch: Batch) -> Array:
    """New logits."""
    result: Array = network(*batch)
    return result


def quantised(network: FloodFillingNetwork, image: NDArray[np.float32],
              config: ConnectomicsConfig) -> FloodFillingNetwork:
    """The network with all layers but the last in 8 bits, see `core.engine.precision.quantise`.

    Parameters
    ----------
    network : f32
    image : f32[z, y, x], normalised, no smaller than a field of view
    """
    batches = [batch for seen in _fields_of_view(image, config.field_of_view)
               for batch in looks(network, seen[np.newaxis], config, _LOOKS)]
    ranges = calibrate(apply, network, batches, config.device)
    made: FloodFillingNetwork = quantise(network, {layer: found for layer, found in ranges.items()
                                                   if layer != _IN_FLOAT})
    return made


def looks(network: FloodFillingNetwork, image: NDArray[np.float32], config: ConnectomicsConfig,
          count: int) -> Iterator[Batch]:
    """What the network sees, `count` times, in fields of view f32[batch, z, y, x] from whose middles it fills in."""
    grow = jit(apply, device=config.device).bind(network)
    logits = np.full(image.shape, logit(config.pad_value), np.float32)
    logits[(slice(None), *(size // 2 for size in image.shape[1:]))] = logit(config.init_activation)
    batch = as_array(image), as_array(logits)
    for number in range(count):
        if number:
            batch = batch[0], grow(batch)
        yield batch


def _fields_of_view(image: NDArray[np.float32], field: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Fields of view that are spread over an image."""
    for place in np.ndindex(_SIDE, _SIDE, _SIDE):
        corner = [(size - extent) * (2 * index + 1) // (2 * _SIDE)
                  for size, extent, index in zip(image.shape, field, place, strict=True)]
        yield image[tuple(slice(first, first + extent) for first, extent in zip(corner, field, strict=True))]
