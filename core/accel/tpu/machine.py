"""Machines as data: what a chip, its board and its pod are made of, read from a TOML file.

Invariant: a `Machine` has no impossible or contradictory figure; every total, such as a peak, is computed from its
parts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.engine.errors import ConfigError, compose

SUM_BYTES = 4
"""Of a sum in the accumulators: 32 bits."""

_POWERS = {"": 1.0, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
           "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(r"([\d.]+(?:e\d+)?) ?(|u|m|k|M|G|T|Ki|Mi|Gi|Ti)(Hz|B/s|b/s|B|s)")
_EXAMPLES = {"Hz": '"700 MHz"', "s": '"7 us"', "B": '"24 MiB"', "B/s": '"34 GB/s" or "496 Gb/s"'}


def _quantity(unit: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that a file gives as a number of this unit, or as text with a prefix, such as ``"34 GB/s"``."""
    return field(default=default, metadata={"unit": unit})


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

    capacity: int = _quantity("B")
    bandwidth: float = _quantity("B/s")
    streaming: float = _quantity("B/s")
    fifo_tiles: int = 1
    element_bytes: int | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Buffer:
    """Activations on the chip (Unified Buffer, Vmem) of one core."""

    capacity: int = _quantity("B")
    bandwidth: float = _quantity("B/s")


@dataclass(frozen=True)
class Accumulators:
    """Sums below the array; half of them fill while the other half is read."""

    capacity: int = _quantity("B")


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
    synchronisation: float = _quantity("s", 0.0)


@dataclass(frozen=True)
class Host:
    """The way to the host: the link's own speed, and what data gets of it."""

    link: float = _quantity("B/s")
    bandwidth: float = _quantity("B/s")


@dataclass(frozen=True)
class Links:
    """Links of a chip to its neighbours.

    Attributes
    ----------
    bandwidth : of one link in one direction
    hop : seconds from a chip to its neighbour
    """

    count: int
    bandwidth: float = _quantity("B/s")
    hop: float = _quantity("s")


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
    clock: float = _quantity("Hz")
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
    result: Machine = _read(Machine, {"name": name, **given}, source, "")
    _check(result, source)
    return result


def _read(kind: type, given: Mapping[str, Any], source: str, prefix: str) -> Any:
    """A dataclass from a table of the file."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in given.keys() - fields.keys():
        nearest = difflib.get_close_matches(key, fields, n=1)
        raise _refused(source, prefix + key, "there is no such figure",
                       f"did you mean {prefix}{nearest[0]}?" if nearest else f"there are {', '.join(fields)}")
    values = {}
    for key, item in fields.items():
        if key in given:
            values[key] = _value(hints[key], item, given[key], source, prefix + key)
        elif item.default is dataclasses.MISSING:
            raise _refused(source, prefix + key, "is missing", f"give {_expected(hints[key], item)}")
    return kind(**values)


def _value(hint: Any, item: dataclasses.Field[Any], given: Any, source: str, name: str) -> Any:
    hint = next((member for member in typing.get_args(hint) if member is not types.NoneType), hint) \
        if isinstance(hint, types.UnionType) else hint
    wrong = _refused(source, name, f"cannot be {given!r}", f"give {_expected(hint, item)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(given, dict):
            raise wrong
        return _read(typing.cast(type, hint), given, source, f"{name}.")
    if typing.get_origin(hint) is tuple:
        if not isinstance(given, list) or not all(_is_count(entry) for entry in given):
            raise wrong
        return tuple(given)
    if typing.get_origin(hint) is not None:  # a mapping of names to counts
        if not isinstance(given, dict) or not given or not all(map(_is_count, given.values())):
            raise wrong
        return types.MappingProxyType(given)
    if hint in (str, bool):
        if not isinstance(given, hint):
            raise wrong
        return given
    unit = item.metadata.get("unit")
    if unit:
        amount = _amount(given, unit)
        if amount is None:
            raise wrong
        return int(amount) if hint is int else amount
    if not _is_count(given):
        raise wrong
    return given


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given > 0


def _amount(given: Any, unit: str) -> float | None:
    """A quantity in its unit; None if it is not one above zero."""
    found = _QUANTITY.fullmatch(given) if isinstance(given, str) else None
    if found is not None:
        number, power, word = found.groups()
        bits = word == "b/s" and unit == "B/s"
        if word != unit and not bits:
            return None
        try:
            amount = float(number) * _POWERS[power] / (8 if bits else 1)
        except ValueError:  # such as 1.2.3
            return None
    elif isinstance(given, int | float) and not isinstance(given, bool):
        amount = float(given)
    else:
        return None
    return amount if math.isfinite(amount) and amount > 0 else None


def _expected(hint: Any, item: dataclasses.Field[Any]) -> str:
    unit = item.metadata.get("unit")
    if unit:
        return f"a number of {unit} above 0, or text such as {_EXAMPLES[unit]}"
    if dataclasses.is_dataclass(hint):
        return f"a table of {', '.join(part.name for part in dataclasses.fields(hint))}"
    if typing.get_origin(hint) is tuple:
        return "a list of whole numbers above 0"
    words = {int: "a whole number above 0", bool: "true or false", str: "text"}
    return words.get(hint, "a table of names and whole numbers above 0")


def _refused(source: str, name: str, found: str, hint: str) -> ConfigError:
    return ConfigError(compose(f"{name} {found}", [("file", source), ("hint", hint)]))


def _check(found: Machine, source: str) -> None:
    """Refuse figures that contradict each other."""
    for name, problem, hint in _contradictions(found):
        raise _refused(source, name, problem, hint)


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
