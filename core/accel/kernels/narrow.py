"""Products of bfloat16 and of 8-bit integers: one kernel that sums over chunks of the reduction.

Invariant: the order of a sum depends on the shapes and the chip alone, so that the bits do not depend on the number of
threads; sums of integers are exact (modulo 2^32) on every chip. Convolutions reuse `Product`, with their kernel's taps.

The reduction of all taps is one line: tap t's element k has place ``t * padded + k``. It is cut into chunks of at most
64 bytes. Where a chunk of A is one run of elements in memory, A is read where it lies; otherwise rows are copied into
that line on the thread's stack first. Planning needs no compiler: numba is imported by the kernel factories only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, gcd, prod
from typing import Any

from core.accel.chips import WAY, WAYS, NarrowBlock, host, narrow_block_for
from core.accel.kernels import narrow_panels
from core.accel.kernels.narrow_panels import Line, line_of, spare
from core.accel.kernels.rows import Dim, Walk, merged
from core.accel.step import Epilogue, Step, View, contiguous
from core.engine import dtypes

DTYPES = (dtypes.bfloat16, dtypes.int8, dtypes.uint8)
"""Element types of A."""
PASS_CHUNKS = 128
"""Chunks of the reduction that one pass over the rows may take; rows of so many chunks fit on the thread's stack."""
FEW_UNITS = 8
"""With fewer units than this the work is cut finer, so that every thread has some."""
LONG_BAND = 16
"""Where panels of B are far away: the least row blocks of a band that they are read for, and most panels of a group."""


def matmul(a: View, b: View, out: View, epilogue: Epilogue | None = None) -> list[Step]:
    """Steps of ``out = a @ b``, or of what the epilogue makes of it.

    Parameters
    ----------
    a : bf16, i8 or u8 [batch..., M, K], any strides; a batch stride of 0 broadcasts
    b : bf16 for bf16, else i8 [batch..., K, N], any strides
    out : f32 or bf16 for bf16, else i32 [batch..., M, N], N with stride 1
    """
    if out.size == 0:
        return []
    packed, steps = narrow_panels.pack(b, a.dtype)
    return [*steps, *matmul_packed(a, packed, out, epilogue)]


def matmul_packed(a: View, packed: View, out: View, epilogue: Epilogue | None = None) -> list[Step]:
    """Steps of ``out = a @ b`` for the b that `narrow_panels.pack` has packed; arguments as in `matmul`."""
    if out.shape[-1] > 1 and out.strides[-1] != 1:
        raise ValueError(f"a product writes rows, so the last stride of out must be 1; it is {out.strides[-1]}")
    if out.size == 0:
        return []
    batch: tuple[Dim, ...] = tuple(zip(out.shape[:-2], a.strides, packed.strides, out.strides, strict=False))
    rows: tuple[Dim, ...] = ((a.shape[-2], a.strides[-2]),)
    while batch and batch[-1][2] == 0 and batch[-1][3] == out.strides[-2] * prod(row[0] for row in rows):
        rows = (batch[-1][:2], *rows)
        batch = batch[:-1]
    product = Product(a, packed, out, rows, out.strides[-2], out.shape[-1], (a.shape[-1], a.strides[-1]), batch,
                      epilogue=epilogue)
    return [product.step("matmul")]


