"""Families of processors and the register block that suits each.

Invariant: no chip is named outside `CHIPS`; a new chip is one more row of that table, and its own way to multiply
narrow elements one more row of `UNITS` and a file of `units`. Nothing here needs the compiler.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from functools import cache

import llvmlite.binding as llvm

from core.engine.errors import ConfigError, compose

VECTORS, AVX512, TILES = "vectors", "avx512", "tiles"
"""Units that multiply narrow elements, as their files in `units` are named: any vectors, AVX-512's dot products of 4
bytes, and AMX tiles."""


@dataclass(frozen=True)
class Unit:
    """What a unit asks of those who use it.

    Attributes
    ----------
    block : lanes, heights and vectors of its register block, None if it takes its chip's
    tile_rows : rows of A that it reads at once, at one stride; 0 if each row has an offset of its own
    shift : what it adds to each signed byte of A, as it reads unsigned ones
    """

    block: tuple[int, tuple[int, ...], int] | None = None
    tile_rows: int = 0
    shift: int = 0


UNITS = {VECTORS: Unit(), AVX512: Unit(shift=128), TILES: Unit((16, (32, 16), 2), tile_rows=16)}


@dataclass(frozen=True)
class Chip:
    """What a family of processors wants of a register-blocked product.

    Attributes
    ----------
    features : names in LLVM's spelling that a machine must have
    lanes : float32 values in a vector register
    heights : rows of the register block, highest first, then lower blocks for what is left over
    vectors : vector registers across a row of the block
    first_cache, second_cache : bytes of the caches next to a core
    narrow : for each narrow element type (bf16, i8) the unit that multiplies it and the feature that the unit needs,
        best first; any other machine takes `VECTORS`
    """

    name: str
    features: frozenset[str] = field(repr=False)  # a set has another order in each process
    lanes: int
    heights: tuple[int, ...]
    vectors: int
    first_cache: int
    second_cache: int
    narrow: tuple[tuple[str, str, str], ...] = ()

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector register."""
        return 4 * self.lanes


_DOTS = (("bf16", AVX512, "avx512bf16"), ("i8", AVX512, "avx512vnni"))
_TILES = (("bf16", TILES, "amx-bf16"), ("i8", TILES, "amx-int8"))

CHIPS = (
    Chip("amx", frozenset({"avx512f", "avx512bw", "amx-tile"}), 16, (14, 8, 4), 2, 48 << 10, 2 << 20, _TILES + _DOTS),
    Chip("avx512", frozenset({"avx512f"}), 16, (14, 8, 4), 2, 48 << 10, 2 << 20, _DOTS),
    Chip("avx2", frozenset({"avx2", "fma"}), 8, (6, 4, 2), 2, 32 << 10, 512 << 10),
    Chip("neon", frozenset({"neon"}), 4, (8, 4, 2), 3, 64 << 10, 1 << 20),
    Chip("generic", frozenset(), 4, (4, 2), 2, 32 << 10, 256 << 10),
)
"""Best first; the last one fits every machine."""

WAY, WAYS = 4096, 8
"""Bytes after which addresses fall into the same set of the first cache, and the lines of a set, on any chip."""


@cache
def host() -> Chip:
    """The first row of `CHIPS` that this machine satisfies, or the one that ``$TILEWORK_CPU`` names.

    Raises
    ------
    ConfigError
        If this machine is no such chip.
    """
    fitting = {chip.name: chip for chip in CHIPS if chip.features <= _features()}
    chosen = os.environ.get("TILEWORK_CPU") or next(iter(fitting))
    if chosen not in fitting:
        raise ConfigError(compose(f"TILEWORK_CPU cannot be {chosen!r}", [
            ("expected", f"one of {', '.join(fitting)}, which this machine can run"),
            ("hint", "unset TILEWORK_CPU to take the best"),
        ]))
    return fitting[chosen]


@cache
def _features() -> frozenset[str]:
    """What this machine has and the system lets this process use."""
    names = frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
    if "amx-tile" in names and not _may_use_tiles():
        return frozenset(name for name in names if not name.startswith("amx"))
    return names


