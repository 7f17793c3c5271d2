"""The order of a quantised graph on TPU v1: parts that the chip computes, and steps of the host between them.

Invariant: a value is computed once, by the chip if it has a form there that somebody reads, else by the host.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from core.accel.tpu.forms import Bytes
from core.accel.tpu.instructions import Function
from core.accel.tpu.layers import Layer, Stage, Store
from core.accel.tpu.reading import Reading
from core.accel.tpu.refusal import refused
from core.engine.errors import DeviceError
from core.engine.graph import Equation, Graph, Value

_TABLE = "make it a table of bytes, core.engine.precision.TableActivation, or "
_MEAN = "average bytes, core.engine.precision.ByteAveragePool, or "
_HINTS = {"tanh": _TABLE, "logistic": _TABLE, "erf": _TABLE, "exp": _TABLE, "window": _MEAN, "reduce": _MEAN}


class Schedule:
    """Who computes what, and when.

    Attributes
    ----------
    count : of parts
    parts : the part of the program in which each layer is computed
    times : of values that are not known: the number of parts that run before the host can have it
    fetched : values that the host takes of the chip
    steps : the step of the host in which it computes an equation
    """

    def __init__(self, graph: Graph, reading: Reading) -> None:
        self.graph, self.reading = graph, reading
        self.given = {given: value for value, given in reading.given.items()}
        self.parts: dict[Layer, int] = {}
        self.times: dict[Value, int] = {}
        self.fetched: dict[Value, Store] = {}
        self.steps: dict[Equation, int] = {}
        for equation in graph.equations:
            self._time(equation)
        self.count = 1 + max(self.parts.values())
        self._demand(self.given.values())
        self.between = {equation for equation, step in self.steps.items() if step}
        self._demand(graph.outputs)

    def _time(self, equation: Equation) -> None:
        value = equation.outputs[0]
        if value in self.reading.known:
            return
        layer = self.reading.layers.get(value)
        if layer is not None:
            self.parts[layer] = (self.parts[layer.source.layer] if isinstance(layer.source, Store)
                                 else self.times.get(self.given[layer.source], 0))
        held = self._held(value)
        time = (max((self.times.get(read, 0) for read in equation.inputs), default=0) if held is None
                else self.parts[held.layer] + 1)
        self.times.update(dict.fromkeys(equation.outputs, time))

    def _held(self, value: Value) -> Store | None:
        """What the host can take of the chip for a value."""
        layer, form = self.reading.layers.get(value), self.reading.forms.get(value)
        if layer is not None:
            return Store(layer, function=Function.SUMS)
        return form.store if isinstance(form, Bytes) and not form.store.is_padded else None

    def _demand(self, wanted: Iterable[Value]) -> None:
        """Let the host have values."""
        stack = list(wanted)
        while stack:
            value = stack.pop()
            held = self._held(value)
            if value in self.reading.known or value in self.fetched or value not in self.reading.makers:
                continue
            if held is not None:
                self.fetched[value] = held
                continue
            equation = self.reading.makers[value]
            if equation not in self.steps:
                self.steps[equation] = self.times[value]
                stack += equation.inputs

    def refusal(self) -> DeviceError:
        """The error of the first equation between two layers for which the chip has no instruction."""
        lost = min((equation for equation in self.graph.equations if equation in self.between),
                   key=lambda equation: equation.outputs[0] in self.reading.forms)
        shown = ", ".join(str(value.aval) for value in lost.inputs)
        return refused(lost, f"{shown}, between two products",
                       "between products, the chip rescales sums, cuts them (ReLU, ReLU6), looks bytes up in a table "
                       "and pools windows", f"{_HINTS.get(lost.op.name, '')}let the host compute it: --with-host")

    def given_in(self, part: int) -> list[Value]:
        """What the chip takes for a part."""
        return [value for value in self.given.values() if self.times.get(value, 0) == part]

    def wanted_in(self, part: int) -> list[Value]:
        """What the host takes behind a part, in the order of the graph."""
        return [value for value in self.times
                if value in self.fetched and self.parts[self.fetched[value].layer] == part]

    def stage(self, part: int) -> Stage:
        """What the chip does in a part."""
        stores: dict[Layer, dict[Store, None]] = {layer: {} for layer in self.parts}
        for store in (*self.fetched.values(), *(layer.source for layer in self.parts)):
            if isinstance(store, Store):
                stores[store.layer][store] = None
        return Stage([self.reading.given[value] for value in self.given_in(part)],
                     [(layer, list(stores[layer])) for layer, own in self.parts.items() if own == part],
                     [self.fetched[value] for value in self.wanted_in(part)])

    def step(self, number: int) -> Graph:
        """What the host computes before a part, or behind the last one."""
        equations = [equation for equation in self.graph.equations if self.steps.get(equation) == number]
        made = {value for equation in equations for value in equation.outputs}
        read = dict.fromkeys(value for equation in equations for value in equation.inputs if value not in made)
        later = {value for equation, step in self.steps.items() if step > number for value in equation.inputs}
        later.update(self.given.values(), self.graph.outputs)
        constants = {value: np.ascontiguousarray(self.reading.known[value]) for value in read
                     if value in self.reading.known}
        return Graph([value for value in read if value not in constants], equations,
                     [value for equation in equations for value in equation.outputs if value in later], constants)
