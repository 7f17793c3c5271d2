"""Lower: fused nodes to steps over views of memory.

Invariant: broadcast, transpose, slice, reshape and iota cost nothing; they change how a value is looked at, and only a
kernel that needs its operand in row-major order has it copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.accel import contract
from core.accel.chips import host
from core.accel.epilogue import ElementwiseEpilogue
from core.accel.kernels import argreduce, bits, cumsum, index, segment, window
from core.accel.loops import Values, copy_step, steps_of_node
from core.accel.passes.fuse import PAIRS, Node, fuse
from core.accel.scans import scan_steps
from core.accel.step import AnyStep, Buffer, Epilogue, HostStep, Step, View, contiguous
from core.accel.views import INDEX, VIEWS, iota, look
from core.engine import dtypes
from core.engine.dtypes import DType
from core.engine.graph import Equation, Graph, Value

_CACHED_RESULTS = 8
"""Results larger together than so many second caches are not in any cache when somebody reads them."""


class Lowering:
    """The steps of a graph, as they grow.

    Attributes
    ----------
    views : how each value that has been computed lies in memory
    steps : so far
    layers : layer path of each step
    constants : of the graph
    updated : outputs that take the place of inputs, and these
    homes : where values must lie, each row-major, that would else get new memory
    fixed : buffers that are the same at every call, or in a scan's body each time
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node], updated: Mapping[Value, Value] | None = None) -> None:
        self.updated = updated or {}
        self.views: dict[Value, View] = {}
        self.homes: dict[Value, View] = {}
        self.fixed: set[Buffer] = set()
        self.steps: list[AnyStep] = []
        self.layers: list[str] = []
        self._layer = ""
        self._view_equations = {equation.outputs[0]: equation for equation in graph.equations
                                if equation.op.name in VIEWS}
        self._home = {equation: node for node in nodes for equation in node.equations}
        self._node_of = {value: node for equation, node in self._home.items() for value in equation.outputs}
        self._users = graph.users()
        self.constants = graph.constants
        self._outputs = set(graph.outputs)
        self._links: dict[tuple[Value, int], segment.Links] = {}
        # Gathers wait for who reads them first: two that are added or subtracted are read where they come from.
        self.waiting: dict[Value, Equation] = {}
        results = sum(value.aval.size * value.aval.dtype.itemsize for value in self._outputs)
        self._results_fill_caches = results >= _CACHED_RESULTS * host().second_cache
        for value in (*graph.inputs, *graph.constants):
            self.views[value] = contiguous(value.aval.dtype, value.aval.shape)

    def add(self, steps: Sequence[AnyStep]) -> None:
        self.steps += steps
        self.layers += [self._layer] * len(steps)

    def lower(self, node: Node) -> None:
        """Add the steps of a node."""
        self._layer = node.equations[-1 if node.is_loop else 0].where.layer
        if node.is_loop:
            self.add(_gathered_pair(self, node.equations[0]) if self._reads_a_pair(node) else steps_of_node(self, node))
            return
        equation = node.equations[0]
        name, epilogue = equation.op.name, ElementwiseEpilogue.of(self, node)
        if not has_kernel(equation):
            self._lower_to_host(equation, epilogue)
        elif name in PRODUCT_KERNELS:
            self.add(PRODUCT_KERNELS[name](self, equation, epilogue))
        else:
            KERNELS[name].lower(self, equation)

    # --- views -------------------------------------------------------------------------------------------------------

    def view(self, value: Value) -> View:
        """How a value lies in memory, or in index space."""
        known = self.views.get(value)
        if known is None and value in self.waiting:
            _gather(self, self.waiting.pop(value))
            known = self.views[value]
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
        return view.normal() if view.is_contiguous and view.buffer is not INDEX else self.copy(view)

    def fresh(self, value: Value) -> View:
        """A row-major view of new memory, or of the home that waits for it, for a value."""
        view = self.homes.get(value) or self._joined_part(value) or contiguous(value.aval.dtype, value.aval.shape)
        self.views[value] = view
        return view

    def _joined_part(self, value: Value) -> View | None:
        """The part of a join that a loop may fill, if nothing else reads the value."""
        users, node = self._users.get(value, []), self._node_of.get(value)
        if value in self._outputs or [user.op.name for user in users] != ["concat"]:
            return None
        join, axis = users[0], users[0].params["axis"]
        if node is None or node.shape != value.aval.shape or join.inputs.count(value) != 1:
            return None
        whole = self.views.get(join.outputs[0]) or self.fresh(join.outputs[0])
        begin = sum(part.aval.shape[axis] for part in join.inputs[:join.inputs.index(value)])
        return narrowed(whole, axis, begin, value.aval.shape[axis], 1)

    def copy(self, view: View, into: View | None = None) -> View:
        """Copy a view, by default into new row-major memory."""
        out = into or contiguous(view.dtype, view.shape)
        self.add([copy_step(view, out)])
        return out

    def links(self, indices: Value, places: int) -> segment.Links:
        """The lists of what leads to each place; those who follow the same indices share them."""
        known = self._links.get((indices, places))
        if known is None:
            known, steps = segment.link(self.solid(indices), places)
            self._links[indices, places] = known
            self.add(steps)
        return known

    def source(self, value: Value) -> Value:
        """The value behind view equations."""
        while value in self._view_equations and self._view_equations[value].inputs:
            value = self._view_equations[value].inputs[0]
        return value

    def _look(self, equation: Equation) -> View:
        if equation.op.name == "iota":
            return iota(equation)
        view = self.view(equation.inputs[0])
        looked = look(view, equation)
        if looked is None:
            looked = look(self.copy(view), equation)
        assert looked is not None, "row-major memory can be looked at in any way"
        return looked

    def is_wanted(self, value: Value, node: Node) -> bool:
        """Whether anything outside a loop node reads a value, straight or through views."""
        return value in self._outputs or self._is_read(value, node)

    def is_streamed(self, value: Value, node: Node) -> bool:
        """Whether a value that a loop node writes will have left the caches before it is read."""
        return self._results_fill_caches and value not in self.updated and not self._is_read(value, node)

    def _is_read(self, value: Value, node: Node) -> bool:
        """Whether a step outside a loop node reads a value, straight or through views."""
        return any(self.is_wanted(user.outputs[0], node) if user.op.name in VIEWS else self._home.get(user) is not node
                   for user in self._users.get(value, ()))

    def _reads_a_pair(self, node: Node) -> bool:
        """Whether a node adds or subtracts rows that it can read where two gathers would."""
        return bool(node.gathers) and all(gather.outputs[0] in self.waiting for gather in node.gathers) and all(
            self.view(gather.inputs[0]).strides[1] == 1 for gather in node.gathers)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _lower_to_host(self, equation: Equation, epilogue: Epilogue | None) -> None:
        inputs = tuple(self.memory(value) for value in equation.inputs)
        outputs = tuple(self.fresh(value) for value in equation.outputs)
        self.add([HostStep(equation, inputs, outputs)])
        if epilogue is not None:
            self.add([epilogue.alone(*outputs)])


