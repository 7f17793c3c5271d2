"""The unit of AVX-512's dot products: instructions that add up the products of the elements of 4 bytes.

Invariant: vectors have 64 bytes, so that a block has 16 lanes; what a vector does not fill is masked.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VPDPBUSD, VDPBF16PS and VCVTNE2PS2BF16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel import narrow
from core.accel.chips import NarrowBlock
from core.accel.narrow import BYTE, LONG, SHORT, TYPES, WORD, BFloat, no_configuration, no_release
from core.accel.pointer import intrinsic
from core.accel.registers import choose

__all__ = ["configure", "copy_runs", "multiply", "release", "store_rows"]

configure, release = no_configuration, no_release
_BIT = ir.IntType(1)
_SIGNS = 0x80808080
"""The sign bits of four bytes."""


class _Products(narrow.Products):
    """Whole words, of bfloat16 or of unsigned bytes of A and signed ones of B.

    Signed bytes of A become unsigned ones as their signs are turned round, which adds `block.shift`.
    """

    def __init__(self, builder: Any, block: NarrowBlock) -> None:
        super().__init__(builder, block)
        self.signs = self._signs() if block.shift else None

    def _signs(self) -> Any:
        """The sign bits of a vector of bytes; LLVM does not know the value, and so leaves the vector in a register."""
        kind = ir.FunctionType(self.words, [self.words])
        return self.builder.asm(kind, "", "=v,0", [self.constant(_SIGNS)], False)

    def split_b(self, b: Any) -> list[Any]:
        return [b]

    def split_a(self, word: Any) -> list[Any]:
        a = self.splat(word)
        return [self.builder.xor(a, self.signs) if self.block.shift else a]

    def add(self, total: Any, a: Any, b: Any) -> Any:
        group, lanes = self.block.group, self.block.lanes
        parts = ir.VectorType(BFloat() if self.block.element == "bf16" else BYTE, group * lanes)
        instruction = "avx512bf16.dpbf16ps" if self.block.element == "bf16" else "avx512.vpdpbusd"
        values = [total, self.builder.bitcast(a, parts), self.builder.bitcast(b, parts)]
        return self.call(f"llvm.x86.{instruction}.512", self.type, values)


class _Stores(narrow.Stores):
    """Rounds with an instruction, and stores parts of a row masked.

    The instruction takes numbers below the smallest normal one for zero, which none of the sums of this unit are.
    """

    @property
    def lanes(self) -> int:
        """Pairs of vectors, where a row has them, fill a cache line with bfloat16."""
        return min(2 * self.block.lanes, self.block.columns) if self.rounds else self.block.lanes

    def rounded(self, bits: Any) -> Any:
        builder, lanes, width = self.builder, bits.type.count, self.block.lanes
        floats = ir.VectorType(ir.FloatType(), width)
        lower, upper = (builder.bitcast(_part(builder, bits, start, width), floats) for start in (0, lanes - width))
        kind = ir.FunctionType(ir.VectorType(BFloat(), 2 * width), [floats, floats])
        convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
        pair = builder.bitcast(builder.call(convert, [upper, lower]), ir.VectorType(SHORT, 2 * width))
        return _part(builder, pair, 0, lanes)

    def store_part(self, line: Any, place: Any, columns: Any) -> None:
        builder = self.builder
        for start in range(0, self.block.columns, self.lanes):
            value = self.elements(line, LONG(start), self.lanes)
            _store_masked(builder, value, builder.gep(place, [LONG(start)]), builder.sub(columns, LONG(start)))


def multiply(block: NarrowBlock, target: str) -> Any:
    """See `units`."""
    return narrow.multiply(block, target, _Products)


def store_rows(block: NarrowBlock, rounds: bool) -> Any:
    """See `units`."""
    return narrow.store_rows(block, rounds, _Stores)


def copy_runs(block: NarrowBlock) -> Any:
    """See `units`. Whole vectors are stored, since they are faster to read soon after than masked ones."""
    element, table, index = types.CPointer(TYPES[block.element]), types.CPointer(types.int64), types.int64
    size = 4 // block.group

    @intrinsic
    def emit(typing_context: Any, a: Any, offsets: Any, rows: Any, shift: Any, target: Any, stride: Any, valid: Any,
             count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, offsets, rows, shift, target, stride, valid, count = values
            valid, count = (builder.mul(number, LONG(size)) for number in (valid, count))
            source = builder.gep(a, [shift])

            def copy(lanes: int) -> None:
                line = ir.VectorType(BYTE, lanes)
                bits = ir.VectorType(_BIT, lanes)
                kind = ir.FunctionType(line, [line.as_pointer(), WORD, bits, line])
                load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{lanes}i8.p0")

                def vector(place: Any, start: Any) -> Any:
                    place = builder.gep(builder.bitcast(place, BYTE.as_pointer()), [start])
                    return builder.bitcast(place, line.as_pointer())

                with cgutils.for_range_slice(builder, LONG(0), count, LONG(lanes), LONG) as (start, _):
                    mask = _lanes_below(builder, builder.sub(valid, start), lanes)
                    with cgutils.for_range(builder, rows) as loop:
                        offset = builder.load(builder.gep(offsets, [loop.index]))
                        value = builder.call(load, [vector(builder.gep(source, [offset]), start), WORD(1), mask,
                                                    ir.Constant(line, None)])
                        place = builder.gep(target, [builder.mul(loop.index, stride)])
                        builder.store(value, vector(place, start), align=1)

            choose(builder, count, (16, 64), copy)  # a short vector lies in fewer cache lines
            return context.get_dummy_value()

        return types.void(element, table, index, index, element, index, index, index), codegen

    return emit


def _store_masked(builder: Any, value: Any, place: Any, count: Any) -> None:
    """Store the first `count` lanes of a vector."""
    kind, lanes, bits = value.type, value.type.count, value.type.element.width
    mask = _lanes_below(builder, count, lanes)
    signature = ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), WORD, mask.type])
    store = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.store.v{lanes}i{bits}.p0")
    builder.call(store, [value, builder.bitcast(place, kind.as_pointer()), WORD(bits // 8), mask])


def _part(builder: Any, vector: Any, start: int, lanes: int) -> Any:
    """So many lanes of a vector."""
    order = ir.Constant(ir.VectorType(WORD, lanes), list(range(start, start + lanes)))
    return builder.shuffle_vector(vector, vector, order)


def _lanes_below(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first `count` lanes of a vector."""
    numbers = ir.Constant(ir.VectorType(LONG, lanes), list(range(lanes)))
    undefined = ir.Constant(numbers.type, ir.Undefined)
    limit = builder.shuffle_vector(builder.insert_element(undefined, count, WORD(0)), undefined,
                                   ir.Constant(ir.VectorType(WORD, lanes), None))
    return builder.icmp_signed("<", numbers, limit)
