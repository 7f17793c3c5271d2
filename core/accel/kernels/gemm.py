"""Matrix products of floats: one register-blocked kernel that sums over taps and depth.

Invariant: every element of the output is one chain of fused multiply-adds in an order that the shapes alone decide, so
that the bits do not depend on the number of threads. Convolutions reuse `Product`, with their kernel's taps.

Planning needs no compiler: numba is imported by the kernel factories only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, prod
from typing import Any

from core.accel.chips import WAY, WAYS, Block, block_for, host
from core.accel.kernels import narrow
from core.accel.kernels.float_panels import PACK_DEPTH, pack
from core.accel.kernels.text import text_of
from core.accel.kernels.thin import (
    THIN,
    Dim,
    batch_dims,
    dot_step,
    dots_step,
    outer_step,
    suits_dots,
    suits_outer,
    thin,
    transposed,
)
from core.accel.step import Epilogue, Step, View, followed

COPY_DEPTH = 512
"""Reduction indices of A that a block may copy onto the thread's stack."""
FEW_UNITS = 8
"""With fewer row blocks than this the columns are cut into groups, so that every thread has work."""


def matmul(a: View, b: View, out: View, epilogue: Epilogue | None = None, is_fixed: bool = False) -> list[Step]:
    """Steps of ``out = a @ b``, or of what the epilogue makes of it.

    Parameters
    ----------
    a : f32, f64, bf16, i8 or u8 [batch..., M, K], any strides; a batch stride of 0 broadcasts
    b : same dtype (i8 for u8) [batch..., K, N], any strides
    out : f32, f64, bf16 (or f32 for bf16) or i32 (for 8 bits) [batch..., M, N], N with stride 1
    is_fixed : whether b serves many products, so that packing it pays however few the rows are
    """
    _check(out)
    if out.size == 0:
        return []
    (depth, columns), is_narrow = b.shape[-2:], a.dtype in narrow.DTYPES
    plain = depth > 0 and (is_narrow or a.dtype is out.dtype)
    if plain and suits_dots(a, b, out):
        return followed(dots_step(a, b, out), epilogue, out)
    if is_narrow:
        return narrow.matmul(a, b, out, epilogue)
    rows = a.shape[-2] * prod(extent for extent, stride in zip(b.shape[:-2], b.strides, strict=False) if stride == 0)
    runs = plain and a.strides[-1] == b.strides[-2] == 1
    if runs and min(rows, columns) < THIN:
        return followed([dot_step(a, b, out)], epilogue, out)
    if plain and rows < THIN and b.strides[-1] == 1:
        return thin(a, b, out, epilogue, is_fixed)
    if plain and columns == 1 and a.strides[-2] == 1 and out.strides[-2] == 1:
        return followed(thin(transposed(b), transposed(a), transposed(out)), epilogue, out)
    if plain and suits_outer(a, b, out):
        return outer_step(a, b, out, epilogue)
    packed, steps = pack(b)
    return [*steps, *matmul_packed(a, packed, out, epilogue)]


def matmul_packed(a: View, packed: View, out: View, epilogue: Epilogue | None = None) -> list[Step]:
    """Steps of ``out = a @ b`` for the b that `pack` has packed; arguments as in `matmul`."""
    _check(out)
    if out.size == 0:
        return []
    batch = batch_dims(a, packed, out)
    rows: tuple[Dim, ...] = ((a.shape[-2], a.strides[-2], out.strides[-2]),)
    while batch and batch[-1][2] == 0 and _continues(batch[-1][3], out, rows):
        extent, along, _, to = batch[-1]
        rows, batch = ((extent, along, to), *rows), batch[:-1]
    product = Product(a, packed, out, rows=rows, columns=out.shape[-1], depth=(a.shape[-1], a.strides[-1]), batch=batch,
                      epilogue=epilogue)
    return [product.step("matmul")]


def _check(out: View) -> None:
    if out.shape[-1] > 1 and out.strides[-1] != 1:
        raise ValueError(f"a product writes rows, so the last stride of out must be 1; it is {out.strides[-1]}")


def _continues(stride: int, out: View, rows: Sequence[Dim]) -> bool:
    """Whether a batch dim of `out` goes on where its rows end, so that it can count as rows."""
    return stride == out.strides[-2] * prod(row[0] for row in rows)


