"""Products whose sums are long: slices of the sums side by side, each a product of its own, and then their sum.

A block of a product goes down its whole sum before the next one begins, so that long operands come from afar once for
each block. A slice of them stays in the second cache for all blocks.

Invariant: how a sum is cut depends on shapes and the chip alone, so that its bits do not depend on the threads.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from core.accel.chips import block_for, host
from core.accel.kernels import float_panels, gemm
from core.accel.kernels.conv import FEW_BLOCKS
from core.accel.kernels.thin import THIN
from core.accel.loopir import Operand, Reduction
from core.accel.loops import loop_step
from core.accel.step import Step, View, contiguous
from core.engine import dtypes

_NEAR = 256
"""Columns from which on B is not read where it lies: its rows meet in few sets of the cache."""
_WIDE = 256
"""Outputs of a thin product, beyond which threads share them and its sums are left whole: it reads B only once."""
_SHORTEST = 128
_REPAID = 4
"""A slice repays its share of the last sum if it reads so many times more than that."""


def slices(rows: int, columns: int, depth: int) -> int:
    """Slices of a product's sums; 1 if they are best left whole."""
    if min(rows, columns) < THIN and max(rows, columns) > _WIDE:
        return 1
    shortest = max(_SHORTEST, _REPAID * rows * columns // (rows + columns))
    fitting = host().second_cache // (2 * 4 * (rows + columns))
    if depth <= 2 * fitting or shortest > 2 * fitting:
        return 1
    counts = [count for count in range(2, depth // shortest + 1) if depth % count == 0]
    return next((count for count in counts if depth // count <= fitting), counts[-1] if counts else 1)


def product(a: View, b: View, out: View, is_fixed: bool = False) -> list[Step]:
    """Steps of ``out = a @ b``.

    Parameters
    ----------
    a, b : f32 [M, K] and [K, N], any strides; columns of b beside each other
    out : f32 [M, N], row-major
    is_fixed : see `gemm.matmul`
    """
    rows, columns, depth = *out.shape, a.shape[1]
    count = slices(rows, columns, depth) if out.size else 1
    if count == 1 or out.dtype is not dtypes.float32 or a.dtype is not out.dtype or b.strides[1] != 1:
        return gemm.matmul(a, b, out, is_fixed=is_fixed)
    length = depth // count
    left = replace(a, shape=(count, rows, length), strides=(length * a.strides[1], *a.strides))
    right = replace(b, shape=(count, length, columns), strides=(length * b.strides[0], *b.strides))
    parts = contiguous(out.dtype, (count, rows, columns), "parts")
    blocks = ceil(rows / block_for(host(), out.dtype.short, columns).rows)
    few = blocks < FEW_BLOCKS and b.strides[0] < _NEAR
    packed, steps = (float_panels.in_place(right), []) if few else float_panels.pack(right)
    along = (count, left.strides[0], packed.strides[0], parts.strides[0])
    slice_product = gemm.Product(left, packed, parts, rows=((rows, a.strides[0], columns),), columns=columns,
                                 depth=(length, a.strides[1]), batch=(along,), ends_early=few)
    total = Reduction("y", "x", "sum", out.dtype)
    spread = replace(out, shape=parts.shape, strides=(0, *out.strides))
    add = loop_step("add slices", parts.shape, (0,), [Operand("x", parts, "read"), Operand("y", spread, "write")],
                    reductions=[total])
    return [*steps, slice_product.step("matmul"), add]
