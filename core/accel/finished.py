"""Finished plans: what an executable needs of a plan, as tables of numbers that hold in any process.

Invariant: a plan that was encoded and decoded is the same as before, given a graph with the same constants.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.layout import OPERAND_WORDS, STEP_WORDS
from core.accel.step import Buffer, HostStep, View
from core.accel.walker import PlanTable
from core.engine import dtypes
from core.engine.backends import Report
from core.engine.dtypes import DType
from core.engine.graph import Aval, Equation, Graph, Value, Where
from core.engine.ops.table import TABLE

ARENA, KEPT, FIRST_INPUT = 0, 1, 2
"""Numbers of the bases; inputs and then outputs follow."""

Segment = PlanTable | HostStep


class Unnameable(Exception):
    """Something that has no name which holds in another process, such as a function."""


@dataclass(frozen=True)
class FinishedPlan:
    """A plan whose steps are tables.

    Attributes
    ----------
    prologue, body : what runs once, and at each call
    base_of : of each buffer of a host step the number of its base, and its offset there in bytes
    arena, kept : bytes of working memory, and of what outlives a call
    constants : places in the kept memory with their content
    inputs, outputs : avals of them
    in_place : inputs, by number, that the output of the same number overwrites
    """

    prologue: list[Segment]
    body: list[Segment]
    base_of: dict[Buffer, tuple[int, int]]
    arena: int
    kept: int
    constants: list[tuple[int, NDArray[Any]]]
    inputs: list[Aval]
    outputs: list[Aval]
    in_place: frozenset[int]
    report: Report

    @property
    def kernels(self) -> list[str]:
        """Source texts, each once."""
        return list(dict.fromkeys(text for segment in (*self.prologue, *self.body) if isinstance(segment, PlanTable)
                                  for text in segment.kernels))


def encode(plan: FinishedPlan, graph: Graph) -> bytes:
    """A plan as bytes: a line of JSON, then the arrays one behind the other.

    The constants of the graph are named by their number, and only the planner's own are written.
    """
    texts = {text: number for number, text in enumerate(plan.kernels)}
    numbers = {id(array): number for number, array in enumerate(graph.constants.values())}
    arrays: list[NDArray[Any]] = []

    def segment(entry: Segment) -> dict[str, Any]:
        if isinstance(entry, HostStep):
            return _plain_step(entry, plan.base_of)
        arrays.extend((entry.steps, entry.operands, entry.dims))
        return {"kernels": [texts[text] for text in entry.kernels], "steps": len(entry.steps),
                "operands": len(entry.operands), "dims": len(entry.dims)}

    def constant(offset: int, array: NDArray[Any]) -> list[Any]:
        if id(array) in numbers:
            return [offset, numbers[id(array)]]
        arrays.append(array)
        return [offset, array.dtype.str, array.size]

    head = {
        "prologue": list(map(segment, plan.prologue)), "body": list(map(segment, plan.body)),
        "constants": [constant(*entry) for entry in plan.constants],
        "arena": plan.arena, "kept": plan.kept, "in_place": sorted(plan.in_place), "texts": list(texts),
        "report": {"steps": plan.report.steps, "arena": plan.report.arena,
                   "sources": {name: texts[text] for name, text in plan.report.sources.items()}},
    }
    return b"\n".join([json.dumps(head, default=plain).encode(), b"".join(array.tobytes() for array in arrays)])


def decode(content: bytes, graph: Graph, backend: str) -> FinishedPlan:
    """The plan that `encode` made bytes of, for a graph with the same inputs, outputs and constants."""
    line, _, rest = content.partition(b"\n")
    head = json.loads(line)
    arrays = _Arrays(rest)
    texts: list[str] = head["texts"]
    base_of: dict[Buffer, tuple[int, int]] = {}

    def segment(entry: dict[str, Any]) -> Segment:
        if "op" in entry:
            return _step(entry, base_of)
        return PlanTable(tuple(texts[number] for number in entry["kernels"]),
                         arrays.take("<i8", entry["steps"] * STEP_WORDS).reshape(-1, STEP_WORDS),
                         arrays.take("<i8", entry["operands"] * OPERAND_WORDS).reshape(-1, OPERAND_WORDS),
                         arrays.take("<i8", entry["dims"]))

    def constant(offset: int, *kind: Any) -> tuple[int, NDArray[Any]]:
        return offset, arrays.take(*kind) if len(kind) == 2 else given[kind[0]]

    given = list(graph.constants.values())
    prologue, body = (list(map(segment, head[name])) for name in ("prologue", "body"))
    report = Report(backend, [tuple(step) for step in head["report"]["steps"]],
                    {name: texts[number] for name, number in head["report"]["sources"].items()},
                    head["report"]["arena"])
    return FinishedPlan(prologue, body, base_of, head["arena"], head["kept"],
                        [constant(*entry) for entry in head["constants"]], [value.aval for value in graph.inputs],
                        [value.aval for value in graph.outputs], frozenset(head["in_place"]), report)


class _Arrays:
    """Bytes as the arrays that they were."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        """The next array; a copy, since those that the walker reads must lie at addresses of whole words."""
        array = np.frombuffer(self._content, dtype, count, self._place).copy()
        self._place += array.nbytes
        return array


# --- host steps ------------------------------------------------------------------------------------------------------

def _plain_step(step: HostStep, base_of: dict[Buffer, tuple[int, int]]) -> dict[str, Any]:
    """A host step as JSON takes it."""
    def plain_view(view: View) -> list[Any]:
        base, offset = base_of[view.buffer]
        return [base, offset + view.offset * view.dtype.itemsize, view.dtype.name, view.shape, view.strides]

    equation = step.equation
    return {"op": equation.op.name, "params": equation.params, "layer": equation.where.layer,
            "inputs": list(map(plain_view, step.inputs)), "outputs": list(map(plain_view, step.outputs))}


def _step(entry: dict[str, Any], base_of: dict[Buffer, tuple[int, int]]) -> HostStep:
    """The host step that `_plain_step` described; its buffers come into `base_of`."""
    def view(base: int, offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> View:
        buffer = Buffer(0)
        base_of[buffer] = base, offset
        return View(buffer, dtypes.BY_NAME[dtype], tuple(shape), tuple(strides))

    inputs, outputs = (tuple(view(*described) for described in entry[name]) for name in ("inputs", "outputs"))
    params = {name: _restored(value) for name, value in entry["params"].items()}
    values = [tuple(Value(Aval(view.dtype, view.shape)) for view in views) for views in (inputs, outputs)]
    return HostStep(Equation(TABLE[entry["op"]], values[0], params, values[1], Where(entry["layer"])), inputs, outputs)


def plain(value: object) -> Any:
    """What JSON takes in the place of a parameter of an op that it does not know.

    Raises
    ------
    Unnameable
        If another process would not know what it is.
    """
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, np.integer):
        return int(value)
    raise Unnameable(f"{value!r} has no name that holds in another process")


def _restored(value: Any) -> Any:
    """A parameter of an op that was written as JSON."""
    if isinstance(value, list):
        return tuple(map(_restored, value))
    return dtypes.BY_NAME[value["dtype"]] if isinstance(value, dict) else value
