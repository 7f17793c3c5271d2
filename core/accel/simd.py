"""Vector code for kernels: numba intrinsics that emit register-blocked products over LLVM vectors.

Invariant: nothing here knows a shape or a chip; sizes come in as a `Block` and shapes as arguments at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel.chips import Block
from core.accel.pointer import intrinsic

INDEX = ir.IntType(64)
LANE = ir.IntType(32)
FLOATS: dict[str, Any] = {"f32": types.float32, "f64": types.float64}
UNROLLED = 4
"""Steps of a sum that are written out, where strides are known."""
_LLVM_FLOATS: dict[str, Any] = {"f32": ir.FloatType(), "f64": ir.DoubleType()}


class Vectors:
    """Emits operations on vectors of `lanes` floats of one type."""

    def __init__(self, builder: Any, element: str, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.type = ir.VectorType(_LLVM_FLOATS[element], lanes)
        self.align = FLOATS[element].bitwidth // 8
        self.suffix = f"v{lanes}{element}"
        self.zero = ir.Constant(self.type, None)
        self.mask_type = ir.VectorType(ir.IntType(1), lanes)

    def _call(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def _pointer(self, pointer: Any) -> Any:
        return self.builder.bitcast(pointer, self.type.as_pointer())

    def slot(self) -> Any:
        """A variable for one vector; the optimiser keeps it in a register."""
        return cgutils.alloca_once(self.builder, self.type)

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, LANE(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(LANE, self.lanes), None))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return self._call(f"llvm.fma.{self.suffix}", self.type, [a, b, c])

    def mask(self, count: Any, first: int) -> Any:
        """Lane i is on where first + i < count."""
        lanes = ir.Constant(ir.VectorType(INDEX, self.lanes), [first + lane for lane in range(self.lanes)])
        return self.builder.icmp_signed("<", lanes, self.broadcast(count))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        if mask is None:
            return self.builder.load(self._pointer(pointer), align=self.align)
        align = LANE(self.align)
        return self._call(f"llvm.masked.load.{self.suffix}.p0", self.type,
                          [self._pointer(pointer), align, mask, self.zero])

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        if mask is None:
            self.builder.store(value, self._pointer(pointer), align=self.align)
            return
        align = LANE(self.align)
        self._call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), [value, self._pointer(pointer), align, mask])

    def prefetch(self, pointer: Any, write: bool = False) -> None:
        """Ask for the cache line behind a pointer, which may lie outside of any array."""
        address = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        self._call("llvm.prefetch.p0", ir.VoidType(), [address, LANE(int(write)), LANE(3 if write else 2), LANE(1)])

    def _halves(self, first: Any, second: Any, bit: int) -> tuple[Any, Any]:
        """Two vectors as a square of their numbers and this bit of their lanes: its columns."""
        def column(half: int) -> Any:
            order = [(lane & ~bit) + half + (self.lanes if lane & bit else 0) for lane in range(self.lanes)]
            return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(LANE, self.lanes), order))

        return column(0), column(bit)

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """As many vectors as there are lanes, rows and lanes exchanged: one bit of their numbers after the other."""
        vectors, bit = list(rows), self.lanes // 2
        while bit:
            for row in (row for row in range(self.lanes) if not row & bit):
                vectors[row], vectors[row | bit] = self._halves(vectors[row], vectors[row | bit], bit)
            bit //= 2
        return vectors

    def totals(self, rows: Sequence[Any]) -> Any:
        """The sums of the lanes of as many vectors as there are lanes."""
        vectors, bit = list(rows), self.lanes // 2
        while bit:
            vectors = [self.builder.fadd(*self._halves(first, second, bit))
                       for first, second in zip(vectors[:bit], vectors[bit:], strict=True)]
            bit //= 2
        return vectors[0]

    def total(self, vector: Any) -> Any:
        """Sum of the lanes: halves are added until one lane is left."""
        distance = self.lanes // 2
        while distance:
            order = [(lane + distance) % self.lanes for lane in range(self.lanes)]
            shifted = self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(LANE, self.lanes), order))
            vector = self.builder.fadd(vector, shifted)
            distance //= 2
        return self.builder.extract_element(vector, LANE(0))


def choose(builder: Any, value: Any, bounds: Sequence[int], emit: Callable[[int], None]) -> None:
    """Emit code that runs ``emit(bound)`` for the smallest bound that value does not exceed, else for the largest."""
    smallest, *larger = sorted(bounds)
    if not larger:
        emit(smallest)
        return
    with builder.if_else(builder.icmp_signed("<=", value, INDEX(smallest))) as (then, otherwise):
        with then:
            emit(smallest)
        with otherwise:
            choose(builder, value, larger, emit)


@dataclass(frozen=True)
class _Operands:
    """Values of one call of `tile`, in the order of its arguments."""

    a: Any
    row_offsets: Any
    depth_stride: Any
    tap_offsets: Any
    taps: Any
    b: Any
    tap_stride: Any
    b_stride: Any
    depth: Any
    c: Any
    c_offsets: Any
    rows: Any
    columns: Any
    accumulate: Any
    ahead: Any
    ahead_stride: Any


def _emit_tile(builder: Any, block: Block, height: int, vectors: int, given: _Operands) -> None:
    """One register block: load or clear the accumulators, sum over taps and depth, store what is valid."""
    lanes = Vectors(builder, block.element, block.lanes)
    starts = [vector * block.lanes for vector in range(vectors)]
    masks = [lanes.mask(given.columns, start) for start in starts]
    b_masks = masks if block.columns_masked else [None] * vectors
    slots = [[lanes.slot() for _ in starts] for _ in range(height)]
    row_offsets = [builder.load(builder.gep(given.row_offsets, [INDEX(row)])) for row in range(height)]

    def c_row(row: int) -> Any:
        return builder.gep(given.c, [builder.load(builder.gep(given.c_offsets, [INDEX(row)]))])

    with builder.if_else(builder.icmp_signed("!=", given.accumulate, INDEX(0))) as (resume, fresh):
        with resume:
            for row, row_slots in enumerate(slots):
                pointer = c_row(row)
                for slot, start, mask in zip(row_slots, starts, masks, strict=True):
                    builder.store(lanes.load(builder.gep(pointer, [INDEX(start)]), mask), slot)
        with fresh:
            with builder.if_then(builder.icmp_signed("!=", given.ahead_stride, INDEX(0))):
                for pointer, start in ((c_row(row), start) for row in range(height) for start in starts):
                    lanes.prefetch(builder.gep(pointer, [INDEX(start)]), write=True)
            for row_slots in slots:
                for slot in row_slots:
                    builder.store(lanes.zero, slot)

    ahead = cgutils.alloca_once_value(builder, given.ahead)

    def emit_products(a_column: Any, b_row: Any) -> None:
        b_vectors = [lanes.load(builder.gep(b_row, [INDEX(start)]), mask)
                     for start, mask in zip(starts, b_masks, strict=True)]
        for offset, row_slots in zip(row_offsets, slots, strict=True):
            factor = lanes.broadcast(builder.load(builder.gep(a_column, [offset])))
            for slot, b_vector in zip(row_slots, b_vectors, strict=True):
                builder.store(lanes.fma(factor, b_vector, builder.load(slot)), slot)

    def emit_sum(a: Any, a_stride: Any, b: Any, b_stride: Any, unrolled: int) -> None:
        whole = builder.sub(given.depth, builder.srem(given.depth, INDEX(unrolled)))
        with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(unrolled), INDEX) as (first, _):
            for number in range(unrolled):
                lanes.prefetch(builder.load(ahead))
                builder.store(builder.gep(builder.load(ahead), [given.ahead_stride]), ahead)
                k = builder.add(first, INDEX(number))
                emit_products(builder.gep(a, [builder.mul(k, a_stride)]), builder.gep(b, [builder.mul(k, b_stride)]))
        if unrolled > 1:
            with cgutils.for_range_slice(builder, whole, given.depth, INDEX(1), INDEX) as (k, _):
                emit_products(builder.gep(a, [builder.mul(k, a_stride)]), builder.gep(b, [builder.mul(k, b_stride)]))

    width = INDEX(block.columns)
    packed = builder.icmp_signed("==", given.b_stride, width)
    with cgutils.for_range(builder, given.taps) as tap:
        a = builder.gep(given.a, [builder.load(builder.gep(given.tap_offsets, [tap.index]))])
        b = builder.gep(given.b, [builder.mul(tap.index, given.tap_stride)])
        of_row, of_copy = (builder.and_(packed, builder.icmp_signed("==", given.depth_stride, INDEX(stride)))
                           for stride in (1, block.copy_stride))
        with builder.if_else(of_row) as (along_row, otherwise):
            with along_row:
                emit_sum(a, INDEX(1), b, width, UNROLLED)
            with otherwise, builder.if_else(of_copy) as (along_copy, anyhow):
                with along_copy:
                    emit_sum(a, INDEX(block.copy_stride), b, width, UNROLLED)
                with anyhow:
                    emit_sum(a, given.depth_stride, b, given.b_stride, 1)

    for row, row_slots in enumerate(slots):
        with builder.if_then(builder.icmp_signed("<", INDEX(row), given.rows)):
            for slot, start, mask in zip(row_slots, starts, masks, strict=True):
                lanes.store(builder.load(slot), builder.gep(c_row(row), [INDEX(start)]), mask)


def tile(block: Block) -> Any:
    """A function for kernels that computes one register block of C, at most `block.rows` x `block.columns`:

    ``c[c_offsets[i] + j] (+)= sum over t, k of a[row_offsets[i] + tap_offsets[t] + k * depth_stride] * b[t, k, j]``

    It is called ``tile(a, row_offsets, depth_stride, tap_offsets, taps, b, tap_stride, b_stride, depth, c, c_offsets,
    rows, columns, accumulate, ahead, ahead_stride)``. Strides and offsets count elements; j has stride 1 in b.
    `row_offsets` and `c_offsets` must hold `block.rows` readable offsets even where `rows` is less. Sums run in the
    order of t, then k, one fused multiply-add each. With each of them goes a prefetch of what comes next: from `ahead`
    on, `ahead_stride` elements apart.
    """
    pointer = types.CPointer(FLOATS[block.element])
    index, offsets = types.int64, types.CPointer(types.int64)
    arguments = (pointer, offsets, index, offsets, index, pointer, index, index, index, pointer, offsets, *[index] * 3,
                 pointer, index)
    widths = (1, block.vectors) if block.vectors > 1 else (1,)

    @intrinsic
    def emit(typing_context: Any, a: Any, row_offsets: Any, depth_stride: Any, tap_offsets: Any, taps: Any, b: Any,
             tap_stride: Any, b_stride: Any, depth: Any, c: Any, c_offsets: Any, rows: Any, columns: Any,
             accumulate: Any, ahead: Any, ahead_stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = _Operands(*values)

            def emit_height(height: int) -> None:
                choose(builder, given.columns, [width * block.lanes for width in widths],
                       lambda columns: _emit_tile(builder, block, height, columns // block.lanes, given))

            choose(builder, given.rows, block.heights, emit_height)
            return context.get_dummy_value()

        return types.void(*arguments), codegen

    return emit


def dot(element: str, lanes: int) -> Any:
    """A function for kernels, ``dot(a, b, depth)``: the sum of a[k] * b[k], both with stride 1.

    Four vectors of partial sums take turns and are added at the end, always in the same order.
    """
    number = FLOATS[element]
    ways = 4

    @intrinsic
    def emit(typing_context: Any, a: Any, b: Any, depth: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a_pointer, b_pointer, count = values
            vectors = Vectors(builder, element, lanes)
            slots = [vectors.slot() for _ in range(ways)]
            for slot in slots:
                builder.store(vectors.zero, slot)
            step = INDEX(ways * lanes)
            whole = builder.sub(count, builder.srem(count, step))

            def add(start: Any, left: Any) -> None:
                for way, slot in enumerate(slots):
                    mask = None if left is None else vectors.mask(left, way * lanes)
                    first = builder.add(start, INDEX(way * lanes))
                    a_vector = vectors.load(builder.gep(a_pointer, [first]), mask)
                    b_vector = vectors.load(builder.gep(b_pointer, [first]), mask)
                    builder.store(vectors.fma(a_vector, b_vector, builder.load(slot)), slot)

            with cgutils.for_range_slice(builder, INDEX(0), whole, step, INDEX) as (start, _):
                add(start, None)
            with builder.if_then(builder.icmp_signed("<", whole, count)):
                add(whole, builder.sub(count, whole))
            first, second, third, fourth = (builder.load(slot) for slot in slots)
            return vectors.total(builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth)))

        return number(types.CPointer(number), types.CPointer(number), types.int64), codegen

    return emit


def dots(element: str, lanes: int) -> Any:
    """A function for kernels, ``dots(a, row_stride, rows, b, depth, out)``: ``out[i] = sum over k of a[i, k] * b[k]``.

    It takes up to `lanes` rows; k has stride 1 in both, and i in `out`. A row's sum has one part a lane.
    """
    pointer, index = types.CPointer(FLOATS[element]), types.int64

    @intrinsic
    def emit(typing_context: Any, a: Any, row_stride: Any, rows: Any, b: Any, depth: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            first, stride, count, weights, length, target = values
            vectors = Vectors(builder, element, lanes)
            last = builder.sub(count, INDEX(1))
            starts = [builder.gep(first, [builder.mul(stride, builder.select(
                builder.icmp_signed("<", INDEX(row), last), INDEX(row), last))]) for row in range(lanes)]
            slots = [vectors.slot() for _ in starts]
            for slot in slots:
                builder.store(vectors.zero, slot)
            whole = builder.sub(length, builder.srem(length, INDEX(lanes)))

            def add(k: Any, mask: Any) -> None:
                weight = vectors.load(builder.gep(weights, [k]), mask)
                for start, slot in zip(starts, slots, strict=True):
                    value = vectors.load(builder.gep(start, [k]), mask)
                    builder.store(vectors.fma(value, weight, builder.load(slot)), slot)

            with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(lanes), INDEX) as (k, _):
                add(k, None)
            with builder.if_then(builder.icmp_signed("<", whole, length)):
                add(whole, vectors.mask(builder.sub(length, whole), 0))
            totals = vectors.totals([builder.load(slot) for slot in slots])
            vectors.store(totals, target, vectors.mask(count, 0))
            return context.get_dummy_value()

        return types.void(pointer, index, index, pointer, index, pointer), codegen

    return emit


def transpose(element: str, lanes: int) -> Any:
    """A function for kernels, ``transpose(source, source_stride, target, target_stride)``: a square of `lanes` rows.

    ``target[i * target_stride + j] = source[j * source_stride + i]``
    """
    pointer, index = types.CPointer(FLOATS[element]), types.int64

    @intrinsic
    def emit(typing_context: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            vectors, (from_, from_stride, to, to_stride) = Vectors(builder, element, lanes), values
            rows = [vectors.load(builder.gep(from_, [builder.mul(from_stride, INDEX(row))])) for row in range(lanes)]
            for row, vector in enumerate(vectors.transposed(rows)):
                vectors.store(vector, builder.gep(to, [builder.mul(to_stride, INDEX(row))]))
            return context.get_dummy_value()

        return types.void(pointer, index, pointer, index), codegen

    return emit


def stack(element: types.Type, count: int) -> Any:
    """A function for kernels, ``stack()``: a pointer to `count` uninitialised elements on the thread's stack."""
    pointer = types.CPointer(element)

    @intrinsic
    def emit(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            with builder.goto_entry_block():
                array = builder.alloca(ir.ArrayType(context.get_value_type(element), count))
                array.align = 64
            return builder.bitcast(array, context.get_value_type(pointer))

        return pointer(), codegen

    return emit


@intrinsic
def at(typing_context: Any, pointer: Any, offset: Any) -> Any:
    """``at(pointer, offset)``: the pointer moved on by `offset` elements."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.gep(values[0], [values[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def prefetch(typing_context: Any, pointer: Any) -> Any:
    """``prefetch(pointer)``: begin to bring a cache line that will be read into the first cache."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.bitcast(values[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, LANE, LANE, LANE])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, LANE(0), LANE(3), LANE(1)])
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
    """``widen(value)``: bfloat16 bits as float32, exactly; any float as it is."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if value != types.uint16:
            return values[0]
        bits = builder.shl(builder.zext(values[0], LANE), LANE(16))
        return builder.bitcast(bits, ir.FloatType())

    return (types.float32 if value == types.uint16 else value)(value), codegen


@register_jitable
def strided(dims: Any, rank: int, width: int, operand: int, index: int) -> int:
    """Offset of the index-th element of a row-major walk over dims of `width` numbers each: extent, then strides."""
    offset = 0
    for dim in range(rank - 1, 0, -1):
        extent = dims[width * dim]
        offset += index % extent * dims[width * dim + operand]
        index //= extent
    return offset + index * dims[operand] if rank else offset


def copy_rows(block: Block) -> Any:
    """A function for kernels that lays scattered rows beside each other: ``copy[k, i] = a[offsets[i] + k * stride]``.

    It is called ``copy_rows(a, offsets, stride, copy, depth)`` and copies all `block.rows` rows; a row of the copy has
    `block.copy_stride` elements.
    """
    height, pitch = block.rows, block.copy_stride

    @register_jitable
    def copy_block(a: Any, offsets: Any, stride: int, copy: Any, depth: int) -> None:
        if stride == 1:
            for row in range(height):
                line, target = at(a, offsets[row]), at(copy, row)
                for k in range(depth):
                    target[k * pitch] = widen(line[k])
        else:
            for k in range(depth):
                line, target = at(a, k * stride), at(copy, k * pitch)
                for row in range(height):
                    target[row] = widen(line[offsets[row]])

    return copy_block


def copy_adjacent(block: Block) -> Any:
    """As `copy_rows` for rows that lie one element apart: ``copy_adjacent(a, stride, copy, depth, rows)``.

    No more than `rows` elements are read at each k; zeros fill a row of the copy.
    """
    pointer = types.CPointer(FLOATS[block.element])

    @intrinsic
    def emit(typing_context: Any, a: Any, stride: Any, copy: Any, depth: Any, rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            source, along, target, count, valid = values
            lanes = Vectors(builder, block.element, block.lanes)
            starts = range(0, block.copy_stride, block.lanes)
            masks = [lanes.mask(valid, start) for start in starts]
            with cgutils.for_range(builder, count) as depth_loop:
                line = builder.gep(source, [builder.mul(depth_loop.index, along)])
                place = builder.gep(target, [builder.mul(depth_loop.index, INDEX(block.copy_stride))])
                for start, mask in zip(starts, masks, strict=True):
                    vector = lanes.load(builder.gep(line, [INDEX(start)]), mask)
                    lanes.store(vector, builder.gep(place, [INDEX(start)]))
            return context.get_dummy_value()

        return types.void(pointer, types.int64, pointer, types.int64, types.int64), codegen

    return emit