@dataclass(frozen=True)
class Product:
    """A sum over taps and depth of products of A's rows with packed panels of B.

    ``out[g, r, n] = sum over t, k of a[batch(g) + row(r) + taps[t] + k * depth stride] * b[g, n's panel, t, k, n]``

    Attributes
    ----------
    rows : (extent, stride in a) of the dims that together count the rows, outermost first
    row_stride : elements of out between two rows
    depth : (extent, stride in a) of the innermost sum
    batch : (extent, stride in a, stride in packed, stride in out) of the dims that count independent products
    taps : offsets in a of the outer sum
    epilogue : what happens to each element in place of being written to out
    """

    a: View
    packed: View
    out: View
    rows: tuple[Dim, ...]
    row_stride: int
    columns: int
    depth: tuple[int, int]
    batch: tuple[Dim, ...] = ()
    taps: tuple[int, ...] = (0,)
    epilogue: Epilogue | None = None

    def step(self, name: str) -> Step:
        """The step that computes it; its units are (product, group of panels, band of row blocks)."""
        if not self.taps:
            return replace(self, taps=(0,), depth=(0, 1)).step(name)
        block = self._block()
        depth, depth_stride = self.depth
        line, panel_count = line_of(block, len(self.taps), depth), ceil(self.columns / block.columns)
        copies = depth_stride != 1 or depth % line.chunk != 0 or line.padded != depth
        fits = _fits(block, line, panel_count)
        walk = Walk(merged(self.rows), self.batch)
        if block.tile_rows and not copies:
            walk = walk.with_holes(self.row_stride, block, panel_count)
        products, row_blocks, sharing = prod(dim[0] for dim in walk.batch), ceil(walk.count / block.rows), walk.sharing
        blocks = row_blocks * sharing
        group_panels, band = _cut(block, line, panel_count, blocks, products // sharing)
        groups, bands = ceil(panel_count / group_panels), ceil(blocks / band)
        row_size = walk.rows[-1][1] * self.a.dtype.itemsize
        # Rows that fall into few sets of the first cache: a copy of them repays itself over some panels.
        copies = copies or (len(self.taps) == 1 and group_panels >= 4 and line.chunks > 1
                            and block.rows * gcd(row_size, WAY) > 4 * WAY)
        pass_chunks = self._pass_chunks(block, line, walk.rows[-1][1], 0 if fits else group_panels)
        places = () if copies else tuple(tap + start for tap in self.taps for start in range(0, depth, line.chunk))
        sums: tuple[View, ...] = ()
        if pass_chunks < line.chunks:
            shape = (products, row_blocks, panel_count, block.rows, block.columns)
            sums = (contiguous(dtypes.BY_NAME[block.total], shape, "sums"),)
        dims = (walk.count, walk.period, walk.valid, self.columns, depth, depth_stride, line.padded, line.chunk,
                line.chunks, pass_chunks, int(copies), len(self.taps), self.row_stride, groups, group_panels, bands,
                band, len(walk.rows), len(walk.batch), sharing, self.out.shape[-1], *sum(walk.rows, ()),
                *sum(walk.batch, ()), *self.taps, *places)
        operands = (self.a, self.packed, self.out, *sums)
        step = Step(_text(block, self.out.dtype.short), operands, tuple(range(2, len(operands))),
                    dims, products // sharing * groups * bands, name=name,
                    flops=2 * prod(row[0] for row in self.rows) * prod(dim[0] for dim in self.batch) * self.columns
                    * depth * len(self.taps), nbytes=sum(view.buffer.nbytes for view in operands[:3]))
        return step if self.epilogue is None else self.epilogue.attach(step, block.columns, in_place=False)

    def _block(self) -> NarrowBlock:
        """The chip's block, or a lower one where that reads A faster.

        Rows a multiple of a way apart fall into one set of the first cache, which holds no more than the lower block
        has; and two low blocks do for a few more rows than a high one has.
        """
        block = narrow_block_for(host(), self.a.dtype.short, self.columns)
        if block.tile_rows:
            return block
        highest, *lower = block.heights
        count, row_size = prod(row[0] for row in self.rows), self.rows[-1][1] * self.a.dtype.itemsize
        collides = len(self.taps) == 1 and highest * gcd(row_size, WAY) > WAYS * WAY
        few = highest < count <= 2 * lower[0]
        return replace(block, heights=tuple(lower)) if collides or few else block

    def _pass_chunks(self, block: NarrowBlock, line: Line, row_step: int, panels: int) -> int:
        """Chunks of a pass over the rows.

        What a block of rows reads of A stays near: in half of the first cache, or in the second one for tiles, which
        are wide enough to wait for it. So does what a group of `panels` panels of B holds of the pass, if it is not 0.
        """
        chunk_size = line.chunk * self.a.dtype.itemsize
        if block.tile_rows:
            limit = host().second_cache // 8 // (block.rows * chunk_size)
        else:
            depth = max(self.depth[0], 1)
            tap_size = ((block.rows - 1) * min(abs(row_step), depth) + depth) * self.a.dtype.itemsize
            limit = host().first_cache // 2 * line.padded // (tap_size * line.chunk)
        if panels:
            limit = min(limit, host().second_cache // 2 // (panels * block.columns * chunk_size))
        passes = max(1, round(line.chunks / max(limit, 1)), ceil(line.chunks / PASS_CHUNKS))
        return max(1, ceil(line.chunks / passes))


def _fits(block: NarrowBlock, line: Line, panels: int) -> bool:
    """Whether some panels, if not all, stay in the second cache for the whole reduction."""
    return _fitting(block, line) >= min(panels, 8)


def _fitting(block: NarrowBlock, line: Line) -> int:
    """Panels that stay in the second cache."""
    return 3 * host().second_cache // 4 // max(1, line.length * block.columns * (4 // block.group))


def _cut(block: NarrowBlock, line: Line, panels: int, blocks: int, products: int) -> tuple[int, int]:
    """Panels of a group and row blocks of a band.

    A band is one block, to keep its sums near, if a group of panels fits into the second cache. Otherwise panels come
    from afar in each pass. A long band, whose sums fill half of that cache, pays for them.
    """
    if _fits(block, line, panels):
        groups, band = ceil(panels / _fitting(block, line)), 1
        groups = min(panels, max(groups, FEW_UNITS // max(1, products * blocks)))
        return ceil(panels / groups), 1
    groups = ceil(panels / LONG_BAND)
    while panels // groups >= 8 and products * groups * ceil(blocks / LONG_BAND) < FEW_UNITS:
        groups *= 2
    group_panels = ceil(panels / groups)
    band = max(LONG_BAND, host().second_cache // 2 // (4 * block.rows * block.columns * group_panels))
    while band > LONG_BAND and products * groups * ceil(blocks / band) < FEW_UNITS:
        band //= 2
    return group_panels, ceil(blocks / ceil(blocks / band))


def _text(block: NarrowBlock, target: str) -> str:
    """Source of a kernel module; it imports the unit, so that the key in the store covers the unit's file."""
    return ("from core.accel.chips import NarrowBlock\nfrom core.accel.kernels.narrow import product_kernel\n"
            f"from core.accel.units import {block.unit}\n"
            f"kernel = product_kernel({block!r}, {block.unit}, {target!r})\n")


def product_kernel(block: NarrowBlock, execution_unit: Any, target: str, epilogue: Any = None) -> Any:
    """Kernel of `Product`, over a module of `units`.

    Units of work are (products that share B, group of panels, band of row blocks); p = a, packed, out, sums, and the
    operands of the epilogue. d as in the step.

    A band takes one pass of the reduction before the next; between passes sums [product, row block, panel, row, column]
    hold what it has. With a single pass there are none. A block of out is whole after its last pass: then `store_block`
    writes it, or `multiply` itself where its sums are what out holds, in rows of one stride. An epilogue (see
    `step.Epilogue`) takes the whole sums from the stack, and out is left alone.
    """
    from numba import types
    from numba.extending import register_jitable

    from core.accel import narrow, pointer
    from core.accel.kernels.scalar import leave

    tiles = block.tile_rows > 0
    read, right = getattr(pointer, block.element), getattr(pointer, "bf16" if block.element == "bf16" else "i8")
    total, write = getattr(pointer, block.total), getattr(pointer, target)
    at, strided, multiply = pointer.at, pointer.strided, execution_unit.multiply(block, target)
    configure, release = execution_unit.configure, execution_unit.release
    copy_rows = narrow.copy_rows(execution_unit.copy_runs(block))
    height, width, size, behind_line = block.rows, block.columns, 4 // block.group, spare(block)
    part = block.tile_rows or height
    copy_width = (64 * (PASS_CHUNKS + 2)) // size
    copy_on_stack = pointer.stack(narrow.TYPES[block.element], height * copy_width)
    table_on_stack, offsets_on_stack = pointer.stack(types.int64, PASS_CHUNKS), pointer.stack(types.int64, height)
    sums_on_stack = pointer.stack(narrow.TYPES[block.total], height * width)
    writes_sums = target == block.total and epilogue is None
    store_block = narrow.store_block(block, execution_unit.store_rows(block, target == "bf16"))

    (fetch, finish), fused = epilogue or (leave, leave), epilogue is not None

    @register_jitable
    def each_row(act: Any, p: Any, sums: Any, place: int, column: int, length: int, count: int, stride: int, rows: int,
                 phase: int, period: int, valid: int) -> None:
        """Act on the rows of a block that are rows of out; see `store_block`."""
        for row in range(rows):
            if not tiles or phase < valid:  # only tiles have holes
                act(p, at(sums, row * width), place, column, length, count)
                place += stride
            phase += 1
            if phase == period:
                phase = 0

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        row_count, period, period_valid, columns, depth, depth_stride = d[0], d[1], d[2], d[3], d[4], d[5]
        padded, chunk, chunks, pass_chunks, copies, taps, row_stride = d[6], d[7], d[8], d[9], d[10], d[11], d[12]
        groups, group_panels, bands, band, row_rank, batch_rank = d[13], d[14], d[15], d[16], d[17], d[18]
        sharing, length, row_dims = d[19], d[20], at(d, 21)
        behind = at(p, 3 + int(pass_chunks < chunks))
        batch_dims = at(row_dims, 2 * row_rank)
        tap_offsets = at(batch_dims, 4 * batch_rank)
        chunk_offsets = at(tap_offsets, taps)
        inner, inner_stride = row_dims[2 * row_rank - 2], row_dims[2 * row_rank - 1]
        panels, row_blocks = (columns + width - 1) // width, (row_count + height - 1) // height
        blocks = row_blocks * sharing
        copied_table, offsets, neighbours = table_on_stack(), offsets_on_stack(), offsets_on_stack()
        copy, block_sums = copy_on_stack(), sums_on_stack()
        # An odd number of cache lines between rows of the copy spreads them over the cache.
        copy_stride = ((pass_chunks * chunk * size + 127) // 128 * 128 + 64) // size
        for index in range(pass_chunks):
            copied_table[index] = index * chunk
        for row in range(height):
            neighbours[row] = row * copy_stride
        configure(chunk * size)
        for unit in range(begin, end):
            first_block = unit % bands * band
            last_block = min(blocks, first_block + band)
            group, first_product = unit // bands % groups, unit // (bands * groups) * sharing
            first_panel = group * group_panels
            last_panel = min(panels, first_panel + group_panels)
            packed_place = strided(batch_dims, batch_rank, 4, 2, first_product)
            packed = at(right(p, 1), packed_place)
            for start in range(0, chunks, pass_chunks):
                count = min(pass_chunks, chunks - start)
                ends = start + count == chunks
                for row_block in range(first_block, last_block):
                    product, first_row = first_product, row_block * height
                    if sharing > 1:
                        product, first_row = product + row_block // row_blocks, row_block % row_blocks * height
                    a = at(read(p, 0), strided(batch_dims, batch_rank, 4, 1, product))
                    out_place = strided(batch_dims, batch_rank, 4, 3, product)
                    rows = min(height, row_count - first_row)
                    phase, first_place, unbroken = 0, first_row * row_stride, rows == height
                    if tiles:  # elsewhere rows have no holes
                        phase = first_row % period
                        first_place = (first_row // period * period_valid + min(phase, period_valid)) * row_stride
                        unbroken = rows == height and (period == 1 or phase + height <= period_valid)
                    position = first_row if row_rank == 1 else first_row % inner
                    upper_copied, lower_copied = copies != 0, copies != 0 and part < rows
                    table = at(chunk_offsets, start)
                    upper, upper_step, upper_table = a, inner_stride, table
                    lower, lower_step, lower_table = a, inner_stride, table
                    if tiles:
                        lower_position = (position + part) % inner
                        upper_copied = copies != 0 or position + part > inner or rows < part
                        lower_copied = part < rows and (copies != 0 or lower_position + part > inner or rows < height)
                        upper = at(a, strided(row_dims, row_rank, 2, 1, first_row))
                        lower = at(a, strided(row_dims, row_rank, 2, 1, first_row + part)) if part < rows else upper
                    if not tiles or upper_copied or lower_copied:
                        row = 0
                        while row < rows:
                            offset = strided(row_dims, row_rank, 2, 1, first_row + row)
                            run = min(inner - position, rows - row)
                            for index in range(run):
                                offsets[row + index] = offset + index * inner_stride
                            row += run
                            position = 0
                        for row in range(rows, height):
                            offsets[row] = offsets[rows - 1]
                    row_offsets = offsets
                    if upper_copied or lower_copied:
                        first_copied = 0 if upper_copied else part
                        last_copied = rows if lower_copied else min(part, rows)
                        copy_rows(a, at(offsets, first_copied), last_copied - first_copied, tap_offsets, taps, depth,
                                  depth_stride, padded, start * chunk, (start + count) * chunk,
                                  at(copy, first_copied * copy_stride), copy_stride)
                    if upper_copied:
                        upper, upper_step, upper_table, row_offsets = copy, copy_stride, copied_table, neighbours
                    if lower_copied:
                        lower, lower_step, lower_table = at(copy, part * copy_stride), copy_stride, copied_table
                    for panel in range(first_panel, last_panel):
                        valid = min(width, columns - panel * width)
                        panel_place = panel * (chunks * chunk + behind_line) * width
                        b = at(packed, panel_place + start * chunk * width)
                        direct = ends and writes_sums and unbroken and valid == width
                        place = out_place + panel * width + first_place
                        before, after, stride = block_sums, block_sums, width
                        if count < chunks:
                            block_index = (first_product * row_blocks + row_block) * panels + panel
                            before = at(total(p, 3), block_index * height * width)
                            after = block_sums if ends else before
                        if behind_line > 0 and start == 0:
                            before = at(total(p, 1), (packed_place + panel_place + chunks * chunk * width) // 4)
                        if direct:
                            after, stride = at(total(p, 2), place), row_stride
                        if tiles and fused and ends:  # elsewhere it takes longer than it saves
                            each_row(fetch, behind, block_sums, place, 0, length, valid, row_stride, rows,
                                     phase, period, period_valid)
                        multiply(upper, upper_step, upper_table, lower, lower_step, lower_table, row_offsets, b, count,
                                 chunk, before, after, stride, rows, valid, int(start == 0), at(write(p, 2), place),
                                 row_stride, rows if ends else 0)
                        if ends and not direct:
                            if fused:
                                each_row(finish, behind, block_sums, place, place % length, length, valid, row_stride,
                                         rows, phase, period, period_valid)
                            else:
                                store_block(block_sums, at(write(p, 2), place), row_stride, rows, valid, phase, period,
                                            period_valid)
        release()

    return kernel
