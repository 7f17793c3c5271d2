"""Machines as data: what a chip, its board and its pod are made of, read from a TOML file.

Invariant: a `Machine` has no impossible or contradictory figure; every total, such as a peak, is computed from its
parts.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.accel.tpu.figures import quantity, read, refused
from core.engine.errors import ConfigError

SUM_BYTES = 4
"""Of a sum in the accumulators: 32 bits."""


@dataclass(frozen=True)
class SystolicArray:
    """The matrix units.

    Attributes
    ----------
    rows, columns : multipliers of one array; the reduction runs down the rows
    per_core : arrays of a core
    weight_shift : cycles to shift a tile of weights in
    passes : times that a row goes through the array, by the name of the operands' type
    """

    rows: int
    columns: int
    per_core: int
    weight_shift: int
    passes: Mapping[str, int]


@dataclass(frozen=True)
class Memory:
    """Memory off the chip that holds the weights, in bytes and bytes a second.

    Attributes
    ----------
    bandwidth : peak
    streaming : what a stream of weight tiles gets of it
    fifo_tiles : tiles of weights that wait on the chip
    element_bytes : of weights and activations but 16-bit integers; None if they are as a graph has them
    read_only : the chip cannot write to it, so activations must find room on the chip
    """

    capacity: int = quantity("B")
    bandwidth: float = quantity("B/s")
    streaming: float = quantity("B/s")
    fifo_tiles: int = 1
    element_bytes: int | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Buffer:
    """Activations on the chip (Unified Buffer, Vmem) of one core."""

    capacity: int = quantity("B")
    bandwidth: float = quantity("B/s")


@dataclass(frozen=True)
class Accumulators:
    """Sums below the array; half of them fill while the other half is read."""

    capacity: int = quantity("B")


@dataclass(frozen=True)
class VectorUnit:
    """Elementwise work of one core.

    Attributes
    ----------
    lanes : elements a cycle
    slots : operations on each of them
    synchronisation : seconds from the end of an operation until the arrays may read what it made
    """

    lanes: int
    slots: int
    synchronisation: float = quantity("s", 0.0)


@dataclass(frozen=True)
class Host:
    """The way to the host: the link's own speed, and what data gets of it."""

    link: float = quantity("B/s")
    bandwidth: float = quantity("B/s")


@dataclass(frozen=True)
class Links:
    """Links of a chip to its neighbours.

    Attributes
    ----------
    bandwidth : of one link in one direction
    hop : seconds from a chip to its neighbour
    """

    count: int
    bandwidth: float = quantity("B/s")
    hop: float = quantity("s")


@dataclass(frozen=True)
class System:
    """How chips are put together; the extents of a torus of all of them, if they are linked."""

    chips_per_board: int
    boards: int
    torus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Machine:
    """One kind of chip and what is built of it."""

    name: str
    clock: float = quantity("Hz")
    cores: int = 1
    array: SystolicArray = field(kw_only=True)
    memory: Memory = field(kw_only=True)
    buffer: Buffer = field(kw_only=True)
    vector: VectorUnit = field(kw_only=True)
    host: Host = field(kw_only=True)
    system: System = field(kw_only=True)
    accumulators: Accumulators | None = field(default=None, kw_only=True)
    links: Links | None = field(default=None, kw_only=True)

    # --- one chip ----------------------------------------------------------------------------------------------------

    @property
    def arrays(self) -> int:
        """Of a chip."""
        return self.cores * self.array.per_core

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates of a chip."""
        return self.arrays * self.array.rows * self.array.columns

    @property
    def peak(self) -> float:
        """Operations a second of a chip at one pass; a multiply-accumulate is two."""
        return 2 * self.macs_per_cycle * self.clock

    @property
    def knee(self) -> float:
        """Multiply-accumulates a byte of memory from which on a chip is bound by its arrays."""
        return self.macs_per_cycle * self.clock / self.memory.bandwidth

    @property
    def weight_bytes(self) -> int:
        """Of one weight in the array: the type of a single pass, 8 or 16 bits."""
        return self.memory.element_bytes or 2

    @property
    def tile_bytes(self) -> int:
        """Of the weights that fill one array."""
        return self.array.rows * self.array.columns * self.weight_bytes

    @property
    def tile_cycles(self) -> float:
        """To load the weights of one array from memory, if one array loads at a time."""
        return self.tile_bytes / self.memory.streaming * self.clock

    @property
    def accumulator_rows(self) -> int | None:
        """Rows of sums that the accumulators of an array hold; None if there is no such memory."""
        if self.accumulators is None:
            return None
        return self.accumulators.capacity // (self.arrays * self.array.columns * SUM_BYTES)

    # --- boards and pods ---------------------------------------------------------------------------------------------

    @property
    def chips(self) -> int:
        """Of a pod."""
        return self.system.chips_per_board * self.system.boards

    @property
    def board_peak(self) -> float:
        return self.system.chips_per_board * self.peak

    @property
    def pod_peak(self) -> float:
        return self.chips * self.peak

    @property
    def board_memory(self) -> int:
        return self.system.chips_per_board * self.memory.capacity

    @property
    def pod_memory(self) -> int:
        return self.chips * self.memory.capacity

    @property
    def bisection(self) -> float:
        """Bytes a second, in one direction, across the cut that halves the torus: two links for each ring it cuts."""
        if self.links is None:
            return 0.0
        return 2 * self.chips / max(self.system.torus) * self.links.bandwidth


def names() -> list[str]:
    """Machines that come along."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__package__).joinpath("machines").iterdir()
                  if entry.name.endswith(".toml"))


