"""Simplify: a graph to an equivalent one with less in it.

Invariant: results keep their bits, except that bfloat16 arithmetic outside loops and products is spelled out in
float32.

Calls are inlined, short scans unrolled, equal equations shared, equations nobody needs dropped, trivial ones removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.accel.expressions import WRITABLE
from core.accel.lower import has_kernel
from core.accel.views import VIEWS
from core.engine import dtypes
from core.engine.array import Array
from core.engine.graph import NOWHERE, Aval, Equation, Graph, Value
from core.engine.ops.control import unroll
from core.engine.ops.table import TABLE, Op, infer
from core.engine.trace import Staging, apply, at, call_graph, interpret

_TAKE_BFLOAT16 = {"unary", "binary", "logic", "elementwise", "shape", "dynamic", "structural", "random"}
"""Families whose loops, views or bodies deal with bfloat16 themselves."""
_NARROW = {"dot", "conv"}
"""Ops outside loops whose kernels take bfloat16."""
_UNROLLED = 48
"""Equations that a scan may become; one with more stays a loop."""
_SMALL = 64
"""Elements of a constant that is compared with others."""
_TWO_STAGE_SIZE = 1 << 15
_SHORT_RUN, _MANY_RUNS = 64, 256


class _Simplifier(Staging):
    """Stages equations anew, and finds that some need not be staged; `in_scan` says that they are a scan's body."""

    def __init__(self, in_scan: bool) -> None:
        super().__init__()
        self._in_scan = in_scan
        self._known: dict[Any, tuple[Array, ...]] = {}
        self._makers: dict[Value, Equation] = {}
        self.numbers: dict[Value, float] = {}
        self._negated: dict[Value, Array] = {}

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        if op.name == "call":
            return tuple(call_graph(params["graph"], inputs))
        if op.name == "scan":
            return self._scan(op, inputs, params)
        if op.name == "all_reduce" and params["group"] is None:
            return (inputs[0],)
        if (op.family not in _TAKE_BFLOAT16 and op.name not in _NARROW
                and any(array.dtype is dtypes.bfloat16 for array in inputs)):
            return _in_float32(op, inputs, params)
        trivial = self._trivial(op, inputs, params)
        if trivial is not None:
            return (trivial,)
        if op.name == "add" and (joined := self._joined(*inputs)) is not None:
            return (joined,)
        if op.name == "scatter_add" and self._number(inputs[0]) == 0 and params["axis"] == 0 and inputs[1].ndim == 1:
            rows = {"count": inputs[0].shape[0], "kind": "sum"}
            return (apply(TABLE["segment_reduce"], [inputs[2], inputs[1]], rows),)
        if op.name == "segment_reduce" and params["kind"] == "sum" and self.value(inputs[0]) in self._negated:
            # The negation of the sums joins the loop that reads them.
            total = apply(op, [self._negated[self.value(inputs[0])], inputs[1]], params)
            return (apply(TABLE["neg"], [total], {}),)
        if op.name == "reduce" and _is_long(inputs[0], params["axes"]):
            return (_two_stages(inputs[0], tuple(range(1, inputs[0].ndim)), (0,), params["kind"]),)
        if op.name == "reduce" and (columns := _scattered(inputs[0].shape, params["axes"])):
            rest = tuple(axis - len(columns) for axis in params["axes"] if axis not in columns)
            return (_two_stages(inputs[0], columns, rest, params["kind"]),)
        key = (op, tuple(self.value(array) for array in inputs), _hashable(params))
        known = self._known.get(key) if key[2] is not None else None
        if known is None:
            known = super().apply(op, inputs, params)
            self._note(op, inputs, known)
            self._makers.update((self.value(array), self.graph.equations[-1]) for array in known)
            if key[2] is not None:
                self._known[key] = known
        return known

    def _scan(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        """A scan of a simpler body; its steps one after the other where they are few or cannot be repeated."""
        consts, numbers = params["consts"], {}
        for value, array in zip(params["body"].inputs[:consts], inputs[:consts], strict=True):
            number = self._number(array)
            if number is not None:
                numbers[value] = number
        body = simplify(params["body"], numbers, in_scan=True)
        if (self._in_scan or params["length"] * len(body.equations) <= _UNROLLED
                or not all(map(_may_be_repeated, body.equations))):
            return unroll(inputs, {**params, "body": body})
        found = [Array(value.aval, constant) for value, constant in body.constants.items()]
        body.inputs = [*body.inputs[:consts], *body.constants, *body.inputs[consts:]]
        body.constants = {}
        params = {**params, "body": body, "consts": consts + len(found)}
        return super().apply(op, [*inputs[:consts], *found, *inputs[consts:]], params)

    def _joined(self, one: Array, other: Array) -> Array | None:
        """The sum of two pieces of an axis that zeros fill up, by joining them if they are neighbours."""
        first, second = self._piece(one), self._piece(other)
        if first is None or second is None:
            return None
        if first > second:
            one, other, first, second = other, one, second, first
        (axis, low, stop), (same, begin, end) = first, second
        if axis != same or stop != begin:
            return None
        whole = apply(TABLE["concat"], [*self._parts(one, axis), *self._parts(other, axis)], {"axis": axis})
        zero = self._makers[self.value(one)].inputs[1]
        ends = ([width if place == axis else 0 for place in range(one.ndim)] for width in (low, one.shape[axis] - end))
        return apply(TABLE["pad"], [whole, Array(zero.aval, zero, self)],
                     {**dict(zip(("low", "high"), map(tuple, ends), strict=True)), "interior": (0,) * one.ndim})

    def _piece(self, array: Array) -> tuple[int, int, int] | None:
        """The only axis along which an array is filled up with zeros, and where on it the piece begins and ends."""
        maker = self._makers.get(self.value(array))
        if maker is None or maker.op.name != "pad" or self.numbers.get(maker.inputs[1]) != 0:
            return None
        low, high = maker.params["low"], maker.params["high"]
        axes = [axis for axis in range(array.ndim) if low[axis] or high[axis]]
        if len(axes) != 1 or any(maker.params["interior"]) or min(*low, *high) < 0:
            return None
        return axes[0], low[axes[0]], array.shape[axes[0]] - high[axes[0]]

    def _parts(self, array: Array, axis: int) -> list[Array]:
        """What the piece in an array was joined of."""
        piece = self._makers[self.value(array)].inputs[0]
        maker = self._makers.get(piece)
        joined = maker is not None and maker.op.name == "concat" and maker.params["axis"] == axis
        return [Array(value.aval, value, self) for value in (maker.inputs if maker and joined else (piece,))]

    def _number(self, array: Array) -> float | None:
        """The number that every element is, if that is known."""
        return self.numbers.get(self.value(array))

    def _trivial(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> Array | None:
        """An input that the equation would only copy."""
        name = op.name
        if name in ("broadcast", "reshape") and inputs[0].shape == params["shape"]:
            return inputs[0]
        if name == "convert" and inputs[0].dtype is params["dtype"]:
            return inputs[0]
        if name == "transpose" and params["axes"] == tuple(range(inputs[0].ndim)):
            return inputs[0]
        if name == "concat" and len(inputs) == 1:
            return inputs[0]
        if name == "pad" and not any(any(params[side]) for side in ("low", "high", "interior")):
            return inputs[0]
        if name in ("mul", "div", "pow") and self._number(inputs[1]) == 1:
            return inputs[0]
        if name == "mul" and self._number(inputs[0]) == 1:
            return inputs[1]
        # x + 0 keeps every bit but the sign of -0, x - 0 keeps all.
        if name in ("add", "sub") and self._number(inputs[1]) == 0:
            return inputs[0]
        if name == "add" and self._number(inputs[0]) == 0:
            return inputs[1]
        return None

    def _note(self, op: Op, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Carry what is known of numbers through views, and keep what has been negated."""
        if op.name == "neg":
            self._negated[self.value(outputs[0])] = inputs[0]
        if op.name in ("broadcast", "reshape", "transpose", "slice"):
            number = self._number(inputs[0])
            if number is not None:
                self.numbers[self.value(outputs[0])] = number


def _hashable(params: Mapping[str, Any]) -> tuple[Any, ...] | None:
    items = tuple(sorted(params.items()))
    try:
        hash(items)
    except TypeError:
        return None
    return items


def _in_float32(op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
    convert = TABLE["convert"]
    wide = [apply(convert, [array], {"dtype": dtypes.float32}) if array.dtype is dtypes.bfloat16 else array
            for array in inputs]
    results = apply(op, wide, params)
    avals = infer(op, [array.aval for array in inputs], params)
    return tuple(array if array.dtype is aval.dtype else apply(convert, [array], {"dtype": aval.dtype})
                 for array, aval in zip(results if op.multiple else (results,), avals, strict=True))


def _is_long(x: Array, axes: tuple[int, ...]) -> bool:
    """Whether threads should share the reduction to one number."""
    return x.ndim >= 2 and len(axes) == x.ndim and x.shape[0] >= 4 and x.size >= _TWO_STAGE_SIZE


def _scattered(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The reduced axes in front of the last kept one, if a row is many short runs far apart; else nothing.

    Such a row does not stay in a cache, and whole columns are reduced in the order of memory.
    """
    last = max((axis for axis, extent in enumerate(shape) if axis not in axes and extent != 1), default=-1)
    columns = tuple(axis for axis in axes if axis < last)
    run = math.prod(shape[axis] for axis in axes if axis > last)
    return columns if 1 < run <= _SHORT_RUN and math.prod(shape[axis] for axis in columns) >= _MANY_RUNS else ()


def _two_stages(x: Array, first: tuple[int, ...], second: tuple[int, ...], kind: str) -> Array:
    """Reduce some axes, then the rest, counted in what is left."""
    partial = apply(TABLE["reduce"], [x], {"axes": first, "kind": kind})
    return apply(TABLE["reduce"], [partial], {"axes": second, "kind": kind})


def _may_be_repeated(equation: Equation) -> bool:
    """Whether an equation becomes kernels, which a compiled loop can call."""
    return equation.op.name in {*WRITABLE, *VIEWS, "reduce"} or has_kernel(equation)


def simplify(graph: Graph, numbers: Mapping[Value, float] | None = None, *, in_scan: bool = False) -> Graph:
    """An equivalent graph without calls; inputs keep their number, order and avals.

    Parameters
    ----------
    numbers : inputs of which every element is a number that is known
    in_scan : whether the graph is the body of a scan; then it has no scan itself
    """
    simplifier = _Simplifier(in_scan)
    arguments = [simplifier.argument(value.aval) for value in graph.inputs]
    known: dict[Value, Array] = dict(zip(graph.inputs, arguments, strict=True))
    simplifier.numbers.update({simplifier.value(known[value]): number for value, number in (numbers or {}).items()})
    shared: dict[tuple[Aval, bytes], Array] = {}
    for value, constant in graph.constants.items():
        known[value] = Array(value.aval, constant)
        if constant.size <= _SMALL:
            known[value] = shared.setdefault((value.aval, constant.tobytes()), known[value])
        if constant.size and constant.dtype.kind in "fiub" and value.aval.dtype is not dtypes.bfloat16:
            first = constant.reshape(-1)[0]
            if constant.size == 1 or (constant.size <= _SMALL and np.all(constant == first)):
                simplifier.numbers[simplifier.value(known[value])] = float(first)
    with interpret(simplifier), at(NOWHERE) as move_to:
        for equation in graph.equations:
            inputs = [known[value] for value in equation.inputs]
            move_to(equation.where)
            results = apply(equation.op, inputs, equation.params)
            outputs = results if equation.op.multiple else (results,)
            known.update(zip(equation.outputs, outputs, strict=True))
    staged = simplifier.graph
    staged.outputs = [simplifier.value(known[value]) for value in graph.outputs]
    staged.constants = {simplifier.value(array): array.storage for array in simplifier.captures}
    return needed(staged)


def needed(graph: Graph) -> Graph:
    """The graph without equations and constants that no output depends on."""
    found = set(graph.outputs)
    kept = []
    for equation in reversed(graph.equations):
        if any(value in found for value in equation.outputs) or equation.op.name == "custom_call":
            kept.append(equation)
            found.update(equation.inputs)
    constants = {value: array for value, array in graph.constants.items() if value in found}
    return Graph(graph.inputs, kept[::-1], graph.outputs, constants)

