"""Loops: a loop node of the fused graph to the step of one nest, or of two where columns are long.

Invariant: all operands of a nest are views over its one iteration shape; those of a row repeat along the reduced axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from core.accel import emit
from core.accel.expressions import COSTLY, SLOW, Imports, expression
from core.accel.loopir import Nest, Operand, Reduction, Statement, dims, normal_loops, units
from core.accel.passes.fuse import Node, is_rowwise
from core.accel.stages import choose_kept
from core.accel.step import Buffer, Step, View, contiguous, row_major
from core.accel.views import INDEX, kept_shape, reshaped, spread
from core.engine import dtypes
from core.engine.graph import Equation, Value

_LONG_COLUMNS = 1 << 15
"""Elements from which on columns are reduced in two steps, so that threads share them."""
_MAXIMUM_PARTS = 64
_SHORT_RUN = 64
_SMALL_PART = 32
"""An operand so many times smaller than the iteration shape is copied at no cost."""


class Values(Protocol):
    """What the lowering knows of values; see `lower.Lowering`."""

    def source(self, value: Value) -> Value:
        """The value behind view equations."""

    def view(self, value: Value) -> View: ...

    def memory(self, value: Value) -> View: ...

    def solid(self, value: Value) -> View: ...

    def copy(self, view: View) -> View: ...

    def fresh(self, value: Value) -> View: ...

    def is_wanted(self, value: Value, node: Node) -> bool: ...

    def is_streamed(self, value: Value, node: Node) -> bool: ...

    updated: Mapping[Value, Value]
    """Outputs that take the place of inputs, and these."""

    fixed: set[Buffer]
    """What is the same at every call, or in a loop each time."""


class NestOfNode:
    """Operands, statements and reductions of a node over an iteration shape, as they grow."""

    def __init__(self, values: Values, node: Node, shape: tuple[int, ...]) -> None:
        self.values, self.node = values, node
        self.shape, self.axes = shape, node.axes or ()
        self.imports: Imports = set()
        self.names: dict[Value, str] = {}
        self.reads: dict[View, Operand] = {}
        self.copies: dict[View, View] = {}
        self.statements: list[Statement] = []
        self.reductions: list[Reduction] = []
        self.writes: list[Operand] = []

    def add(self, number: int, equation: Equation) -> None:
        value, stage = equation.outputs[0], self.node.stages[equation]
        per_row = self.node.is_per_row(equation)
        if equation.op.name == "random_bits":
            arguments = self._random_arguments(equation, per_row)
        else:
            arguments = [self._argument(given, per_row) for given in equation.inputs]
        name = self.names[value] = f"v{number}"
        if equation.op.name == "reduce":
            self.reductions.append(Reduction(name, arguments[0], equation.params["kind"], value.aval.dtype, stage))
        else:
            text = expression(equation.op.name, arguments, [given.aval.dtype for given in equation.inputs],
                              value.aval.dtype, equation.params, self.imports)
            self.statements.append(Statement(name, text, value.aval.dtype, tuple(arguments), stage, per_row,
                                             equation.op.name in COSTLY, equation.op.name in SLOW))
        if self.values.is_wanted(value, self.node):
            of_row = per_row or equation.op.name == "reduce"
            view = self.values.fresh(value)
            streamed = self.values.is_streamed(value, self.node)
            self.writes.append(Operand(name, self._over_node(view, of_row), "write", streamed))
            if value in self.values.updated:
                old = self._over_node(self.values.view(self.values.updated[value]), False)
                if old in self.reads:
                    self.reads[old] = replace(self.reads[old], becomes=name)

    def _argument(self, value: Value, per_row: bool) -> str:
        source = self.values.source(value)
        return self.names[source] if source in self.names else self._element(self.values.view(value), per_row)

    def _element(self, view: View, per_row: bool) -> str:
        """The variable of an operand's element."""
        over = self._over_node(view, per_row)
        if over not in self.reads and self._breaks_runs(over):
            over = self.copies.get(over) or self.copies.setdefault(over, self._repeated(over))
        role = "index" if view.buffer is INDEX else "read"
        return self.reads.setdefault(over, Operand(f"x{len(self.reads)}", over, role)).name

    def _breaks_runs(self, view: View) -> bool:
        """Whether a small operand cuts long runs of the others into short ones, as it repeats each element so often."""
        long = [axis for axis, extent in enumerate(self.shape) if extent != 1]
        if is_rowwise(self.shape, self.axes) or len(long) < 2 or self.shape[long[-1]] > _SHORT_RUN:
            return False
        own = math.prod(self.shape[axis] for axis in long if view.strides[axis])
        return (view.strides[long[-1]] == 0 and view.strides[long[-2]] != 0 and long[-2] not in self.axes
                and own * self.shape[long[-1]] * _SMALL_PART <= math.prod(self.shape))

    def _repeated(self, view: View) -> View:
        """A copy in which the innermost axis, too, lies in memory."""
        last = max(axis for axis, extent in enumerate(self.shape) if extent != 1)
        narrow = tuple(extent if view.strides[axis] or axis == last else 1 for axis, extent in enumerate(self.shape))
        copy = self.values.copy(replace(view, shape=narrow))
        strides = tuple(stride if extent != 1 else 0 for extent, stride in zip(narrow, copy.strides, strict=True))
        return replace(copy, shape=self.shape, strides=strides)

    def _over_node(self, view: View, per_row: bool) -> View:
        """A view over elements or rows, whatever their shape, as one over the iteration shape."""
        over = reshaped(view, kept_shape(self.shape, self.axes) if per_row else self.shape)
        assert over is not None, "fuse lets no such value in"
        return spread(over, self.shape, self.axes) if per_row else over

    def _random_arguments(self, equation: Equation, per_row: bool) -> list[str]:
        key, shape = self.values.memory(equation.inputs[0]), equation.outputs[0].aval.shape
        nothing = (0,) * len(shape)
        words = [replace(key, shape=shape, strides=nothing, offset=key.offset + word * key.strides[0])
                 for word in (0, 1)]
        return [self._element(view, per_row) for view in (*words, View(INDEX, dtypes.int64, shape, row_major(shape)))]