def machine(name: str | Path) -> Machine:
    """The machine of this name, or that of a TOML file.

    Raises
    ------
    ConfigError
        If there is none, or a figure is missing, unknown, impossible or in contradiction to another one.
    """
    if str(name) in names():
        source = f"{name}.toml"
        text = files(__package__).joinpath("machines", source).read_text(encoding="utf-8")
        return _parse(text, source, str(name))
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigError(f"there is no chip {str(name)!r}; there are {', '.join(names())}, or name a TOML file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the machine file {path} cannot be read: {error}") from error
    return _parse(text, str(path), path.stem)


def changed(original: Machine, changes: Mapping[str, Any]) -> Machine:
    """A machine with other figures, by names such as ``array.rows``; the result is checked as a file is."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        part, _, inner = name.rpartition(".")
        parts.setdefault(part, {})[inner] = value
    top = parts.pop("", {})
    nested = {part: dataclasses.replace(getattr(original, part), **values) for part, values in parts.items()}
    result = dataclasses.replace(original, **nested, **top)
    _check(result, f"{original.name} with {', '.join(changes)} changed")
    return result


def _parse(text: str, source: str, name: str) -> Machine:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the machine file {source} is not TOML: {error}") from error
    result: Machine = read(Machine, {"name": name, **given}, source, "")
    _check(result, source)
    return result


def _check(found: Machine, source: str) -> None:
    """Refuse figures that contradict each other."""
    for name, problem, hint in _contradictions(found):
        raise refused(source, name, problem, hint)


def _contradictions(found: Machine) -> Iterator[tuple[str, str, str]]:
    """Field, what is wrong with it, and what would be right."""
    memory, system = found.memory, found.system
    if memory.streaming > memory.bandwidth:
        yield ("memory.streaming", f"is {memory.streaming:.4g} B/s, more than memory.bandwidth",
               f"give at most {memory.bandwidth:.4g} B/s")
    if memory.fifo_tiles * found.tile_bytes > memory.capacity:
        yield ("memory.fifo_tiles", f"is {memory.fifo_tiles}, which is more than the memory holds",
               f"a tile has {found.tile_bytes:,} bytes, so give at most {memory.capacity // found.tile_bytes}")
    if found.host.bandwidth > found.host.link:
        yield ("host.bandwidth", f"is {found.host.bandwidth:.4g} B/s, more than host.link",
               f"give at most {found.host.link:.4g} B/s")
    if 1 not in found.array.passes.values():
        yield "array.passes", "has no type of a single pass", "give the type at which the array has its full speed"
    if found.accumulators is not None and not found.accumulator_rows:
        yield ("accumulators.capacity", "does not hold a row of sums of each array",
               f"give at least {found.arrays * found.array.columns * SUM_BYTES} bytes")
    if found.links is None and system.torus:
        yield "system.torus", "is given, but the chips have no links", "give a table [links], or leave the torus out"
    if found.links is not None and math.prod(system.torus) != found.chips:
        yield ("system.torus", f"{list(system.torus)} has {math.prod(system.torus)} places for "
               f"{system.chips_per_board} chips a board x {system.boards} boards = {found.chips} chips",
               f"give extents whose product is {found.chips}")
    if found.links is not None and found.links.count < 2 * sum(extent > 2 for extent in system.torus):
        yield ("links.count", f"is {found.links.count}, too few for a torus of {len(system.torus)} axes",
               f"a chip needs two links an axis: give {2 * len(system.torus)}")
