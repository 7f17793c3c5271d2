"""Simulator of TPU v1: runs an instruction stream value by value on the chip's memories.

Invariant: nothing is read that was not written before, and nothing lies outside its memory; where a program breaks
that, the error names the instruction. What Read_Host_Memory and Activate write to the unified buffer may be read after
the next Synchronise. Sums have 32 bits and wrap around.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.instructions import (
    Activate,
    Convolve,
    Function,
    Halt,
    Instruction,
    MatrixMultiply,
    Memories,
    ReadHostMemory,
    ReadWeights,
    Synchronise,
    WriteHostMemory,
)
from core.accel.tpu.programs import Place, Program, Scaling
from core.accel.tpu.requantisation import rescale
from core.engine.errors import DeviceError, ShapeError, compose

_NEVER, _WRITTEN, _READABLE = range(3)


class _Refused(Exception):
    """An instruction that cannot run, and why."""


@dataclass
class _Rows:
    """A memory of rows that knows which of them were written."""

    name: str
    values: NDArray[Any]
    state: NDArray[np.uint8]

    @staticmethod
    def of(name: str, rows: int, columns: int, dtype: Any) -> _Rows:
        return _Rows(name, np.zeros((rows, columns), dtype), np.full(rows, _NEVER, np.uint8))

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        self._check(rows)
        never = rows[self.state[rows] == _NEVER]
        if never.size:
            raise _Refused(f"nothing has written row {never[0]} of the {self.name}")
        early = rows[self.state[rows] == _WRITTEN]
        if early.size:
            raise _Refused(f"row {early[0]} of the {self.name} was written after the last Synchronise")
        return self.values[rows]

    def write(self, rows: NDArray[np.int64], values: NDArray[Any], state: int) -> None:
        self._check(rows)
        self.values[rows] = values
        self.state[rows] = state

    def _check(self, rows: NDArray[np.int64]) -> None:
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.state):
            raise _Refused(f"row {rows.max()} is outside the {self.name}, which has {len(self.state)}")


class Simulator:
    """The memories of the chip while a program runs.

    Attributes
    ----------
    host : u8[byte], host memory
    weights : the tile in the matrix unit, i8[row, column], if there is one
    queue : tiles that wait for it
    """

    def __init__(self, memories: Memories, tiles: NDArray[np.int8], scalings: tuple[Scaling, ...],
                 host: NDArray[np.uint8]) -> None:
        self.memories = memories
        self.tiles = tiles
        self.scalings = scalings
        self.host = host
        self.buffer = _Rows.of("unified buffer", memories.buffer_rows, memories.array, np.uint8)
        self.accumulators = _Rows.of("accumulators", memories.accumulator_rows, memories.array, np.int32)
        self.queue: deque[NDArray[np.int8]] = deque()
        self.weights: NDArray[np.int8] | None = None

    def run(self, instructions: tuple[Instruction, ...]) -> None:
        """Run a stream to its Halt.

        Raises
        ------
        DeviceError
            If an instruction cannot run, or the stream does not end with Halt.
        """
        for number, instruction in enumerate(instructions):
            if isinstance(instruction, Halt):
                return
            try:
                self._step(instruction)
            except _Refused as refused:
                raise DeviceError(compose(f"instruction {number} of the program cannot run", [
                    ("instruction", " ".join(str(instruction).split())), ("reason", str(refused))])) from None
        raise DeviceError(f"the program of {len(instructions)} instructions has no Halt")

    def _step(self, instruction: Instruction) -> None:
        match instruction:
            case ReadHostMemory():
                rows = _range(instruction.buffer, instruction.rows)
                self.buffer.write(rows, self._host(instruction.host, rows.size), _WRITTEN)
            case WriteHostMemory():
                rows = _range(instruction.buffer, instruction.rows)
                self._host(instruction.host, rows.size)[...] = self.buffer.read(rows)
            case ReadWeights():
                self._read_weights(instruction)
            case MatrixMultiply():
                self._multiply(instruction, _range(instruction.buffer, instruction.rows))
            case Convolve():
                lines = _range(0, instruction.lines)[:, None] * instruction.pitch
                self._multiply(instruction, (lines + _range(instruction.buffer, instruction.length)).reshape(-1))
            case Activate():
                self._activate(instruction)
            case Synchronise():
                self.buffer.state[self.buffer.state == _WRITTEN] = _READABLE

    def _host(self, first: int, rows: int) -> NDArray[np.uint8]:
        """Rows in host memory."""
        end = first + rows * self.memories.array
        if end > self.host.size:
            raise _Refused(f"byte {end - 1} is outside the host memory, which has {self.host.size}")
        return self.host[first:end].reshape(rows, self.memories.array)

    def _read_weights(self, instruction: ReadWeights) -> None:
        last = instruction.tile + instruction.count
        if last > len(self.tiles):
            raise _Refused(f"tile {last - 1} is outside the weight memory, which has {len(self.tiles)}")
        if len(self.queue) + instruction.count > self.memories.fifo_tiles:
            raise _Refused(f"{len(self.queue)} tiles wait already, and the queue holds {self.memories.fifo_tiles}")
        self.queue.extend(self.tiles[instruction.tile:last])

    def _multiply(self, instruction: MatrixMultiply | Convolve, rows: NDArray[np.int64]) -> None:
        if instruction.next_tile:
            if not self.queue:
                raise _Refused("no tile waits in the queue; Read_Weights must come first")
            self.weights = self.queue.popleft()
        if self.weights is None:
            raise _Refused("the matrix unit has no weights; shift a tile in with next_tile")
        given = self.buffer.read(rows).view(np.int8 if instruction.signed else np.uint8)
        sums = given.astype(np.int32) @ self.weights.astype(np.int32)
        places = _range(instruction.accumulator, rows.size)
        if instruction.accumulate:
            sums = self.accumulators.read(places) + sums
        self.accumulators.write(places, sums, _READABLE)

    def _activate(self, instruction: Activate) -> None:
        if instruction.scaling >= len(self.scalings):
            raise _Refused(f"the program has {len(self.scalings)} scalings, and no number {instruction.scaling}")
        scaling = self.scalings[instruction.scaling]
        sums = self.accumulators.read(_range(instruction.accumulator, instruction.rows))
        low, high = (-128, 127) if scaling.signed else (0, 255)
        if instruction.function is Function.RELU:
            low = max(low, scaling.zero)
        biased = (sums + scaling.bias).astype(np.int32)
        found = np.clip(rescale(biased, scaling.q31, scaling.shift) + scaling.zero, low, high)
        self.buffer.write(_range(instruction.buffer, instruction.rows), found.astype(np.uint8), _WRITTEN)


def _range(first: int, count: int) -> NDArray[np.int64]:
    return np.arange(first, first + count)


def simulate(program: Program, x: NDArray[Any]) -> NDArray[Any]:
    """What a program makes of its input.

    Parameters
    ----------
    x : i8 or u8 [row, column], as the program's input is

    Returns
    -------
    i8 or u8 [row, column]
    """
    size, given, wanted = program.memories.array, program.input, program.output
    if x.shape != (given.rows, given.columns) or x.dtype != given.dtype:
        raise ShapeError(f"the program takes {given.dtype.__name__}[{given.rows}, {given.columns}]; this is "
                         f"{x.dtype}{list(x.shape)}")
    host = np.zeros(wanted.host + _strips(wanted, size) * wanted.rows * size, np.uint8)
    padded = np.pad(x, ((0, 0), (0, -given.columns % size))).view(np.uint8)
    host[given.host:wanted.host] = padded.reshape(given.rows, -1, size).swapaxes(0, 1).reshape(-1)
    Simulator(program.memories, program.tiles, program.scalings, host).run(program.instructions)
    found = host[wanted.host:].reshape(-1, wanted.rows, size).swapaxes(0, 1).reshape(wanted.rows, -1)
    return np.ascontiguousarray(found[:, :wanted.columns]).view(wanted.dtype)


def _strips(place: Place, size: int) -> int:
    return -(-place.columns // size)
