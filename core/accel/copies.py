"""Vector code for copies: rows of A laid beside each other, and squares that are transposed into panels of B.

Invariant: a copy has the order in which a register block reads it; nothing here knows a shape or a chip.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel.chips import Block
from core.accel.kernels.scalar import widen
from core.accel.pointer import at, intrinsic
from core.accel.registers import FLOATS, INDEX, Vectors


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
