"""Recompute: large values that loops can make again from what lies in memory anyway are made where they are read.

A loop that stores a value for another loop pays for it twice, once to write and once to read. What took a few
operations is made again instead, if its own operands are read there in its place: the centred input of a batch norm,
say, from the input and the mean.

Invariant: the graph computes the same; a value is made again only if then nobody needs it stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.accel.chips import host
from core.accel.expressions import COSTLY
from core.accel.passes.fuse import Node
from core.accel.views import VIEWS
from core.engine.graph import Equation, Graph, Value

_CHEAP = {"unary", "binary", "logic", "elementwise"}
_LONGEST = 16
"""Equations that are made again for a value."""
_NEAR = 8
"""A reader so few nodes later does not keep operands alive for long."""
_SMALL_PART = 32
"""An operand so many times smaller than the value costs nothing to read."""


@dataclass
class _Chain:
    """Equations that make a value, in order, from small operands and these large ones."""

    equations: dict[Equation, None] = field(default_factory=dict)
    operands: set[Value] = field(default_factory=set)

    def add(self, other: _Chain) -> None:
        self.equations |= other.equations
        self.operands |= other.operands


class _Recomputing:
    def __init__(self, graph: Graph, nodes: Sequence[Node]) -> None:
        self.graph = graph
        self.users = graph.users()
        self.outputs = set(graph.outputs)
        self.makers = {value: equation for equation in graph.equations for value in equation.outputs}
        self.homes = {equation: node for node in nodes for equation in node.equations}
        self.position = {node: number for number, node in enumerate(nodes)}
        self.reads = {node: self._stored_operands(node) for node in nodes if node.is_loop}
        self.chains: dict[Value, _Chain] = {}

    def source(self, value: Value) -> Value:
        """The value behind view equations."""
        maker = self.makers.get(value)
        while maker is not None and maker.op.name in VIEWS and maker.inputs:
            value = maker.inputs[0]
            maker = self.makers.get(value)
        return value

    def _stored_operands(self, node: Node) -> set[Value]:
        """What a loop node reads of others."""
        sources = {self.source(value) for equation in node.equations for value in equation.inputs}
        return sources.difference(*(equation.outputs for equation in node.equations))

    def choose(self) -> None:
        """Find the values that are better made again."""
        for equation in self.graph.equations:
            home = self.homes.get(equation)
            if home is not None and home.is_loop:
                chain = _Chain()
                if self._collect(equation, home, chain) and self._pays(equation.outputs[0], home, chain):
                    self.chains[equation.outputs[0]] = chain

    def _collect(self, equation: Equation, home: Node, chain: _Chain) -> bool:
        """Add to a chain what an equation of a node takes; whether all of that is cheap."""
        if equation.op.name in COSTLY or equation.op.family not in _CHEAP:
            return False
        for given in equation.inputs:
            source = self.source(given)
            maker = self.makers.get(source)
            if source.aval.size * _SMALL_PART <= equation.outputs[0].aval.size:
                continue
            if source in self.chains and source is given:
                chain.add(self.chains[source])
            elif maker is None or self.homes.get(maker) is not home:
                chain.operands.add(source)
            elif source is not given or not self._collect(maker, home, chain):
                return False
        chain.equations[equation] = None
        return True

    def _pays(self, value: Value, home: Node, chain: _Chain) -> bool:
        """Whether all readers of a large value can make it again, and read no more than they did."""
        readers = {self.homes.get(user) for user in self.users.get(value, ())} - {home}
        if (not readers or value in self.outputs or value.aval.nbytes <= host().second_cache
                or len(chain.equations) > _LONGEST):
            return False
        for reader in readers:
            if reader is None or reader.shape != value.aval.shape:
                return False
            near = len(readers) == 1 and self.position[reader] - self.position[home] <= _NEAR
            more = sum(operand.aval.nbytes for operand in chain.operands - self.reads[reader])
            if more > (2 if near else 1) * value.aval.nbytes:
                return False
        for reader in readers:
            assert reader is not None
            self.reads[reader] = (self.reads[reader] - {value}) | chain.operands
        return True

    def graph_with_copies(self) -> Graph:
        """The graph in which each loop makes what it reads of the chosen values."""
        copies: dict[tuple[Node, Value], Value] = {}
        equations: list[Equation] = []

        def copied(value: Value, node: Node) -> Value:
            """A node's own copy of a value that is made again."""
            if (node, value) not in copies:
                for equation in self.chains[value].equations:
                    made = equation.outputs[0]
                    if (node, made) not in copies:
                        copies[node, made] = Value(made.aval)
                        inputs = tuple(copies.get((node, given), given) for given in equation.inputs)
                        equations.append(replace(equation, inputs=inputs, outputs=(copies[node, made],)))
            return copies[node, value]

        for equation in self.graph.equations:
            node = self.homes.get(equation)
            inputs = [copied(value, node) if node is not None and value in self.chains
                      and self.homes[self.makers[value]] is not node else value for value in equation.inputs]
            equations.append(replace(equation, inputs=tuple(inputs)))
        return replace(self.graph, equations=_needed(equations, self.graph.outputs))


def _needed(equations: Sequence[Equation], outputs: Sequence[Value]) -> list[Equation]:
    """The equations that outputs need; a value of which every reader has a copy may be needed no more."""
    needed, found = set(outputs), []
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            found.append(equation)
    return found[::-1]


def recompute(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """The graph with copies of what is better made again, given the nodes that it would be fused to."""
    recomputing = _Recomputing(graph, nodes)
    recomputing.choose()
    return recomputing.graph_with_copies() if recomputing.chains else graph
