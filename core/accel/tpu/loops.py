"""Loops and calls of a graph, written out where they hold products: the instruction stream has none.

Invariant: results keep their bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine.array import Array
from core.engine.graph import Graph
from core.engine.ops.control import unroll
from core.engine.ops.table import Op
from core.engine.trace import Staging, call_graph, restage


class _Unrolling(Staging):
    """Stages equations anew, those of loops once a turn."""

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        if op.name == "call":
            return tuple(call_graph(params["graph"], inputs))
        if op.name == "scan" and _has_product(params["body"]):
            return unroll(inputs, params)
        return super().apply(op, inputs, params)


def _has_product(graph: Graph) -> bool:
    return any(equation.op.family == "contract" or any(
        isinstance(inner, Graph) and _has_product(inner) for inner in equation.params.values())
        for equation in graph.equations)


def unrolled(graph: Graph) -> Graph:
    """The graph with every loop that multiplies written out."""
    return restage(graph, _Unrolling())
