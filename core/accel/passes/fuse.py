"""Fuse: group equations into nodes, each of which becomes one kernel.

Invariant: a loop node runs over one iteration shape, and its reductions, if any, share their axes. Each of its
equations happens once an element or, behind a reduction, once a row (a row is what is reduced to one element). What an
equation reads of its own node lies at the same element or in the same row; what it reads of a row comes from an earlier
stage, that is, from an earlier pass over the row. No value leaves a node and comes back to it through another one.

An equation that adds or subtracts two gathers, which nobody else reads, is a node for itself: one kernel reads the rows
where they come from, which moves less memory than what a loop around it would save.

A product goes on with the loop that alone reads it, its epilogue, if that reads nothing but elements, rows, columns and
constants of the product's own form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from core.accel.expressions import WRITABLE
from core.accel.layout import MAXIMUM_OPERANDS
from core.accel.step import View, contiguous, row_major
from core.accel.views import INDEX, VIEWS, iota, is_whole, kept_shape, look, reshaped, spread
from core.engine import dtypes
from core.engine.graph import Equation, Graph, Value

PRODUCTS = {"dot", "conv"}
"""Ops that may have an epilogue."""
PAIRS = {"add": "sum", "sub": "difference"}
"""Ops on two gathers that one kernel does, and their names there."""
MAXIMUM_EQUATIONS = 48
"""A loop with more equations than this spills its registers."""
MAXIMUM_ROW = 1 << 16
"""Elements of a row that a core's own cache holds from one pass to the next."""
_SHORT_ROW = 1 << 13
_MANY_ROWS = 16
"""Fewer rows than this keep few threads busy, so they must be short to be walked in stages."""

Shape = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """Equations that one kernel does; those behind a product are its epilogue.

    Attributes
    ----------
    shape : the iteration shape of a loop node, None for any other node
    axes : that its reductions reduce, None if it has none
    stages : the pass over a row, from 0, in which each equation of a loop node happens; what happens once a row does so
        at the end of a pass, or before the first one if it needs no reduction: -1
    members : bit set of its own index and those of the nodes merged into it
    needs : bit set of the members of all nodes that must come before it
    gathers : the two that it adds or subtracts, and does nothing else
    """

    index: int
    equations: list[Equation]
    shape: Shape | None = None
    axes: Shape | None = None
    stages: dict[Equation, int] = field(default_factory=dict)
    members: int = 0
    needs: int = 0
    gathers: tuple[Equation, ...] = ()
    merged: Node | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.members = 1 << self.index

    @property
    def is_loop(self) -> bool:
        return self.shape is not None

    def is_per_row(self, equation: Equation) -> bool:
        """Whether an elementwise equation happens once a row, behind a reduction."""
        return happens_per_row(equation, self.shape or (), self.axes or ())


def happens_per_row(equation: Equation, shape: Shape, axes: Shape) -> bool:
    """Whether an elementwise equation in a node of this form happens once a row: rows have more than one element."""
    return (is_rowwise(shape, axes) and equation.op.name != "reduce"
            and equation.outputs[0].aval.size != math.prod(shape))


def is_rowwise(shape: Shape, axes: Shape) -> bool:
    """Whether reductions over these axes include the innermost one, so that a row is walked in order."""
    long = [axis for axis, extent in enumerate(shape) if extent != 1]
    return bool(long) and long[-1] in axes and 0 not in shape


def _may_have_stages(shape: Shape, axes: Shape) -> bool:
    rows = math.prod(kept_shape(shape, axes))
    return math.prod(shape) // rows <= (MAXIMUM_ROW if rows >= _MANY_ROWS else _SHORT_ROW)


