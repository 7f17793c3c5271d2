"""The unit of AMX: tile registers of recent x86 processors, 16 rows of 64 bytes, two by two of them for a block.

Invariant: a kernel configures the tiles before its first product and releases them before it returns, so that no
thread keeps tile state between kernels. The process must hold the system's permission (see `chips.host`).

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.chips import NarrowBlock
from core.accel.narrow import BYTE, LONG, SHORT, TYPES, arguments
from core.accel.pointer import intrinsic
from core.accel.prefetch import emit_prefetch
from core.accel.registers import choose
from core.accel.units.avx512 import copy_runs, store_rows

__all__ = ["configure", "copy_runs", "multiply", "release", "store_rows"]

ROWS = 16
"""Rows of a tile; a row has 64 bytes."""

_PRODUCTS = {"bf16": "llvm.x86.tdpbf16ps", "i8": "llvm.x86.tdpbssd", "u8": "llvm.x86.tdpbusd"}
_SUMS = ((0, 1), (2, 3))
"""Registers of a block of sums, [rows][columns]."""
_LEFT, _RIGHT = (4, 5), (6, 7)


def _call(builder: Any, name: str, arguments: Sequence[Any] = ()) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _bytes(builder: Any, place: Any) -> Any:
    return builder.bitcast(place, BYTE.as_pointer())


@intrinsic
def configure(typing_context: Any, width: Any) -> Any:
    """``configure(width)``: give the tiles their shapes, for chunks of `width` bytes of A, a multiple of 4."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.ArrayType(BYTE, 64))
        place.align = 64
        start = _bytes(builder, place)
        builder.store(ir.Constant(ir.ArrayType(BYTE, 64), None), place)
        builder.store(BYTE(1), start)  # palette
        depth = builder.trunc(builder.sdiv(values[0], LONG(4)), BYTE)
        for register in range(8):
            row_bytes = builder.trunc(values[0], SHORT) if register in _LEFT else SHORT(64)
            field = builder.gep(start, [LONG(16 + 2 * register)])
            builder.store(row_bytes, builder.bitcast(field, SHORT.as_pointer()), align=1)
            builder.store(depth if register in _RIGHT else BYTE(ROWS), builder.gep(start, [LONG(48 + register)]))
        _call(builder, "llvm.x86.ldtilecfg", [start])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def release(typing_context: Any) -> Any:
    """Leave the tiles empty."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


class _Tiles:
    """Emits loads, stores and products; strides count bytes."""

    def __init__(self, builder: Any, element: str) -> None:
        self.builder = builder
        self.product = _PRODUCTS[element]

    def load(self, register: int, place: Any, stride: Any) -> None:
        _call(self.builder, "llvm.x86.tileloadd64", [BYTE(register), _bytes(self.builder, place), stride])

    def store(self, register: int, place: Any, stride: Any) -> None:
        _call(self.builder, "llvm.x86.tilestored64", [BYTE(register), _bytes(self.builder, place), stride])

    def clear(self, register: int) -> None:
        _call(self.builder, "llvm.x86.tilezero", [BYTE(register)])

    def multiply(self, total: int, left: int, right: int) -> None:
        _call(self.builder, self.product, [BYTE(total), BYTE(left), BYTE(right)])


def multiply(block: NarrowBlock, target: str) -> Any:
    """As `narrow.multiply` has it, over tiles: each of the two halves of the rows has one stride, `upper_step` and
    `lower_step`; `row_offsets` is not looked at.

    Meanwhile `out_rows` rows of `out`, of type `target`, where the block will be written next, come into the cache, two
    with each chunk: all at once they would keep A and B waiting.
    """
    size = 4 // block.group
    target_size = TYPES[target].bitwidth // 8

    @intrinsic
    def emit(typing_context: Any, upper: Any, upper_step: Any, upper_table: Any, lower: Any, lower_step: Any,
             lower_table: Any, row_offsets: Any, b: Any, chunks: Any, chunk: Any, before: Any, c: Any, c_stride: Any,
             rows: Any, columns: Any, fresh: Any, out: Any, out_stride: Any, out_rows: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            (upper, upper_step, upper_table, lower, lower_step, lower_table, _, b, chunks, chunk, before, c, c_stride,
             rows, columns, fresh, out, out_stride, out_rows) = values
            tiles = _Tiles(builder, block.element)
            steps = [builder.mul(step, LONG(size)) for step in (upper_step, lower_step)]
            sources = tuple(zip((upper, lower), steps, (upper_table, lower_table), strict=True))
            b_chunk = builder.mul(chunk, LONG(block.columns))

            def emit_block(height: int, width: int) -> None:
                places = [(row, column) for row in range(height) for column in range(width)]
                with builder.if_else(builder.icmp_signed("!=", fresh, LONG(0))) as (begin, resume):
                    with begin:
                        for row, column in places:
                            tiles.clear(_SUMS[row][column])
                    with resume:
                        for row, column in places:
                            place = builder.gep(before, [LONG(ROWS * row * block.columns + block.lanes * column)])
                            tiles.load(_SUMS[row][column], place, LONG(4 * block.columns))
                with cgutils.for_range(builder, chunks) as loop:
                    for number in range(2):
                        row = builder.add(builder.mul(loop.index, LONG(2)), LONG(number))
                        row = builder.select(builder.icmp_signed("<", row, out_rows), row, LONG(0))
                        place = _bytes(builder, builder.gep(out, [builder.mul(row, out_stride)]))
                        for start in range(0, block.columns * target_size, 64):
                            emit_prefetch(builder, builder.gep(place, [LONG(start)]), for_writing=True)
                    b_row = builder.gep(b, [builder.mul(loop.index, b_chunk)])
                    for column in range(width):
                        b_tile = builder.gep(b_row, [LONG(block.lanes * block.group * column)])
                        tiles.load(_RIGHT[column], b_tile, LONG(4 * block.columns))
                    for row in range(height):
                        source, step, table = sources[row]
                        offset = builder.load(builder.gep(table, [loop.index]))
                        tiles.load(_LEFT[row], builder.gep(source, [offset]), step)
                    for row, column in places:
                        tiles.multiply(_SUMS[row][column], _LEFT[row], _RIGHT[column])
                for row, column in places:
                    offset = builder.add(builder.mul(c_stride, LONG(ROWS * row)), LONG(block.lanes * column))
                    tiles.store(_SUMS[row][column], builder.gep(c, [offset]), builder.mul(c_stride, LONG(4)))

            def emit_height(rows: int) -> None:
                choose(builder, columns, (block.lanes, block.columns),
                       lambda width: emit_block(rows // ROWS, width // block.lanes))

            choose(builder, rows, block.heights, emit_height)
            return context.get_dummy_value()

        return types.void(*arguments(block, target)), codegen

    return emit