@dataclass(frozen=True)
class Product:
    """A sum over taps and depth of products of A's rows with packed panels of B.

    ``out[g, r, n] = sum over t, k of a[batch(g) + row(r) + taps[t] + k * depth stride] * b[g, n's panel, t, k, n]``

    Attributes
    ----------
    rows : (extent, stride in a, stride in out) of the dims that together count the rows, outermost first
    depth : (extent, stride in a) of the innermost sum
    batch : (extent, stride in a, stride in packed, stride in out) of the dims that count independent products
    taps : offsets in a of the outer sum
    tap_stride : elements of packed between two taps
    ends_early : whether the last panel ends with the last column, because B is `float_panels.in_place`
    epilogue : what happens to each element; out holds sums until then
    """

    a: View
    packed: View
    out: View
    rows: tuple[Dim, ...]
    columns: int
    depth: tuple[int, int]
    batch: tuple[Dim, ...] = ()
    taps: tuple[int, ...] = (0,)
    tap_stride: int = 0
    ends_early: bool = False
    epilogue: Epilogue | None = None

    def step(self, name: str) -> Step:
        """The step that computes it; its units are (product, group of panels, block of rows)."""
        if not self.taps:
            return replace(self, taps=(0,), depth=(0, 1)).step(name)
        block = self._block()
        row_count = prod(dim[0] for dim in self.rows)
        products = prod(dim[0] for dim in self.batch)
        tap_block, depth_block, copies = self._reduction_blocks(block)
        panels = ceil(self.columns / block.columns)
        row_blocks = ceil(row_count / block.rows)
        groups = _column_groups(panels, row_blocks * products, block, tap_block * depth_block)
        group_panels = ceil(panels / groups)
        groups = ceil(panels / group_panels)
        dims = (row_count, self.columns, *self.depth, len(self.taps), self.tap_stride,
                *self.packed.strides[-3:-1], tap_block, depth_block, copies, row_blocks, groups, group_panels,
                *self._ahead(block, tap_block * depth_block), len(self.rows), len(self.batch), self.out.shape[-1],
                *sum(self.rows, ()), *sum(self.batch, ()),
                *self.taps)
        flops = 2 * products * row_count * self.columns * self.depth[0] * len(self.taps)
        text = text_of(product_kernel, block, self.a.dtype.short)
        step = Step(text, (self.a, self.packed, self.out), (2,), dims, products * groups * row_blocks, name=name,
                    flops=flops, nbytes=sum(view.buffer.nbytes for view in (self.a, self.packed, self.out)))
        return step if self.epilogue is None else self.epilogue.attach(step, block.columns, in_place=True)

    def _block(self) -> Block:
        """The chip's block, with no more rows than there is room for in the first cache at the same place of each.

        Rows a multiple of a way apart, such as those of 1024 columns, fall into one set; if that does not hold them,
        each line comes from the second cache again for every element of it.
        """
        block = replace(block_for(host(), self.out.dtype.short, self.columns), columns_masked=self.ends_early)
        sets = WAY // gcd(self.rows[-1][1] * self.a.dtype.itemsize, WAY)
        return replace(block, heights=tuple(height for height in block.heights if height <= WAYS * sets))

    def _reduction_blocks(self, block: Block) -> tuple[int, int, int]:
        """Taps and depth of one pass over the rows, and whether the pass copies its part of A first.

        Where neighbours along depth lie in one cache line, a panel's part of B stays in half of the second cache, and
        there are as many passes as make the least traffic beyond it. Elsewhere, a pass keeps its part of A for one
        block of rows in half of the first cache; it is copied if there are panels enough to repay that, or to convert.
        """
        extent, stride = self.depth
        scattered = stride != 1 and extent > 1
        copies = self.a.dtype is not self.out.dtype or (scattered and self.columns > 2 * block.columns)
        limit = min(COPY_DEPTH, host().first_cache // (2 * block.copy_stride * self.out.dtype.itemsize))
        if copies or scattered:
            depth_block = _even(extent, limit)
            tap_block = max(1, limit // depth_block) if depth_block == extent else 1
            return _even(len(self.taps), tap_block), depth_block, int(copies)
        panel = extent * len(self.taps) * block.columns * self.out.dtype.itemsize
        least = max(1, min(ceil(2 * panel / host().second_cache), extent))
        passes = min(range(least, max(least, ceil(extent / PACK_DEPTH)) + 1),
                     key=lambda passes: self._traffic(block, passes))
        return len(self.taps), max(1, ceil(extent / passes)), 0

    def _traffic(self, block: Block, passes: int) -> int:
        """Elements that so many passes over the depth read from beyond the second cache and write there, roughly."""
        rows, reduction = prod(dim[0] for dim in self.rows), self.depth[0] * len(self.taps)
        panels = ceil(self.columns / block.columns)
        groups = _column_groups(panels, FEW_UNITS, block, ceil(reduction / passes))
        return rows * (self.depth[0] * groups + 2 * passes * self.columns)

    def _ahead(self, block: Block, reduction: int) -> tuple[int, int]:
        """Where a pass meets new elements of the next block of rows, from the first row of one on, and in what steps.

        Steps of 0 say that everything fits in the second cache.
        """
        distance = block.rows * self.rows[-1][1]
        if sum(view.buffer.nbytes for view in (self.a, self.packed, self.out)) <= host().second_cache // 2:
            return 0, 0
        if self.depth[1] != 1:
            return 2 * distance - 1, self.depth[1]
        whole = reduction >= self.depth[0] * len(self.taps)
        return distance + self.taps[-1], ceil(abs(distance) / reduction) if whole else 1


def _even(extent: int, limit: int) -> int:
    """Size of the blocks, at most `limit`, that cut `extent` into equal parts."""
    return max(1, ceil(extent / max(1, ceil(extent / limit))))


def _column_groups(panels: int, row_units: int, block: Block, depth: int) -> int:
    """Groups of panels: as few as let a group of B stay in half of the second cache, more where units are few."""
    itemsize = 4 if block.element == "f32" else 8
    fitting = max(1, host().second_cache // (2 * max(depth, 1) * block.columns * itemsize))
    return min(panels, max(ceil(panels / fitting), ceil(FEW_UNITS / row_units)))


def product_kernel(block: Block, source: str, epilogue: Any = None) -> Any:
    """Kernel of `Product`: units are (product, group of panels, block of rows); p = a, packed, out; d as in its step.

    All rows of a call take one part of the reduction before the next, so that its panels stay in the second cache. The
    last part is followed by the epilogue (see `step.Epilogue`), whose operands are those behind out.
    """
    from numba import types

    from core.accel import copies, pointer, registers, simd
    from core.accel.kernels.scalar import leave

    read, write = getattr(pointer, source), getattr(pointer, block.element)
    at, strided, tile = pointer.at, pointer.strided, simd.tile(block)
    copy_rows, copy_adjacent, converts = copies.copy_rows(block), copies.copy_adjacent(block), source != block.element
    table_on_stack = pointer.stack(types.int64, 3 * block.rows + COPY_DEPTH)
    copy_on_stack = pointer.stack(registers.FLOATS[block.element], COPY_DEPTH * block.copy_stride)
    height, width, pitch = block.rows, block.columns, block.copy_stride
    vectors, lanes = block.vectors, block.lanes

    (fetch, finish), fused = epilogue or (leave, leave), epilogue is not None

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        row_count, columns, depth, depth_stride, taps, tap_stride = d[0], d[1], d[2], d[3], d[4], d[5]
        panel_stride, b_stride, tap_block, depth_block, copies, row_blocks = d[6], d[7], d[8], d[9], d[10], d[11]
        groups, group_panels, ahead, ahead_stride = d[12], d[13], d[14], d[15]
        row_rank, batch_rank, line_length, row_dims = d[16], d[17], d[18], at(d, 19)
        batch_dims = at(row_dims, 3 * row_rank)
        tap_offsets = at(batch_dims, 4 * batch_rank)
        last_dim = at(row_dims, 3 * (row_rank - 1))
        inner, inner_stride, inner_step = last_dim[0], last_dim[1], last_dim[2]
        adjacent = inner_stride == 1 and row_rank == 1 and not converts
        flat = copies != 0 and tap_stride == depth * b_stride  # so that taps of a copy of A and of B lie end to end
        offsets, copy = table_on_stack(), copy_on_stack()
        out_offsets, neighbours, copied_taps = at(offsets, height), at(offsets, 2 * height), at(offsets, 3 * height)
        for row in range(height):
            neighbours[row] = row
        unit = begin
        while unit < end:
            group = unit // row_blocks
            stop = min(end, (group + 1) * row_blocks)
            product = group // groups
            first_panel = group % groups * group_panels
            last_panel = min((columns + width - 1) // width, first_panel + group_panels)
            a_offset = strided(batch_dims, batch_rank, 4, 1, product)
            packed = at(write(p, 1), strided(batch_dims, batch_rank, 4, 2, product))
            out_place = strided(batch_dims, batch_rank, 4, 3, product)
            out = at(write(p, 2), out_place)
            for tap in range(0, taps, tap_block):
                tap_count = min(tap_block, taps - tap)
                for start in range(0, max(depth, 1), depth_block):
                    count = min(depth_block, depth - start)
                    last = ahead_stride == 0 or (start + count >= depth and tap + tap_count >= taps)
                    b_ahead = 0 if last else vectors * (last_panel - first_panel)
                    for tap_index in range(tap_count * copies):
                        copied_taps[tap_index] = tap_index * count * pitch
                    for row_block in range(unit, stop):
                        first_row = (row_block - group * row_blocks) * height
                        rows = min(height, row_count - first_row)
                        position, offset = first_row % inner, strided(row_dims, row_rank, 3, 1, first_row)
                        out_offset = strided(row_dims, row_rank, 3, 2, first_row)
                        for row in range(height):
                            offsets[row], out_offsets[row] = offset, out_offset
                            if row + 1 < rows:
                                position += 1
                                offset += inner_stride
                                out_offset += inner_step
                                if position == inner:
                                    position, offset = 0, strided(row_dims, row_rank, 3, 1, first_row + row + 1)
                                    out_offset = strided(row_dims, row_rank, 3, 2, first_row + row + 1)
                        part = a_offset + start * depth_stride
                        coming = offsets[0] + ahead if row_block + 1 < stop else tap_count * count * depth_stride
                        a_ahead = at(write(p, 0), part + tap_offsets[tap] + coming)
                        if copies != 0:
                            for tap_index in range(tap_count):
                                tap_part = part + tap_offsets[tap + tap_index]
                                target = at(copy, copied_taps[tap_index])
                                if adjacent:
                                    source_rows = at(write(p, 0), tap_part + offsets[0])
                                    copy_adjacent(source_rows, depth_stride, target, count, rows)
                                else:
                                    copy_rows(at(read(p, 0), tap_part), offsets, depth_stride, target, count)
                            a, a_rows, a_stride, a_taps = copy, neighbours, pitch, copied_taps
                        else:
                            a, a_rows, a_stride = at(write(p, 0), part), offsets, depth_stride
                            a_taps = at(tap_offsets, tap)
                        b_part = at(packed, tap * tap_stride + start * b_stride)
                        sums, length = (1, tap_count * count) if flat else (tap_count, count)
                        ends = fused and tap + tap_count == taps and start + count == depth
                        for panel in range(first_panel, last_panel):
                            place, valid = out_place + panel * width, min(width, columns - panel * width)
                            next_part, next_stride = a_ahead, ahead_stride
                            piece = (row_block - unit) * (last_panel - first_panel - 1) + panel - first_panel - 1
                            if panel > first_panel and piece < b_ahead:  # a vector of columns of B for the next pass
                                next_panel = at(b_part, (first_panel + piece // vectors) * panel_stride)
                                next_stride = b_stride
                                next_part = at(next_panel, piece % vectors * lanes + tap_count * count * b_stride)
                            if ends:
                                for row in range(rows):
                                    fetch(at(p, 3), out, place + out_offsets[row], 0, line_length, valid)
                            tile(a, a_rows, a_stride, a_taps, sums, at(b_part, panel * panel_stride), tap_stride,
                                 b_stride, length, at(out, panel * width), out_offsets, rows, columns - panel * width,
                                 tap + start, next_part, next_stride)
                            if ends:
                                column = place % line_length
                                for row in range(rows):
                                    line = at(out, panel * width + out_offsets[row])
                                    finish(at(p, 3), line, place + out_offsets[row], column, line_length, valid)
            unit = stop

    return kernel
