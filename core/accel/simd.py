"""Vector code for products of floats: register blocks over packed panels, and dot products of rows.

Invariant: nothing here knows a shape or a chip; sizes come in as a `Block` and shapes as arguments at run time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.core import cgutils

from core.accel.callee import calling
from core.accel.chips import Block
from core.accel.pointer import ELEMENTS, intrinsic
from core.accel.prefetch import SECOND, emit_prefetch
from core.accel.registers import FLOATS, INDEX, Vectors, choose

UNROLLED = 4
"""Steps of a sum that are written out, where strides are known."""
ROWS_AHEAD = 64
"""Rows of a panel between what is multiplied and what is fetched: of B in memory, the hardware alone fetches late."""


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
                    emit_prefetch(builder, builder.gep(pointer, [INDEX(start)]), for_writing=True)
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
                emit_prefetch(builder, builder.load(ahead), cache=SECOND)
                builder.store(builder.gep(builder.load(ahead), [given.ahead_stride]), ahead)
                k = builder.add(first, INDEX(number))
                b_row = builder.gep(b, [builder.mul(k, b_stride)])
                if unrolled > 1:
                    for start in starts:
                        emit_prefetch(builder, builder.gep(b_row, [INDEX(ROWS_AHEAD * block.columns + start)]))
                emit_products(builder.gep(a, [builder.mul(k, a_stride)]), b_row)
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

    It is compiled on its own: inlined, it would take most of the time of each kernel that has it.
    """
    text = (f"from core.accel.chips import Block\nfrom core.accel.simd import tile_callee, tile_signature\n"
            f"SIGNATURE = tile_signature({block!r})\nkernel = tile_callee({block!r})\n")
    return calling(text, tile_signature(block))


def tile_signature(block: Block) -> Any:
    """The signature of `tile`."""
    pointer, index, offsets = types.CPointer(FLOATS[block.element]), types.int64, types.CPointer(types.int64)
    return types.void(pointer, offsets, index, offsets, index, pointer, index, index, index, pointer, offsets,
                      *[index] * 3, pointer, index)


