"""Lower: fused nodes to steps over views of memory.

Invariant: broadcast, transpose, slice, reshape and iota cost nothing; they change how a value is looked at, and only a
kernel that needs its operand in row-major order has it copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.accel import emit
from core.accel.kernels import conv as conv_kernels
from core.accel.kernels import gemm, index, window
from core.accel.loopir import Nest, Operand, Statement, dims, normal_loops, units
from core.accel.passes.fuse import VIEWS, Node
from core.accel.step import Buffer, Step, View, contiguous, row_major
from core.engine import dtypes
from core.engine.dtypes import DType
from core.engine.graph import Equation, Graph, Value

INDEX = Buffer(0, "index")
"""The buffer of views that are no memory: an element is its position (see `loopir.Operand`)."""


@dataclass(frozen=True)
class HostStep:
    """An equation that runs in numpy, between runs of the walker."""

    equation: Equation
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]

    @property
    def operands(self) -> tuple[View, ...]:
        return self.inputs + self.outputs

    @property
    def writes(self) -> tuple[int, ...]:
        return tuple(range(len(self.inputs), len(self.inputs) + len(self.outputs)))


AnyStep = Step | HostStep


class Lowering:
    """The steps of a graph, as they grow.

    Attributes
    ----------
    views : how each value that has been computed lies in memory
    steps : so far
    layers : layer path of each step
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node]) -> None:
        self.views: dict[Value, View] = {}
        self.steps: list[AnyStep] = []
        self.layers: list[str] = []
        self._layer = ""
        self._view_equations = {equation.outputs[0]: equation for equation in graph.equations
                                if equation.op.name in VIEWS}
        self._home = {equation: node for node in nodes for equation in node.equations}
        self._users = graph.users()
        self._outputs = set(graph.outputs)
        for value in (*graph.inputs, *graph.constants):
            self.views[value] = contiguous(value.aval.dtype, value.aval.shape)

    def add(self, steps: Sequence[AnyStep]) -> None:
        self.steps += steps
        self.layers += [self._layer] * len(steps)

    def lower(self, node: Node) -> None:
        """Add the steps of a node."""
        self._layer = node.equations[-1].where.layer
        if node.is_loop:
            self._lower_loop(node)
            return
        equation = node.equations[0]
        rule = KERNELS.get(equation.op.name)
        if rule is None or not _has_kernel(equation):
            self._lower_to_host(equation)
        else:
            rule(self, equation)

    # --- views -------------------------------------------------------------------------------------------------------

    def view(self, value: Value) -> View:
        """How a value lies in memory, or in index space."""
        known = self.views.get(value)
        if known is None:
            known = self.views[value] = self._look(self._view_equations[value])
        return known

    def memory(self, value: Value) -> View:
        """A view of a value in memory, of any strides."""
        view = self.view(value)
        return self.copy(view) if view.buffer is INDEX else view

    def solid(self, value: Value) -> View:
        """A row-major view of a value."""
        view = self.view(value)
        return view if view.is_contiguous and view.buffer is not INDEX else self.copy(view)

    def fresh(self, value: Value) -> View:
        """A row-major view of new memory for a value."""
        view = contiguous(value.aval.dtype, value.aval.shape)
        self.views[value] = view
        return view

    def copy(self, view: View, into: View | None = None) -> View:
        """Copy a view, by default into new row-major memory."""
        out = into or contiguous(view.dtype, view.shape)
        role = "index" if view.buffer is INDEX else "read"
        self.add([loop_step("copy", view.shape, (), [Operand("x", view, role), Operand("x", out, "write")], [], set())])
        return out

    def _look(self, equation: Equation) -> View:
        name, params = equation.op.name, equation.params
        shape, dtype = equation.outputs[0].aval.shape, equation.outputs[0].aval.dtype
        if name == "iota":
            return View(INDEX, dtype, shape, tuple(int(axis == params["axis"]) for axis in range(len(shape))))
        view = self.view(equation.inputs[0])
        if name == "transpose":
            return replace(view, shape=shape, strides=tuple(view.strides[axis] for axis in params["axes"]))
        if name == "slice":
            offset = sum(start * stride for start, stride in zip(params["start"], view.strides, strict=True))
            strides = tuple(stride * step for stride, step in zip(view.strides, params["step"], strict=True))
            return replace(view, shape=shape, strides=strides, offset=view.offset + offset)
        if name == "broadcast":
            strides_out = [0] * len(shape)
            for extent, stride, axis in zip(view.shape, view.strides, params["axes"], strict=True):
                strides_out[axis] = stride if extent == shape[axis] else 0
            return replace(view, shape=shape, strides=tuple(strides_out))
        strides_new = reshaped_strides(view, shape)
        if strides_new is None:
            view = self.copy(view)
            strides_new = row_major(shape)
        return replace(view, shape=shape, strides=strides_new)

    # --- loops -------------------------------------------------------------------------------------------------------

    def _lower_loop(self, node: Node) -> None:
        shape, axes = node.shape or (), node.axes or ()
        imports: emit.Imports = set()
        names: dict[Value, str] = {}
        reads: dict[tuple[View, str], Operand] = {}
        statements: list[Statement] = []
        writes: list[Operand] = []

        def element(view: View) -> str:
            role = "index" if view.buffer is INDEX else "read"
            operand = reads.setdefault((view, role), Operand(f"x{len(reads)}", view, role))
            return operand.name

        for number, equation in enumerate(node.equations):
            value = equation.outputs[0]
            if equation.op.name == "reduce":
                source = equation.inputs[0]
                name = names[source] if source in names else element(self.view(source))
                writes.append(Operand(name, self._reduced_view(value, shape, axes), "reduce", equation.params["kind"]))
                continue
            if equation.op.name == "random_bits":
                arguments = self._random_arguments(equation, shape, element)
            else:
                arguments = [names[v] if v in names else element(self.view(v)) for v in equation.inputs]
            names[value] = f"v{number}"
            text = emit.expression(equation.op.name, arguments, [v.aval.dtype for v in equation.inputs],
                                   value.aval.dtype, equation.params, imports)
            statements.append(Statement(names[value], text, value.aval.dtype))
            if self._is_wanted(value, node):
                writes.append(Operand(names[value], self.fresh(value), "write"))
        name = "+".join(equation.op.name for equation in node.equations)
        self.add([loop_step(name, shape, axes, [*reads.values(), *writes], statements, imports)])

    def _random_arguments(self, equation: Equation, shape: tuple[int, ...],
                          element: Callable[[View], str]) -> list[str]:
        key = self.memory(equation.inputs[0])
        nothing = (0,) * len(shape)
        words = [View(key.buffer, key.dtype, shape, nothing, key.offset + word * key.strides[0]) for word in (0, 1)]
        return [*map(element, words), element(View(INDEX, dtypes.int64, shape, row_major(shape)))]

    def _reduced_view(self, value: Value, shape: tuple[int, ...], axes: tuple[int, ...]) -> View:
        """The result of a reduction, looked at over the iteration shape."""
        out = self.fresh(value)
        kept = iter(out.strides)
        return replace(out, shape=shape, strides=tuple(0 if axis in axes else next(kept) for axis in range(len(shape))))

    def _is_wanted(self, value: Value, node: Node) -> bool:
        """Whether anything outside the loop reads a value."""
        return value in self._outputs or any(self._home.get(user) is not node for user in self._users.get(value, ()))

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _lower_to_host(self, equation: Equation) -> None:
        inputs = tuple(self.memory(value) for value in equation.inputs)
        self.add([HostStep(equation, inputs, tuple(self.fresh(value) for value in equation.outputs))])


