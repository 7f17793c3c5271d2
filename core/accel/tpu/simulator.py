"""Simulator of TPU v1: runs an instruction stream value by value on the chip's memories.

Invariant: nothing is read that was not written before, and nothing lies outside its memory; where a program breaks
that, the error names the instruction. What Read_Host_Memory and Activate write to the unified buffer may be read after
the next Synchronise. Sums have 32 bits and wrap around.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import Scaling
from core.accel.tpu.instructions import (
    Activate,
    Convolve,
    Function,
    Halt,
    Instruction,
    InterruptHost,
    MatrixMultiply,
    Memories,
    ReadHostMemory,
    ReadWeights,
    Synchronise,
    WriteHostMemory,
)
from core.accel.tpu.layers import SUM_ROWS, strips
from core.accel.tpu.programs import Place, Program
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

    def run(self, instructions: Sequence[Instruction], first: int = 0) -> None:
        """Run a stream to its Halt or Interrupt_Host.

        Parameters
        ----------
        first : number of the first instruction in the program

        Raises
        ------
        DeviceError
            If an instruction cannot run, or the stream has no end.
        """
        for number, instruction in enumerate(instructions, first):
            if isinstance(instruction, (Halt, InterruptHost)):
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
                self._multiply(instruction, _lines(instruction.buffer, instruction.lines, instruction.pitch,
                                                   instruction.length, instruction.stride))
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
        # A float64 holds these sums exactly, and numpy multiplies floats much faster than integers.
        sums = (given.astype(np.float64) @ self.weights.astype(np.float64)).astype(np.int32)
        places = _range(instruction.accumulator, rows.size)
        if instruction.accumulate:
            sums = self.accumulators.read(places) + sums
        self.accumulators.write(places, sums, _READABLE)

    def _activate(self, instruction: Activate) -> None:
        if instruction.scaling >= len(self.scalings):
            raise _Refused(f"the program has {len(self.scalings)} scalings, and no number {instruction.scaling}")
        scaling = self.scalings[instruction.scaling]
        if lacking := scaling.lacks(instruction.function, instruction.pool):
            raise _Refused(f"scaling {instruction.scaling} has no {lacking}")
        rows = _lines(instruction.buffer, instruction.lines, instruction.length + instruction.gap, instruction.length)
        if instruction.function is Function.SUMS:
            rows = _range(instruction.buffer, SUM_ROWS * rows.size)
        taken = scaling.taken(instruction.lines * instruction.length)
        sums = self.accumulators.read(_range(instruction.accumulator, taken))
        found = scaling.bytes_of(sums, instruction.function, instruction.pool)
        if len(found) != rows.size:
            raise _Refused(f"the windows of scaling {instruction.scaling} give {len(found)} rows, not {rows.size}")
        self.buffer.write(rows, found, _WRITTEN)


def _range(first: int, count: int) -> NDArray[np.int64]:
    return np.arange(first, first + count)


def _lines(first: int, lines: int, pitch: int, length: int, stride: int = 1) -> NDArray[np.int64]:
    """Rows in lines."""
    return (first + np.arange(lines)[:, None] * pitch + np.arange(length) * stride).reshape(-1)


Host = Callable[[int, list[NDArray[Any]]], list[NDArray[Any]]]
"""The host: the values that a part of a program is given, by the part's number and what the part before gave."""


def run(program: Program, host: Host) -> list[NDArray[Any]]:
    """Run a program; gives what its last part gives.

    Parameters
    ----------
    host : asked before each part; arrays are those of the part's places, [row, column]
    """
    memory = np.zeros(program.host_bytes, np.uint8)
    chip = Simulator(program.memories, program.tiles, program.scalings, memory)
    found: list[NDArray[Any]] = []
    size, number = program.memories.array, 0
    for step, part in enumerate(program.parts):
        for place, values in zip(part.given, host(step, found), strict=True):
            _put(memory, place, values, size)
        chip.run(part.instructions, number)
        number += len(part.instructions)
        found = [_get(memory, place, size) for place in part.wanted]
    return found


def simulate(program: Program, x: NDArray[Any]) -> NDArray[Any]:
    """What a program of one input and one output makes of its input.

    Parameters
    ----------
    x : i8 or u8 [row, column], as the program's input is

    Returns
    -------
    i8 or u8 [row, column]
    """
    (given,) = program.parts[0].given
    if x.shape != (given.rows, given.columns) or x.dtype != given.dtype:
        raise ShapeError(f"the program takes {given.dtype.__name__}[{given.rows}, {given.columns}]; this is "
                         f"{x.dtype}{list(x.shape)}")
    (found,) = run(program, lambda step, _: [x])
    return found


def _put(memory: NDArray[np.uint8], place: Place, values: NDArray[Any], size: int) -> None:
    """Write bytes into host memory, by strips."""
    padded = np.pad(values, ((0, 0), (0, -place.columns % size))).view(np.uint8)
    by_strip = padded.reshape(place.rows, -1, size).swapaxes(0, 1).reshape(-1)
    memory[place.host:place.host + by_strip.size] = by_strip


def _get(memory: NDArray[np.uint8], place: Place, size: int) -> NDArray[Any]:
    """Read bytes or sums from host memory, by strips."""
    taken = memory[place.host:place.host + strips(place.columns, size) * place.strip_rows * size]
    # Of a number, the bytes lie in rows; here they come to lie side by side.
    by_strip = taken.reshape(-1, place.rows, np.dtype(place.dtype).itemsize, size)
    whole = np.ascontiguousarray(by_strip.transpose(1, 0, 3, 2)).reshape(place.rows, -1).view(place.dtype)
    return np.ascontiguousarray(whole[:, :place.columns])
