"""Instructions of TPU v1 as data, with their encoding and their text.

Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing Unit" (arXiv 1704.04760, section 2), name the
instructions and say that MatrixMultiply has 12 bytes: 3 of the address in the unified buffer, 2 of that in the
accumulators, 4 of length (two dimensions for a convolution), the rest opcode and flags. The paper says nothing about
the bits within them, nor about the other instructions: those here share that frame, the numbers are ours.

Invariant: an instruction is 12 bytes, and decoding them gives it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from core.accel.tpu.machine import Machine
from core.engine.errors import DeviceError

NBYTES = 12
_OPCODE = 72
"""The bit at which the opcode begins; flags follow it."""


@dataclass(frozen=True)
class Memories:
    """Sizes of the memories that instructions name.

    Attributes
    ----------
    array : rows and columns of the matrix unit, and 8-bit elements of a row of the unified buffer
    buffer_rows, accumulator_rows : rows of `array` elements; those of the accumulators have 32 bits
    fifo_tiles : tiles of `array` x `array` weights that may wait in front of the matrix unit
    """

    array: int
    buffer_rows: int
    accumulator_rows: int
    fifo_tiles: int

    @classmethod
    def of(cls, machine: Machine) -> Memories:
        """Those of a chip of one square array with accumulators."""
        array = machine.array.rows
        assert machine.accumulator_rows and machine.arrays == 1 and machine.array.columns == array
        return cls(array, machine.buffer.capacity // array, machine.accumulator_rows, machine.memory.fifo_tiles)


class Function(enum.IntEnum):
    """What the activation unit makes of sums.

    IDENTITY bytes; RELU bytes of at least the zero point; RELU6 those, and of no more than a ceiling, such as the byte
    of 6; TABLE the bytes that a table of 256 has for bytes, such as sigmoid or tanh; SUMS the four bytes of each sum,
    lowest first, in four rows that follow each other.
    """

    IDENTITY = 0
    RELU = 1
    RELU6 = 2
    TABLE = 3
    SUMS = 4


class Pool(enum.IntEnum):
    """What the activation unit makes of the bytes of a window."""

    NONE = 0
    MAX = 1
    AVERAGE = 2


def _bits(first: int, count: int, kind: Callable[[int], Any] = int) -> dict[str, Any]:
    """Where of the 96 bits a field is, and what it is made of."""
    return {"first": first, "count": count, "kind": kind}


_BUFFER, _ACCUMULATOR = _bits(0, 24), _bits(24, 16)
_LINES, _LENGTH = _bits(40, 13), _bits(53, 13)
"""The two dimensions of a length; 13 bits count all rows of the accumulators."""


def _span(first: int, count: int) -> str:
    """``first..last`` of so many."""
    return f"{first}..{first + count - 1}" if count != 1 else str(first)


def _lines(lines: int, length: int, pitch: int, stride: int = 1) -> str:
    """Rows in lines, in words."""
    strided = f", {stride} apart" if stride != 1 else ""
    return f"{lines} x {length} rows{strided}, lines {pitch} apart" if lines != 1 else f"1 x {length} rows{strided}"


@dataclass(frozen=True)
class Instruction:
    """One instruction; addresses in the unified buffer and in the accumulators count rows."""

    name: ClassVar[str]
    opcode: ClassVar[int]

    def __str__(self) -> str:
        flags = [entry.name for entry in dataclasses.fields(self) if getattr(self, entry.name) is True]
        return f"{self.name:<18} {', '.join([*self.words(), *flags])}".rstrip()

    def words(self) -> list[str]:
        """What it does, but for its flags."""
        return []

    def encode(self) -> bytes:
        """The 12 bytes.

        Raises
        ------
        DeviceError
            If a number does not fit into its field.
        """
        word = self.opcode << _OPCODE
        for entry in dataclasses.fields(self):
            number, count = int(getattr(self, entry.name)), entry.metadata["count"]
            if not 0 <= number < 1 << count:
                raise DeviceError(f"{self.name}: {entry.name} is {number}, and has {count} bits, "
                                  f"0 to {(1 << count) - 1}")
            word |= number << entry.metadata["first"]
        return word.to_bytes(NBYTES, "little")


@dataclass(frozen=True)
class ReadHostMemory(Instruction):
    """Copy rows from host memory, from byte `host` on, to the unified buffer."""

    name, opcode = "Read_Host_Memory", 1
    buffer: int = field(metadata=_BUFFER)
    rows: int = field(metadata=_bits(24, 16))
    host: int = field(metadata=_bits(40, 32))

    def words(self) -> list[str]:
        return [f"buffer {_span(self.buffer, self.rows)} from host {self.host}"]


@dataclass(frozen=True)
class WriteHostMemory(Instruction):
    """Copy rows of the unified buffer to host memory, from byte `host` on."""

    name, opcode = "Write_Host_Memory", 2
    buffer: int = field(metadata=_BUFFER)
    rows: int = field(metadata=_bits(24, 16))
    host: int = field(metadata=_bits(40, 32))

    def words(self) -> list[str]:
        return [f"buffer {_span(self.buffer, self.rows)} to host {self.host}"]


@dataclass(frozen=True)
class ReadWeights(Instruction):
    """Put tiles of the weight memory, from number `tile` on, into the queue in front of the matrix unit."""

    name, opcode = "Read_Weights", 3
    count: int = field(metadata=_bits(24, 16))
    tile: int = field(metadata=_bits(40, 32))

    def words(self) -> list[str]:
        return [f"tiles {_span(self.tile, self.count)}"]


@dataclass(frozen=True)
class MatrixMultiply(Instruction):
    """Multiply rows of the unified buffer by the weights in the matrix unit.

    Attributes
    ----------
    next_tile : shift the next tile of the queue in first
    accumulate : add to what the accumulators hold
    signed : whether the bytes of the buffer are i8; else they are u8
    """

    name, opcode = "MatrixMultiply", 4
    buffer: int = field(metadata=_BUFFER)
    accumulator: int = field(metadata=_ACCUMULATOR)
    rows: int = field(metadata=_bits(40, 32))
    next_tile: bool = field(metadata=_bits(80, 1, bool))
    accumulate: bool = field(metadata=_bits(81, 1, bool))
    signed: bool = field(metadata=_bits(82, 1, bool))

    def words(self) -> list[str]:
        return [f"buffer {_span(self.buffer, self.rows)} to accumulators {_span(self.accumulator, self.rows)}"]


@dataclass(frozen=True)
class Convolve(Instruction):
    """MatrixMultiply for one tap of a convolution, whose rows lie in lines.

    Attributes
    ----------
    lines, length : lines, and rows of each
    stride : from one row of a line to the next
    pitch : from the begin of a line to that of the next
    """

    name, opcode = "Convolve", 5
    buffer: int = field(metadata=_BUFFER)
    accumulator: int = field(metadata=_ACCUMULATOR)
    lines: int = field(metadata=_LINES)
    length: int = field(metadata=_LENGTH)
    stride: int = field(metadata=_bits(66, 6))
    pitch: int = field(metadata=_bits(83, 13))
    next_tile: bool = field(metadata=_bits(80, 1, bool))
    accumulate: bool = field(metadata=_bits(81, 1, bool))
    signed: bool = field(metadata=_bits(82, 1, bool))

    def words(self) -> list[str]:
        return [f"buffer {self.buffer}: {_lines(self.lines, self.length, self.pitch, self.stride)} to accumulators "
                f"{_span(self.accumulator, self.lines * self.length)}"]


@dataclass(frozen=True)
class Activate(Instruction):
    """Make bytes in the unified buffer of sums, by number `scaling` of the program's scalings.

    Attributes
    ----------
    lines, length : lines of the result, and rows of each
    gap : rows between two lines of the result
    """

    name, opcode = "Activate", 6
    buffer: int = field(metadata=_BUFFER)
    accumulator: int = field(metadata=_ACCUMULATOR)
    lines: int = field(metadata=_LINES)
    length: int = field(metadata=_LENGTH)
    gap: int = field(metadata=_bits(66, 6))
    function: Function = field(metadata=_bits(80, 3, Function))
    pool: Pool = field(metadata=_bits(83, 2, Pool))
    scaling: int = field(metadata=_bits(85, 11))

    def words(self) -> list[str]:
        rows = self.lines * self.length
        if self.function is Function.SUMS:
            target = f"buffer {_span(self.buffer, 4 * rows)}"
        elif self.gap:
            target = f"buffer {self.buffer}: {_lines(self.lines, self.length, self.length + self.gap)}"
        else:
            target = f"buffer {_span(self.buffer, rows)}"
        pooled = self.pool is not Pool.NONE
        source = f"from {self.accumulator} on" if pooled else _span(self.accumulator, rows)
        return [f"accumulators {source} to {target}", self.function.name.lower(),
                *([self.pool.name.lower()] if pooled else []), f"scaling {self.scaling}"]


@dataclass(frozen=True)
class Synchronise(Instruction):
    """Wait until what was written to the unified buffer is there."""

    name, opcode = "Synchronise", 7


@dataclass(frozen=True)
class InterruptHost(Instruction):
    """Let the host do its step of this number, and wait for it."""

    name, opcode = "Interrupt_Host", 9
    step: int = field(metadata=_bits(24, 16))

    def words(self) -> list[str]:
        return [f"step {self.step}"]


@dataclass(frozen=True)
class Halt(Instruction):
    """Stop."""

    name, opcode = "Halt", 8


_KINDS: dict[int, type[Instruction]] = {kind.opcode: kind for kind in (
    ReadHostMemory, WriteHostMemory, ReadWeights, MatrixMultiply, Convolve, Activate, Synchronise, InterruptHost, Halt)}


def decode(encoded: bytes) -> Instruction:
    """The instruction of 12 bytes.

    Raises
    ------
    DeviceError
        If they are none.
    """
    word = int.from_bytes(encoded, "little")
    kind = _KINDS.get(word >> _OPCODE & 255)
    if len(encoded) == NBYTES and kind is not None:
        numbers = {entry.name: (word >> entry.metadata["first"]) % (1 << entry.metadata["count"])
                   for entry in dataclasses.fields(kind)}
        with contextlib.suppress(ValueError):  # of an unknown function
            found = kind(**{entry.name: entry.metadata["kind"](numbers[entry.name])
                            for entry in dataclasses.fields(kind)})
            if found.encode() == encoded:
                return found
    raise DeviceError(f"{encoded.hex()} is no instruction; one has {NBYTES} bytes, and what it does not need is 0")
