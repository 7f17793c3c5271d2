"""Reading a graph as layers of TPU v1: which values are known beforehand, which the chip makes, and how.

Invariant: what has no form here is up to the host; a product is the chip's, or refused by its op, layer and line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import Window
from core.accel.tpu.blocks import LARGEST_GAP
from core.accel.tpu.forms import Bytes, Lookup, Mask, Real, domain
from core.accel.tpu.instructions import Pool
from core.accel.tpu.layers import Given, Layer
from core.accel.tpu.refusal import refused
from core.accel.tpu.weights import of_conv, of_dot
from core.engine import dtypes
from core.engine.graph import Aval, Equation, Graph, Value
from core.engine.ops.table import evaluate

Form = Real | Bytes | Mask | Lookup
_EXACT = {"neg", "abs", "floor", "round", "add", "sub", "mul", "div", "max", "min", "compare", "and", "or", "not",
          "select", "convert"}
"""Elementwise ops that give the same bits on every backend."""
_BYTES = {dtypes.int8: True, dtypes.uint8: False}
"""Whether they are signed."""


class Reading:
    """A graph whose calls are inlined, and whose products are in no loop.

    Attributes
    ----------
    known : values known beforehand
    forms : of other values
    layers : in their order, by the value of their sums
    given : what the host gives, by value
    makers : the equation of each value
    """

    def __init__(self, graph: Graph, held: Sequence[NDArray[Any]]) -> None:
        self.known: dict[Value, NDArray[Any]] = {**graph.constants,
                                                 **dict(zip(graph.inputs[:len(held)], held, strict=True))}
        self.forms: dict[Value, Form] = {}
        self.layers: dict[Value, Layer] = {}
        self.given: dict[Value, Given] = {}
        self.makers = {value: equation for equation in graph.equations for value in equation.outputs}
        self._matrices: dict[Any, NDArray[np.int8]] = {}
        for equation in graph.equations:
            self._read(equation)

    def _read(self, equation: Equation) -> None:
        if equation.op.family != "structural" and all(value in self.known for value in equation.inputs):
            self._evaluate(equation)
        elif equation.op.family == "contract":
            self._product(equation)
        elif any(value in self.forms for value in equation.inputs):
            form = _RULES.get(equation.op.name, _elementwise)(self, equation)
            if form is not None:
                self.forms[equation.outputs[0]] = form

    def _evaluate(self, equation: Equation) -> None:
        inputs = [self.known[value] for value in equation.inputs]
        if equation.op.name == "broadcast":  # without a copy, so that `column` sees what is repeated
            shape, axes = equation.params["shape"], equation.params["axes"]
            aligned = [1] * len(shape)
            for axis, extent in zip(axes, inputs[0].shape, strict=True):
                aligned[axis] = extent
            self.known[equation.outputs[0]] = np.broadcast_to(inputs[0].reshape(aligned), shape)
            return
        found = evaluate(equation.op, inputs, [value.aval for value in equation.inputs], equation.params,
                         [value.aval for value in equation.outputs])
        self.known.update(zip(equation.outputs, found, strict=True))

    # --- products ----------------------------------------------------------------------------------------------------

    def _product(self, equation: Equation) -> None:
        """A product of bytes and weights."""
        source, weights = equation.inputs
        if equation.op.name not in ("dot", "conv"):
            raise refused(equation, f"{source.aval} and {weights.aval}", "the chip infers; it does not train",
                          "compile the model, not its gradient")
        if weights not in self.known:
            raise refused(equation, "a product of two activations",
                          "the matrix unit takes its weights from the weight memory, which is read only",
                          "multiply by weights that are known when the model is bound")
        if dtypes.int16 in (source.aval.dtype, weights.aval.dtype):
            raise refused(equation, f"{source.aval} times {weights.aval}", "instructions of bytes alone are written",
                          "run it on the device tpu-v1, which has the chip's bits, or quantise it to 8 bits")
        form = self.forms.get(source)
        store = form.store if isinstance(form, Bytes) else None
        columns = source.aval.shape[-1] if store is None else store.columns
        found = (of_dot if equation.op.name == "dot" else of_conv)(equation, self.known[weights], columns)
        numbers = self._matrices.setdefault((weights, str(equation.params), columns), found.weights)
        read = store or self.given.setdefault(source, Given(
            source.aval.size // max(columns, 1), columns, _BYTES[source.aval.dtype]))
        name = f"{equation.op.name} {source.aval} x {weights.aval}"
        layer = Layer(name, str(equation.where), read, found.dims, found.steps, found.taps, numbers)
        self.layers[equation.outputs[0]] = layer
        self.forms[equation.outputs[0]] = Real(layer, np.zeros(layer.columns, np.int32))

    # --- what a value is ---------------------------------------------------------------------------------------------

    def number(self, value: Value) -> Any:
        """The number that a known value repeats, or None."""
        array = self.known.get(value)
        if array is None or not array.size:
            return None
        return array.reshape(-1)[0] if _is_repeated(array, range(array.ndim)) else None

    def column(self, value: Value, columns: int) -> NDArray[Any] | None:
        """The numbers [column] that a known value repeats in each row, or None."""
        array = self.known.get(value)
        if array is None or not array.size or array.shape[-1:] != (columns,):
            return None
        return array[(0,) * (array.ndim - 1)] if _is_repeated(array, range(array.ndim - 1)) else None

    def sides(self, equation: Equation) -> tuple[Form | None, Value, Value]:
        """The form of one operand of a binary op, that operand, and the other one."""
        first, second = equation.inputs
        if first in self.forms:
            return self.forms[first], first, second
        return self.forms.get(second), second, first


def _is_repeated(array: NDArray[Any], axes: range) -> bool:
    """Whether an array holds the same along these leading axes."""
    if all(array.shape[axis] == 1 or array.strides[axis] == 0 for axis in axes):
        return True
    return bool((array == array[(0,) * len(axes)]).all())


# --- rules: the form of what an equation makes, or None ---------------------------------------------------------------

def _add(reading: Reading, equation: Equation) -> Form | None:
    form, value, other = reading.sides(equation)
    if not isinstance(form, Real):
        return _elementwise(reading, equation)
    number = reading.number(other)
    if not form.is_float:
        bias = reading.column(other, form.layer.columns) if value.aval.shape[-1] == form.layer.columns else None
        return None if bias is None else dataclasses.replace(form, bias=form.bias + bias)
    if form.is_whole and form.zero is None and number is not None and number == np.rint(number) and abs(number) < 256:
        return dataclasses.replace(form, zero=int(number))
    return None


def _convert(reading: Reading, equation: Equation) -> Form | None:
    form, dtype = reading.forms[equation.inputs[0]], equation.outputs[0].aval.dtype
    if isinstance(form, Real):
        if not form.is_float and dtype is dtypes.float32:
            return dataclasses.replace(form, is_float=True)
        return Bytes(form.store(_BYTES[dtype])) if form.is_whole and dtype in _BYTES else None
    if isinstance(form, Lookup) and _BYTES.get(dtype) == form.store.signed:
        found = _elementwise(reading, equation)
        store = found.store_of() if isinstance(found, Lookup) else None
        return None if store is None else Bytes(store)
    return _elementwise(reading, equation)


def _mul(reading: Reading, equation: Equation) -> Form | None:
    form, value, other = reading.sides(equation)
    if not isinstance(form, Real):
        return _elementwise(reading, equation)
    if not form.is_plain or form.factor is not None or value.aval.shape[-1] != form.layer.columns:
        return None
    factor = reading.column(other, form.layer.columns)
    if factor is None or not (np.isfinite(factor) & (factor >= 0)).all():
        return None
    return dataclasses.replace(form, factor=factor)


def _div(reading: Reading, equation: Equation) -> Form | None:
    form = reading.forms.get(equation.inputs[0])
    if not isinstance(form, Real):
        return _elementwise(reading, equation)
    step = reading.number(equation.inputs[1])
    if not form.may_be_cut or step is None or not 0 < step < math.inf:
        return None
    return dataclasses.replace(form, step=step)


def _round(reading: Reading, equation: Equation) -> Form | None:
    form = reading.forms[equation.inputs[0]]
    if not isinstance(form, Real):
        return _elementwise(reading, equation)
    return dataclasses.replace(form, is_whole=True) if form.is_float and not form.is_whole else None


def _extreme(reading: Reading, equation: Equation) -> Form | None:
    """The larger or the smaller of a value and a number."""
    form, _, other = reading.sides(equation)
    if not isinstance(form, Real):
        return _elementwise(reading, equation)
    number = reading.number(other)
    if not form.may_be_cut or number is None or np.isnan(number):
        return None
    return form.cut(low=float(number)) if equation.op.name == "max" else form.cut(high=float(number))


def _compare(reading: Reading, equation: Equation) -> Form | None:
    form, number = reading.forms.get(equation.inputs[0]), reading.number(equation.inputs[1])
    if isinstance(form, Real):
        return None if number is None else Mask(equation.inputs[0], equation.params["kind"], float(number))
    return _elementwise(reading, equation)


def _select(reading: Reading, equation: Equation) -> Form | None:
    """ReLU as `nn.relu` writes it, ``select(x <= 0, 0, x)``, or ``select(x > 0, x, 0)``."""
    condition, first, second = equation.inputs
    mask = reading.forms.get(condition)
    if not isinstance(mask, Mask):
        return _elementwise(reading, equation)
    value, other, kinds = (second, first, ("le", "lt")) if mask.value is second else (first, second, ("gt", "ge"))
    form = reading.forms.get(value)
    if (isinstance(form, Real) and form.may_be_cut and mask.value is value and mask.kind in kinds
            and mask.threshold == 0 and reading.number(other) == 0):
        return form.cut(low=0.0)
    return None


def _window(reading: Reading, equation: Equation) -> Form | None:
    form = reading.forms[equation.inputs[0]]
    if isinstance(form, Mask) or len(set(equation.inputs)) != 1:
        return None
    layer = form.layer if isinstance(form, Real) else form.store.layer
    window, kind = _window_of(equation, layer), equation.params["kind"]
    if window is None:
        return None
    if isinstance(form, Real):
        return (dataclasses.replace(form, window=window)
                if kind == "max" and form.may_be_cut and form.window is None else None)
    if form.store.pool is not Pool.NONE or form.store.is_padded:
        return None
    largest = dataclasses.replace(form.store, pool=Pool.MAX, window=window)
    if isinstance(form, Bytes):
        return Bytes(largest) if kind == "max" else None
    if form.window is not None:
        return None
    if kind == "max":
        return Lookup(largest, form.values) if (np.diff(form.values) >= 0).all() else None
    are_bytes = form.values.dtype == np.int32 and np.array_equal(form.values, domain(form.store))
    if kind != "sum" or not are_bytes or any((*window.low, *window.high)):
        return None
    return Lookup(form.store, domain(form.store, window.size[0] * window.size[1]).astype(np.int32), window)


def _window_of(equation: Equation, layer: Layer) -> Window | None:
    """The windows of a layer's lines, if they are that."""
    params = equation.params
    size, stride, padding = params["size"], params["stride"], params["padding"]
    if equation.inputs[0].aval.shape != (*layer.dims, layer.columns):
        return None
    if any((one, step, pad) != (1, 1, (0, 0)) for one, step, pad in
           zip((*size[:-3], size[-1]), (*stride[:-3], stride[-1]), (*padding[:-3], padding[-1]), strict=True)):
        return None
    low, high = zip(*padding[-3:-1], strict=True)
    return Window(tuple(size[-3:-1]), tuple(stride[-3:-1]), low, high)


