"""Calibration: the range of what each layer of a model takes, seen on batches of data.

Invariant: ranges are least and largest value, so that they do not depend on the size of batches or on their padding
with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine.array import Array
from core.engine.errors import DataError
from core.engine.jit import DEFAULT_DEVICE, jit
from core.engine.module import Module, map_modules, static
from core.engine.ops import custom_call
from core.engine.precision.layered import Layer, layered
from core.engine.precision.quantised import Range, quantisable


class Observed(Module):
    """A layer that notes what it takes.

    Attributes
    ----------
    note : a function of the host that takes an input and gives it back
    """

    layer: Layer
    note: Callable[[NDArray[Any]], NDArray[Any]] = static()

    def __call__(self, x: Array) -> Array:
        (same,) = custom_call(x, function=self.note, avals=(x.aval,))
        result: Array = self.layer(same)
        return result


def calibrate(function: Callable[..., Any], module: Any, batches: Iterable[Any],
              device: str = DEFAULT_DEVICE) -> dict[str, Range]:
    """The ranges of what the layers of a model take, in loops too.

    Parameters
    ----------
    function : calls the model: ``(module, batch)``
    module : of f32
    batches : trees of arrays; few of different shapes, because each shape is compiled

    Returns
    -------
    Ranges by the dotted path of a layer in the layered module; a layer that nothing reached has none.

    Raises
    ------
    DataError
        If there is no batch.
    """
    ranges: dict[str, Range] = {}

    def observed(path: str, layer: Module) -> Module | None:
        def note(x: NDArray[Any]) -> NDArray[Any]:
            low, high = ranges.get(path, (np.inf, -np.inf))
            ranges[path] = float(np.minimum(low, x.min())), float(np.maximum(high, x.max()))
            return x

        return Observed(layer, note) if quantisable(layer) else None

    watched, program = map_modules(observed, layered(module)), jit(function, device=device)
    batch = None
    for batch in batches:
        program(watched, batch)
    if batch is None:
        raise DataError("there is nothing to calibrate on: no batch of data")
    return ranges
