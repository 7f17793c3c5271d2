"""Dense layers of 8-bit numbers in TFLite's rule, and the programs that they become.

Invariant: the zero point of an input becomes part of the bias, so that padding of the last strip needs no care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import FixedPoint, Table
from core.accel.tpu.instructions import Function, Memories
from core.accel.tpu.layers import Given, Layer, Stage, Store
from core.accel.tpu.programs import V1, Program, assemble
from core.accel.tpu.requantisation import multiplier
from core.engine.errors import DeviceError


@dataclass(frozen=True)
class Dense:
    """A dense layer of 8-bit numbers: ``y = requantised(function((x - input_zero) @ weights + bias))``.

    Attributes
    ----------
    weights : i8[input, output]
    bias : i32[output], in units of the sums
    multiplier : f64[output], what a sum is multiplied by to become a number of the output; at least 0
    function : a table is looked up behind the requantisation
    input_zero, output_zero : zero points
    signed_input, signed_output : whether numbers are i8, else u8
    table : of the function TABLE
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.float64]
    function: Function = Function.IDENTITY
    input_zero: int = 0
    output_zero: int = 0
    signed_input: bool = True
    signed_output: bool = True
    table: Table | None = None


def compile_dense(layers: Sequence[Dense], rows: int, memories: Memories = V1) -> Program:
    """The program that applies layers, one after the other, to so many rows.

    Raises
    ------
    DeviceError
        If layers do not fit each other, or activations do not fit into the unified buffer.
    """
    _check(layers)
    given = Given(rows, layers[0].weights.shape[0], layers[0].signed_input)
    source: Given | Store = given
    stage = Stage(given=[given])
    for number, dense in enumerate(layers):
        inputs, outputs = dense.weights.shape
        name = f"layer {number}: {inputs} to {outputs}"
        layer = Layer(name, "", source, (1, rows), (0, 1), (0,), dense.weights[None])
        source = Store(layer, _rule(dense), dense.output_zero, dense.signed_output, dense.function, table=dense.table)
        stage.layers.append((layer, [source]))
    assert isinstance(source, Store)
    stage.wanted.append(source)
    return assemble([stage], memories)


def _rule(dense: Dense) -> FixedPoint:
    bias = dense.bias.astype(np.int64) - dense.input_zero * dense.weights.astype(np.int64).sum(0)
    return FixedPoint(bias, *np.array([multiplier(real) for real in dense.multiplier], np.int64).reshape(-1, 2).T)


def _check(layers: Sequence[Dense]) -> None:
    if not layers:
        raise DeviceError("a program needs at least one layer")
    for number, (one, other) in enumerate(pairwise(layers)):
        given = one.weights.shape[1], one.signed_output, one.output_zero
        taken = other.weights.shape[0], other.signed_input, other.input_zero
        if given != taken:
            raise DeviceError(f"layer {number} gives (columns, signed, zero point) {given}, and layer {number + 1} "
                              f"takes {taken}")