def loop_step(name: str, shape: tuple[int, ...], axes: tuple[int, ...], operands: list[Operand],
              statements: list[Statement], imports: emit.Imports) -> Step:
    """The step of a loop nest."""
    nest = Nest(normal_loops(shape, axes, operands), tuple(operands), tuple(statements), frozenset(imports))
    in_memory = [operand for operand in operands if operand.role != "index"]
    extent, grain = units(nest)
    size = 1
    for length in shape:
        size *= length
    written = tuple(place for place, operand in enumerate(in_memory) if operand.role in ("write", "reduce"))
    views = tuple(operand.view for operand in in_memory)
    nbytes = sum(min(view.size * view.dtype.itemsize, view.buffer.nbytes) for view in views)
    return Step(emit.kernel_text(nest), views, written, dims(nest),
                0 if size == 0 and not axes else extent, grain, name, size * max(len(statements), 1), nbytes)


def reshaped_strides(view: View, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of a view in a new shape, or None if no strides describe it.

    Axes of the old and the new shape are matched in groups of equal size; within a group the old axes must lie end to
    end.
    """
    if view.size == 0:
        return row_major(shape)
    old = [(extent, stride) for extent, stride in zip(view.shape, view.strides, strict=True) if extent != 1]
    strides: list[int] = []
    place = 0
    remaining, step = 1, 0
    for extent in reversed(shape):
        if extent == 1:
            strides.append(0)
            continue
        if remaining == 1:
            remaining, step = old[-1 - place]
            place += 1
        while remaining % extent and place < len(old):
            outer, far = old[-1 - place]
            if far != step * remaining:
                return None
            remaining *= outer
            place += 1
        if remaining % extent:
            return None
        strides.append(step)
        remaining //= extent
        step *= extent
    return tuple(reversed(strides))


# --- kernels ---------------------------------------------------------------------------------------------------------

_NUMBERS = {dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64}
_KERNEL_TYPES: dict[str, set[DType]] = {
    "dot": {dtypes.float32, dtypes.float64, dtypes.int8}, "conv": {dtypes.float32, dtypes.float64},
    "conv_dw": {dtypes.float32, dtypes.float64}, "pad": set(dtypes.ALL), "concat": set(dtypes.ALL)}


def _has_kernel(equation: Equation) -> bool:
    x, params = equation.inputs[0].aval, equation.params
    if equation.op.name in ("window", "window_grad") and not window.fits(x.shape, params["size"], params["stride"],
                                                                         params["padding"]):
        return False
    return x.dtype in _KERNEL_TYPES.get(equation.op.name, _NUMBERS)


def _lower_dot(lowering: Lowering, equation: Equation) -> None:
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["contract"], equation.params["batch"]
    a, b = (lowering.memory(value) for value in equation.inputs)
    free_a = tuple(axis for axis in range(len(a.shape)) if axis not in (*contract_a, *batch_a))
    free_b = tuple(axis for axis in range(len(b.shape)) if axis not in (*contract_b, *batch_b))
    left = _matrix(lowering, a, batch_a, free_a, contract_a)
    right = _matrix(lowering, b, batch_b, contract_b, free_b)
    out = lowering.fresh(equation.outputs[0])
    shape = (*left.shape[:-1], right.shape[-1])
    lowering.add(gemm.matmul(left, right, replace(out, shape=shape, strides=row_major(shape))))


def _matrix(lowering: Lowering, view: View, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> View:
    """A view as [batch..., rows, columns], several axes merged into one."""
    order = (*batch, *rows, *columns)
    turned = replace(view, shape=tuple(view.shape[axis] for axis in order),
                     strides=tuple(view.strides[axis] for axis in order))
    lead = turned.shape[:len(batch)]
    count = len(batch)
    extents = [1, 1]
    for place, axes in enumerate((rows, columns)):
        for axis in axes:
            extents[place] *= view.shape[axis]
    merged = _merged(turned, count, len(rows))
    if merged is None:
        turned = lowering.copy(turned)
        merged = row_major((*lead, *extents))
    return replace(turned, shape=(*lead, *extents), strides=merged)


def _merged(view: View, count: int, rows: int) -> tuple[int, ...] | None:
    """Strides with the axes count..count+rows-1 merged into one, and those behind them into another."""
    strides = list(view.strides[:count])
    for first, last in ((count, count + rows), (count + rows, len(view.shape))):
        part = replace(view, shape=view.shape[first:last], strides=view.strides[first:last])
        one = reshaped_strides(part, (part.size,))
        if one is None:
            return None
        strides += one
    return tuple(strides)


def _lower_conv(lowering: Lowering, equation: Equation) -> None:
    x, w = (lowering.solid(value) for value in equation.inputs)
    lowering.add(conv_kernels.conv(x, w, lowering.fresh(equation.outputs[0]), **equation.params))


def _lower_conv_dw(lowering: Lowering, equation: Equation) -> None:
    x, ct = (lowering.solid(value) for value in equation.inputs)
    params = {name: value for name, value in equation.params.items() if name != "kernel"}
    lowering.add(conv_kernels.conv_dw(x, ct, lowering.fresh(equation.outputs[0]), **params))


def _lower_gather(lowering: Lowering, equation: Equation) -> None:
    x, indices = (lowering.memory(value) for value in equation.inputs)
    lowering.add(index.gather(x, indices, lowering.fresh(equation.outputs[0]), equation.params["axis"]))


def _lower_scatter_add(lowering: Lowering, equation: Equation) -> None:
    x, indices, updates = (lowering.solid(value) for value in equation.inputs)
    lowering.add(index.scatter_add(x, indices, updates, lowering.fresh(equation.outputs[0]), equation.params["axis"]))


def _lower_segment_reduce(lowering: Lowering, equation: Equation) -> None:
    data, ids = (lowering.memory(value) for value in equation.inputs)
    lowering.add(index.segment_reduce(data, ids, lowering.fresh(equation.outputs[0]), equation.params["kind"]))


def _lower_sort(lowering: Lowering, equation: Equation) -> None:
    values, order = (lowering.fresh(value) for value in equation.outputs)
    lowering.add(index.sort(lowering.memory(equation.inputs[0]), values, order, equation.params["axis"]))


def _lower_window(lowering: Lowering, equation: Equation) -> None:
    x, *of = (lowering.solid(value) for value in equation.inputs)
    lowering.add(window.window(x, of[0] if of else None, lowering.fresh(equation.outputs[0]), **equation.params))


def _lower_window_grad(lowering: Lowering, equation: Equation) -> None:
    x, ct = (lowering.solid(value) for value in equation.inputs)
    lowering.add(window.window_grad(x, ct, lowering.fresh(equation.outputs[0]), **equation.params))


def _lower_cumsum(lowering: Lowering, equation: Equation) -> None:
    x = lowering.solid(equation.inputs[0])
    lowering.add(window.cumsum(x, lowering.fresh(equation.outputs[0]), **equation.params))


def _lower_argreduce(lowering: Lowering, equation: Equation) -> None:
    x = lowering.solid(equation.inputs[0])
    lowering.add(window.argreduce(x, lowering.fresh(equation.outputs[0]), **equation.params))


def _lower_pad(lowering: Lowering, equation: Equation) -> None:
    low, interior = equation.params["low"], equation.params["interior"]
    x, value = (lowering.view(value) for value in equation.inputs)
    out = lowering.fresh(equation.outputs[0])
    lowering.copy(replace(value, shape=out.shape, strides=(0,) * len(out.shape)), out)
    source, target = x, out
    for axis, (extent, begin, gap) in enumerate(zip(x.shape, low, interior, strict=True)):
        # Pixels that stay inside where the padding is negative.
        first = -(-max(-begin, 0) // (gap + 1))
        stop = min(extent, (out.shape[axis] - 1 - begin) // (gap + 1) + 1)
        source = narrowed(source, axis, first, max(stop - first, 0), 1)
        target = narrowed(target, axis, begin + first * (gap + 1), max(stop - first, 0), gap + 1)
    if source.size:
        lowering.copy(source, target)


def _lower_concat(lowering: Lowering, equation: Equation) -> None:
    axis, begin = equation.params["axis"], 0
    out = lowering.fresh(equation.outputs[0])
    for value in equation.inputs:
        extent = value.aval.shape[axis]
        if value.aval.size:
            lowering.copy(lowering.view(value), narrowed(out, axis, begin, extent, 1))
        begin += extent


def narrowed(view: View, axis: int, begin: int, extent: int, step: int) -> View:
    """The elements begin, begin + step, ... of one axis."""
    shape = (*view.shape[:axis], extent, *view.shape[axis + 1:])
    strides = (*view.strides[:axis], view.strides[axis] * step, *view.strides[axis + 1:])
    return replace(view, shape=shape, strides=strides, offset=view.offset + begin * view.strides[axis])


KERNELS: dict[str, Callable[[Lowering, Any], None]] = {
    "dot": _lower_dot, "conv": _lower_conv, "conv_dw": _lower_conv_dw, "gather": _lower_gather,
    "scatter_add": _lower_scatter_add, "segment_reduce": _lower_segment_reduce, "sort": _lower_sort,
    "window": _lower_window, "window_grad": _lower_window_grad, "cumsum": _lower_cumsum, "argreduce": _lower_argreduce,
    "pad": _lower_pad, "concat": _lower_concat,
}
"""Ops with kernels of their own; an op that is missing here runs on the host."""
