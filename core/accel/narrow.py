"""Vector code for products of narrow elements (bfloat16 and 8-bit integers) that are summed in 4 bytes.

Invariant: B lies in groups of neighbours along the reduction that fill 4 bytes, [group of depth, column, place in
group], and a row of A offers its elements in the same groups, so that one 4-byte number of A meets one vector of B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def arguments(block: NarrowBlock, target: str) -> tuple[Any, ...]:
    """Types of the arguments of `multiply`."""
    element, total = types.CPointer(TYPES[block.element]), types.CPointer(TYPES[block.total])
    right = types.CPointer(TYPES["bf16" if block.element == "bf16" else "i8"])
    index, table = types.int64, types.CPointer(types.int64)
    return (element, index, table, element, index, table, table, right, index, index, total, total, *[index] * 4,
            types.CPointer(TYPES[target]), index, index)


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


def multiply(block: NarrowBlock, target: str) -> Any:
    """A function for kernels that computes one register block of C, `block.rows` x `block.columns`:

    ``c[i, j] = before[i, j] + sum over t < chunks, k < chunk of a[row(i) + table[t] + k] * b[t, k, j]``

    It is called ``multiply(upper, upper_step, upper_table, lower, lower_step, lower_table, row_offsets, b, chunks,
    chunk, before, c, c_stride, rows, columns, fresh, out, out_stride, out_rows)``. This one takes its rows from
    `upper`, at `row_offsets`, and its table is `upper_table`; the rest is for tiles (see `amx.multiply`). b is [chunk,
    group of depth, column, place in group], `before` is gapless, and zeros take its place if `fresh`. Offsets, strides
    and `chunk` count elements. All of c may be written, whatever `rows` and `columns` say; only so many rows and
    columns get their value. `row_offsets` holds `block.rows` readable offsets.
    """
    @intrinsic
    def emit(typing_context: Any, upper: Any, upper_step: Any, upper_table: Any, lower: Any, lower_step: Any,
             lower_table: Any, row_offsets: Any, b: Any, chunks: Any, chunk: Any, before: Any, c: Any, c_stride: Any,
             rows: Any, columns: Any, fresh: Any, out: Any, out_stride: Any,
             out_rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, _, table, _, _, _, row_offsets, b, chunks, chunk, before, c, c_stride, rows, _, fresh, *_ = values
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

        return types.void(*arguments(block, target)), codegen

    return emit


def _copy_runs(block: NarrowBlock) -> Any:
    """A function for kernels that copies elements that lie beside each other, for some rows.

    It is called ``copy_runs(a, offsets, rows, shift, target, stride, valid, count)``. Row i gets `count` elements at
    ``target + i * stride``: `valid` from ``a + offsets[i] + shift`` and then zeros, and up to 64 bytes behind them:
    whole vectors are faster to read soon after than masked ones.
    """
    element, table, index = types.CPointer(TYPES[block.element]), types.CPointer(types.int64), types.int64
    size = 4 // block.group

    @intrinsic
    def emit(typing_context: Any, a: Any, offsets: Any, rows: Any, shift: Any, target: Any, stride: Any, valid: Any,
             count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, offsets, rows, shift, target, stride, valid, count = values
            valid, count = (builder.mul(number, _LONG(size)) for number in (valid, count))
            source = builder.gep(a, [shift])

            def copy(lanes: int) -> None:
                line = ir.VectorType(_BYTE, lanes)
                bits = ir.VectorType(_BIT, lanes)
                kind = ir.FunctionType(line, [line.as_pointer(), _WORD, bits, line])
                load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{lanes}i8.p0")

                def vector(place: Any, start: Any) -> Any:
                    place = builder.gep(builder.bitcast(place, _BYTE.as_pointer()), [start])
                    return builder.bitcast(place, line.as_pointer())

                with cgutils.for_range_slice(builder, _LONG(0), count, _LONG(lanes), _LONG) as (start, _):
                    mask = _lanes_below(builder, builder.sub(valid, start), lanes)
                    with cgutils.for_range(builder, rows) as loop:
                        offset = builder.load(builder.gep(offsets, [loop.index]))
                        value = builder.call(load, [vector(builder.gep(source, [offset]), start), _WORD(1), mask,
                                                    ir.Constant(line, None)])
                        place = builder.gep(target, [builder.mul(loop.index, stride)])
                        builder.store(value, vector(place, start), align=1)

            choose(builder, count, (16, 64), copy)  # a short vector lies in fewer cache lines
            return context.get_dummy_value()

        return types.void(element, table, index, index, element, index, index, index), codegen

    @register_jitable
    def copy_elements(a: Any, offsets: Any, rows: int, shift: int, target: Any, stride: int, valid: int,
                      count: int) -> None:
        for row in range(rows):
            source, place = at(a, offsets[row] + shift), at(target, row * stride)
            for k in range(valid):
                place[k] = source[k]
            for k in range(valid, count):
                place[k] = 0

    return copy_elements if block.unit == VECTORS else emit


def _lanes_below(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first `count` lanes of a vector."""
    numbers = ir.Constant(ir.VectorType(_LONG, lanes), list(range(lanes)))
    undefined = ir.Constant(numbers.type, ir.Undefined)
    limit = builder.shuffle_vector(builder.insert_element(undefined, count, _WORD(0)), undefined,
                                   ir.Constant(ir.VectorType(_WORD, lanes), None))
    return builder.icmp_signed("<", numbers, limit)


