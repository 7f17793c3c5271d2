"""The null backend: shapes, fusion and the memory plan, and nothing runs.

Invariant: its report is that of the cpu backend, without a kernel compiled or an array allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.plan import make_plan
from core.engine.backends import Options
from core.engine.graph import Graph


class NullExecutable:
    """Gives zeros that take no memory."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._outputs = [value.aval for value in graph.outputs[options.held if options.carried else 0:]]
        self._held: list[NDArray[Any]] = []
        self.report = make_plan(graph, options, "null").report

    def hold(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._held = list(arrays)

    def held(self) -> list[NDArray[Any]]:
        return list(self._held)

    def release(self) -> None:
        self._held = []

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [np.broadcast_to(aval.dtype.storage.type(0), aval.shape) for aval in self._outputs]


class NullBackend:
    """See the module."""

    def compile(self, graph: Graph, options: Options) -> NullExecutable:
        return NullExecutable(graph, options)


BACKEND = NullBackend()
