"""Weights of products as TPU v1 takes them: a matrix a tap, and how the rows of the source are counted.

Invariant: a row of sums is ``sum over taps of source[first row + tap] @ weights[tap]``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.refusal import refused
from core.engine.graph import Equation


@dataclass(frozen=True)
class Matrices:
    """Of one product; see `layers.Layer`."""

    dims: tuple[int, ...]
    steps: tuple[int, ...]
    taps: tuple[int, ...]
    weights: NDArray[np.int8]


def of_dot(equation: Equation, weights: NDArray[np.int8], columns: int) -> Matrices:
    """Those of a dot of rows of so many columns; several rows may be one row of the product, each a tap.

    Raises
    ------
    DeviceError
        If the dot has batches, or sums over another axis than the last one.
    """
    source, second = (value.aval for value in equation.inputs)
    contract, batch = equation.params["contract"], equation.params["batch"]
    if batch[0] or contract[0] != (source.ndim - 1,) or second.ndim > 2:
        raise refused(equation, f"{source} times {second}, summed over axes {contract[0]}",
                      "the matrix unit multiplies rows by one matrix of weights",
                      "multiply the last axis of the activations by a matrix")
    ordered: NDArray[Any] = np.moveaxis(weights, contract[1][0], 0).reshape(source.shape[-1], -1)
    taps = source.shape[-1] // columns
    return Matrices((1, source.size // source.shape[-1]), (0, taps), tuple(range(taps)),
                    np.ascontiguousarray(ordered).reshape(taps, columns, -1))


def of_conv(equation: Equation, weights: NDArray[np.int8], columns: int) -> Matrices:
    """Those of a convolution of unpadded images.

    Raises
    ------
    DeviceError
        If the op itself pads or dilates its input.
    """
    params, source = equation.params, equation.inputs[0].aval
    if any(low or high for low, high in params["padding"]) or any(one != 1 for one in params["input_dilation"]):
        raise refused(equation, f"padding {params['padding']} and input dilation {params['input_dilation']} of the op",
                      "the chip reads bytes as they lie in the unified buffer",
                      "pad the bytes before the convolution, as QuantisedConv does")
    space, kernel = source.shape[1:-1], weights.shape[:-2]
    rows = [math.prod(space[axis + 1:]) for axis in range(len(space))]
    steps = tuple(stride * row for stride, row in zip(params["stride"], rows, strict=True))
    reach = [dilation * row for dilation, row in zip(params["dilation"], rows, strict=True)]
    taps = tuple(sum(at * row for at, row in zip(tap, reach, strict=True))
                 for tap in itertools.product(*map(range, kernel)))
    return Matrices(equation.outputs[0].aval.shape[:-1], (math.prod(space), *steps), taps,
                    _dense(weights.reshape(len(taps), *weights.shape[-2:]), params["groups"]))


def _dense(weights: NDArray[np.int8], groups: int) -> NDArray[np.int8]:
    """i8[tap, input, output] of the weights of groups i8[tap, input of a group, output]: zeros between groups."""
    if groups == 1:
        return weights
    taps, inputs, outputs = weights.shape
    each = outputs // groups
    whole = np.zeros((taps, inputs * groups, outputs), np.int8)
    for group in range(groups):
        columns = slice(group * each, (group + 1) * each)
        whole[:, group * inputs:(group + 1) * inputs, columns] = weights[:, :, columns]
    return whole
