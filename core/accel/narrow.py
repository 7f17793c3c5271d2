"""Products of narrow elements (bfloat16 and 8-bit integers) that are summed in 4 bytes: what their units share.

Invariant: B lies in groups of neighbours along the reduction that fill 4 bytes, [group of depth, column, place in
group], and a row of A offers its elements in the same groups, so that one 4-byte number of A meets one vector of B.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel.chips import NarrowBlock
from core.accel.pointer import at, intrinsic
from core.accel.registers import choose

TYPES: dict[str, Any] = {"bf16": types.uint16, "i8": types.int8, "u8": types.uint8, "f32": types.float32,
                         "i32": types.int32}
BYTE, SHORT, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def arguments(block: NarrowBlock, target: str) -> tuple[Any, ...]:
    """Types of the arguments of `multiply`."""
    element, total = types.CPointer(TYPES[block.element]), types.CPointer(TYPES[block.total])
    right = types.CPointer(TYPES["bf16" if block.element == "bf16" else "i8"])
    index, table = types.int64, types.CPointer(types.int64)
    return (element, index, table, element, index, table, table, right, index, index, total, total, *[index] * 4,
            types.CPointer(TYPES[target]), index, index)


class Products(ABC):
    """Emits sums of products of groups over vectors of `lanes` sums; how is the unit's own."""

    def __init__(self, builder: Any, block: NarrowBlock) -> None:
        self.builder = builder
        self.block = block
        self.words = ir.VectorType(WORD, block.lanes)
        self.type = ir.VectorType(ir.FloatType(), block.lanes) if block.total == "f32" else self.words

    def splat(self, scalar: Any) -> Any:
        """A vector with a number in every lane."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.block.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, WORD(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.words, None))

    def constant(self, value: int, kind: Any = WORD) -> Any:
        """A vector full of a constant of this type."""
        count = 32 * self.block.lanes // kind.width
        return ir.Constant(ir.VectorType(kind, count), [value] * count)

    def call(self, name: str, result: Any, values: Sequence[Any]) -> Any:
        """Call an instruction by LLVM's name for it."""
        kind = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), values)

    def load(self, pointer: Any, kind: Any) -> Any:
        align = 4 if kind is not WORD else 1
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=align)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    @abstractmethod
    def split_b(self, b: Any) -> list[Any]:
        """The parts of a vector of B that `add` takes one after the other."""

    @abstractmethod
    def split_a(self, word: Any) -> list[Any]:
        """The same parts of a group of A, in every lane."""

    @abstractmethod
    def add(self, total: Any, a: Any, b: Any) -> Any:
        """total + the products of two parts."""


