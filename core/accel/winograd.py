"""Vector code for Winograd's convolutions: tiles of x and of sums, transformed along one to three axes.

Along an axis, 2 neighbouring pixels of a convolution with 3 taps come from 4 products instead of 6 (Winograd 1980;
Lavin and Gray 2016, arXiv 1509.09308, section 4): with d four pixels of x and g three taps,

    ``y = A ((G g) * (B d))``    B d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
                                 G g = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)
                                 A m = (m0 + m1 + m2, m1 - m2 - m3)

and along several axes one after the other. The gradient with respect to g is the transposed of it: with c two pixels of
y's gradient, ``G' ((B d) * (A' c))``, A' c = (c0, c0 + c1, c0 - c1, -c1).

Invariant: as in `registers`, nothing here knows a shape or a chip; vectors run along the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.chips import Block
from core.accel.kernels.tiles import PIXELS, POINTS, TAPS
from core.accel.pointer import intrinsic
from core.accel.prefetch import emit_prefetch
from core.accel.registers import FLOATS, INDEX, Vectors, choose
from core.accel.simd import ROWS_AHEAD

_Grid = dict[tuple[int, ...], Any]
"""Vectors by their position along the axes of a tile."""


def _positions(extent: int, axes: int) -> list[tuple[int, ...]]:
    return list(product(range(extent), repeat=axes))


def _along(grid: _Grid, axis: int, transform: Callable[[Sequence[Any]], Sequence[Any]],
           extent: int = POINTS) -> _Grid:
    """The grid, each line of so many along an axis transformed."""
    found: _Grid = {}
    for place in (place for place in grid if place[axis] == 0):
        line = [grid[*place[:axis], number, *place[axis + 1:]] for number in range(extent)]
        found |= {(*place[:axis], number, *place[axis + 1:]): value for number, value in enumerate(transform(line))}
    return found


def _points_of_x(builder: Any, d: Sequence[Any]) -> Sequence[Any]:
    """``B d``, of vectors."""
    return builder.fsub(d[0], d[2]), builder.fadd(d[1], d[2]), builder.fsub(d[2], d[1]), builder.fsub(d[1], d[3])


def _pixels_of_out(builder: Any, m: Sequence[Any]) -> Sequence[Any]:
    """``A m``, of vectors."""
    return builder.fadd(builder.fadd(m[0], m[1]), m[2]), builder.fsub(builder.fsub(m[1], m[2]), m[3])


def _points_of_ct(builder: Any, c: Sequence[Any]) -> Sequence[Any]:
    """``A' c``, of vectors."""
    return c[0], builder.fadd(c[0], c[1]), builder.fsub(c[0], c[1]), builder.fsub(c[1].type(None), c[1])


def _points_of_kernel(builder: Any, g: Sequence[Any]) -> Sequence[Any]:
    """``G g``, of vectors."""
    half, outer = ir.Constant(g[0].type, [0.5] * g[0].type.count), builder.fadd(g[0], g[2])
    return (g[0], builder.fmul(half, builder.fadd(outer, g[1])), builder.fmul(half, builder.fsub(outer, g[1])), g[2])


def _bit(builder: Any, bits: Any, number: int) -> Any:
    """Whether a bit is set."""
    return builder.icmp_signed("!=", builder.and_(bits, INDEX(1 << number)), INDEX(0))


def _by_lanes(builder: Any, vectors: Vectors, channels: Any, emit: Callable[[Any], None]) -> None:
    """Emit code for a whole vector of channels, and for a part of one, whose mask it is given."""
    whole = builder.icmp_signed(">=", channels, INDEX(vectors.lanes))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            emit(None)
        with otherwise:
            emit(vectors.mask(channels, 0))


