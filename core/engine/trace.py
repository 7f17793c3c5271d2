"""Dispatch: an op runs eagerly in numpy, or is staged into a graph, by the context it is called in.

Invariant: the interpreter on top of this thread's stack decides; arrays never do. An array that belongs to an outer
trace, or a concrete one, enters a graph as a capture.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from core.engine import tree
from core.engine.array import Array, as_array
from core.engine.dtypes import DType
from core.engine.errors import TraceError
from core.engine.graph import NOWHERE, Aval, Equation, Graph, Value, Where
from core.engine.ops.table import Op, evaluate, infer

_ENGINE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Interpreter(Protocol):
    """What a context does with an op."""

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]: ...


class Eager:
    """Runs the numpy rule at once, so that print, a debugger and NaN hunting work."""

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        for array in inputs:
            if array.is_traced:
                raise TraceError(f"{op.name} got {array.aval} from a trace that has ended; return the value from the "
                                 f"traced function instead of keeping it")
        avals = [array.aval for array in inputs]
        outputs = infer(op, avals, params)
        results = evaluate(op, [array.storage for array in inputs], avals, params, outputs)
        return tuple(Array(aval, result) for aval, result in zip(outputs, results, strict=True))


@dataclass(eq=False)
class Staging:
    """Writes equations into a graph; `captures` are the outside arrays that the graph reads, in order."""

    graph: Graph = field(default_factory=Graph)
    captures: list[Array] = field(default_factory=list)
    _captured: dict[tuple[int, DType], Value] = field(default_factory=dict)

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        values = tuple([self.value(array) for array in inputs])
        avals = infer(op, [value.aval for value in values], params)
        outputs = tuple(map(Value, avals))
        self.graph.equations.append(Equation(op, values, dict(params), outputs, here()))
        return tuple([Array(value.aval, value, self) for value in outputs])

    def argument(self, aval: Aval) -> Array:
        """A fresh input."""
        value = Value(aval)
        self.graph.inputs.append(value)
        return Array(aval, value, self)

    def value(self, array: Array) -> Value:
        """The graph's value for an array; outside arrays become captures."""
        if array.trace is self:
            return array.value
        key = id(array.data), array.dtype  # bfloat16 and its bits share storage
        known = self._captured.get(key)
        if known is None:
            known = self._captured[key] = Value(array.aval)
            self.captures.append(array)
        return known


class _Context(threading.local):
    def __init__(self) -> None:
        self.interpreters: list[Interpreter] = [Eager()]
        self.layers: list[tuple[str, object]] = []
        self.where: Where | None = None


_context = _Context()


def apply(op: Op, inputs: Sequence[Any], params: Mapping[str, Any]) -> Any:
    """Apply an op in the present context; gives an Array, or a tuple where the op has several outputs."""
    arrays = [value if type(value) is Array else as_array(value) for value in inputs]
    outputs = _context.interpreters[-1].apply(op, arrays, params)
    return outputs if op.multiple else outputs[0]


def is_staging() -> bool:
    """Whether ops are written into a graph now."""
    return isinstance(_context.interpreters[-1], Staging)


def here() -> Where:
    """The layer path and the user's source line of the call under way."""
    if _context.where is not None:
        return _context.where
    return Where(_context.layers[-1][0] if _context.layers else "", _source_line())


def _source_line() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_ENGINE, "<")):
        frame = frame.f_back
    if frame is None:
        return ""
    return _short(frame.f_code.co_filename, frame.f_lineno)


@functools.lru_cache
def _short(path: str, line: int) -> str:
    return f"{os.sep.join(path.rsplit(os.sep, 3)[-3:])}:{line}"


@contextmanager
def layer(name: str, module: object) -> Iterator[None]:
    """Name the layer that the ops inside belong to."""
    outer = _context.layers[-1][0] if _context.layers else ""
    _context.layers.append((f"{outer}.{name}" if outer else name, module))
    try:
        yield
    finally:
        _context.layers.pop()


def current_layer() -> object | None:
    """The module whose call is under way, if any."""
    return _context.layers[-1][1] if _context.layers else None


@contextmanager
def at(where: Where) -> Iterator[Callable[[Where], None]]:
    """Make the ops inside belong to `where`, or to the place that the function given is told next, as in a replay."""
    before = _context.where

    def move_to(next_place: Where) -> None:
        _context.where = where if next_place is NOWHERE else next_place

    _context.where = where
    try:
        yield move_to
    finally:
        _context.where = before


@contextmanager
def interpret(interpreter: Interpreter) -> Iterator[None]:
    """Run the ops inside through this interpreter."""
    _context.interpreters.append(interpreter)
    try:
        yield
    finally:
        _context.interpreters.pop()


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python's collector of cycles wait while something large grows, such as a graph.

    It would walk through all of it again and again, which takes a third of the time, and nothing of it can go.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Traced:
    """A traced function: its graph (inputs are the arguments, then the captures) and the tree of its result."""

    graph: Graph
    captures: tuple[Array, ...]
    structure: tree.Structure


def trace(function: Callable[..., Any], avals: Sequence[Aval], structure: tree.Structure) -> Traced:
    """Stage ``function(*arguments)`` into a graph.

    Parameters
    ----------
    avals : avals of the leaves of the arguments
    structure : tree of the argument tuple
    """
    staging = Staging()
    arguments = tree.unflatten(structure, [staging.argument(aval) for aval in avals])
    with interpret(staging), uncollected():
        leaves, out_structure = tree.flatten(function(*arguments))
        staging.graph.outputs = [staging.value(as_array(leaf)) for leaf in leaves]
    staging.graph.inputs.extend(staging.value(array) for array in staging.captures)
    return Traced(staging.graph, tuple(staging.captures), out_structure)


def replay(graph: Graph, arguments: Sequence[Array]) -> dict[Value, Array]:
    """Apply a graph's equations in the present context; gives the array of every value."""
    known: dict[Value, Array] = dict(zip(graph.inputs, arguments, strict=True))
    for value, constant in graph.constants.items():
        known[value] = Array(value.aval, constant)
    with at(here()) as move_to:
        for equation in graph.equations:
            move_to(equation.where)
            outputs = apply(equation.op, [known[value] for value in equation.inputs], equation.params)
            known.update(zip(equation.outputs, outputs if equation.op.multiple else (outputs,), strict=True))
    return known


def restage(graph: Graph, staging: Staging) -> Graph:
    """A graph as an empty staging stages its equations anew."""
    arguments = [staging.argument(value.aval) for value in graph.inputs]
    with interpret(staging):
        outputs = call_graph(graph, arguments)
    staged = staging.graph
    staged.outputs = [staging.value(output) for output in outputs]
    staged.constants = {staging.value(array): array.storage for array in staging.captures}
    return staged


def call_graph(graph: Graph, arguments: Sequence[Array]) -> list[Array]:
    """The outputs of a graph applied to arrays in the present context."""
    known = replay(graph, arguments)
    return [known[value] for value in graph.outputs]
