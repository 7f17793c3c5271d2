"""Rows of a product of narrow elements: the order in which register blocks take them.

Invariant: every row of out has one place in a walk; what else a walk computes, its holes, is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, prod

from core.accel.chips import NarrowBlock
from core.accel.step import row_major

Dim = tuple[int, ...]
"""An extent and one stride for each operand."""


@dataclass(frozen=True)
class Walk:
    """The rows of a product, in the order in which blocks take them, and the dims that count products.

    Of each `period` rows the first `valid` are rows of out; the others are computed and dropped.
    """

    rows: tuple[Dim, ...]
    batch: tuple[Dim, ...]
    period: int = 1
    valid: int = 1

    @property
    def count(self) -> int:
        return prod(extent for extent, _ in self.rows)

    @property
    def sharing(self) -> int:
        """How many products after each other have one B."""
        return prod(dim[0] for dim in takewhile(lambda dim: dim[0] == 1 or dim[2] == 0, reversed(self.batch)))

    def with_holes(self, row_stride: int, block: NarrowBlock, panels: int) -> Walk:
        """Lines of rows joined over the gap between them, if that is cheaper than to copy tiles across their ends."""
        if len(self.rows) < 2:
            return self
        *outer, (lines, far), (valid, near) = self.rows
        if near <= 0 or far % near or far < valid * near:
            return self
        period = far // near
        flat = (lines - 1) * period + valid
        copied = min(1.0, block.tile_rows / valid) / min(panels, 8) if valid % block.tile_rows else 0
        if prod(dim[0] for dim in outer) * ceil(flat / block.rows) > ceil(self.count / block.rows) * (1 + copied):
            return self
        extents = tuple(dim[0] for dim in outer)
        steps = [row_stride * lines * valid * step for step in row_major(extents)]
        batch = tuple((extent, stride, 0, step) for (extent, stride), step in zip(outer, steps, strict=True))
        return Walk(((flat, near),), (*self.batch, *batch), period, valid)


def merged(rows: Sequence[Dim]) -> tuple[Dim, ...]:
    """The same walk with dims joined that lie end to end."""
    joined = [rows[0]]
    for extent, stride in rows[1:]:
        outer, far = joined[-1]
        if far == extent * stride or outer == 1:
            joined[-1] = (outer * extent, stride)
        elif extent > 1:
            joined.append((extent, stride))
    return tuple(joined)
