"""Panels of B for products of narrow elements, and the line that a reduction over taps and depth takes in them.

Invariant: what the packed array holds beyond B is zero, so that whatever finite number meets it adds nothing.
Planning needs no compiler: numba is imported by the kernel factory only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from core.accel.chips import NarrowBlock, host, narrow_block_for
from core.accel.kernels.text import text_of
from core.accel.step import Step, View, contiguous
from core.engine.dtypes import DType

PACK_PANELS = 4
"""Panels that a unit of packing takes."""


@dataclass(frozen=True)
class Line:
    """How a reduction over `taps` times `depth` lies in a line of `chunks` chunks of `chunk` elements."""

    padded: int
    chunk: int
    chunks: int

    @property
    def length(self) -> int:
        return self.chunk * self.chunks


def line_of(block: NarrowBlock, taps: int, depth: int) -> Line:
    """The line of a reduction: chunks end with the taps where that wastes little, and run over them elsewhere."""
    if not taps * depth:
        return Line(block.group, block.group, 1)
    pieces = ceil(depth / block.chunk)
    chunk = _up(ceil(depth / pieces), block.group)
    if taps == 1 or (chunk * pieces == depth and 4 * chunk >= 3 * block.chunk):
        return Line(chunk * pieces, chunk, taps * pieces)
    padded = _up(depth, block.group)
    pieces = ceil(taps * padded / block.chunk)
    return Line(padded, _up(ceil(taps * padded / pieces), block.group), pieces)


def spare(block: NarrowBlock) -> int:
    """Places behind a line in which a panel of B has its sums of columns."""
    return block.group if block.shift else 0


def _up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple


def pack(b: View, left: DType, taps: int = 0, shared: bool = True) -> tuple[View, list[Step]]:
    """B in panels, and the step that fills them; a plan may do it once, at bind time, where b is constant.

    Parameters
    ----------
    b : bf16 or i8 [batch..., tap..., K, N], any strides
    left : element type of A
    taps : dims of b that count taps
    shared : whether products along which b has stride 0 share one copy

    Returns
    -------
    packed : [batch..., panel, line, column], padded with zeros; stride 0 where a copy is shared. In memory `group`
        neighbours of the line lie together: [batch..., panel, line / group, column, group]. Where the block has a
        `shift`, the last group of a line is one i32 for each column: what a sum begins with to undo the shift
    """
    block = narrow_block_for(host(), left.short, b.shape[-1])
    lead = len(b.shape) - 2 - taps
    tap_shape, (depth, columns) = b.shape[lead:-2], b.shape[-2:]
    line = line_of(block, prod(tap_shape), depth)
    panels = ceil(columns / block.columns)
    kept = [1 if shared and stride == 0 else extent for extent, stride in zip(b.shape[:lead], b.strides, strict=False)]
    store = contiguous(b.dtype, (*kept, panels, line.length + spare(block), block.columns), "packed")
    strides = tuple(0 if extent == 1 else stride for extent, stride in zip(kept, store.strides, strict=False))
    packed = View(store.buffer, b.dtype, (*b.shape[:lead], *store.shape[-3:]), (*strides, *store.strides[-3:]))
    batch = [(extent, stride, to) for extent, stride, to in zip(kept, b.strides, strides, strict=False) if extent > 1]
    tap_dims = tuple(zip(tap_shape, b.strides[lead:], strict=False))
    dims = (depth, columns, panels, *b.strides[-2:], line.padded, line.length, prod(tap_shape) if depth else 0,
            len(tap_dims), len(batch), *sum(tap_dims, ()), *sum(batch, ()))
    step = Step(text_of(pack_kernel, block, b.dtype.short), (b, packed), (1,), dims,
                prod(kept) * ceil(panels / PACK_PANELS), name="pack", nbytes=2 * store.buffer.nbytes)
    return packed, [step] if store.size else []


def pack_kernel(block: NarrowBlock, source: str) -> Any:
    """Kernel of `pack`: units are (product, run of panels); p = b, packed; what is not in b becomes zero.

    d = K, N, panels, stride of K, stride of N, padded depth, length of the line, taps, tap rank, batch rank, then
    (extent, stride in b) of each tap dim and (extent, stride in b, stride in packed) of each batch dim.
    """
    from core.accel import pointer

    typed, at, strided, i32 = getattr(pointer, source), pointer.at, pointer.strided, pointer.i32
    width, group, shift, behind = block.columns, block.group, block.shift, spare(block)
    row = width * group

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        depth, columns, panels, depth_stride, column_stride, padded, length = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
        taps, tap_rank, rank, tap_dims = d[7], d[8], d[9], at(d, 10)
        batch_dims = at(tap_dims, 2 * tap_rank)
        runs = (panels + PACK_PANELS - 1) // PACK_PANELS
        for unit in range(begin, end):
            product, first = unit // runs, unit % runs * PACK_PANELS
            b = at(typed(p, 0), strided(batch_dims, rank, 3, 1, product))
            place_of_product = strided(batch_dims, rank, 3, 2, product)
            packed = at(typed(p, 1), place_of_product)
            last = min(first + PACK_PANELS, panels)
            for panel in range(first, last):
                valid = min(columns - panel * width, width)
                target = at(packed, panel * (length + behind) * width)
                source_panel = at(b, panel * width * column_stride)
                for tap in range(taps):
                    lines = at(source_panel, strided(tap_dims, tap_rank, 2, 1, tap))
                    tap_target = at(target, tap * padded * width)
                    whole = depth // group * group if valid == width else 0
                    if column_stride == 1:
                        for k in range(0, whole, group):
                            line, place = at(lines, k * depth_stride), at(tap_target, k * width)
                            for j in range(width):
                                for i in range(group):
                                    place[j * group + i] = line[i * depth_stride + j]
                    else:
                        for j in range(width if whole > 0 else 0):
                            line, place = at(lines, j * column_stride), at(tap_target, j * group)
                            for k in range(0, whole, group):
                                for i in range(group):
                                    place[k * width + i] = line[(k + i) * depth_stride]
                    for k in range(whole, padded):
                        place = at(tap_target, k // group * row + k % group)
                        for j in range(width):
                            if j < valid and k < depth:
                                place[j * group] = lines[k * depth_stride + j * column_stride]
                            else:
                                place[j * group] = 0
                for index in range(taps * padded * width, length * width):
                    target[index] = 0
                if shift != 0:
                    beginnings = at(i32(p, 1), (place_of_product + (panel * (length + behind) + length) * width) // 4)
                    for j in range(width):
                        beginnings[j] = 0
                    for index in range(0, length * width, row):
                        for j in range(width):
                            for i in range(group):
                                beginnings[j] -= shift * target[index + j * group + i]

    return kernel