def description() -> str:
    """All of this machine that shapes a plan."""
    return f"{host()} {sorted(_features())}"


def has_exponent_scaling() -> bool:
    """Whether vectors of this machine have an instruction that multiplies by powers of two."""
    return "avx512f" in _features()


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers; it grants them to the whole process, its later threads and its forks."""
    request_permission, system_call, tile_data = 0x1023, 158, 18  # ARCH_REQ_XCOMP_PERM, arch_prctl, XTILEDATA
    try:
        return bool(ctypes.CDLL(None).syscall(system_call, request_permission, tile_data) == 0)
    except AttributeError:  # no Linux
        return False


@dataclass(frozen=True)
class Block:
    """A register block of `heights[0]` x (`vectors` * `lanes`) accumulators of one element type.

    `columns_masked` says that B ends with the last valid column, so that reads beyond it must not happen.
    """

    element: str
    lanes: int
    heights: tuple[int, ...]
    vectors: int
    columns_masked: bool = False

    @property
    def rows(self) -> int:
        return self.heights[0]

    @property
    def columns(self) -> int:
        return self.lanes * self.vectors

    @property
    def copy_stride(self) -> int:
        """Elements of a row of a copy of A that holds a column of the block: whole vectors."""
        return -(-self.rows // self.lanes) * self.lanes


def block_for(chip: Chip, element: str, columns: int) -> Block:
    """The block of a chip for ``"f32"`` or ``"f64"`` and for so many columns: one vector across where they fit."""
    lanes = chip.lanes if element == "f32" else chip.lanes // 2
    return Block(element, lanes, chip.heights, 1 if columns <= lanes else chip.vectors)


def thin_block_for(chip: Chip, element: str) -> Block:
    """A block of at most three rows that reads B where it lies: for products with few rows."""
    return Block(element, chip.lanes if element == "f32" else chip.lanes // 2, (3, 1), 4, columns_masked=True)


@dataclass(frozen=True)
class NarrowBlock:
    """A register block of 4-byte sums of products of narrow elements, `heights[0]` x (`vectors` * `lanes`).

    The reduction goes in chunks of at most 64 bytes of a row of A. Of B, `group` neighbours along the reduction lie
    together in 4 bytes.

    Attributes
    ----------
    element : of A: ``"bf16"``, ``"i8"`` or ``"u8"``; B has the same, signed
    unit : name of a module of `units`
    """

    element: str
    unit: str
    lanes: int
    heights: tuple[int, ...]
    vectors: int

    @property
    def rows(self) -> int:
        return self.heights[0]

    @property
    def columns(self) -> int:
        return self.lanes * self.vectors

    @property
    def tile_rows(self) -> int:
        """Rows of A that the unit reads at once, at one stride; 0 if each row has an offset of its own."""
        return UNITS[self.unit].tile_rows

    @property
    def shift(self) -> int:
        """What the unit adds to each element of A; packed B then says what a column's sum begins with to undo it."""
        return UNITS[self.unit].shift if self.element == "i8" else 0

    @property
    def group(self) -> int:
        return 2 if self.element == "bf16" else 4

    @property
    def chunk(self) -> int:
        """Elements of the reduction in a full chunk."""
        return 16 * self.group

    @property
    def total(self) -> str:
        """Type of the sums."""
        return "f32" if self.element == "bf16" else "i32"


def unit_for(chip: Chip, element: str) -> str:
    """The unit of a chip that multiplies ``"bf16"``, ``"i8"`` or ``"u8"``."""
    kind = "bf16" if element == "bf16" else "i8"
    return next((unit for of, unit, feature in chip.narrow if of == kind and feature in _features()), VECTORS)


def narrow_block_for(chip: Chip, element: str, columns: int) -> NarrowBlock:
    """The block of a chip for ``"bf16"``, ``"i8"`` or ``"u8"`` and for so many columns, see `block_for`.

    A single row reads B as fast as it comes only where the block computes no other rows.
    """
    unit = unit_for(chip, element)
    vectors = 1 if columns <= chip.lanes else chip.vectors
    return NarrowBlock(element, unit, *(UNITS[unit].block or (chip.lanes, (*chip.heights, 1), vectors)))