def _fit_in_a_kernel(first: Node, second: Node) -> bool:
    """Whether a kernel can hold the equations of both, with all that they read and, at most, write."""
    count = len(first.equations) + len(second.equations)
    if count <= MAXIMUM_OPERANDS // 4:  # an equation of a loop has at most three operands
        return True
    if count > MAXIMUM_EQUATIONS:
        return False
    values = {value for node in (first, second) for equation in node.equations
              for value in (*equation.inputs, *equation.outputs)}
    return len(values) <= MAXIMUM_OPERANDS


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[int, Node] = {}
        self.made_by: dict[Value, Node] = {}
        self.view_of: dict[Value, Equation] = {}
        self.position = {equation: number for number, equation in enumerate(graph.equations)}
        self._makers = {value: equation for equation in graph.equations for value in equation.outputs}
        self._users = graph.users()
        self._seen: dict[Value, tuple[Value, View, bool]] = {}

    # --- what equations read -----------------------------------------------------------------------------------------

    def seen(self, value: Value) -> tuple[Value, View, bool]:
        """The value behind view equations, how `value` looks at it, and whether that takes a copy."""
        found = self._seen.get(value)
        if found is None:
            equation = self.view_of.get(value)
            if equation is None:
                found = value, contiguous(value.aval.dtype, value.aval.shape), False
            elif not equation.inputs:
                found = value, iota(equation), False
            else:
                source, view, copied = self.seen(equation.inputs[0])
                looked = look(view, equation)
                found = source, looked or contiguous(value.aval.dtype, value.aval.shape), copied or looked is None
            self._seen[value] = found
        return found

    def producers(self, equation: Equation) -> Iterator[Node]:
        """Nodes that an equation reads, straight or through views."""
        for value in equation.inputs:
            node = self.made_by.get(self.seen(value)[0])
            if node is not None:
                yield node

    # --- growing nodes -----------------------------------------------------------------------------------------------

    def add(self, equation: Equation) -> None:
        if equation.op.name in VIEWS:
            self.view_of[equation.outputs[0]] = equation
            return
        node = Node(self.position[equation], [equation], gathers=self._gathers(equation))
        producers = set(self.producers(equation))
        for producer in producers:
            node.needs |= producer.needs | producer.members
        if equation.op.name in WRITABLE:
            node.shape = equation.outputs[0].aval.shape
        elif equation.op.name == "reduce":
            node.shape, node.axes = equation.inputs[0].aval.shape, equation.params["axes"]
        node.stages = {equation: 0}
        self.nodes[node.index] = node
        for value in equation.outputs:
            self.made_by[value] = node
        if node.is_loop:
            for producer in sorted(producers, key=lambda producer: -producer.index):
                self.merge(producer, node)

    def _gathers(self, equation: Equation) -> tuple[Equation, ...]:
        """The two gathers that an equation adds or subtracts, if a kernel does that and nothing else reads them."""
        makers = [self._makers.get(value) for value in equation.inputs]
        gathers = tuple(maker for maker in makers if maker is not None and maker.op.name == "gather")
        is_pair = (equation.op.name in PAIRS and len(set(gathers)) == 2 and _fit_as_pair(*gathers)
                   and all(self._users[value] == [equation] and value not in self.graph.outputs
                           for value in equation.inputs))
        return gathers if is_pair else ()

    def merge(self, first: Node, second: Node) -> None:
        """Make one node of two if the invariant allows it; the second is the one that stays."""
        if first is second or first.gathers or not first.is_loop or not _fit_in_a_kernel(first, second):
            return
        if self._reaches(second, first) or self._reaches(first, second):
            return
        equations = sorted(first.equations + second.equations, key=self.position.__getitem__)
        for shape, axes in _forms(first, second):
            stages = self._stages(equations, shape, axes)
            if stages is not None:
                second.equations, second.shape, second.axes, second.stages = equations, shape, axes, stages
                self._replace(first, second)
                return

    def _replace(self, first: Node, second: Node) -> None:
        """Let every node that needed one of the two need both, and all that they need."""
        for equation in first.equations:
            for value in equation.outputs:
                self.made_by[value] = second
        first.merged = second
        del self.nodes[first.index]
        members = first.members | second.members
        needs = (first.needs | second.needs) & ~members
        adds = needs != first.needs or needs != second.needs & ~members
        second.members, second.needs = members, needs
        if adds:  # a chain, which is most of them, adds nothing to what its readers need
            for node in self.nodes.values():
                if node.needs & members:
                    node.needs |= members | needs

    def _reaches(self, reader: Node, target: Node) -> bool:
        """Whether a node needs another one through a third."""
        return any(node.needs & target.members for equation in reader.equations
                   for node in self.producers(equation) if node is not target and node is not reader)

    def merge_siblings(self) -> None:
        """Make one node of those that reduce a common operand over the same axes."""
        readers: dict[tuple[Value, Shape | None, Shape], list[Node]] = {}
        for node in self.nodes.values():
            if node.axes:
                for equation in node.equations:
                    for value in equation.inputs:
                        if value.aval.shape == node.shape:
                            readers.setdefault((value, node.shape, node.axes), []).append(node)
        for nodes in readers.values():
            for first, second in pairwise(nodes):
                while first.merged is not None:
                    first = first.merged
                if second.merged is None:
                    self.merge(first, second)

    # --- epilogues ---------------------------------------------------------------------------------------------------

    def merge_epilogues(self) -> None:
        """Let products go on with the loops that alone read them; a loop goes with the last product that it reads."""
        readers: dict[Value, set[Node]] = {}
        for node in self.nodes.values():
            for equation in node.equations:
                for value in equation.inputs:
                    readers.setdefault(self.seen(value)[0], set()).add(node)
        wanted = {self.seen(value)[0] for value in self.graph.outputs}
        for node in reversed(list(self.nodes.values())):
            if node.merged is None and node.equations[0].op.name in PRODUCTS:
                value = node.equations[0].outputs[0]
                found = readers.get(value, set())
                if len(found) == 1 and value not in wanted:
                    self._merge_epilogue(node, *found)

    def _merge_epilogue(self, node: Node, loop: Node) -> None:
        if (loop.merged is None and _fit_in_a_kernel(node, loop) and self._fits_behind(node.equations[0], loop)
                and not self._reaches(loop, node)):
            node.equations += loop.equations
            node.stages |= loop.stages
            self._replace(loop, node)

    def _fits_behind(self, product: Equation, loop: Node) -> bool:
        """Whether a loop can be the epilogue of a product that it reads."""
        result = product.outputs[0]
        if not loop.is_loop or loop.axes is not None or not result.aval.size:
            return False
        columns = product_columns(product)
        made = {value for equation in loop.equations for value in equation.outputs}
        for equation in loop.equations:
            if equation.op.name == "random_bits" or equation.outputs[0].aval.size != result.aval.size:
                return False
            for value in equation.inputs:
                source, view, copied = self.seen(value)
                over = reshaped(view, (result.aval.size // columns, columns))
                if source in made:
                    continue
                if over is None or view.buffer is INDEX or layout(over) is None:
                    return False
                if source is result and (copied or not is_whole(over, row_major(over.shape))):
                    return False
        return True

    # --- the form of a node ------------------------------------------------------------------------------------------

    def _stages(self, equations: list[Equation], shape: Shape, axes: Shape | None) -> dict[Equation, int] | None:
        """The stage of each equation of a node of this form, or None if the invariant does not hold."""
        reduced = axes or ()
        makers = {value: equation for equation in equations for value in equation.outputs}
        stages: dict[Equation, int] = {}
        for equation in equations:
            stage = self._stage(equation, makers, stages, shape, reduced)
            if stage is None or (stage > 0 and not _may_have_stages(shape, reduced)):
                return None
            stages[equation] = stage
        return stages

    def _stage(self, equation: Equation, makers: dict[Value, Equation], stages: dict[Equation, int], shape: Shape,
               axes: Shape) -> int | None:
        per_row = happens_per_row(equation, shape, axes)
        domain = kept_shape(shape, axes) if per_row else shape
        if equation.op.name == "reduce":
            if equation.inputs[0].aval.shape != shape or equation.params["axes"] != axes:
                return None
        elif equation.outputs[0].aval.size != math.prod(domain):
            return None
        stage = -1 if per_row else 0
        for value in equation.inputs:
            source, view, copied = self.seen(value)
            maker = makers.get(source)
            if equation.op.name == "random_bits":
                if maker is not None:  # every element reads the whole key
                    return None
                continue
            if maker is None:
                if reshaped(view, domain) is None:
                    return None
                continue
            looked = None if copied else reshaped(view, domain)
            of_row = maker.op.name == "reduce" or happens_per_row(maker, shape, axes)
            if looked is None or (per_row and not of_row) or (of_row and not is_rowwise(shape, axes)):
                return None
            if not is_whole(looked, _strides_in_node(looked, shape, axes, of_row, per_row)):
                return None
            stage = max(stage, stages[maker] + (of_row and not per_row))
        return stage


def _fit_as_pair(*gathers: Equation) -> bool:
    """Whether each takes rows of a matrix of wide numbers, by indices of one type."""
    matrices, indices = ([equation.inputs[place].aval for equation in gathers] for place in (0, 1))
    return (all(equation.params["axis"] == 0 for equation in gathers) and all(matrix.ndim == 2 for matrix in matrices)
            and matrices[0].dtype in (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64)
            and all(one.ndim == 1 for one in indices) and indices[0].dtype is indices[1].dtype)


def product_columns(product: Equation) -> int:
    """Neighbouring elements of a product that belong to one row: the columns of its matrix."""
    if product.op.name == "conv":
        return product.outputs[0].aval.shape[-1]
    (_, contract), (_, batch) = product.params["contract"], product.params["batch"]
    return math.prod(extent for axis, extent in enumerate(product.inputs[1].aval.shape)
                     if axis not in (*contract, *batch))


def layout(view: View) -> str | None:
    """How a view over [row, column] lies, if there is a word for it.

    ``whole``: row-major without gaps; ``constant``: one element; ``column``: one row for all; ``row``: one gapless
    column for all.
    """
    if view.is_contiguous:
        return "whole"
    rows, columns = (stride if extent != 1 else 0 for extent, stride in zip(view.shape, view.strides, strict=True))
    return {(0, 0): "constant", (0, 1): "column", (1, 0): "row"}.get((rows, columns))


def _strides_in_node(view: View, shape: Shape, axes: Shape, of_row: bool, per_row: bool) -> Shape:
    """Strides by which an element finds itself, a row finds itself, or an element finds its row."""
    if of_row and not per_row:
        rows = contiguous(view.dtype, kept_shape(shape, axes))
        return spread(rows, shape, axes).strides
    return row_major(view.shape)


def _forms(first: Node, second: Node) -> list[tuple[Shape, Shape | None]]:
    """Iteration shapes and reduced axes that two nodes might have together."""
    forms = [(node.shape, node.axes) for node in (second, first) if node.shape is not None]
    reducing = [form for form in forms if form[1] is not None]
    if len(reducing) == 2:
        return reducing[:1] if reducing[0] == reducing[1] else []
    return reducing or list(dict.fromkeys(forms))


def fuse(graph: Graph) -> list[Node]:
    """Nodes in an order in which each comes after those it reads; view equations belong to no node."""
    fuser = _Fuser(graph)
    for equation in graph.equations:
        fuser.add(equation)
    fuser.merge_siblings()
    fuser.merge_epilogues()
    ordered: list[Node] = []
    done = 0
    waiting = list(fuser.nodes.values())
    while waiting:
        later = []
        for node in waiting:
            if node.needs & ~done:
                later.append(node)
            else:
                ordered.append(node)
                done |= node.members
        assert len(later) < len(waiting), "nodes wait for each other"
        waiting = later
    return ordered