def _reshape(reading: Reading, equation: Equation) -> Form | None:
    """Rows stay rows if the last axis holds whole ones."""
    form, last = reading.forms[equation.inputs[0]], equation.outputs[0].aval.shape[-1:]
    if isinstance(form, Mask) or not last:
        return None
    columns = form.layer.columns if isinstance(form, Real) else form.store.columns
    return None if last[0] % columns else form


def _pad(reading: Reading, equation: Equation) -> Form | None:
    """Rows around an image."""
    form, border = reading.forms.get(equation.inputs[0]), reading.number(equation.inputs[1])
    low, high, interior = (equation.params[name] for name in ("low", "high", "interior"))
    if not isinstance(form, Bytes) or border is None or equation.inputs[0].aval.shape != (
            *form.store.dims, form.store.columns) or form.store.is_padded:
        return None
    if min(*low, *high) < 0 or any(interior) or low[-1] or high[-1] or low[-2] + high[-2] > LARGEST_GAP:
        return None
    return Bytes(dataclasses.replace(form.store, low=tuple(low[:-1]), high=tuple(high[:-1]), border=int(border)))


def _gather(reading: Reading, equation: Equation) -> Form | None:
    """A table, looked up by what a byte stands for."""
    form, table = reading.forms.get(equation.inputs[1]), reading.known.get(equation.inputs[0])
    if not isinstance(form, Lookup) or table is None or table.ndim != 1:
        return None
    found = dataclasses.replace(form, values=_evaluated(equation, [table, form.values]))
    if _BYTES.get(equation.outputs[0].aval.dtype) != form.store.signed:
        return found
    store = found.store_of()
    return found if store is None else Bytes(store)