def multiply(block: NarrowBlock, target: str, unit: type[Products]) -> Any:
    """A function for kernels that computes one register block of C, `block.rows` x `block.columns`:

    ``c[i, j] = before[i, j] + sum over t < chunks, k < chunk of a[row(i) + table[t] + k] * b[t, k, j]``

    It is called ``multiply(upper, upper_step, upper_table, lower, lower_step, lower_table, row_offsets, b, chunks,
    chunk, before, c, c_stride, rows, columns, fresh, out, out_stride, out_rows)``. This one takes its rows from
    `upper`, at `row_offsets`, and its table is `upper_table`; the rest is for tiles (see `units.tiles`). b is [chunk,
    group of depth, column, place in group]. `before` is gapless; if `fresh`, zeros take its place, or, where the block
    has a `shift`, it is one row, with which every row begins. Offsets, strides and `chunk` count elements. All of c may
    be written, whatever `rows` and `columns` say; only so many rows and columns get their value. `row_offsets` holds
    `block.rows` readable offsets.
    """
    @intrinsic
    def emit(typing_context: Any, upper: Any, upper_step: Any, upper_table: Any, lower: Any, lower_step: Any,
             lower_table: Any, row_offsets: Any, b: Any, chunks: Any, chunk: Any, before: Any, c: Any, c_stride: Any,
             rows: Any, columns: Any, fresh: Any, out: Any, out_stride: Any,
             out_rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, _, table, _, _, _, row_offsets, b, chunks, chunk, before, c, c_stride, rows, _, fresh, *_ = values
            products = unit(builder, block)
            groups = builder.sdiv(chunk, LONG(block.group))
            b_chunk = builder.mul(chunk, LONG(block.columns))
            starts = range(0, block.columns, block.lanes)

            def emit_block(height: int) -> None:
                offsets = [builder.load(builder.gep(row_offsets, [LONG(row)])) for row in range(height)]
                slots = [[cgutils.alloca_once(builder, products.type) for _ in starts] for _ in range(height)]
                all_slots = [slot for row_slots in slots for slot in row_slots]
                places = [(row, start) for row in range(height) for start in starts]
                with builder.if_else(builder.icmp_signed("!=", fresh, LONG(0))) as (begin, resume):
                    with begin:
                        first = [products.load(builder.gep(before, [LONG(start)]), products.type) if block.shift
                                 else ir.Constant(products.type, None) for start in starts]
                        for row_slots in slots:
                            for slot, value in zip(row_slots, first, strict=True):
                                builder.store(value, slot)
                    with resume:
                        for slot, (row, start) in zip(all_slots, places, strict=True):
                            place = builder.gep(before, [LONG(row * block.columns + start)])
                            builder.store(products.load(place, products.type), slot)
                with cgutils.for_range(builder, chunks) as outer:
                    offset = builder.load(builder.gep(table, [outer.index]))
                    a_chunk = builder.gep(a, [offset])
                    b_start = builder.gep(b, [builder.mul(outer.index, b_chunk)])
                    with cgutils.for_range(builder, groups) as inner:
                        group = builder.mul(inner.index, LONG(block.group))
                        b_row = builder.gep(b_start, [builder.mul(group, LONG(block.columns))])
                        vectors = [products.load(builder.gep(b_row, [LONG(start * block.group)]), products.words)
                                   for start in starts]
                        parts = [products.split_b(vector) for vector in vectors]
                        for row, row_slots in enumerate(slots):
                            word = products.load(builder.gep(a_chunk, [builder.add(offsets[row], group)]), WORD)
                            for number, a_part in enumerate(products.split_a(word)):
                                for slot, b_parts in zip(row_slots, parts, strict=True):
                                    builder.store(products.add(builder.load(slot), a_part, b_parts[number]), slot)
                for slot, (row, start) in zip(all_slots, places, strict=True):
                    offset = builder.add(builder.mul(c_stride, LONG(row)), LONG(start))
                    products.store(builder.load(slot), builder.gep(c, [offset]))

            choose(builder, rows, block.heights, emit_block)
            return context.get_dummy_value()

        return types.void(*arguments(block, target)), codegen

    return emit


class Stores(ABC):
    """Emits stores of rows of sums, `lanes` at once, rounded to bfloat16 if `rounds`; how is the unit's own."""

    def __init__(self, builder: Any, block: NarrowBlock, rounds: bool) -> None:
        self.builder = builder
        self.block = block
        self.rounds = rounds

    @property
    def lanes(self) -> int:
        return self.block.lanes

    @abstractmethod
    def rounded(self, bits: Any) -> Any:
        """A vector of float32 bits as bfloat16: to nearest, ties to even; NaN stays a quiet NaN."""

    @abstractmethod
    def store_part(self, line: Any, place: Any, columns: Any) -> None:
        """Store so many columns of a row, and nothing behind them."""

    def elements(self, line: Any, start: Any, lanes: int) -> Any:
        """Sums of a row from `start` on, as they are stored."""
        bits = self.builder.load(self.builder.bitcast(self.builder.gep(line, [start]),
                                                      ir.VectorType(WORD, lanes).as_pointer()), align=4)
        return self.rounded(bits) if self.rounds else bits

    def store_whole(self, line: Any, place: Any) -> None:
        """Store all columns of a row."""
        for start in range(0, self.block.columns, self.lanes):
            value = self.elements(line, LONG(start), self.lanes)
            to = self.builder.bitcast(self.builder.gep(place, [LONG(start)]), value.type.as_pointer())
            self.builder.store(value, to, align=2 if self.rounds else 4)


def store_rows(block: NarrowBlock, rounds: bool, unit: type[Stores]) -> Any:
    """A function for kernels that puts rows of sums in their place, ``store(sums, target, stride, rows, columns)``.

    Row i of the gapless sums goes to ``target + stride * i``, columns elements of it.
    """
    total = types.CPointer(TYPES[block.total])
    element = types.CPointer(TYPES["bf16"]) if rounds else total

    @intrinsic
    def emit(typing_context: Any, sums: Any, target: Any, stride: Any, rows: Any, columns: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            sums, target, stride, rows, columns = values
            stores = unit(builder, block, rounds)

            def each_row(store: Callable[[Any, Any], None]) -> None:
                with cgutils.for_range(builder, rows) as loop:
                    store(builder.gep(sums, [builder.mul(loop.index, LONG(block.columns))]),
                          builder.gep(target, [builder.mul(loop.index, stride)]))

            with builder.if_else(builder.icmp_signed("==", columns, LONG(block.columns))) as (whole, part):
                with whole:
                    each_row(stores.store_whole)
                with part:
                    each_row(lambda line, place: stores.store_part(line, place, columns))
            return context.get_dummy_value()

        return types.void(total, element, *[types.int64] * 3), codegen

    return emit


def store_block(block: NarrowBlock, store: Any) -> Any:
    """A function for kernels that puts a block of sums in its place; `store` is a unit's for rows of one stride.

    It is called ``store_block(sums, target, stride, rows, columns, phase, period, valid)``: row i of the gapless sums
    goes to ``target + stride * i``, columns elements of it. Where `period` is above 1, row i has place ``(phase + i) %
    period`` of its line: rows from `valid` on are dropped, and no place of target is kept for them.
    """
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


def copy_rows(copy_runs: Any) -> Any:
    """A function for kernels that lays scattered rows of A, or parts of them, into lines (see `kernels.narrow`).

    It is called ``copy_rows(a, offsets, rows, taps, tap_count, depth, depth_stride, padded, start, stop, copy,
    copy_stride)``: of row i, which begins at ``a[offsets[i]]``, the places start..stop of its line go to
    ``copy[i * copy_stride]`` and on. Places without an element become zero.
    """
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


@register_jitable
def no_configuration(width: int) -> None:
    """What a unit without tiles does in place of `units.tiles.configure`."""


@register_jitable
def no_release() -> None:
    """What a unit without tiles does in place of `units.tiles.release`."""
