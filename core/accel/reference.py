"""The reference backend: walks a graph with the numpy rules; what every other backend is tested against.

Invariant: no pass, no fusion, no kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from core.engine.backends import Options, Report
from core.engine.graph import Graph
from core.engine.ops.control import run_graph


class ReferenceExecutable:
    """A graph with the arrays it holds."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        steps = [(equation.op.name, equation.where.layer, 0, 0) for equation in graph.equations]
        self.report = Report("reference", steps)
        self._held: list[NDArray[Any]] = []

    def hold(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._held = [array.copy() for array in arrays]

    def held(self) -> list[NDArray[Any]]:
        return [array.copy() for array in self._held]

    def release(self) -> None:
        self._held = []

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        results = run_graph(self.graph, [*self._held, *arrays])
        if self.options.carried:
            self._held, results = results[:self.options.held], results[self.options.held:]
        return [result.copy() for result in results]


class ReferenceBackend:
    """See the module."""

    def compile(self, graph: Graph, options: Options) -> ReferenceExecutable:
        return ReferenceExecutable(graph, options)


BACKEND = ReferenceBackend()
