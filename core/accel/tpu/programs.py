"""Programs of TPU v1: dense layers of 8-bit numbers to the instruction stream, and the memories it begins with.

Invariant: a tile of weights is shifted in once for each block of rows that it multiplies; sums of a strip of columns
take turns with those of the strip before in the two halves of the accumulators, so that one can be activated while the
other is summed.

An activation [row, column] lies in the unified buffer, and in host memory, in strips of as many columns as the array
has: all rows of the first strip, then those of the second one. What fills up the last strip meets weights of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.instructions import (
    Activate,
    Function,
    Halt,
    Instruction,
    MatrixMultiply,
    Memories,
    ReadHostMemory,
    ReadWeights,
    Synchronise,
    WriteHostMemory,
    listing,
)
from core.accel.tpu.machine import machine
from core.accel.tpu.requantisation import multiplier
from core.engine.errors import DeviceError

V1 = Memories.of(machine("tpu-v1"))


@dataclass(frozen=True)
class Dense:
    """A dense layer of 8-bit numbers: ``y = requantised(function((x - input_zero) @ weights + bias))``.

    Attributes
    ----------
    weights : i8[input, output]
    bias : i32[output], in units of the sums
    multiplier : f64[output], what a sum is multiplied by to become a number of the output; at least 0
    input_zero, output_zero : zero points
    signed_input, signed_output : whether numbers are i8, else u8
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.float64]
    function: Function = Function.IDENTITY
    input_zero: int = 0
    output_zero: int = 0
    signed_input: bool = True
    signed_output: bool = True


@dataclass(frozen=True)
class Scaling:
    """What the activation unit does to the columns of one strip: add, rescale, move, cut to the range of 8 bits.

    The paper does not say where the chip keeps these numbers.

    Attributes
    ----------
    bias, q31, shift : i64[column], see `requantisation`
    zero : zero point of the output
    signed : whether the output is i8, else u8
    """

    bias: NDArray[np.int64]
    q31: NDArray[np.int64]
    shift: NDArray[np.int64]
    zero: int
    signed: bool


@dataclass(frozen=True)
class Place:
    """Where an activation lies in host memory: rows, columns, and the first byte."""

    rows: int
    columns: int
    host: int
    signed: bool

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8


@dataclass(frozen=True)
class Program:
    """An instruction stream and what it needs: weight memory i8[tile, row, column], scalings, places on the host."""

    memories: Memories
    instructions: tuple[Instruction, ...]
    tiles: NDArray[np.int8]
    scalings: tuple[Scaling, ...]
    input: Place
    output: Place

    def __str__(self) -> str:
        return listing(self.instructions)


def compile_dense(layers: Sequence[Dense], rows: int, memories: Memories = V1) -> Program:
    """The program that applies layers, one after the other, to so many rows.

    Raises
    ------
    DeviceError
        If layers do not fit each other, or activations do not fit into the unified buffer.
    """
    _check(layers)
    size = memories.array
    widths = [layers[0].weights.shape[0], *(layer.weights.shape[1] for layer in layers)]
    strips = [ceil(width / size) for width in widths]
    # Activations take turns in two regions, of which each holds the largest of its own.
    second = max(strips[0::2]) * rows
    needed = second + max(strips[1::2]) * rows
    if needed > memories.buffer_rows:
        raise DeviceError(f"the unified buffer has {memories.buffer_rows} rows of {size} bytes, and {rows} rows of "
                          f"layers with {max(widths)} columns need {needed}; take at most "
                          f"{rows * memories.buffer_rows // needed} rows at once")
    regions = [number % 2 * second for number in range(len(widths))]
    behind_input = strips[0] * rows * size
    stream: list[Instruction] = [ReadHostMemory(strip * rows, rows, strip * rows * size) for strip in range(strips[0])]
    stream.append(Synchronise())
    tiles: list[NDArray[np.int8]] = []
    scalings: list[Scaling] = []
    for number, layer in enumerate(layers):
        stream += _layer(layer, rows, memories, regions[number], regions[number + 1], len(tiles), len(scalings))
        stream.append(Synchronise())
        tiles += _tiles(layer.weights, size)
        scalings += _scalings(layer, size)
    stream += [WriteHostMemory(regions[-1] + strip * rows, rows, behind_input + strip * rows * size)
               for strip in range(strips[-1])]
    stream.append(Halt())
    return Program(memories, tuple(stream), np.array(tiles), tuple(scalings),
                   Place(rows, widths[0], 0, layers[0].signed_input),
                   Place(rows, widths[-1], behind_input, layers[-1].signed_output))


def _check(layers: Sequence[Dense]) -> None:
    if not layers:
        raise DeviceError("a program needs at least one layer")
    for number, (one, other) in enumerate(pairwise(layers)):
        given = one.weights.shape[1], one.signed_output, one.output_zero
        taken = other.weights.shape[0], other.signed_input, other.input_zero
        if given != taken:
            raise DeviceError(f"layer {number} gives (columns, signed, zero point) {given}, and layer {number + 1} "
                              f"takes {taken}")


def _layer(layer: Dense, rows: int, memories: Memories, source: int, target: int, first_tile: int,
           first_scaling: int) -> Iterator[Instruction]:
    """The instructions of a layer that reads and writes these regions of the unified buffer."""
    deep, wide = (ceil(extent / memories.array) for extent in layer.weights.shape)
    half = memories.accumulator_rows // 2
    turn = 0
    for begin in range(0, rows, half):
        count = min(half, rows - begin)
        for strip in range(wide):
            for part in range(deep):
                tile = strip * deep + part
                if tile % memories.fifo_tiles == 0:
                    yield ReadWeights(min(memories.fifo_tiles, deep * wide - tile), first_tile + tile)
                yield MatrixMultiply(source + part * rows + begin, turn * half, count, True, part > 0,
                                     layer.signed_input)
            yield Activate(target + strip * rows + begin, turn * half, count, layer.function, first_scaling + strip)
            turn = 1 - turn


def _tiles(weights: NDArray[np.int8], size: int) -> list[NDArray[np.int8]]:
    """Tiles of a matrix, those of a strip of columns after each other, filled up with zeros."""
    deep, wide = (ceil(extent / size) for extent in weights.shape)
    whole = np.zeros((deep * size, wide * size), np.int8)
    whole[:weights.shape[0], :weights.shape[1]] = weights
    return [whole[row * size:(row + 1) * size, column * size:(column + 1) * size]
            for column in range(wide) for row in range(deep)]


def _scalings(layer: Dense, size: int) -> Iterator[Scaling]:
    """Scalings of a layer's strips; the zero point of the input becomes part of the bias."""
    columns = layer.weights.shape[1]
    bias = layer.bias.astype(np.int64) - layer.input_zero * layer.weights.astype(np.int64).sum(0)
    q31, shift = np.array([multiplier(real) for real in layer.multiplier], np.int64).reshape(-1, 2).T
    for begin in range(0, columns, size):
        filling = (0, max(0, begin + size - columns))
        added, factor, moved = (np.pad(part[begin:begin + size], filling) for part in (bias, q31, shift))
        yield Scaling(added, factor, moved, layer.output_zero, layer.signed_output)
