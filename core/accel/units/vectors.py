"""The unit of every machine: vectors of any length, which multiply narrow elements after they are widened.

Invariant: nothing here needs more of a machine than LLVM does; `chips.NarrowBlock` says how long vectors are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel import narrow
from core.accel.chips import NarrowBlock
from core.accel.narrow import SHORT, WORD, no_configuration, no_release
from core.accel.pointer import at

__all__ = ["configure", "copy_runs", "multiply", "release", "store_rows"]

configure, release = no_configuration, no_release
_UPPER, _LOWER = -1 << 16, 0xFF
"""The upper half of a word, and the lower byte of a half."""


class _Products(narrow.Products):
    """bfloat16 as the float32 numbers that they begin, bytes as 16-bit numbers; the even places, then the odd ones."""

    def split_b(self, b: Any) -> list[Any]:
        if self.block.element == "bf16":
            return self._floats(b, self.constant(16), self.constant(_UPPER))
        return self._shorts(b, signed=True)

    def split_a(self, word: Any) -> list[Any]:
        if self.block.element == "bf16":
            return [self.splat(part) for part in self._floats(word, WORD(16), WORD(_UPPER))]
        return self._shorts(self.splat(word), signed=self.block.element == "i8")

    def add(self, total: Any, a: Any, b: Any) -> Any:
        if self.block.element == "bf16":
            return self.call(f"llvm.fma.v{self.block.lanes}f32", self.type, [a, b, total])
        # LLVM makes one instruction of this: signed 16-bit products, neighbours added.
        wide = ir.VectorType(WORD, 2 * self.block.lanes)
        products = self.builder.mul(self.builder.sext(a, wide), self.builder.sext(b, wide))
        halves = [self.builder.shuffle_vector(products, products, ir.Constant(self.words, list(order)))
                  for order in (range(0, 2 * self.block.lanes, 2), range(1, 2 * self.block.lanes, 2))]
        return self.builder.add(total, self.builder.add(*halves))

    def _floats(self, words: Any, half: Any, upper: Any) -> list[Any]:
        kind = self.type if words.type == self.words else ir.FloatType()
        return [self.builder.bitcast(bits, kind) for bits in (self.builder.shl(words, half),
                                                              self.builder.and_(words, upper))]

    def _shorts(self, words: Any, signed: bool) -> list[Any]:
        """Even and odd bytes as 16-bit numbers."""
        shorts = self.builder.bitcast(words, ir.VectorType(SHORT, 2 * self.block.lanes))
        eight = self.constant(8, SHORT)
        if signed:
            return [self.builder.ashr(self.builder.shl(shorts, eight), eight), self.builder.ashr(shorts, eight)]
        return [self.builder.and_(shorts, self.constant(_LOWER, SHORT)), self.builder.lshr(shorts, eight)]


class _Stores(narrow.Stores):
    """Rounds with integers, and stores parts of a row element by element."""

    def rounded(self, bits: Any) -> Any:
        builder, lanes = self.builder, bits.type.count

        def number(value: int) -> Any:
            return ir.Constant(bits.type, [value] * lanes)

        upper = builder.lshr(bits, number(16))
        rounded = builder.add(builder.add(bits, number(0x7FFF)), builder.and_(upper, number(1)))
        floats = builder.bitcast(bits, ir.VectorType(ir.FloatType(), lanes))
        is_nan = builder.fcmp_unordered("uno", floats, floats)
        chosen = builder.select(is_nan, builder.or_(upper, number(0x40)), builder.lshr(rounded, number(16)))
        return builder.trunc(chosen, ir.VectorType(SHORT, lanes))

    def store_part(self, line: Any, place: Any, columns: Any) -> None:
        builder = self.builder
        with cgutils.for_range(builder, columns) as loop:
            value = self.elements(line, loop.index, 1)
            builder.store(builder.extract_element(value, WORD(0)), builder.bitcast(
                builder.gep(place, [loop.index]), value.type.element.as_pointer()))


def multiply(block: NarrowBlock, target: str) -> Any:
    """See `units`."""
    return narrow.multiply(block, target, _Products)


def store_rows(block: NarrowBlock, rounds: bool) -> Any:
    """See `units`."""
    return narrow.store_rows(block, rounds, _Stores)


def copy_runs(block: NarrowBlock) -> Any:
    """See `units`."""
    @register_jitable
    def copy_elements(a: Any, offsets: Any, rows: int, shift: int, target: Any, stride: int, valid: int,
                      count: int) -> None:
        for row in range(rows):
            source, place = at(a, offsets[row] + shift), at(target, row * stride)
            for k in range(valid):
                place[k] = source[k]
            for k in range(valid, count):
                place[k] = 0

    return copy_elements
