"""Families of processors and the register block that suits each.

Invariant: no chip is named outside `CHIPS`; a new chip is one more row of that table. Nothing here needs the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm


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
    """

    name: str
    features: frozenset[str]
    lanes: int
    heights: tuple[int, ...]
    vectors: int
    first_cache: int
    second_cache: int


CHIPS = (
    Chip("avx512", frozenset({"avx512f"}), 16, (14, 8, 4), 2, 48 << 10, 2 << 20),
    Chip("avx2", frozenset({"avx2", "fma"}), 8, (6, 4, 2), 2, 32 << 10, 512 << 10),
    Chip("neon", frozenset({"neon"}), 4, (8, 4, 2), 3, 64 << 10, 1 << 20),
    Chip("generic", frozenset(), 4, (4, 2), 2, 32 << 10, 256 << 10),
)
"""Best first; the last one fits every machine."""


@cache
def host() -> Chip:
    """The first row of `CHIPS` that this machine satisfies."""
    present = {name for name, has in llvm.get_host_cpu_features().items() if has}
    return next(chip for chip in CHIPS if chip.features <= present)


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


def block_for(chip: Chip, element: str) -> Block:
    """The block of a chip for ``"f32"`` or ``"f64"``."""
    return Block(element, chip.lanes if element == "f32" else chip.lanes // 2, chip.heights, chip.vectors)


def thin_block_for(chip: Chip, element: str) -> Block:
    """A block of at most three rows that reads B where it lies: for products with few rows."""
    return Block(element, chip.lanes if element == "f32" else chip.lanes // 2, (3, 1), 4, columns_masked=True)