def steps_of_node(values: Values, node: Node) -> list[Step]:
    """The steps of a loop node."""
    nest = NestOfNode(values, node, node.shape or ())
    for number, equation in enumerate(node.equations):
        nest.add(number, equation)
    name = "+".join(equation.op.name for equation in node.equations)
    operands = [*nest.reads.values(), *nest.writes]
    return reduction_steps(name, nest.shape, nest.axes, operands, nest.statements, nest.imports, nest.reductions)


def reduction_steps(name: str, shape: tuple[int, ...], axes: tuple[int, ...], operands: Sequence[Operand],
                    statements: Sequence[Statement], imports: Imports, reductions: Sequence[Reduction]) -> list[Step]:
    """The step of a nest; two where it reduces long columns, of which the first reduces parts of them.

    The number of parts depends on the shape alone, so that sums have the same bits at any number of threads.
    """
    parts = _parts(shape, axes)
    if parts == 1:
        return [loop_step(name, shape, axes, operands, statements, imports, reductions)]
    axis = axes[0]
    split = (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1:])
    inner = tuple(other + 1 for other in axes)
    totals = {reduction.result: reduction for reduction in reductions}
    partial: list[Operand] = []
    steps: list[Step] = []
    for operand in operands:
        if operand.name not in totals:
            partial.append(replace(operand, view=_split_axis(operand.view, axis, parts)))
            continue
        reduction = totals[operand.name]
        rows = contiguous(reduction.dtype, kept_shape(split, inner), "partial")
        partial.append(replace(operand, view=spread(rows, split, inner)))
        kept = kept_shape(shape, axes)
        out = replace(operand.view, shape=(parts, *kept), strides=(0, *kept_shape(operand.view.strides, axes)))
        again = replace(reduction, value="x", result="y")
        # The parts are the outermost kept axis but for axes of extent 1 before it.
        found = replace(rows, shape=(parts, *kept), strides=row_major((parts, *kept)))
        steps.append(loop_step(f"reduce parts of {name}", found.shape, (0,),
                               [Operand("x", found, "read"), Operand("y", out, "write")], [], set(), [again]))
    return [loop_step(name, split, inner, partial, statements, imports, reductions), *steps]


def _parts(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Parts into which the first reduced axis is cut: the most that divide it, or 1."""
    if not axes or is_rowwise(shape, axes) or math.prod(shape) < _LONG_COLUMNS:
        return 1
    if any(extent != 1 for extent in shape[:axes[0]]):
        return 1  # rows in front are shared among the threads
    extent = shape[axes[0]]
    return max(parts for parts in range(1, _MAXIMUM_PARTS + 1) if extent % parts == 0)


def _split_axis(view: View, axis: int, parts: int) -> View:
    length, stride = view.shape[axis] // parts, view.strides[axis]
    return replace(view, shape=(*view.shape[:axis], parts, length, *view.shape[axis + 1:]),
                   strides=(*view.strides[:axis], stride * length, stride, *view.strides[axis + 1:]))


def copy_step(view: View, out: View) -> Step:
    """The step that copies one view to another of the same shape."""
    role = "index" if view.buffer is INDEX else "read"
    return loop_step("copy", view.shape, (), [Operand("x", view, role), Operand("x", out, "write")])


def loop_step(name: str, shape: tuple[int, ...], axes: tuple[int, ...], operands: Sequence[Operand],
              statements: Sequence[Statement] = (), imports: Imports | frozenset[tuple[str, str]] = frozenset(),
              reductions: Sequence[Reduction] = ()) -> Step:
    """The step of a loop nest."""
    rows = math.prod(kept_shape(shape, axes))
    kept = choose_kept(operands, statements, reductions, math.prod(shape) // max(rows, 1))
    nest = Nest(normal_loops(shape, axes, operands), tuple(operands), tuple(statements), frozenset(imports),
                tuple(reductions), kept)
    in_memory = [operand for operand in operands if operand.role != "index"]
    extent, grain = units(nest)
    size = math.prod(shape)
    written = tuple(place for place, operand in enumerate(in_memory) if operand.role == "write")
    views = tuple(operand.view for operand in in_memory)
    nbytes = sum(min(view.size * view.dtype.itemsize, view.buffer.nbytes) for view in views)
    return Step(emit.kernel_text(nest), views, written, dims(nest), 0 if size == 0 and not axes else extent, grain,
                name, size * max(len(statements), 1), nbytes)