def _elementwise(reading: Reading, equation: Equation) -> Form | None:
    """An exact op on what a byte stands for, and on numbers."""
    if equation.op.name not in _EXACT or equation.outputs[0].aval.dtype is dtypes.bfloat16:
        return None
    found: Lookup | None = None
    arrays: list[Any] = []
    for value in equation.inputs:
        form, number = reading.forms.get(value), reading.number(value)
        if isinstance(form, Bytes) and not form.store.is_padded:
            form = Lookup(form.store, domain(form.store).astype(value.aval.dtype.storage))
        if isinstance(form, Lookup) and (found is None or (found.store, found.window) == (form.store, form.window)):
            found = form
            arrays.append(form.values)
        elif number is not None:
            arrays.append(number)
        else:
            return None
    assert found is not None
    count = found.values.size
    whole = [array if np.ndim(array) else np.full(count, array) for array in arrays]
    if equation.op.name in ("add", "sub") and equation.outputs[0].aval.dtype.is_float and not all(
            np.array_equal(array, np.rint(array)) for array in whole):
        return None  # a backend may round a product and its sum once
    return dataclasses.replace(found, values=_evaluated(equation, whole))


def _evaluated(equation: Equation, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What an op makes of arrays of one axis."""
    avals = [Aval(value.aval.dtype, array.shape) for value, array in zip(equation.inputs, arrays, strict=True)]
    made = Aval(equation.outputs[0].aval.dtype, arrays[-1].shape)
    return evaluate(equation.op, arrays, avals, equation.params, [made])[0]


_RULES: dict[str, Callable[[Reading, Equation], Form | None]] = {
    "add": _add, "convert": _convert, "mul": _mul, "div": _div, "round": _round, "max": _extreme, "min": _extreme,
    "compare": _compare, "select": _select, "window": _window, "reshape": _reshape, "pad": _pad, "gather": _gather}
