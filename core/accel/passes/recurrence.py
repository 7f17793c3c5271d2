"""Recurrence: scans with less to do in their loops.

Invariant: the graph stays equivalent; sums over the steps of a scan may add up in another order.

Scans over the same carries become one. A carry that only sums products, or other sums, of what each step has at hand
is one product, or one sum, behind the loop: ``sum over t of a[t]^T b[t]`` contracts the stacked a and b. What nobody
needs is dropped from the loop.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.accel.passes.simplify import simplify
from core.engine import dtypes
from core.engine.graph import Aval, Equation, Graph, Value, Where
from core.engine.ops.table import TABLE

_RESHAPING = {"transpose", "reshape"}
"""Ops that may be applied to a sum as well as to its terms."""


@dataclass(eq=False)
class _Carried:
    """A carry: its value in the body before and after a step, and in the graph before and after the loop."""

    entering: Value
    leaving: Value
    first: Value
    last: Value


@dataclass(eq=False)
class _Loop:
    """A scan taken apart.

    Attributes
    ----------
    fixed, slices : inputs of the body other than carries, with what they are, or are slices of, in the graph
    results : what the body makes, and the stack of it in the graph; a value may have several
    """

    fixed: dict[Value, Value]
    carried: list[_Carried]
    slices: dict[Value, Value]
    results: list[tuple[Value, Value]]
    equations: list[Equation]
    length: int
    reverse: bool
    where: Where

    @staticmethod
    def of(equation: Equation) -> _Loop:
        """The loop of a scan."""
        params, body = equation.params, equation.params["body"]
        consts, carries = params["consts"], params["carries"]
        behind = consts + carries
        names: dict[Value, Value] = {}
        fixed = _distinct(body.inputs[:consts], equation.inputs[:consts], names)
        slices = _distinct(body.inputs[behind:], equation.inputs[behind:], names)
        made = _renamed_all(body.outputs, names)
        carried = list(map(_Carried, body.inputs[consts:behind], made, equation.inputs[consts:behind],
                           equation.outputs))
        results = list(zip(made[carries:], equation.outputs[carries:], strict=True))
        equations = [_renamed(inner, names) for inner in body.equations]
        return _Loop(fixed, carried, slices, results, equations, params["length"], params["reverse"], equation.where)

    def equation(self) -> Equation:
        """The scan."""
        entering = [carry.entering for carry in self.carried]
        outputs = [carry.leaving for carry in self.carried] + [value for value, _ in self.results]
        body = Graph([*self.fixed, *entering, *self.slices], self.equations, outputs)
        params = {"body": body, "consts": len(self.fixed), "carries": len(self.carried), "length": self.length,
                  "reverse": self.reverse}
        inputs = (*self.fixed.values(), *(carry.first for carry in self.carried), *self.slices.values())
        stacks = (*(carry.last for carry in self.carried), *(stack for _, stack in self.results))
        return Equation(TABLE["scan"], inputs, params, stacks, self.where)

    # --- one loop of two ---------------------------------------------------------------------------------------------

    def absorb(self, other: _Loop, known: Container[Value]) -> dict[Value, Value] | None:
        """Let this loop do what a later one does; gives what the later one's outputs become, or None if it cannot.

        It can if both start alike and carry the same, and if the later one reads what this one does, or what is
        `known` from the beginning.
        """
        firsts, firsts_of_other = ([carry.first for carry in loop.carried] for loop in (self, other))
        if (self.length, self.reverse, firsts) != (other.length, other.reverse, firsts_of_other):
            return None
        names = {carry.entering: mine.entering for carry, mine in zip(other.carried, self.carried, strict=True)}
        fixed, slices = dict(self.fixed), dict(self.slices)
        for read, mine in ((other.fixed, fixed), (other.slices, slices)):
            inside = {outside: value for value, outside in mine.items()}
            for value, outside in read.items():
                if outside in inside:
                    names[value] = inside[outside]
                elif outside in known:
                    mine[value] = outside
                else:
                    return None
        leaving = [[carry.leaving for carry in loop.carried] for loop in (self, other)]
        results = [[value for value, _ in loop.results] for loop in (self, other)]
        wanted = [*leaving[0], *results[0], *_renamed_all([*leaving[1], *results[1]], names)]
        inputs = [*fixed, *(carry.entering for carry in self.carried), *slices]
        equations = [*self.equations, *(_renamed(equation, names) for equation in other.equations)]
        both = simplify(Graph(inputs, equations, wanted), in_scan=True)
        count, own = len(self.carried), len(self.carried) + len(self.results)
        if both.constants or both.outputs[:count] != both.outputs[own:own + count]:
            return None
        self.fixed = dict(zip(both.inputs, fixed.values(), strict=False))
        for carry, entering, leaving_both in zip(self.carried, both.inputs[len(fixed):], both.outputs, strict=False):
            carry.entering, carry.leaving = entering, leaving_both
        self.slices = dict(zip(both.inputs[len(fixed) + count:], slices.values(), strict=True))
        stacks = [stack for loop in (self, other) for _, stack in loop.results]
        self.results = list(zip([*both.outputs[count:own], *both.outputs[own + count:]], stacks, strict=True))
        self.equations = both.equations
        return {carry.last: mine.last for carry, mine in zip(other.carried, self.carried, strict=True)}

    # --- sums behind the loop ----------------------------------------------------------------------------------------

    def sums(self) -> list[Equation]:
        """Equations behind the loop for the carries that only sum; the loop does without them from now on."""
        users = Graph(equations=self.equations).users()
        given = [carry.leaving for carry in self.carried] + [value for value, _ in self.results]
        makers = {value: equation for equation in self.equations for value in equation.outputs}
        behind: list[Equation] = []
        for carry in list(self.carried):
            chain = _terms(carry, users, makers, given)
            if not chain:
                continue
            core, *reshaping = chain
            stacked = [self._stacked(value, makers, behind) for value in core.inputs]
            if None in stacked:
                continue
            made = _over_steps(core, [value for value in stacked if value])
            behind.append(made)
            for equation in reshaping:
                made = _again(equation, made.outputs[0])
                behind.append(made)
            behind.append(Equation(TABLE["add"], (carry.first, made.outputs[0]), {}, (carry.last,), self.where))
            self.carried.remove(carry)
        return behind

    def _stacked(self, value: Value, makers: Mapping[Value, Equation], behind: list[Equation]) -> Value | None:
        """A value of each step, along a new leading axis; None for one that is the same in all.

        The axes of the stack are exchanged behind the loop, where that costs nothing, and bfloat16 is widened there.
        """
        if value in self.slices:
            return self.slices[value]
        if value in self.fixed:
            return None
        maker = makers.get(value)
        if maker is not None and (maker.op.name == "transpose" or _widens(maker)):
            source = self._stacked(maker.inputs[0], makers, behind)
            if source is None:
                return None
            made = Value(Aval(value.aval.dtype, (self.length, *value.aval.shape)))
            params = maker.params
            if maker.op.name == "transpose":
                params = {"axes": (0, *(axis + 1 for axis in maker.params["axes"]))}
            behind.append(Equation(maker.op, (source,), params, (made,), maker.where))
            return made
        for result, stack in self.results:
            if result is value:
                return stack
        stack = Value(Aval(value.aval.dtype, (self.length, *value.aval.shape)))
        self.results.append((value, stack))
        return stack

    # --- what nobody needs -------------------------------------------------------------------------------------------

    def prune(self, needed: set[Value]) -> None:
        """Keep what the outputs in `needed` depend on, and one stack of each result."""
        self.results = [(value, stack) for value, stack in self.results if stack in needed]
        inside = {value for value, _ in self.results}
        inside |= {carry.leaving for carry in self.carried if carry.last in needed}
        size = -1
        while size < len(inside):
            size = len(inside)
            for equation in reversed(self.equations):
                if not inside.isdisjoint(equation.outputs):
                    inside.update(equation.inputs)
            inside |= {carry.leaving for carry in self.carried if carry.entering in inside}
        self.equations = [equation for equation in self.equations if not inside.isdisjoint(equation.outputs)]
        self.carried = [carry for carry in self.carried if carry.entering in inside or carry.last in needed]
        self.fixed = {value: outside for value, outside in self.fixed.items() if value in inside}
        self.slices = {value: outside for value, outside in self.slices.items() if value in inside}


def _distinct(inside: Iterable[Value], outside: Iterable[Value], names: dict[Value, Value]) -> dict[Value, Value]:
    """What inputs of a body are outside; the first of several that are the same, and `names` names the others so."""
    first: dict[Value, Value] = {}
    for value, given in zip(inside, outside, strict=True):
        names[value] = first.setdefault(given, value)
    return {value: given for given, value in first.items()}


def _renamed_all(values: Iterable[Value], names: Mapping[Value, Value]) -> tuple[Value, ...]:
    return tuple(names.get(value, value) for value in values)


def _renamed(equation: Equation, names: Mapping[Value, Value]) -> Equation:
    return Equation(equation.op, _renamed_all(equation.inputs, names), equation.params, equation.outputs,
                    equation.where)


def _terms(carry: _Carried, users: Mapping[Value, list[Equation]], makers: Mapping[Value, Equation],
           given: list[Value]) -> list[Equation]:
    """How the term is made that a carry sums, from the product or sum on; nothing if it is no such carry."""
    add = makers.get(carry.leaving)
    if add is None or add.op.name != "add" or add.inputs.count(carry.entering) != 1:
        return []
    if users[carry.entering] != [add] or carry.leaving in users or given.count(carry.leaving) != 1:
        return []
    if carry.entering in given:
        return []
    (term,) = (value for value in add.inputs if value is not carry.entering)
    chain: list[Equation] = []
    while (maker := makers.get(term)) is not None:
        chain.insert(0, maker)
        if maker.op.name == "dot" or (maker.op.name == "reduce" and maker.params["kind"] == "sum"):
            return chain
        if maker.op.name not in _RESHAPING:
            break
        term = maker.inputs[0]
    return []


def _widens(equation: Equation) -> bool:
    """Whether an equation converts bfloat16 numbers, whose stack is smaller than that of the result."""
    return equation.op.name == "convert" and equation.inputs[0].aval.dtype is dtypes.bfloat16


def _over_steps(core: Equation, stacked: list[Value]) -> Equation:
    """A product or sum that runs over the steps too, which are the leading axis of its operands."""
    if core.op.name == "reduce":
        params: dict[str, Any] = {"axes": (0, *(axis + 1 for axis in core.params["axes"])), "kind": "sum"}
    else:
        contract, batch = (tuple(tuple(axis + 1 for axis in axes) for axes in core.params[name])
                           for name in ("contract", "batch"))
        params = {"contract": tuple((0, *axes) for axes in contract), "batch": batch}
    return Equation(core.op, tuple(stacked), params, (Value(core.outputs[0].aval),), core.where)


def _again(equation: Equation, value: Value) -> Equation:
    return Equation(equation.op, (value,), equation.params, (Value(equation.outputs[0].aval),), equation.where)


def lighten(graph: Graph) -> Graph:
    """An equivalent simplified graph, from one that is simplified; the same if there are no scans in it."""
    if not any(equation.op.name == "scan" for equation in graph.equations):
        return graph
    entries: list[Equation | _Loop] = []
    names: dict[Value, Value] = {}
    known = {*graph.inputs, *graph.constants}
    for equation in graph.equations:
        equation = _renamed(equation, names)
        if equation.op.name != "scan":
            entries.append(equation)
            continue
        loop = _Loop.of(equation)
        found = next((changed for entry in entries if isinstance(entry, _Loop)
                      and (changed := entry.absorb(loop, known)) is not None), None)
        if found is None:
            entries += [loop, *loop.sums()]
        else:
            names |= found
    outputs = list(_renamed_all(graph.outputs, names))
    needed = set(outputs)
    equations: list[Equation] = []
    for entry in reversed(entries):
        if isinstance(entry, _Loop):
            entry.prune(needed)
            if not entry.carried and not entry.results:
                continue
            entry = entry.equation()
        equations.append(entry)
        needed.update(entry.inputs)
    return simplify(Graph(graph.inputs, equations[::-1], outputs, graph.constants))