def tile_of_x(block: Block, axes: int) -> Any:
    """A function for kernels that transforms a tile of x, ``B d``, for one vector of channels.

    It is called ``tile_of_x(x, strides, inside, zeros, target, point_stride, channels)``: the tile's pixels are
    `strides` apart along its axes, and pixel i, in row-major order, counts as the vector at `zeros` if bit i of
    `inside` is not set. Its points will be `point_stride` apart, and all lanes of them are written, with zeros beyond
    `channels`.
    """
    pointer, index, table = types.CPointer(FLOATS[block.element]), types.int64, types.CPointer(types.int64)

    @intrinsic
    def emit(typing_context: Any, x: Any, strides: Any, inside: Any, zeros: Any, target: Any, point_stride: Any,
             channels: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x, strides, inside, zeros, target, point_stride, channels = values
            vectors = Vectors(builder, block.element, block.lanes)
            places, place_of = _positions(POINTS, axes), _walker(builder, strides, axes)
            seen = [builder.select(_bit(builder, inside, number), place_of(x, place), zeros)
                    for number, place in enumerate(places)]

            def emit_tile(mask: Any) -> None:
                grid = {place: vectors.load(pixel, mask) for place, pixel in zip(places, seen, strict=True)}
                for axis in reversed(range(axes)):
                    grid = _along(grid, axis, lambda line: _points_of_x(builder, line))
                for number, place in enumerate(places):
                    vectors.store(grid[place], builder.gep(target, [builder.mul(INDEX(number), point_stride)]))

            _by_lanes(builder, vectors, channels, emit_tile)
            return context.get_dummy_value()

        return types.void(pointer, table, index, pointer, pointer, index, index), codegen

    return emit


def tile_of_out(block: Block, axes: int) -> Any:
    """A function for kernels that transforms a tile of sums into pixels of out, ``A m``, for one vector of channels.

    It is called ``tile_of_out(sums, point_stride, out, strides, valid, channels, zeros)``. Pixel i, in row-major
    order, is written if bit i of `valid` is set. To each lane of the vector at `zeros` it adds the pixels times zero,
    which makes it NaN if one of them is not finite.
    """
    pointer, index, table = types.CPointer(FLOATS[block.element]), types.int64, types.CPointer(types.int64)

    @intrinsic
    def emit(typing_context: Any, sums: Any, point_stride: Any, out: Any, strides: Any, valid: Any,
             channels: Any, zeros: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            sums, point_stride, out, strides, valid, channels, zeros = values
            vectors, place_of = Vectors(builder, block.element, block.lanes), _walker(builder, strides, axes)

            def emit_tile(mask: Any) -> None:
                grid = {place: vectors.load(builder.gep(sums, [builder.mul(INDEX(number), point_stride)]))
                        for number, place in enumerate(_positions(POINTS, axes))}
                for axis in reversed(range(axes)):
                    grid = _along(grid, axis, lambda line: _pixels_of_out(builder, line))
                total = vectors.load(zeros)
                for number, place in enumerate(_positions(PIXELS, axes)):
                    total = vectors.fma(grid[place], vectors.zero, total)
                    with builder.if_then(_bit(builder, valid, number), likely=True):
                        vectors.store(grid[place], place_of(out, place), mask)
                vectors.store(total, zeros)

            _by_lanes(builder, vectors, channels, emit_tile)
            return context.get_dummy_value()

        return types.void(pointer, index, pointer, table, index, index, pointer), codegen

    return emit


def tile_of_ct(block: Block, axes: int) -> Any:
    """A function for kernels that transforms a tile of the output's gradient, ``A' c``, for one vector of channels.

    It is called ``tile_of_ct(ct, strides, valid, target, point_stride, channels)``; as `tile_of_x`, but a pixel whose
    bit of `valid` is not set counts as zero.
    """
    pointer, index, table = types.CPointer(FLOATS[block.element]), types.int64, types.CPointer(types.int64)

    @intrinsic
    def emit(typing_context: Any, ct: Any, strides: Any, valid: Any, target: Any, point_stride: Any,
             channels: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            ct, strides, valid, target, point_stride, channels = values
            vectors, place_of = Vectors(builder, block.element, block.lanes), _walker(builder, strides, axes)
            owned = [_bit(builder, valid, number) for number in range(PIXELS ** axes)]

            def emit_tile(mask: Any) -> None:
                grid = {place: builder.select(owns, vectors.load(place_of(ct, place), mask), vectors.zero)
                        for owns, place in zip(owned, _positions(PIXELS, axes), strict=True)}
                for axis in reversed(range(axes)):
                    grid = _along(grid, axis, lambda line: _points_of_ct(builder, line), PIXELS)
                for number, place in enumerate(_positions(POINTS, axes)):
                    vectors.store(grid[place], builder.gep(target, [builder.mul(INDEX(number), point_stride)]))

            _by_lanes(builder, vectors, channels, emit_tile)
            return context.get_dummy_value()

        return types.void(pointer, table, index, pointer, index, index), codegen

    return emit


def tile_of_kernel(block: Block, axes: int) -> Any:
    """A function for kernels that transforms the taps of a kernel, ``G g``, for one vector of outputs.

    It is called ``tile_of_kernel(taps, tap_stride, target, point_stride)``, with taps and points in row-major order.
    """
    return _mapped(block, TAPS, axes, _points_of_kernel)


def line_of_x(block: Block) -> Any:
    """A function for kernels, ``line_of_x(x, stride, target, point_stride)``: `tile_of_x` of four pixels."""
    return _mapped(block, POINTS, 1, _points_of_x)


def line_of_ct(block: Block) -> Any:
    """A function for kernels, ``line_of_ct(ct, stride, target, point_stride)``: `tile_of_ct` of two pixels."""
    return _mapped(block, PIXELS, 1, _points_of_ct)


def line_of_out(block: Block) -> Any:
    """A function for kernels, ``line_of_out(sums, point_stride, out, stride)``: `tile_of_out` of four sums."""
    return _mapped(block, POINTS, 1, _pixels_of_out)


def _mapped(block: Block, extent: int, axes: int, transform: Callable[[Any, Sequence[Any]], Sequence[Any]]) -> Any:
    """A function for kernels that transforms vectors, so many along each axis and a stride apart, into others.

    It is called as `tile_of_kernel`.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64

    @intrinsic
    def emit(typing_context: Any, source: Any, stride: Any, target: Any, target_stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            source, stride, target, target_stride = values
            vectors = Vectors(builder, block.element, block.lanes)
            grid = {place: vectors.load(builder.gep(source, [builder.mul(INDEX(number), stride)]))
                    for number, place in enumerate(_positions(extent, axes))}
            for axis in reversed(range(axes)):
                grid = _along(grid, axis, lambda line: transform(builder, line), extent)
            for number, place in enumerate(sorted(grid)):
                vectors.store(grid[place], builder.gep(target, [builder.mul(INDEX(number), target_stride)]))
            return context.get_dummy_value()

        return types.void(pointer, index, pointer, index), codegen

    return emit


def _walker(builder: Any, strides: Any, axes: int) -> Callable[[Any, Sequence[int]], Any]:
    """A function that moves a pointer to a position along axes whose strides lie in a table."""
    along = [builder.load(builder.gep(strides, [INDEX(axis)])) for axis in range(axes)]

    def place_of(pointer: Any, position: Sequence[int]) -> Any:
        for stride, number in zip(along, position, strict=True):
            pointer = builder.gep(pointer, [builder.mul(stride, INDEX(number))])
        return pointer

    return place_of


def products(block: Block) -> Any:
    """A function for kernels that multiplies rows of A by a packed panel of B.

    ``c[i * c_stride + j] = sum over k < depth of a[i * a_stride + k] * b[k * block.columns + j]``, called
    ``products(a, a_stride, b, depth, c, c_stride, rows)``, for the least of `block.heights` that is not below `rows`,
    or for `block.rows` rows. Sums run in the order of k, one fused multiply-add each.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64

    @intrinsic
    def emit(typing_context: Any, a: Any, a_stride: Any, b: Any, depth: Any, c: Any, c_stride: Any, rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, a_stride, b, depth, c, c_stride, rows = values
            vectors = Vectors(builder, block.element, block.lanes)
            starts = [vector * block.lanes for vector in range(block.vectors)]

            def emit_block(height: int) -> None:
                slots = [[vectors.slot() for _ in starts] for _ in range(height)]
                for slot in (slot for row in slots for slot in row):
                    builder.store(vectors.zero, slot)
                offsets = [builder.mul(INDEX(row), a_stride) for row in range(height)]
                with cgutils.for_range(builder, depth) as loop:  # written out, it would spill registers
                    b_row = builder.gep(b, [builder.mul(loop.index, INDEX(block.columns))])
                    for start in starts:
                        emit_prefetch(builder, builder.gep(b_row, [INDEX(ROWS_AHEAD * block.columns + start)]))
                    b_vectors = [vectors.load(builder.gep(b_row, [INDEX(start)])) for start in starts]
                    column = builder.gep(a, [loop.index])
                    for offset, row_slots in zip(offsets, slots, strict=True):
                        factor = vectors.broadcast(builder.load(builder.gep(column, [offset])))
                        for slot, b_vector in zip(row_slots, b_vectors, strict=True):
                            builder.store(vectors.fma(factor, b_vector, builder.load(slot)), slot)
                for row, row_slots in enumerate(slots):
                    line = builder.gep(c, [builder.mul(INDEX(row), c_stride)])
                    for slot, start in zip(row_slots, starts, strict=True):
                        vectors.store(builder.load(slot), builder.gep(line, [INDEX(start)]))

            choose(builder, rows, block.heights, emit_block)
            return context.get_dummy_value()

        return types.void(pointer, index, pointer, index, pointer, index, index), codegen

    return emit


def add_products(block: Block) -> Any:
    """A function for kernels that adds products of columns of A with rows of B to a block of C.

    ``c[i * block.columns + j] += sum over t < count of a[t * a_stride + i] * b[t * b_stride + j]``, for up to
    `block.rows` rows i and all `block.columns` columns j, called
    ``add_products(a, a_stride, b, b_stride, count, c, rows, fresh)``; with `fresh`, c counts as zero. Sums run in the
    order of t, one fused multiply-add each.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64

    @intrinsic
    def emit(typing_context: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, count: Any, c: Any, rows: Any,
             fresh: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, a_stride, b, b_stride, count, c, rows, fresh = values
            vectors = Vectors(builder, block.element, block.lanes)

            def emit_block(height: int) -> None:
                places = [builder.gep(c, [INDEX(row * block.columns + vector * block.lanes)])
                          for row in range(height) for vector in range(block.vectors)]
                slots = [vectors.slot() for _ in places]
                is_fresh = builder.icmp_signed("!=", fresh, INDEX(0))
                with builder.if_else(is_fresh) as (begin, resume):
                    with begin:
                        for slot in slots:
                            builder.store(vectors.zero, slot)
                    with resume:
                        for slot, place in zip(slots, places, strict=True):
                            builder.store(vectors.load(place), slot)
                with cgutils.for_range(builder, count) as loop:
                    column = builder.gep(a, [builder.mul(loop.index, a_stride)])
                    row_of_b = builder.gep(b, [builder.mul(loop.index, b_stride)])
                    b_vectors = [vectors.load(builder.gep(row_of_b, [INDEX(vector * block.lanes)]))
                                 for vector in range(block.vectors)]
                    for row in range(height):
                        factor = vectors.broadcast(builder.load(builder.gep(column, [INDEX(row)])))
                        for vector, b_vector in enumerate(b_vectors):
                            slot = slots[row * block.vectors + vector]
                            builder.store(vectors.fma(factor, b_vector, builder.load(slot)), slot)
                for slot, place in zip(slots, places, strict=True):
                    vectors.store(builder.load(slot), place)

            choose(builder, rows, block.heights, emit_block)
            return context.get_dummy_value()

        return types.void(pointer, index, pointer, index, index, pointer, index, index), codegen

    return emit
