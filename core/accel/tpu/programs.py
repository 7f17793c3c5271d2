"""Programs of TPU v1: an instruction stream, and the memories that it begins with.

Invariant: a program is cut into parts, of which each ends with Halt or with Interrupt_Host; what the host gives to a
part and takes from it stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import Scaling
from core.accel.tpu.instructions import (
    Halt,
    Instruction,
    InterruptHost,
    Memories,
    ReadHostMemory,
    Synchronise,
    WriteHostMemory,
)
from core.accel.tpu.layers import SUM_ROWS, Given, Layer, Stage, Store, strips
from core.accel.tpu.machine import machine
from core.accel.tpu.placement import Lifetime, most, place
from core.accel.tpu.stream import Stream
from core.engine.errors import DeviceError, compose

V1 = Memories.of(machine("tpu-v1"))
_MOST_ROWS = (1 << 16) - 1
"""Of a transfer of the host."""


@dataclass(frozen=True)
class Place:
    """Where bytes or sums [row, column] lie in host memory, by strips, from byte `host` on."""

    rows: int
    columns: int
    host: int
    dtype: type[np.int8] | type[np.uint8] | type[np.int32]

    @property
    def strip_rows(self) -> int:
        """Rows of bytes of a strip."""
        return self.rows * (SUM_ROWS if self.dtype is np.int32 else 1)


@dataclass(frozen=True)
class Section:
    """Instructions, and what they are for."""

    title: str
    notes: tuple[str, ...]
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Part:
    """What the chip does between two steps of the host."""

    given: tuple[Place, ...]
    sections: tuple[Section, ...]
    wanted: tuple[Place, ...]

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        return tuple(instruction for section in self.sections for instruction in section.instructions)


@dataclass(frozen=True)
class Program:
    """What the chip is given.

    Attributes
    ----------
    tiles : weight memory, i8[tile, row, column]
    host_bytes : of host memory
    buffer_rows : of the unified buffer, up to the highest that is used
    """

    memories: Memories
    parts: tuple[Part, ...]
    tiles: NDArray[np.int8]
    scalings: tuple[Scaling, ...]
    host_bytes: int
    buffer_rows: int

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        return tuple(instruction for part in self.parts for instruction in part.instructions)

    def __str__(self) -> str:
        memories = self.memories
        lines = [f"{len(self.instructions)} instructions of 12 bytes; {len(self.tiles)} weight tiles of "
                 f"{memories.array} x {memories.array}; {len(self.scalings)} scalings",
                 f"unified buffer: {self.buffer_rows} of {memories.buffer_rows} rows of {memories.array} bytes; "
                 f"accumulators: {memories.accumulator_rows} rows of {memories.array} sums of 32 bits"]
        number = 0
        for part in self.parts:
            for section in part.sections:
                lines += ["", section.title, *(f"        {note}" for note in section.notes)]
                for instruction in section.instructions:
                    lines.append(f"{number:6}  {instruction}")
                    number += 1
        return "\n".join(lines)


def assemble(stages: Sequence[Stage], memories: Memories, host_steps: Sequence[Sequence[str]] = ()) -> Program:
    """The program of some stages.

    Parameters
    ----------
    host_steps : what the host does behind each stage but the last one, in lines

    Raises
    ------
    DeviceError
        If values do not fit into the unified buffer, the windows of a layer into the accumulators, or a number into
        its field of an instruction.
    """
    rows = _addresses(stages, memories)
    stream, host = Stream(memories), _Host(memories.array)
    parts = []
    for number, stage in enumerate(stages):
        given, wanted = [host.place(one) for one in stage.given], [host.place(store) for store in stage.wanted]
        sections = [Section(f"from the host: {_described(given)}", (), (
            *(instruction for value, at in zip(stage.given, given, strict=True)
              for instruction in _transfer(ReadHostMemory, rows[value], at, memories.array)), Synchronise()))]
        for layer, stores in stage.layers:
            made = tuple(stream.layer(layer, rows[layer.source], {store: rows[store] for store in stores}))
            title = f"{layer.name}: weight tiles {layer.tiles(memories.array)}, rows of sums {prod(layer.dims)}"
            sections.append(Section(title, (layer.where,) if layer.where else (), (*made, Synchronise())))
        end: Instruction = Halt() if number + 1 == len(stages) else InterruptHost(number + 1)
        computed = tuple(host_steps[number]) if isinstance(end, InterruptHost) else ()
        told = ", which computes" if computed else ""
        sections.append(Section(f"to the host: {_described(wanted)}{told}", computed, (
            *(instruction for store, at in zip(stage.wanted, wanted, strict=True)
              for instruction in _transfer(WriteHostMemory, rows[store], at, memories.array)), end)))
        parts.append(Part(tuple(given), tuple(sections), tuple(wanted)))
    tiles = np.array(stream.tiles, np.int8).reshape(-1, memories.array, memories.array)
    top = max(row + strips(value.columns, memories.array) * value.rows for value, row in rows.items())
    program = Program(memories, tuple(parts), tiles, tuple(stream.scalings), host.used, top)
    for instruction in program.instructions:
        instruction.encode()
    return program


class _Host:
    """Host memory: places behind each other."""

    def __init__(self, array: int) -> None:
        self._array = array
        self.used = 0

    def place(self, value: Given | Store) -> Place:
        is_sums = isinstance(value, Store) and value.rule is None
        rows = value.rows // SUM_ROWS if is_sums else value.rows
        found = Place(rows, value.columns, self.used, np.int32 if is_sums else np.int8 if value.signed else np.uint8)
        self.used += strips(value.columns, self._array) * value.rows * self._array
        return found


def _described(places: Sequence[Place]) -> str:
    return ", ".join(f"{np.dtype(place.dtype).name} [{place.rows}, {place.columns}]" for place in places)


def _transfer(kind: type[ReadHostMemory] | type[WriteHostMemory], row: int, place: Place,
              size: int) -> Iterator[Instruction]:
    """Strips follow each other on both sides."""
    total = strips(place.columns, size) * place.strip_rows
    for begin in range(0, total, _MOST_ROWS):
        yield kind(row + begin, min(_MOST_ROWS, total - begin), place.host + begin * size)


def _addresses(stages: Sequence[Stage], memories: Memories) -> Mapping[Given | Store, int]:
    """The first row of each value in the unified buffer; a step is a layer or a transfer."""
    begin: dict[Given | Store, int] = {}
    end: dict[Given | Store, int] = {}
    layers: list[Layer | None] = []
    for stage in stages:
        begin.update(dict.fromkeys(stage.given, len(layers)))
        layers.append(None)
        for layer, stores in stage.layers:
            end[layer.source] = len(layers)
            begin.update(dict.fromkeys(stores, len(layers)))
            layers.append(layer)
        end.update(dict.fromkeys(stage.wanted, len(layers)))
        layers.append(None)
    lifetimes = [Lifetime(strips(value.columns, memories.array) * value.rows, first, end[value])
                 for value, first in begin.items()]
    rows = place(lifetimes)
    step, needed = most(lifetimes, rows)
    if needed > memories.buffer_rows:
        layer_then = layers[step] or next(layer for layer in layers[step:] if layer)
        raise DeviceError(compose("the unified buffer is too small", [
            ("layer", f"{layer_then.name}  {layer_then.where}".rstrip()),
            ("needed", f"{needed} rows of {memories.array} bytes"),
            ("found", f"{memories.buffer_rows} rows"),
            ("hint", f"take a batch of at most {memories.buffer_rows / needed:.0%} of this one")]))
    return dict(zip(begin, rows, strict=True))
