"""Plan: what runs once, what runs at each call, and where everything lies.

Invariant: a step that reads nothing but constants and held inputs runs once, in the prologue; what it makes is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from numpy.typing import NDArray

from core.accel.finished import ARENA, FIRST_INPUT, KEPT, FinishedPlan, Segment
from core.accel.lower import Lowering
from core.accel.passes.exact import with_exact_products
from core.accel.passes.fuse import fuse
from core.accel.passes.inplace import updates_in_place
from core.accel.passes.memory import aligned, lifetimes, place
from core.accel.passes.recompute import recompute
from core.accel.passes.recurrence import lighten
from core.accel.passes.simplify import simplify
from core.accel.passes.widened import read_narrow
from core.accel.step import AnyStep, Buffer, HostStep, Repeat, Step, View, contiguous
from core.accel.walker import PlanTable
from core.engine.backends import Options, Report
from core.engine.graph import Aval, Graph


@dataclass(frozen=True)
class Plan:
    """Steps and addresses of an executable.

    Attributes
    ----------
    prologue, body : steps that run once, and at each call
    base_of : number of the base of each buffer, and its offset there in bytes
    arena, kept : bytes of working memory, and of what outlives a call
    constants : places in the kept memory with their content
    inputs, outputs : views of them
    in_place : inputs, by number, that the output of the same number overwrites
    """

    prologue: list[AnyStep]
    body: list[AnyStep]
    base_of: dict[Buffer, tuple[int, int]]
    arena: int
    kept: int
    constants: list[tuple[int, NDArray[Any]]]
    inputs: list[View]
    outputs: list[View]
    in_place: frozenset[int]
    report: Report

    def finish(self) -> FinishedPlan:
        """The plan as tables."""
        prologue, body = self._segments(self.prologue), self._segments(self.body)
        on_host = [view.buffer for segment in (*prologue, *body) if isinstance(segment, HostStep)
                   for view in segment.operands]
        inputs, outputs = ([Aval(view.dtype, view.shape) for view in views] for views in (self.inputs, self.outputs))
        return FinishedPlan(prologue, body, {buffer: self.base_of[buffer] for buffer in on_host}, self.arena, self.kept,
                            self.constants, inputs, outputs, self.in_place, self.report)

    def _segments(self, steps: Sequence[AnyStep]) -> list[Segment]:
        """Tables of the steps between those that run on the host."""
        segments: list[Segment] = []
        for on_host, group in groupby(steps, lambda step: isinstance(step, HostStep)):
            if on_host:
                segments += [step for step in group if isinstance(step, HostStep)]
            else:
                compiled = [step for step in group if not isinstance(step, HostStep)]
                segments.append(PlanTable.build(compiled, self.base_of))
        return segments


def make_plan(graph: Graph, options: Options, backend: str) -> Plan:
    """Simplify, choose the numbers that products read, fuse, lower, and place in memory."""
    graph = read_narrow(lighten(with_exact_products(simplify(graph))))
    graph.check()
    nodes = fuse(graph)
    again = recompute(graph, nodes)
    if again is not graph:
        graph, nodes = again, fuse(again)
    updated = updates_in_place(graph, nodes, options.held) if options.carried else {}
    lowering = Lowering(graph, nodes, updated)
    inputs = [lowering.views[value] for value in graph.inputs]
    constants = {lowering.views[value].buffer: array for value, array in graph.constants.items()}
    lowering.fixed.update(constants)
    if not options.carried:
        lowering.fixed.update(view.buffer for view in inputs[:options.held])
    static = set(lowering.fixed)
    for node in nodes:
        lowering.lower(node)
    outputs = _output_views(graph, lowering)
    prologue, body = _split(lowering.steps, static, {view.buffer for view in outputs})
    base_of = {view.buffer: (FIRST_INPUT + number, 0) for number, view in enumerate((*inputs, *outputs))}
    kept = _place_kept([*constants, *_written(prologue)], base_of)
    spans = lifetimes([[buffer for buffer in touched if buffer not in base_of]
                       for step in body for touched in _touched(step)])
    offsets, arena = place(spans)
    base_of |= {buffer: (ARENA, offset) for buffer, offset in offsets.items()}
    placed = [(base_of[buffer][1], array) for buffer, array in constants.items()]
    entries = [entry for step, layer in zip(lowering.steps, lowering.layers, strict=True)
               for entry in _entries(step, layer)]
    report = Report(backend, entries, _sources(lowering.steps), arena + kept)
    in_place = frozenset(graph.outputs.index(value) for value in updated)
    return Plan(prologue, body, base_of, arena, kept, placed, inputs, outputs, in_place, report)


def _sources(steps: Sequence[AnyStep]) -> dict[str, str]:
    """The texts of all kernels by the names of their steps; others of the same name are numbered from 2."""
    kernels = dict.fromkeys((step.name, step.kernel) for entry in steps for step in _parts(entry)
                            if isinstance(step, Step))
    numbers: dict[str, int] = {}
    sources = {}
    for name, text in kernels:
        number = numbers[name] = numbers.get(name, 0) + 1
        sources[name if number == 1 else f"{name} {number}"] = text
    return sources


def _output_views(graph: Graph, lowering: Lowering) -> list[View]:
    """A row-major buffer of its own for each output."""
    taken = {lowering.views[value].buffer for value in (*graph.inputs, *graph.constants)}
    views = []
    for value in graph.outputs:
        view = lowering.solid(value)
        if view.buffer in taken or view.offset or view.size * view.dtype.itemsize != view.buffer.nbytes:
            view = lowering.copy(view, contiguous(view.dtype, view.shape))
        taken.add(view.buffer)
        views.append(view)
    return views


def _split(steps: Sequence[AnyStep], static: set[Buffer], outputs: set[Buffer]) -> tuple[list[AnyStep], list[AnyStep]]:
    """Steps of the prologue and of the body; `static` grows by what the prologue makes."""
    writers: dict[Buffer, int] = {}
    for step in steps:
        for buffer in {step.operands[index].buffer for index in step.writes}:
            writers[buffer] = writers.get(buffer, 0) + 1
    prologue: list[AnyStep] = []
    body: list[AnyStep] = []
    in_body: set[Buffer] = set()
    for step in steps:
        written = {step.operands[index].buffer for index in step.writes}
        read = {view.buffer for view in step.operands} - written
        pure = not (isinstance(step, HostStep) and step.equation.op.family == "structural")
        if pure and read <= static and not written & outputs and not written & in_body:
            prologue.append(step)
            if all(writers[buffer] == 1 for buffer in written):
                static.update(written)
            else:
                for buffer in written:
                    writers[buffer] -= 1
        else:
            body.append(step)
            in_body |= written
    return prologue, body


def _written(steps: Sequence[AnyStep]) -> list[Buffer]:
    return list(dict.fromkeys(view.buffer for step in steps for view in step.operands))


def _place_kept(buffers: Sequence[Buffer], base_of: dict[Buffer, tuple[int, int]]) -> int:
    """Place buffers that outlive a call one behind the other; gives their bytes."""
    offset = 0
    for buffer in buffers:
        if buffer not in base_of:
            base_of[buffer] = (KEPT, offset)
            offset = aligned(offset + buffer.nbytes)
    return offset


def _parts(step: AnyStep) -> list[Step | HostStep]:
    """A step, or the steps of a repeat."""
    return [*step.start, *step.steps] if isinstance(step, Repeat) else [step]


def _touched(step: AnyStep) -> list[set[Buffer]]:
    """The buffers that each part of a step touches; those that last in a repeat count from its begin to its end."""
    touched = [{view.buffer for view in part.operands} for part in _parts(step)]
    if isinstance(step, Repeat):
        touched[0] |= step.lasting()
        touched[-1] |= step.lasting()
    return touched


def _entries(step: AnyStep, layer: str) -> list[tuple[str, str, int, int]]:
    if isinstance(step, HostStep):
        return [(f"host {step.equation.op.name}", layer, 0, 0)]
    if isinstance(step, Step):
        return [(step.name, layer, step.flops, step.nbytes)]
    return [(part.name, layer, times * part.flops, times * part.nbytes)
            for parts, times in ((step.start, 1), (step.steps, step.count)) for part in parts]
