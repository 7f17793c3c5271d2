"""Fuse: group equations into nodes, each of which becomes one kernel.

Invariant: a loop node runs over one iteration shape; its reductions, if any, share their axes; and no value leaves a
node and comes back to it through another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.engine.graph import Equation, Graph, Value

LOOP_FAMILIES = {"unary", "binary", "logic", "elementwise", "random"}
VIEWS = {"broadcast", "reshape", "transpose", "slice", "iota"}
MAXIMUM_EQUATIONS = 48
"""A loop with more equations than this spills its registers."""


@dataclass(eq=False)
class Node:
    """Equations that one kernel does; `shape` is the iteration shape of a loop node, None for any other node."""

    index: int
    equations: list[Equation]
    shape: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None
    needs: int = 0
    merged: Node | None = field(default=None, repr=False)

    @property
    def is_loop(self) -> bool:
        return self.shape is not None


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.made_by: dict[Value, Node] = {}
        self.view_of: dict[Value, Equation] = {}
        self.position = {equation: number for number, equation in enumerate(graph.equations)}

    def producers(self, equation: Equation) -> Iterator[tuple[Node, bool]]:
        """Nodes that an equation reads, and whether it reads them element by element rather than through a view."""
        for value in equation.inputs:
            # Every element of random_bits reads the whole key.
            direct = equation.op.name != "random_bits"
            while value in self.view_of:
                direct = False
                source = self.view_of[value].inputs
                if not source:
                    break
                value = source[0]
            node = self.made_by.get(value)
            if node is not None:
                yield node, direct

    def add(self, equation: Equation) -> None:
        if equation.op.name in VIEWS:
            self.view_of[equation.outputs[0]] = equation
            return
        node = Node(len(self.nodes), [equation])
        direct: list[Node] = []
        for producer, is_direct in self.producers(equation):
            node.needs |= producer.needs | 1 << producer.index
            if is_direct:
                direct.append(producer)
        if equation.op.family in LOOP_FAMILIES:
            node.shape = equation.outputs[0].aval.shape
        elif equation.op.name == "reduce":
            node.shape, node.axes = equation.inputs[0].aval.shape, equation.params["axes"]
        self.nodes.append(node)
        for value in equation.outputs:
            self.made_by[value] = node
        if node.is_loop:
            for producer in sorted(set(direct), key=lambda producer: -producer.index):
                self.merge(producer, self.made_by[equation.outputs[0]])

    def merge(self, first: Node, second: Node) -> None:
        """Make one node of two, the second reading the first, if the invariant allows it."""
        if first is second or not self._may_merge(first, second):
            return
        second.equations = sorted(first.equations + second.equations, key=self.position.__getitem__)
        second.axes = second.axes or first.axes
        for equation in first.equations:
            for value in equation.outputs:
                self.made_by[value] = second
        first.merged = second
        gone, whole = 1 << first.index, 1 << second.index
        second.needs = (second.needs | first.needs) & ~gone
        for node in self.nodes:
            if node.merged is None and node is not second and node.needs & (gone | whole):
                node.needs = (node.needs & ~gone) | whole | second.needs

    def _may_merge(self, first: Node, second: Node) -> bool:
        if first.shape != second.shape or len(first.equations) + len(second.equations) > MAXIMUM_EQUATIONS:
            return False
        if first.axes and second.axes and first.axes != second.axes:
            return False
        # Nothing that the second node reads from elsewhere may itself need the first, and the other way round.
        return not (self._needs_through_others(second, first) or self._needs_through_others(first, second))

    def _needs_through_others(self, reader: Node, target: Node) -> bool:
        reduced = {equation.outputs[0] for equation in target.equations if equation.op.name == "reduce"}
        for equation in reader.equations:
            # A reduced value, or a view of any value, is complete only when the whole loop is.
            if not reduced.isdisjoint(equation.inputs):
                return True
            for node, is_direct in self.producers(equation):
                if node is target and not is_direct:
                    return True
                if node is not target and node is not reader and node.needs >> target.index & 1:
                    return True
        return False


def fuse(graph: Graph) -> list[Node]:
    """Nodes in an order in which each comes after those it reads; view equations belong to no node."""
    fuser = _Fuser(graph)
    for equation in graph.equations:
        fuser.add(equation)
    alive = [node for node in fuser.nodes if node.merged is None]
    ordered: list[Node] = []
    done = 0
    waiting = alive
    while waiting:
        later = []
        for node in waiting:
            if node.needs & ~done:
                later.append(node)
            else:
                ordered.append(node)
                done |= 1 << node.index
        assert len(later) < len(waiting), "nodes wait for each other"
        waiting = later
    return ordered
