"""The printed instruction stream of a graph, and the values that it gives on the simulated chip.

Invariant: what is listed is what was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.backend import V1
from core.accel.tpu.compiler import compile_graph
from core.engine.backends import Options
from core.engine.graph import Graph


@dataclass(frozen=True)
class Listing:
    """Numbers by name, and the text of the stream."""

    numbers: Mapping[str, Any]
    text: str


def listing(name: str, graph: Graph, held: int, arrays: Sequence[NDArray[Any]], with_host: bool) -> Listing:
    """The stream of a graph.

    Parameters
    ----------
    held : this many leading inputs are weights
    arrays : storage of all inputs
    with_host : whether the host may compute between two layers of the chip

    Raises
    ------
    DeviceError
        If the chip cannot run the graph.
    """
    compiled = compile_graph(graph, arrays[:held], with_host=with_host)
    found, wanted = compiled(arrays[held:]), V1.compile(graph, Options())(arrays)
    program = compiled.program
    numbers = {
        "instructions": len(program.instructions), "parts": len(program.parts), "weight tiles": len(program.tiles),
        "scalings": len(program.scalings), "rows of the unified buffer": program.buffer_rows,
        "values compared": sum(array.size for array in wanted),
        "values that differ": sum(_different(one, other) for one, other in zip(found, wanted, strict=True))}
    return Listing(numbers, f"{name} on tpu-v1\n\n{program}\n")


def _different(one: NDArray[Any], other: NDArray[Any]) -> int:
    """How many values have other bits."""
    first, second = (np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8) for array in (one, other))
    return int((first != second).any(1).sum())
