"""Finished plans, kept in the store beside the kernels, so that the next process does not plan again.

Invariant: a plan is found by a key that covers everything that shapes it: the graph with the content of its constants,
the options, the machine, and all sources of this program. A graph that holds something without a name that holds in
another process, such as a host function, is planned each time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.accel import chips, fingerprint, finished, store
from core.accel.finished import FinishedPlan, Unnameable
from core.engine.backends import Options
from core.engine.graph import Aval, Equation, Graph, Value
from core.engine.ops.table import TABLE
from core.engine.trace import uncollected

WORTH = 64
"""Equations of a graph that is worth an entry: fewer are planned in less than 10 ms."""

_log = logging.getLogger("tilework.store")


def plan_of(graph: Graph, options: Options, backend: str) -> FinishedPlan:
    """The plan of a graph for a backend: read if it is kept, else made, and kept if it can be."""
    with uncollected():
        name = _name(graph, options)
        content = name and store.default().read(name)
        if content:
            return finished.decode(content, graph, backend)
        from core.accel.plan import make_plan  # what a process that reads its plans does without

        plan = make_plan(graph, options, backend).finish()
        if name:
            store.default().keep(name, finished.encode(plan, graph), _sources())
        return plan


def key(graph: Graph, options: Options) -> str:
    """Digest of everything that shapes the plan of a graph.

    Raises
    ------
    Unnameable
        If the graph holds what another process would not know.
    """
    parts = [fingerprint.machine(), chips.description(), _code(), repr(options), _Digests().of(graph)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _name(graph: Graph, options: Options) -> str | None:
    """Name of the entry of a plan that may be kept."""
    if len(graph.equations) + sum(len(inner.equations) for inner in _inner(graph)) < WORTH:
        return None
    if store.edited(_sources()):  # the code of this process may be older than what other processes have kept
        return None
    try:
        return f"{key(graph, options)}.plan"
    except Unnameable as reason:
        _log.debug("a plan is not kept: %s", reason)
        return None


def _inner(graph: Graph) -> Iterator[Graph]:
    """Graphs in the parameters of equations."""
    return (value for equation in graph.equations for value in equation.params.values() if isinstance(value, Graph))


@functools.cache
def _sources() -> list[Path]:
    return fingerprint.sources(__name__.partition(".")[0])


@functools.cache
def _code() -> str:
    """Digest of the program. All of it may shape a plan: passes, rules of ops, and what kernels import."""
    return fingerprint.of_files(_sources())


class _Digests:
    """Digests of graphs, which hold each other as parameters."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        self._names: dict[Aval, str] = {}

    def of(self, graph: Graph) -> str:
        known = self._known.get(id(graph))
        if known is None:
            digest = hashlib.sha256(json.dumps(self._described(graph), default=self._plain).encode())
            for array in graph.constants.values():
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            known = self._known[id(graph)] = digest.hexdigest()
        return known

    def _described(self, graph: Graph) -> list[Any]:
        """A graph as JSON takes it, but for the content of its constants; values have numbers, in their order."""
        given = [*graph.inputs, *graph.constants]
        made = (value for equation in graph.equations for value in equation.outputs)
        numbers = {value: number for number, value in enumerate((*given, *made))}
        return [len(graph.inputs), self._avals(given), [numbers[value] for value in graph.outputs],
                [self._equation(equation, numbers) for equation in graph.equations]]

    def _equation(self, equation: Equation, numbers: Mapping[Value, int]) -> list[Any]:
        op = equation.op
        if TABLE.get(op.name) is not op:
            raise Unnameable(f"{op.name} is no op of the table")
        return [op.name, [numbers[value] for value in equation.inputs], equation.params, self._avals(equation.outputs),
                equation.where.layer]

    def _avals(self, values: Iterable[Value]) -> list[str]:
        return [self._names.get(value.aval) or self._names.setdefault(value.aval, str(value.aval)) for value in values]

    def _plain(self, value: Any) -> Any:
        """What stands for a parameter of an op that JSON does not take."""
        if isinstance(value, Graph):
            return {"graph": self.of(value)}
        return {"aval": str(value)} if isinstance(value, Aval) else finished.plain(value)
