"""Products of few rows, few columns or short sums, whose kernels read large factors where they lie.

Invariant: every element of the output is one sum in an order that the shapes alone decide. Only a factor that serves
many products, or is small beside the other one, is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any

from core.accel.chips import Block, block_for, host, thin_block_for
from core.accel.kernels import float_panels
from core.accel.kernels.narrow import DTYPES as NARROW
from core.accel.kernels.rounding import rounding
from core.accel.kernels.text import text_of
from core.accel.step import Epilogue, Step, View, contiguous
from core.engine import dtypes

THIN = 4
"""Rows, or columns, below which a product is thin."""
CHAINS = 2
"""Chains of the sums of a single row where B comes from a cache; from memory it comes too slowly for more than one."""
THIN_DEPTH = 8
"""Rows of a large B that are read side by side, each from end to end: streams that the hardware can follow."""
DOT_GRAIN = 16
"""Dot products that a thread gets at least."""
DOTS_COLUMNS, NARROW_DOTS_COLUMNS = 8, 2
"""Columns up to which sums along rows of A are cheaper than vectors of columns, of floats and of narrow elements."""
EXACT_DEPTH = 512
"""Products of two bytes whose sum float32 holds exactly, whatever their order."""

OUTER_ROWS = 32
"""Rows of an outer product that stay in the first cache while their columns are written."""

Dim = tuple[int, ...]
"""An extent and one stride for each operand."""


def transposed(view: View) -> View:
    """The view with its last two dims exchanged."""
    shape, strides = view.shape, view.strides
    return replace(view, shape=(*shape[:-2], shape[-1], shape[-2]), strides=(*strides[:-2], strides[-1], strides[-2]))


def batch_dims(a: View, b: View, out: View) -> tuple[Dim, ...]:
    """(extent, stride in a, b and out) of the leading dims."""
    return tuple(zip(out.shape[:-2], a.strides, b.strides, out.strides, strict=False))


def _direct_step(text: str, a: View, b: View, out: View, strides: Dim, extent: int, grain: int, name: str) -> Step:
    """A step of a kernel that reads a and b where they lie."""
    batch = batch_dims(a, b, out)
    dims = (*out.shape[-2:], a.shape[-1], *strides, len(batch), *sum(batch, ()))
    nbytes = sum(view.buffer.nbytes for view in (a, b, out))
    return Step(text, (a, b, out), (2,), dims, extent, grain, name, 2 * out.size * a.shape[-1], nbytes)


def thin(a: View, b: View, out: View, epilogue: Epilogue | None = None, is_fixed: bool = False) -> list[Step]:
    """Steps of ``out = a @ b``, or of what the epilogue makes of it, for less than `THIN` rows.

    The columns of b and out have stride 1. If b `is_fixed`, it may be packed, so that it is read from end to end.
    """
    block, depth = thin_block_for(host(), out.dtype.short), max(1, b.shape[-2])
    is_near = b.shape[-1] * b.shape[-2] * b.dtype.itemsize <= host().second_cache
    chains = CHAINS if is_near else 1  # the same for a fixed B, so that the bits are
    if is_fixed and b.shape[-1] > block.columns:
        packed, steps = float_panels.pack(b, block=block)
        return [*steps, _thin_step(block, chains, a, packed, out, epilogue, depth)]
    panels = float_panels.in_place(b, block)
    return [_thin_step(block, chains, a, panels, out, epilogue, depth if is_near else THIN_DEPTH)]


def _thin_step(block: Block, chains: int, a: View, panels: View, out: View, epilogue: Epilogue | None,
               depth_block: int) -> Step:
    """The step of `thin` for the panels of B; a pass takes `depth_block` of their rows."""
    strides = (*a.strides[-2:], *panels.strides[-3:-1], out.strides[-2], depth_block)
    extent = prod(out.shape[:-2]) * ceil(out.shape[-1] / block.columns)
    step = _direct_step(text_of(thin_kernel, block, chains), a, panels, out, strides, extent, 1, "matmul thin")
    return step if epilogue is None else epilogue.attach(step, block.columns, in_place=True)


def dot_step(a: View, b: View, out: View) -> Step:
    """The step of ``out = a @ b`` for few outputs with long sums; K has stride 1 in both."""
    strides = (a.strides[-2], b.strides[-1], out.strides[-2])
    text = text_of(dot_kernel, block_for(host(), out.dtype.short, 1))
    return _direct_step(text, a, b, out, strides, out.size, DOT_GRAIN, "matmul dot")


def suits_dots(a: View, b: View, out: View) -> bool:
    """Whether `dots_step` fits, and a vector of out takes fewer sums by rows of A than by columns of B."""
    (depth, columns), lanes = b.shape[-2:], _dots_block(a, 1).lanes
    most = NARROW_DOTS_COLUMNS if a.dtype in NARROW else DOTS_COLUMNS
    return (a.strides[-1] == 1 and out.strides[-2] == columns <= min(most, lanes) and a.shape[-2] >= lanes
            and (columns == 1 or depth >= lanes) and (a.dtype.itemsize > 1 or depth <= EXACT_DEPTH)
            and (out.is_contiguous or a.dtype not in NARROW))


def _dots_block(a: View, columns: int) -> Block:
    """The block of the sums of `dots_step`: narrow elements are summed in float32."""
    return block_for(host(), "f32" if a.dtype in NARROW else a.dtype.short, columns)


def dots_step(a: View, b: View, out: View) -> list[Step]:
    """The steps of ``out = a @ b`` for few columns, see `suits_dots`.

    K has stride 1 in a, and out has no gaps between its rows.
    """
    depth, columns = b.shape[-2:]
    block, is_narrow = _dots_block(a, depth), a.dtype in NARROW
    reads_b = columns == b.strides[-2] == 1 and not is_narrow
    turned, steps = (b, []) if reads_b else float_panels.pack(transposed(b), block=block)
    extent = prod(out.shape[:-2]) * ceil(out.shape[-2] / (block.lanes // columns))
    sums = contiguous(dtypes.float32, out.shape, "sums") if is_narrow and out.dtype is not dtypes.float32 else out
    step = _direct_step(text_of(dots_kernel, block, columns, a.dtype.short), a, turned, sums, (a.strides[-2],), extent,
                        1, "matmul dots")
    return [*steps, step, *([] if sums is out else [rounding(sums, out)])]


def suits_outer(a: View, b: View, out: View) -> bool:
    """Whether `outer_step` fits: sums so short that a block of them costs less than to begin it."""
    depth, columns = b.shape[-2:]
    return is_short(depth, columns, out) and a.shape[-2] >= OUTER_ROWS


def is_short(depth: int, columns: int, out: View) -> bool:
    """Whether rows of B for a sum stay in registers, where a block of sums would be, and fill them."""
    block = block_for(host(), out.dtype.short, columns)
    return depth <= block.rows - 2 and columns >= block.lanes


def outer_step(a: View, b: View, out: View, epilogue: Epilogue | None = None) -> list[Step]:
    """The steps of ``out = a @ b`` for few indices of K, see `suits_outer`; the columns of out have stride 1."""
    packed, steps = float_panels.pack(b)
    a_offsets, b_offsets = ([k * stride for k in range(b.shape[-2])] for stride in (a.strides[-1], packed.strides[-2]))
    row, lines = (out.shape[-2], a.strides[-2], out.strides[-2]), batch_dims(a, packed, out)
    return [*steps, short_sums(a, packed, out, row, lines, a_offsets, b_offsets, packed.strides[-3], "matmul outer",
                               epilogue)]


def short_sums(a: View, packed: View, out: View, row: Dim, lines: Sequence[Dim], a_offsets: Sequence[int],
               b_offsets: Sequence[int], panel: int, name: str, epilogue: Epilogue | None = None) -> Step:
    """A step of sums so short that all of B they meet stays in registers.

    ``out[line, i, j] = sum over k of a[line, i, a_offsets[k]] * packed[line, panel of j, b_offsets[k], j]``

    Parameters
    ----------
    row : extent of i, its stride in a and in out
    lines : (extent, stride in a, packed and out) of the dims that together count the lines
    panel : elements of packed between two panels
    """
    columns, depth = out.shape[-1], len(a_offsets)
    block = block_for(host(), out.dtype.short, columns)
    dims = (columns, *row, panel, len(lines), *a_offsets, *b_offsets, *sum(lines, ()))
    extent = prod(line[0] for line in lines) * ceil(row[0] / OUTER_ROWS)
    step = Step(text_of(outer_kernel, block, depth), (a, packed, out), (2,), dims, extent, 1, name,
                2 * out.size * depth, sum(view.buffer.nbytes for view in (a, packed, out)))
    return step if epilogue is None else epilogue.attach(step, block.columns, in_place=True)


def thin_kernel(block: Block, chains: int, epilogue: Any = None) -> Any:
    """Kernel for few rows; units are (product, panel of B); p = a, panels of b, out.

    d = M, N, K, strides of M and K in a, of panels and K in b and of M in out, indices of K in a pass, batch rank, then
    (extent, a, b, out) of each dim. The last pass is followed by the epilogue (see `step.Epilogue`).
    """
    from core.accel import pointer, thin
    from core.accel.kernels.scalar import leave

    typed = getattr(pointer, block.element)
    at, strided, tile, width = pointer.at, pointer.strided, thin.tile(block, chains), block.columns
    _, finish = epilogue or (leave, leave)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        rows, columns, depth, a_row, a_depth, b_panel, b_depth = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        out_row, depth_block, rank, batch_dims = d[7], d[8], d[9], at(d, 10)
        panels = (columns + width - 1) // width
        for start in range(0, max(depth, 1), depth_block):
            count = min(depth_block, depth - start)
            for unit in range(begin, end):
                product, panel = unit // panels, unit % panels
                first = panel * width
                a = at(typed(p, 0), strided(batch_dims, rank, 4, 1, product) + start * a_depth)
                b = at(typed(p, 1), strided(batch_dims, rank, 4, 2, product) + start * b_depth + panel * b_panel)
                place = strided(batch_dims, rank, 4, 3, product) + first
                out = at(typed(p, 2), place)
                tile(a, a_row, a_depth, b, b_depth, count, out, out_row, rows, columns - first, start)
                if start + count >= depth:
                    for row in range(rows):
                        finish(at(p, 3), at(out, row * out_row), place + row * out_row, first, columns,
                               min(width, columns - first))

    return kernel


def dot_kernel(block: Block) -> Any:
    """Kernel for few outputs with long sums, K of stride 1 on both sides; units are elements of out; p = a, b, out.

    d = M, N, K, strides of M in a, of N in b and of M in out, batch rank, then (extent, a, b, out) of each dim.
    """
    from core.accel import pointer, simd

    typed = getattr(pointer, block.element)
    at, strided, dot = pointer.at, pointer.strided, simd.dot(block.element, block.lanes)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        rows, columns, depth, a_row, b_column, out_row, rank = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        batch_dims = at(d, 7)
        for unit in range(begin, end):
            product, row, column = unit // (rows * columns), unit // columns % rows, unit % columns
            a = at(typed(p, 0), strided(batch_dims, rank, 4, 1, product) + row * a_row)
            b = at(typed(p, 1), strided(batch_dims, rank, 4, 2, product) + column * b_column)
            out = at(typed(p, 2), strided(batch_dims, rank, 4, 3, product) + row * out_row)
            out[column] = dot(a, b, depth)

    return kernel


def dots_kernel(block: Block, columns: int, source: str) -> Any:
    """Kernel for few columns, K of stride 1 in a; units are (product, block of rows); p = a, packed columns, out.

    d = M, N, K, stride of M in a, batch rank, then (extent, a, b, out) of each dim. See `simd.dots`.
    """
    from core.accel import pointer, simd

    read, typed = getattr(pointer, source), getattr(pointer, block.element)
    at, strided, dots, height = pointer.at, pointer.strided, simd.dots(block, columns, source), block.lanes // columns

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        rows, depth, a_row, rank, batch_dims = d[0], d[2], d[3], d[4], at(d, 5)
        blocks = (rows + height - 1) // height
        unit = begin
        while unit < end:
            product = unit // blocks
            stop = min(end, (product + 1) * blocks)
            first = (unit - product * blocks) * height
            a = at(read(p, 0), strided(batch_dims, rank, 4, 1, product) + first * a_row)
            b = at(typed(p, 1), strided(batch_dims, rank, 4, 2, product))
            out = at(typed(p, 2), strided(batch_dims, rank, 4, 3, product) + first * columns)
            dots(a, a_row, min((stop - unit) * height, rows - first), b, depth, out)
            unit = stop

    return kernel


def outer_kernel(block: Block, depth: int, epilogue: Any = None) -> Any:
    """Kernel of `short_sums`; units are (line, block of rows); p = a, panels of b, out, and those of the epilogue.

    d = columns, rows and their strides in a and out, elements between panels, rank of lines, offsets in a and in b of
    each index of the sum, then (extent, a, b, out) of each dim of lines.
    """
    from core.accel import pointer, simd
    from core.accel.kernels.scalar import leave

    typed = getattr(pointer, block.element)
    at, strided, outer, width = pointer.at, pointer.strided, simd.outer(block, depth), block.columns
    (fetch, finish), fused = epilogue or (leave, leave), epilogue is not None

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        columns, rows, a_row, out_row, panel, rank = d[0], d[1], d[2], d[3], d[4], d[5]
        a_offsets, b_offsets, lines = at(d, 6), at(d, 6 + depth), at(d, 6 + 2 * depth)
        blocks = (rows + OUTER_ROWS - 1) // OUTER_ROWS
        for unit in range(begin, end):
            line, first = unit // blocks, unit % blocks * OUTER_ROWS
            count = min(OUTER_ROWS, rows - first)
            a = at(typed(p, 0), strided(lines, rank, 4, 1, line) + first * a_row)
            b = at(typed(p, 1), strided(lines, rank, 4, 2, line))
            place = strided(lines, rank, 4, 3, line) + first * out_row
            for column in range(0, columns, width):
                valid, sums = min(width, columns - column), at(typed(p, 2), place + column)
                if fused:
                    for row in range(count):
                        fetch(at(p, 3), sums, place + row * out_row + column, column, columns, valid)
                outer(a, a_row, a_offsets, count, at(b, column // width * panel), b_offsets, valid, sums, out_row)
                if fused:
                    for row in range(count):
                        done = row * out_row
                        finish(at(p, 3), at(sums, done), place + done + column, column, columns, valid)

    return kernel
