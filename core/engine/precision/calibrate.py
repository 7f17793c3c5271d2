"""Calibration: the range of what each layer of a model takes, seen on batches of data.

Invariant: ranges are least and largest value, so that they do not depend on the size of batches or on their padding
with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from core.engine import tree
from core.engine.array import Array
from core.engine.errors import DataError
from core.engine.jit import DEFAULT_DEVICE, jit
from core.engine.module import Module, joined, map_modules, static
from core.engine.ops import amax, amin, maximum, minimum
from core.engine.precision.layered import Layer, LayeredCell, layered
from core.engine.precision.quantised import Range, quantisable


class _Notes:
    """Least and largest input of each layer in the trace under way."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Array, Array]] = {}
        self.trace: object | None = None

    def add(self, path: str, x: Array) -> None:
        if x.trace is not self.trace:
            return  # within the body of a loop, whose values are not seen outside
        low, high = self.seen.get(path, (amin(x), amax(x)))
        self.seen[path] = minimum(low, amin(x)), maximum(high, amax(x))


class Observed(Module):
    """A layer that notes what it takes."""

    layer: Layer
    path: str = static()
    notes: _Notes = static()

    def __call__(self, x: Array) -> Array:
        self.notes.add(self.path, x)
        result: Array = self.layer(x)
        return result


def calibrate(function: Callable[..., Any], module: Any, batches: Iterable[Any],
              device: str = DEFAULT_DEVICE) -> dict[str, Range]:
    """The ranges of what the layers of a model take.

    A layer within a loop (`scan`) is not seen, and has no range; the hidden state of a recurrent cell there lies in
    -1..1, because it starts at 0.

    Parameters
    ----------
    function : calls the model: ``(module, batch)``
    module : of f32
    batches : trees of arrays; few of different shapes, because each shape is compiled

    Returns
    -------
    Ranges by the dotted path of a layer in the layered module.

    Raises
    ------
    DataError
        If there is no batch.
    """
    whole = layered(module)
    notes = _Notes()

    def observed(path: str, layer: Module) -> Module | None:
        return Observed(layer, path, notes) if quantisable(layer) else None

    def seen(module: Any, batch: Any) -> dict[str, tuple[Array, Array]]:
        notes.seen, notes.trace = {}, tree.leaves(module)[0].trace
        function(module, batch)
        return notes.seen

    watched, program = map_modules(observed, whole), jit(seen, device=device)
    found = [program(watched, batch) for batch in batches]
    if not found:
        raise DataError("there is nothing to calibrate on: no batch of data")
    ranges = _bounded(whole)
    for path in found[0]:
        ranges[path] = (min(float(one[path][0]) for one in found), max(float(one[path][1]) for one in found))
    return ranges


def _bounded(module: Any) -> dict[str, Range]:
    """The ranges that are known beforehand."""
    known: dict[str, Range] = {}

    def look(path: str, part: Module) -> None:
        if isinstance(part, LayeredCell):
            known[joined(path, "hidden")] = (-1.0, 1.0)

    map_modules(look, module)
    return known