def tile_callee(block: Block) -> Any:
    """What `tile` calls."""
    signature = tile_signature(block)
    widths = (1, block.vectors) if block.vectors > 1 else (1,)

    @intrinsic
    def emit(typing_context: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, typed: Any, values: Any) -> Any:
            given = _Operands(*cgutils.unpack_tuple(builder, values[0]))

            def emit_height(height: int) -> None:
                choose(builder, given.columns, [width * block.lanes for width in widths],
                       lambda columns: _emit_tile(builder, block, height, columns // block.lanes, given))

            choose(builder, given.rows, block.heights, emit_height)
            return context.get_dummy_value()

        return types.void(types.StarArgTuple(signature.args)), codegen

    def kernel(a: Any, row_offsets: Any, depth_stride: int, tap_offsets: Any, taps: int, b: Any, tap_stride: int,
               b_stride: int, depth: int, c: Any, c_offsets: Any, rows: int, columns: int, accumulate: int, ahead: Any,
               ahead_stride: int) -> None:
        emit(a, row_offsets, depth_stride, tap_offsets, taps, b, tap_stride, b_stride, depth, c, c_offsets, rows,
             columns, accumulate, ahead, ahead_stride)

    return kernel


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


def dots(block: Block, columns: int, source: str) -> Any:
    """A function for kernels, ``dots(a, row_stride, rows, b, depth, out)``, where a has elements of type `source`:

    ``out[i * columns + j] = sum over k of a[i * row_stride + k] * b[k // width, j, k % width]``

    The width is that of the block; what b holds from `depth` on is not read. A sum has one part a lane. There are no
    more columns than lanes: a block of rows has as many sums as fit in a vector.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64
    height, elements = block.lanes // columns, types.CPointer(ELEMENTS[source])

    @intrinsic
    def emit(typing_context: Any, a: Any, row_stride: Any, rows: Any, b: Any, depth: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            first, stride, count, weights, length, target = values
            whole = builder.sub(count, builder.srem(count, INDEX(height)))

            def block_from(row: Any, left: Any) -> None:
                start = builder.gep(first, [builder.mul(row, stride)])
                place = builder.gep(target, [builder.mul(row, INDEX(columns))])
                _emit_dots(builder, block, columns, source, start, stride, left, weights, length, place)

            with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(height), INDEX) as (row, _):
                block_from(row, None)
            with builder.if_then(builder.icmp_signed("<", whole, count)):
                block_from(whole, builder.sub(count, whole))
            return context.get_dummy_value()

        return types.void(elements, index, index, pointer, index, pointer), codegen

    return emit


def _emit_dots(builder: Any, block: Block, columns: int, source: str, a: Any, stride: Any, rows: Any, b: Any,
               depth: Any, out: Any) -> None:
    """One block of `dots`; where there are fewer rows (else None), the last one is computed again."""
    lanes, width = Vectors(builder, block.element, block.lanes), block.columns
    height = block.lanes // columns
    numbers = [INDEX(row) for row in range(height)]
    if rows is not None:
        last = builder.sub(rows, INDEX(1))
        numbers = [builder.select(builder.icmp_signed("<", row, last), row, last) for row in numbers]
    starts = [builder.gep(a, [builder.mul(stride, row)]) for row in numbers]
    slots = [[lanes.slot() for _ in range(columns)] for _ in starts]
    whole = builder.sub(depth, builder.srem(depth, INDEX(width)))

    for slot in itertools.chain(*slots):
        builder.store(lanes.zero, slot)

    def add(k: Any, left: Any) -> None:
        panel = builder.gep(b, [builder.mul(k, INDEX(columns))])
        for vector in range(0, width, block.lanes):
            mask = None if left is None else lanes.mask(left, vector)
            factors = [lanes.load(builder.gep(panel, [INDEX(column * width + vector)]), mask)
                       for column in range(columns)]
            for start, row_slots in zip(starts, slots, strict=True):
                place = builder.gep(start, [builder.add(k, INDEX(vector))])
                value = lanes.load(place, mask) if source in FLOATS else lanes.load_widened(place, source, mask)
                for factor, slot in zip(factors, row_slots, strict=True):
                    builder.store(lanes.fma(value, factor, builder.load(slot)), slot)

    with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(width), INDEX) as (k, _):
        add(k, None)
    with builder.if_then(builder.icmp_signed("<", whole, depth)):
        add(whole, builder.sub(depth, whole))
    sums = [builder.load(slot) for slot in itertools.chain(*slots)]
    totals = lanes.totals([*sums, *[lanes.zero] * (block.lanes - len(sums))])
    count = INDEX(len(sums)) if rows is None else builder.mul(rows, INDEX(columns))
    lanes.store(totals, out, None if rows is None and len(sums) == block.lanes else lanes.mask(count, 0))


def outer(block: Block, depth: int) -> Any:
    """A function for kernels, ``outer(a, row_stride, a_offsets, rows, b, b_offsets, columns, out, out_stride)``:

    ``out[i * out_stride + j] = sum over k < depth of a[i * row_stride + a_offsets[k]] * b[b_offsets[k] + j]``

    There are no more columns than the block has, and b can be read to its width.
    """
    pointer, index, offsets = types.CPointer(FLOATS[block.element]), types.int64, types.CPointer(types.int64)
    starts = [INDEX(vector * block.lanes) for vector in range(block.vectors)]

    @intrinsic
    def emit(typing_context: Any, a: Any, row_stride: Any, a_offsets: Any, rows: Any, b: Any, b_offsets: Any,
             columns: Any, out: Any, out_stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, row_stride, a_offsets, rows, b, b_offsets, columns, out, out_stride = values
            lanes = Vectors(builder, block.element, block.lanes)
            places = [builder.load(builder.gep(a_offsets, [INDEX(k)])) for k in range(depth)]
            b_starts = [builder.gep(b, [builder.load(builder.gep(b_offsets, [INDEX(k)]))]) for k in range(depth)]
            b_rows = [[lanes.load(builder.gep(b_start, [start])) for start in starts] for b_start in b_starts]

            def each_row(masks: Sequence[Any]) -> None:
                with cgutils.for_range(builder, rows) as loop:
                    sums = [lanes.zero for _ in starts]
                    a_row = builder.gep(a, [builder.mul(loop.index, row_stride)])
                    for place, b_row in zip(places, b_rows, strict=True):
                        factor = lanes.broadcast(builder.load(builder.gep(a_row, [place])))
                        sums = [lanes.fma(factor, vector, total) for vector, total in zip(b_row, sums, strict=True)]
                    line = builder.gep(out, [builder.mul(loop.index, out_stride)])
                    for total, start, mask in zip(sums, starts, masks, strict=True):
                        lanes.store(total, builder.gep(line, [start]), mask)

            with builder.if_else(builder.icmp_signed("==", columns, INDEX(block.columns))) as (full, part):
                with full:
                    each_row([None] * block.vectors)
                with part:
                    each_row([lanes.mask(columns, vector * block.lanes) for vector in range(block.vectors)])
            return context.get_dummy_value()

        return types.void(pointer, index, offsets, index, pointer, offsets, index, pointer, index), codegen

    return emit
