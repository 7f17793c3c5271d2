"""Vector code for products of narrow elements (bfloat16 and 8-bit integers) that are summed in 4 bytes.

Invariant: B lies in groups of neighbours along the reduction that fill 4 bytes, [group of depth, column, place in
group], and a row of A offers its elements in the same groups, so that one 4-byte number of A meets one vector of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel.chips import AVX512, VECTORS, NarrowBlock
from core.accel.pointer import intrinsic
from core.accel.simd import at, choose

TYPES: dict[str, Any] = {"bf16": types.uint16, "i8": types.int8, "u8": types.uint8, "f32": types.float32,
                         "i32": types.int32}
_BIT, _BYTE, _SHORT, _WORD, _LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_SIGNS = 0x80808080
"""The sign bits of four bytes."""


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def arguments(block: NarrowBlock) -> tuple[Any, ...]:
    """Types of the arguments of `multiply`."""
    element, total = types.CPointer(TYPES[block.element]), types.CPointer(TYPES[block.total])
    right = types.CPointer(TYPES["bf16" if block.element == "bf16" else "i8"])
    index, table = types.int64, types.CPointer(types.int64)
    return (element, index, table, element, index, table, table, right, index, index, total, total, *[index] * 4)


class _Products:
    """Emits sums of products of groups over vectors of `lanes` sums."""

    def __init__(self, builder: Any, block: NarrowBlock) -> None:
        self.builder = builder
        self.block = block
        self.words = ir.VectorType(_WORD, block.lanes)
        self.type = ir.VectorType(ir.FloatType(), block.lanes) if block.total == "f32" else self.words

    def _splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.block.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, _WORD(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.words, None))

    def _number(self, value: int, kind: Any = _WORD) -> Any:
        count = 32 * self.block.lanes // kind.width
        return ir.Constant(ir.VectorType(kind, count), [value] * count)

    def _call(self, name: str, result: Any, values: Sequence[Any]) -> Any:
        kind = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), values)

    def load(self, pointer: Any, kind: Any) -> Any:
        align = 4 if kind is not _WORD else 1
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=align)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    @property
    def is_shifted(self) -> bool:
        """Whether A is read as unsigned bytes, 128 too large: the hardware multiplies unsigned by signed bytes."""
        return self.block.unit == AVX512 and self.block.element == "i8"

    def shift(self, total: Any, b: Any) -> Any:
        """total + 128 times the sums of B's groups."""
        return self._multiply_bytes(total, self._number(_SIGNS), b)

    def split_b(self, b: Any) -> list[Any]:
        """The parts of a vector of B that `add` takes one after the other."""
        if self.block.unit == AVX512:
            return [b]
        if self.block.element == "bf16":
            return self._floats(b, self._number(16), self._number(-1 << 16))
        return self._shorts(b, signed=True)

    def split_a(self, word: Any) -> list[Any]:
        """The same parts of a group of A, in every lane."""
        if self.block.unit == AVX512:
            return [self._splat(self.builder.xor(word, _WORD(_SIGNS)) if self.is_shifted else word)]
        if self.block.element == "bf16":
            return [self._splat(part) for part in self._floats(word, _WORD(16), _WORD(-1 << 16))]
        return self._shorts(self._splat(word), signed=self.block.element == "i8")

    def add(self, total: Any, a: Any, b: Any) -> Any:
        """total + the products of two parts."""
        if self.block.unit == AVX512:
            if self.block.element == "bf16":
                halves = ir.VectorType(_BFloat(), 2 * self.block.lanes)
                values = [total, self.builder.bitcast(a, halves), self.builder.bitcast(b, halves)]
                return self._call("llvm.x86.avx512bf16.dpbf16ps.512", self.type, values)
            return self._multiply_bytes(total, a, b)
        if self.block.element == "bf16":
            return self._call(f"llvm.fma.v{self.block.lanes}f32", self.type, [a, b, total])
        # LLVM makes one instruction of this: signed 16-bit products, neighbours added.
        wide = ir.VectorType(_WORD, 2 * self.block.lanes)
        products = self.builder.mul(self.builder.sext(a, wide), self.builder.sext(b, wide))
        halves = [self.builder.shuffle_vector(products, products, ir.Constant(self.words, list(order)))
                  for order in (range(0, 2 * self.block.lanes, 2), range(1, 2 * self.block.lanes, 2))]
        return self.builder.add(total, self.builder.add(*halves))

    def _multiply_bytes(self, total: Any, a: Any, b: Any) -> Any:
        quarters = ir.VectorType(_BYTE, 4 * self.block.lanes)
        values = [total, self.builder.bitcast(a, quarters), self.builder.bitcast(b, quarters)]
        return self._call("llvm.x86.avx512.vpdpbusd.512", self.type, values)

    def _floats(self, words: Any, half: Any, upper: Any) -> list[Any]:
        kind = self.type if words.type == self.words else ir.FloatType()
        return [self.builder.bitcast(bits, kind) for bits in (self.builder.shl(words, half),
                                                              self.builder.and_(words, upper))]

    def _shorts(self, words: Any, signed: bool) -> list[Any]:
        """Even and odd bytes as 16-bit numbers."""
        shorts = self.builder.bitcast(words, ir.VectorType(_SHORT, 2 * self.block.lanes))
        eight = self._number(8, _SHORT)
        if signed:
            return [self.builder.ashr(self.builder.shl(shorts, eight), eight), self.builder.ashr(shorts, eight)]
        return [self.builder.and_(shorts, self._number(255, _SHORT)), self.builder.lshr(shorts, eight)]