# --- kernels ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Kernel:
    """How equations of an op become steps, and which of them do; the others run on the host."""

    lower: Callable[[Lowering, Equation], None]
    takes: Callable[[Equation], bool]


def has_kernel(equation: Equation) -> bool:
    """Whether an equation that is neither loop nor view runs as a kernel, and not on the host."""
    name = equation.op.name
    return _takes_product(equation) if name in PRODUCT_KERNELS else name in KERNELS and KERNELS[name].takes(equation)


def _of(*kinds: DType) -> Callable[[Equation], bool]:
    """Whether the first operand is of one of these types."""
    return lambda equation: equation.inputs[0].aval.dtype in kinds


_takes_any = _of(*dtypes.ALL)
_takes_numbers = _of(dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64)
_takes_floats = _of(dtypes.float32, dtypes.float64, dtypes.bfloat16)


def _takes_product(equation: Equation) -> bool:
    left, right = (value.aval.dtype for value in equation.inputs)
    return right is dtypes.int8 if left in (dtypes.uint8, dtypes.int8) else _takes_floats(equation)


def _takes_window(equation: Equation) -> bool:
    params = equation.params
    fits = window.fits(equation.inputs[0].aval.shape, params["size"], params["stride"], params["padding"])
    return fits and _takes_numbers(equation)


def _row_major(kernel: Callable[..., list[Step]]) -> Callable[[Lowering, Equation], None]:
    """For kernels of row-major operands, one result and the op's own parameters."""
    def lower(lowering: Lowering, equation: Equation) -> None:
        inputs = [lowering.solid(value) for value in equation.inputs]
        lowering.add(kernel(*inputs, lowering.fresh(equation.outputs[0]), **equation.params))

    return lower


def _lower_conv_dw(lowering: Lowering, equation: Equation) -> None:
    lowering.add(contract.conv_dw(lowering, equation))


def _lower_gather(lowering: Lowering, equation: Equation) -> None:
    axis, order = equation.params["axis"], lowering.constants.get(equation.inputs[1])
    if order is not None and np.array_equal(order, np.arange(equation.inputs[0].aval.shape[axis])[::-1]):
        lowering.views[equation.outputs[0]] = _mirrored(lowering.memory(equation.inputs[0]), axis)
        return
    lowering.waiting[equation.outputs[0]] = equation


def _gather(lowering: Lowering, equation: Equation) -> None:
    x, indices = (lowering.memory(value) for value in equation.inputs)
    lowering.add(index.gather(x, indices, lowering.fresh(equation.outputs[0]), equation.params["axis"]))