def copy_rows(block: NarrowBlock) -> Any:
    """A function for kernels that lays scattered rows of A, or parts of them, into lines (see `kernels.narrow`).

    It is called ``copy_rows(a, offsets, rows, taps, tap_count, depth, depth_stride, padded, start, stop, copy,
    copy_stride)``: of row i, which begins at ``a[offsets[i]]``, the places start..stop of its line go to
    ``copy[i * copy_stride]`` and on. Places without an element become zero.
    """
    copy_runs = _copy_runs(block)

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
                copy_runs(a, offsets, rows, shift, target, copy_stride, valid, count)
            else:
                for k in range(count):
                    for row in range(rows):
                        inside = a[offsets[row] + shift + k * depth_stride] if k < valid else 0
                        target[row * copy_stride + k] = inside
            place += count

    return copy_block


def store_block(block: NarrowBlock, rounds: bool) -> Any:
    """A function for kernels that puts a block of sums in its place, rounded to bfloat16 if `rounds`.

    It is called ``store_block(sums, target, stride, rows, columns, phase, period, valid)``: row i of the gapless sums
    goes to ``target + stride * i``, columns elements of it. Where `period` is above 1, row i has place ``(phase + i) %
    period`` of its line: rows from `valid` on are dropped, and no place of target is kept for them.
    """
    store = _store_rows(block, rounds)
    width = block.columns

    @register_jitable
    def store_lines(sums: Any, target: Any, stride: int, rows: int, columns: int, phase: int, period: int,
                    valid: int) -> None:
        if period == 1:
            store(sums, target, stride, rows, columns)
            return
        row, dropped = 0, 0
        while row < rows:
            count = max(0, min(rows - row, valid - phase))
            store(at(sums, row * width), at(target, (row - dropped) * stride), stride, count, columns)
            row += period - phase
            dropped += period - phase - count
            phase = 0

    return store_lines


def _store_rows(block: NarrowBlock, rounds: bool) -> Any:
    """A function for kernels, ``store(sums, target, stride, rows, columns)``, for rows of one stride."""
    total = types.CPointer(TYPES[block.total])
    element = types.CPointer(TYPES["bf16"]) if rounds else total
    # Pairs of vectors fill a cache line with bfloat16.
    lanes = 2 * block.lanes if rounds and block.unit != VECTORS else block.lanes

    @intrinsic
    def emit(typing_context: Any, sums: Any, target: Any, stride: Any, rows: Any, columns: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            sums, target, stride, rows, columns = values

            def each_row(store: Callable[[Any, Any], None]) -> None:
                with cgutils.for_range(builder, rows) as loop:
                    store(builder.gep(sums, [builder.mul(loop.index, _LONG(block.columns))]),
                          builder.gep(target, [builder.mul(loop.index, stride)]))

            def element_of(line: Any, start: Any, lanes: int) -> Any:
                bits = builder.load(builder.bitcast(builder.gep(line, [start]),
                                                    ir.VectorType(_WORD, lanes).as_pointer()), align=4)
                return _rounded(builder, block, bits) if rounds else bits

            def store_whole(line: Any, place: Any) -> None:
                for start in range(0, block.columns, lanes):
                    value = element_of(line, _LONG(start), lanes)
                    builder.store(value, builder.bitcast(builder.gep(place, [_LONG(start)]), value.type.as_pointer()),
                                  align=2 if rounds else 4)

            def store_part(line: Any, place: Any) -> None:
                if block.unit == VECTORS:
                    with cgutils.for_range(builder, columns) as loop:
                        value = element_of(line, loop.index, 1)
                        builder.store(builder.extract_element(value, _WORD(0)), builder.bitcast(
                            builder.gep(place, [loop.index]), value.type.element.as_pointer()))
                    return
                for start in range(0, block.columns, lanes):
                    value = element_of(line, _LONG(start), lanes)
                    _store_masked(builder, value, builder.gep(place, [_LONG(start)]),
                                  builder.sub(columns, _LONG(start)))

            with builder.if_else(builder.icmp_signed("==", columns, _LONG(block.columns))) as (whole, part):
                with whole:
                    each_row(store_whole)
                with part:
                    each_row(store_part)
            return context.get_dummy_value()

        return types.void(total, element, *[types.int64] * 3), codegen

    return emit


def prefetch(builder: Any, place: Any, for_writing: bool, nearness: int) -> None:
    """Have a line of memory come nearer: 3 is the first cache. An address where no memory is does no harm."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, *[_WORD] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, _WORD(int(for_writing)), _WORD(nearness), _WORD(1)])


def _store_masked(builder: Any, value: Any, place: Any, count: Any) -> None:
    """Store the first `count` lanes of a vector."""
    kind, lanes, bits = value.type, value.type.count, value.type.element.width
    mask = _lanes_below(builder, count, lanes)
    signature = ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), _WORD, mask.type])
    store = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.store.v{lanes}i{bits}.p0")
    builder.call(store, [value, builder.bitcast(place, kind.as_pointer()), _WORD(bits // 8), mask])


def _rounded(builder: Any, block: NarrowBlock, bits: Any) -> Any:
    """A vector of float32 bits as bfloat16: to nearest, ties to even; NaN stays a quiet NaN.

    A unit that multiplies bfloat16 brings an instruction for 32 lanes. It takes numbers below the smallest normal one
    for zero, which none of the sums of that unit are.
    """
    lanes = bits.type.count
    if block.unit != VECTORS:
        half = ir.VectorType(ir.FloatType(), lanes // 2)
        lower, upper = (builder.bitcast(builder.shuffle_vector(bits, bits, ir.Constant(
            ir.VectorType(_WORD, lanes // 2), list(range(start, start + lanes // 2)))), half)
            for start in (0, lanes // 2))
        kind = ir.FunctionType(ir.VectorType(_BFloat(), lanes), [half, half])
        convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
        return builder.bitcast(builder.call(convert, [upper, lower]), ir.VectorType(_SHORT, lanes))

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
