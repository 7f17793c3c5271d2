"""Contract: products and convolutions of values, looked at as the kernels of products want them.

Invariant: an operand is copied only where no strides describe what a kernel wants of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.accel import slices
from core.accel.kernels import conv as conv_kernels
from core.accel.kernels import gemm, narrow
from core.accel.loops import Values
from core.accel.step import Epilogue, Step, View, row_major
from core.accel.views import reshaped_strides
from core.engine.graph import Equation


def dot(values: Values, equation: Equation, epilogue: Epilogue | None) -> list[Step]:
    """Steps of a sum over axes of two operands, as a product of matrices."""
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["contract"], equation.params["batch"]
    a, b = (values.memory(value) for value in equation.inputs)
    free_a = tuple(axis for axis in range(len(a.shape)) if axis not in (*contract_a, *batch_a))
    free_b = tuple(axis for axis in range(len(b.shape)) if axis not in (*contract_b, *batch_b))
    left = _matrix(values, a, batch_a, free_a, contract_a)
    right = _matrix(values, b, batch_b, contract_b, free_b)
    out = values.fresh(equation.outputs[0])
    shape = (*left.shape[:-1], right.shape[-1])
    whole = replace(out, shape=shape, strides=row_major(shape))
    is_fixed = right.buffer in values.fixed
    if len(shape) == 2 and epilogue is None:
        return slices.product(left, right, whole, is_fixed)
    return gemm.matmul(left, right, whole, epilogue, is_fixed)


def _matrix(values: Values, view: View, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> View:
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
        turned = values.copy(turned)
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


def conv(values: Values, equation: Equation, epilogue: Epilogue | None) -> list[Step]:
    """Steps of a convolution."""
    x, kernel = values.solid(equation.inputs[0]), equation.inputs[1]
    # Packing turns the kernel as it goes, but the order of narrow sums would follow its strides.
    w = values.solid(kernel) if x.dtype in narrow.DTYPES else values.memory(kernel)
    return conv_kernels.conv(x, w, values.fresh(equation.outputs[0]), **equation.params, epilogue=epilogue,
                             is_fixed=w.buffer in values.fixed)


def conv_dw(values: Values, equation: Equation) -> list[Step]:
    """Steps of the gradient of a convolution with respect to its kernel; one of pixels is a product of matrices."""
    x, ct = (values.solid(value) for value in equation.inputs)
    params = {name: value for name, value in equation.params.items() if name != "kernel"}
    out = values.fresh(equation.outputs[0])
    if max(params["input_dilation"]) == 1 and conv_kernels.is_pointwise(
            out.shape[:-2], params["stride"], params["padding"], params["groups"]):
        pixels, inputs, outputs = x.size // x.shape[-1], x.shape[-1], ct.shape[-1]
        return slices.product(replace(x, shape=(inputs, pixels), strides=(1, inputs)),
                              replace(ct, shape=(pixels, outputs), strides=(outputs, 1)),
                              replace(out, shape=(inputs, outputs), strides=(outputs, 1)))
    return conv_kernels.conv_dw(x, ct, out, **params)