def _gathered_pair(lowering: Lowering, equation: Equation) -> list[Step]:
    def source(gathered: Value) -> tuple[View, View]:
        matrix, indices = lowering.waiting.pop(gathered).inputs
        return lowering.memory(matrix), lowering.memory(indices)

    first, second = map(source, equation.inputs)
    return index.gathered_pair(PAIRS[equation.op.name], first, second, lowering.fresh(equation.outputs[0]))


def _mirrored(view: View, axis: int) -> View:
    """The view with one axis in reverse."""
    strides = (*view.strides[:axis], -view.strides[axis], *view.strides[axis + 1:])
    return replace(view, strides=strides, offset=view.offset + (view.shape[axis] - 1) * view.strides[axis])


def _lower_scatter_add(lowering: Lowering, equation: Equation) -> None:
    axis = equation.params["axis"]
    x, updates = lowering.memory(equation.inputs[0]), lowering.solid(equation.inputs[2])
    links = lowering.links(equation.inputs[1], x.shape[axis])
    lowering.add(segment.scatter_add(x, links, updates, lowering.fresh(equation.outputs[0]), axis))


def _lower_segment_reduce(lowering: Lowering, equation: Equation) -> None:
    data, links = lowering.memory(equation.inputs[0]), lowering.links(equation.inputs[1], equation.params["count"])
    lowering.add(segment.segment_reduce(data, links, lowering.fresh(equation.outputs[0]), equation.params["kind"]))


def _lower_sort(lowering: Lowering, equation: Equation) -> None:
    values, order = (lowering.fresh(value) for value in equation.outputs)
    lowering.add(index.sort(lowering.memory(equation.inputs[0]), values, order, equation.params["axis"]))


def _lower_window(lowering: Lowering, equation: Equation) -> None:
    x, *of = (lowering.solid(value) for value in dict.fromkeys(equation.inputs))
    lowering.add(window.window(x, of[0] if of else None, lowering.fresh(equation.outputs[0]), **equation.params))


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
    out = lowering.views.get(equation.outputs[0]) or lowering.fresh(equation.outputs[0])
    for value in equation.inputs:
        extent = value.aval.shape[axis]
        view, place = lowering.view(value), narrowed(out, axis, begin, extent, 1)
        if value.aval.size and view != place:
            lowering.copy(view, place)
        begin += extent


def _lower_scan(lowering: Lowering, equation: Equation) -> None:
    body = equation.params["body"]
    nodes = fuse(body)
    inner = Lowering(body, nodes)
    inner.constants = {within: lowering.constants[value] for within, value in zip(body.inputs, equation.inputs,
                       strict=True) if value in lowering.constants}
    given = [lowering.memory(value) for value in equation.inputs]
    inner.fixed.update(view.buffer for view in given[:equation.params["consts"]])
    views, before, repeat = scan_steps(inner, nodes, given, **equation.params)
    lowering.views.update(zip(equation.outputs, views, strict=True))
    lowering.add([*before, repeat])


def narrowed(view: View, axis: int, begin: int, extent: int, step: int) -> View:
    """The elements begin, begin + step, ... of one axis."""
    shape = (*view.shape[:axis], extent, *view.shape[axis + 1:])
    strides = (*view.strides[:axis], view.strides[axis] * step, *view.strides[axis + 1:])
    return replace(view, shape=shape, strides=strides, offset=view.offset + begin * view.strides[axis])


PRODUCT_KERNELS: dict[str, Callable[[Values, Equation, Epilogue | None], list[Step]]] = {
    "dot": contract.dot, "conv": contract.conv}
"""Ops whose kernels go on with an epilogue."""
KERNELS = {
    "conv_dw": Kernel(_lower_conv_dw, _takes_floats), "gather": Kernel(_lower_gather, _takes_any),
    "scatter_add": Kernel(_lower_scatter_add, _takes_numbers),
    "segment_reduce": Kernel(_lower_segment_reduce, _takes_numbers), "sort": Kernel(_lower_sort, _takes_numbers),
    "window": Kernel(_lower_window, _takes_window),
    "window_grad": Kernel(_row_major(window.window_grad), _takes_window),
    "cumsum": Kernel(_row_major(cumsum.cumsum), _takes_numbers),
    "argreduce": Kernel(_row_major(argreduce.argreduce), _takes_numbers), "pad": Kernel(_lower_pad, _takes_any),
    "concat": Kernel(_lower_concat, _takes_any), "scan": Kernel(_lower_scan, lambda equation: True),
    "bit_dot": Kernel(_row_major(bits.bit_dot), _of(dtypes.uint8)),
}
"""Other ops with kernels of their own; an op that is missing here runs on the host."""
