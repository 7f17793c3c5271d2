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
from core.accel.kernels.thin import THIN, suits_dots, transposed
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
    count = slices(out.shape[0], out.shape[1], a.shape[1]) if out.size else 1
    if count == 1 or out.dtype is not dtypes.float32 or a.dtype is not out.dtype or b.strides[1] != 1:
        return gemm.matmul(a, b, out, is_fixed=is_fixed)
    if out.shape[1] < host().lanes <= out.shape[0] and a.strides[0] == 1:  # vectors of columns would not be full
        a, b, out = transposed(b), transposed(a), transposed(out)
    (rows, columns), depth = out.shape, a.shape[1]
    length = depth // count
    left = replace(a, shape=(count, rows, length), strides=(length * a.strides[1], *a.strides))
    right = replace(b, shape=(count, length, columns), strides=(length * b.strides[0], *b.strides))
    parts = contiguous(out.dtype, (count, rows, columns), "parts")
    total = Reduction("y", "x", "sum", out.dtype)
    spread = replace(out, shape=parts.shape, strides=(0, *out.strides))
    add = loop_step("add slices", parts.shape, (0,), [Operand("x", parts, "read"), Operand("y", spread, "write")],
                    reductions=[total])
    plain = rows < THIN or suits_dots(left, right, parts)
    return [*(gemm.matmul(left, right, parts) if plain else _products(left, right, parts)), add]


def _products(a: View, b: View, out: View) -> list[Step]:
    """Steps of the products of slices ``out[i] = a[i] @ b[i]``, which read b where it lies if few blocks do."""
    count, rows, columns = out.shape
    blocks = ceil(rows / block_for(host(), out.dtype.short, columns).rows)
    few = blocks < FEW_BLOCKS and b.strides[1] < _NEAR
    packed, steps = (float_panels.in_place(b), []) if few else float_panels.pack(b)
    along = (count, a.strides[0], packed.strides[0], out.strides[0])
    product = gemm.Product(a, packed, out, rows=((rows, a.strides[1], columns),), columns=columns,
                           depth=(a.shape[2], a.strides[2]), batch=(along,), ends_early=few)
    return [*steps, product.step("matmul")]
