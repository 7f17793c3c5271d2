"""Panels of B for products of floats: columns of a register block side by side, row after row.

Invariant: what a panel holds beyond the last column is zero. Panels that are read `in_place` end with it instead.
Planning needs no compiler: numba is imported by the kernel factory only.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import Any

from core.accel.chips import Block, block_for, host
from core.accel.kernels.text import text_of
from core.accel.step import Step, View, contiguous
from core.engine import dtypes

PACK_DEPTH = 64
"""Reduction indices of B that a unit of packing takes."""


def in_place(b: View, block: Block | None = None) -> View:
    """B as `pack` gives it, but where it lies; its columns must have stride 1, and its rows be further apart.

    It serves products in which few blocks of rows read B, so that packing would not pay.
    """
    width = (block or block_for(host(), b.dtype.short, b.shape[-1])).columns
    shape = (*b.shape[:-2], ceil(b.shape[-1] / width), b.shape[-2], width)
    return replace(b, shape=shape, strides=(*b.strides[:-2], width, b.strides[-2], 1))


def pack(b: View, shared: bool = True, joined: bool = False, block: Block | None = None) -> tuple[View, list[Step]]:
    """B in panels, and the step that fills them; a plan may do it once, at bind time, where b is constant.

    Parameters
    ----------
    b : f32, f64 or bf16 [batch..., K, N], any strides
    shared : whether products along which b has stride 0 share one copy
    joined : whether the last batch dim and K become one dim K, as if they lay end to end
    block : whose columns a panel has, if it is not that of products of many rows

    Returns
    -------
    packed : f32 or f64 [batch..., panel, K, column], the last panel padded with zeros; stride 0 where a copy is shared
    """
    element = dtypes.float64 if b.dtype is dtypes.float64 else dtypes.float32
    depth, columns = b.shape[-2:]
    block = block or block_for(host(), element.short, columns)
    panels, length = ceil(columns / block.columns), b.shape[-3] * depth if joined else depth
    lead = b.shape[:-3] if joined else b.shape[:-2]
    kept = [1 if shared and stride == 0 else extent for extent, stride in zip(lead, b.strides, strict=False)]
    store = contiguous(element, (*kept, panels, length, block.columns), "packed")
    strides = tuple(0 if extent == 1 else stride for extent, stride in zip(kept, store.strides, strict=False))
    packed = View(store.buffer, element, (*lead, *store.shape[-3:]), (*strides, *store.strides[-3:]))
    batch = [(extent, stride, to) for extent, stride, to in zip(kept, b.strides, strides, strict=False) if extent > 1]
    if joined:
        batch.append((b.shape[-3], b.strides[-3], depth * block.columns))
    dims = (depth, columns, panels, length, *b.strides[-2:], len(batch), *sum(batch, ()))
    extent = prod(dim[0] for dim in batch) * (ceil(depth / PACK_DEPTH) if b.strides[-1] == 1 else panels)
    step = Step(text_of(pack_kernel, block, b.dtype.short), (b, packed), (1,), dims, extent, name="pack",
                nbytes=2 * store.buffer.nbytes)
    return packed, [step] if store.size else []


def pack_kernel(block: Block, source: str) -> Any:
    """Kernel of `pack`; p = b, packed; columns past N become zeros.

    Where N has stride 1, units are (product, run of depth), and whole rows of b are read, so that the hardware sees
    them coming; elsewhere they are (product, panel), and few columns of b are read to their ends.
    d = K, N, panels, rows of a panel, stride of K, stride of N, batch rank, then (extent, stride in b, stride in
    packed) of each dim.
    """
    from core.accel import copies, pointer
    from core.accel.kernels.scalar import widen

    read, write = getattr(pointer, source), getattr(pointer, block.element)
    at, strided, width, lanes = pointer.at, pointer.strided, block.columns, block.lanes
    transpose, same = copies.transpose(block.element, lanes), source == block.element

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        depth, columns, panels, length = d[0], d[1], d[2], d[3]
        depth_stride, column_stride, rank, batch_dims = d[4], d[5], d[6], at(d, 7)
        pieces = (depth + PACK_DEPTH - 1) // PACK_DEPTH if column_stride == 1 else panels
        for unit in range(begin, end):
            product, piece = unit // pieces, unit % pieces
            b_offset = strided(batch_dims, rank, 3, 1, product)
            b = at(read(p, 0), b_offset)
            packed = at(write(p, 1), strided(batch_dims, rank, 3, 2, product))
            if column_stride == 1:
                for k in range(piece * PACK_DEPTH, min(depth, (piece + 1) * PACK_DEPTH)):
                    for panel in range(panels):
                        source = at(b, k * depth_stride + panel * width)
                        target = at(packed, (panel * length + k) * width)
                        valid = columns - panel * width
                        if valid >= width:
                            for j in range(width):
                                target[j] = widen(source[j])
                        else:
                            for j in range(valid):
                                target[j] = widen(source[j])
                            for j in range(valid, width):
                                target[j] = 0
                continue
            source_panel, valid = at(b, piece * width * column_stride), min(columns - piece * width, width)
            square_columns = valid // lanes * lanes if same and depth_stride == 1 else 0
            square_depth = depth // lanes * lanes
            for k in range(0, square_depth, lanes):
                for j in range(0, square_columns, lanes):
                    transpose(at(write(p, 0), b_offset + (piece * width + j) * column_stride + k), column_stride,
                              at(packed, (piece * length + k) * width + j), width)
            for start in range(0, depth, PACK_DEPTH):
                source, target = at(source_panel, start * depth_stride), at(packed, (piece * length + start) * width)
                count = min(PACK_DEPTH, depth - start)
                for j in range(valid):
                    done = max(0, min(count, square_depth - start)) if j < square_columns else 0
                    for k in range(done, count):
                        target[k * width + j] = widen(source[k * depth_stride + j * column_stride])
                for k in range(count):
                    for j in range(valid, width):
                        target[k * width + j] = 0

    return kernel