def multiply(block: NarrowBlock) -> Any:
    """A function for kernels that computes one register block of C, `block.rows` x `block.columns`:

    ``c[i, j] = before[i, j] + sum over t < chunks, k < chunk of a[row(i) + table[t] + k] * b[t, k, j]``

    It is called ``multiply(upper, upper_step, upper_table, lower, lower_step, lower_table, row_offsets, b, chunks,
    chunk, before, c, c_stride, rows, columns, fresh)``. This one takes its rows from `upper`, at `row_offsets`, and its
    table is `upper_table`; the rest is for tiles (see `amx.multiply`). b is [chunk, group of depth, column, place in
    group], `before` is gapless, and zeros take its place if `fresh`. Offsets, strides and `chunk` count elements. All
    of c may be written, whatever `rows` and `columns` say; only so many rows and columns get their value.
    `row_offsets` holds `block.rows` readable offsets.
    """
    @intrinsic
    def emit(typing_context: Any, upper: Any, upper_step: Any, upper_table: Any, lower: Any, lower_step: Any,
             lower_table: Any, row_offsets: Any, b: Any, chunks: Any, chunk: Any, before: Any, c: Any, c_stride: Any,
             rows: Any, columns: Any, fresh: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, _, table, _, _, _, row_offsets, b, chunks, chunk, before, c, c_stride, rows, _, fresh = values
            products = _Products(builder, block)
            groups = builder.sdiv(chunk, _LONG(block.group))
            b_chunk = builder.mul(chunk, _LONG(block.columns))
            starts = range(0, block.columns, block.lanes)

            def emit_block(height: int) -> None:
                offsets = [builder.load(builder.gep(row_offsets, [_LONG(row)])) for row in range(height)]
                slots = [[cgutils.alloca_once(builder, products.type) for _ in starts] for _ in range(height)]
                shifts = [cgutils.alloca_once(builder, products.type) for _ in starts if products.is_shifted]
                for slot in shifts:
                    builder.store(ir.Constant(products.type, None), slot)
                all_slots = [slot for row_slots in slots for slot in row_slots]
                places = [(row, start) for row in range(height) for start in starts]
                with builder.if_else(builder.icmp_signed("!=", fresh, _LONG(0))) as (begin, resume):
                    with begin:
                        for slot in all_slots:
                            builder.store(ir.Constant(products.type, None), slot)
                    with resume:
                        for slot, (row, start) in zip(all_slots, places, strict=True):
                            place = builder.gep(before, [_LONG(row * block.columns + start)])
                            builder.store(products.load(place, products.type), slot)
                with cgutils.for_range(builder, chunks) as outer:
                    offset = builder.load(builder.gep(table, [outer.index]))
                    a_chunk = builder.gep(a, [offset])
                    b_start = builder.gep(b, [builder.mul(outer.index, b_chunk)])
                    with cgutils.for_range(builder, groups) as inner:
                        group = builder.mul(inner.index, _LONG(block.group))
                        b_row = builder.gep(b_start, [builder.mul(group, _LONG(block.columns))])
                        vectors = [products.load(builder.gep(b_row, [_LONG(start * block.group)]), products.words)
                                   for start in starts]
                        parts = [products.split_b(vector) for vector in vectors]
                        for slot, vector in zip(shifts, vectors, strict=False):
                            builder.store(products.shift(builder.load(slot), vector), slot)
                        for row, row_slots in enumerate(slots):
                            word = products.load(builder.gep(a_chunk, [builder.add(offsets[row], group)]), _WORD)
                            for number, a_part in enumerate(products.split_a(word)):
                                for slot, b_parts in zip(row_slots, parts, strict=True):
                                    builder.store(products.add(builder.load(slot), a_part, b_parts[number]), slot)
                for slot, (row, start) in zip(all_slots, places, strict=True):
                    total = builder.load(slot)
                    if shifts:
                        total = builder.sub(total, builder.load(shifts[start // block.lanes]))
                    offset = builder.add(builder.mul(c_stride, _LONG(row)), _LONG(start))
                    products.store(total, builder.gep(c, [offset]))

            choose(builder, rows, block.heights, emit_block)
            return context.get_dummy_value()

        return types.void(*arguments(block)), codegen

    return emit


def copy_run(block: NarrowBlock) -> Any:
    """A function for kernels, ``copy_run(source, target, valid, count)``: copy elements that lie beside each other.

    `count` elements of target are written, `valid` from the source and then zeros, and up to 64 bytes behind them:
    whole lines are faster to read soon after than masked ones.
    """
    pointer = types.CPointer(TYPES[block.element])
    size = 4 // block.group
    lanes = 64
    line, bits = ir.VectorType(_BYTE, lanes), ir.VectorType(_BIT, lanes)

    @intrinsic
    def emit(typing_context: Any, source: Any, target: Any, valid: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            source, target = (builder.bitcast(value, line.as_pointer()) for value in values[:2])
            valid, count = (builder.mul(value, _LONG(size)) for value in values[2:])
            kind = ir.FunctionType(line, [line.as_pointer(), _WORD, bits, line])
            load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{lanes}i8.p0")
            with cgutils.for_range_slice(builder, _LONG(0), count, _LONG(lanes), _LONG) as (start, number):
                absent = builder.sub(_LONG(lanes), builder.sub(valid, start))
                absent = builder.select(builder.icmp_signed(">", absent, _LONG(0)), absent, _LONG(0))
                ones = builder.lshr(_LONG(-1), builder.and_(absent, _LONG(lanes - 1)))
                some = builder.icmp_signed("<", absent, _LONG(lanes))
                mask = builder.bitcast(builder.select(some, ones, _LONG(0)), bits)
                place, goal = (builder.gep(base, [number]) for base in (source, target))
                value = builder.call(load, [place, _WORD(1), mask, ir.Constant(line, None)])
                builder.store(value, goal, align=1)
            return context.get_dummy_value()

        return types.void(pointer, pointer, types.int64, types.int64), codegen

    @register_jitable
    def copy_elements(source: Any, target: Any, valid: int, count: int) -> None:
        for k in range(valid):
            target[k] = source[k]
        for k in range(valid, count):
            target[k] = 0

    return copy_elements if block.unit == VECTORS else emit


def copy_rows(block: NarrowBlock) -> Any:
    """A function for kernels that lays scattered rows of A, or parts of them, into lines (see `kernels.narrow`).

    It is called ``copy_rows(a, offsets, rows, taps, tap_count, depth, depth_stride, padded, start, stop, copy,
    copy_stride)``: of row i, which begins at ``a[offsets[i]]``, the places start..stop of its line go to
    ``copy[i * copy_stride]`` and on. Places without an element become zero.
    """
    run = copy_run(block)

    @register_jitable
    def copy_block(a: Any, offsets: Any, rows: int, taps: Any, tap_count: int, depth: int, depth_stride: int,
                   padded: int, start: int, stop: int, copy: Any, copy_stride: int) -> None:
        place = start
        while place < stop:
            tap = place // padded
            first = place - tap * padded
            count, valid, shift = stop - place, 0, 0
            if tap < tap_count:
                count = min(count, padded - first)
                valid = max(0, min(count, depth - first))
                shift = taps[tap] + first * depth_stride
            target = at(copy, place - start)
            if depth_stride == 1:
                for row in range(rows):
                    run(at(a, offsets[row] + shift), at(target, row * copy_stride), valid, count)
            else:
                for k in range(count):
                    for row in range(rows):
                        inside = a[offsets[row] + shift + k * depth_stride] if k < valid else 0
                        target[row * copy_stride + k] = inside
            place += count

    return copy_block


def store_line(block: NarrowBlock, rounds: bool) -> Any:
    """A function for kernels, ``store_line(sums, target, count)``: put a row of sums in its place.

    Up to `block.columns` of them go to `target`, rounded to bfloat16 if `rounds`, else as they are.
    """
    total = types.CPointer(TYPES[block.total])
    element = types.CPointer(TYPES["bf16"]) if rounds else total

    @intrinsic
    def emit(typing_context: Any, sums: Any, target: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            sums, target, count = values

            def store(start: Any, lanes: int) -> None:
                kind = ir.VectorType(_WORD, lanes)
                bits = builder.load(builder.bitcast(builder.gep(sums, [start]), kind.as_pointer()), align=4)
                value = _rounded(builder, bits) if rounds else bits
                builder.store(value, builder.bitcast(builder.gep(target, [start]), value.type.as_pointer()),
                              align=2 if rounds else 4)

            with builder.if_else(builder.icmp_signed("==", count, _LONG(block.columns))) as (whole, part):
                with whole:
                    for start in range(0, block.columns, block.lanes):
                        store(_LONG(start), block.lanes)
                with part, cgutils.for_range(builder, count) as loop:
                    store(loop.index, 1)
            return context.get_dummy_value()

        return types.void(total, element, types.int64), codegen

    return emit


def _rounded(builder: Any, bits: Any) -> Any:
    """A vector of float32 bits as bfloat16: to nearest, ties to even; NaN stays a quiet NaN."""
    lanes = bits.type.count

    def number(value: int) -> Any:
        return ir.Constant(bits.type, [value] * lanes)

    upper = builder.lshr(bits, number(16))
    rounded = builder.add(builder.add(bits, number(0x7FFF)), builder.and_(upper, number(1)))
    floats = builder.bitcast(bits, ir.VectorType(ir.FloatType(), lanes))
    is_nan = builder.fcmp_unordered("uno", floats, floats)
    chosen = builder.select(is_nan, builder.or_(upper, number(0x40)), builder.lshr(rounded, number(16)))
    return builder.trunc(chosen, ir.VectorType(_SHORT, lanes))


@register_jitable
def no_configuration(width: int) -> None:
    """What a unit without tiles does in place of `amx.configure`."""


@register_jitable
def no_release() -> None:
    """What a unit without tiles does in place of `amx.release`."""
