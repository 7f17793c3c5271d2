"""Layers: products whose sums become bytes, between a network and the instruction stream of TPU v1.

Every product is a convolution: its rows of sums are counted by some axes, and each tap is a product of the rows of the
source that lie a fixed number of rows behind those of the first tap. A matrix product has one tap and one axis.

Invariant: a layer reads what the host or an earlier layer gives.

An activation [row, column] lies in the unified buffer, and in host memory, in strips of as many columns as the array
has: all rows of the first strip, then those of the second one. What fills up the last strip meets weights of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import FixedPoint, FloatingPoint, Table, Window
from core.accel.tpu.instructions import Function, Pool

SUM_ROWS = 4
"""Rows of the unified buffer for a row of sums."""


def strips(columns: int, size: int) -> int:
    """Strips of so many columns, on an array of a size."""
    return math.ceil(columns / size)


@dataclass(frozen=True, eq=False)
class Given:
    """Bytes [row, column] that the host gives."""

    rows: int
    columns: int
    signed: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """A product.

    Attributes
    ----------
    name, where : for the person who reads the program: what it is, and the user's layer and line
    source : what it multiplies
    dims : extents of the axes that count rows of sums, at least two; the last two are lines, and rows of a line
    steps : rows of the source from one row of sums to its neighbour along each axis
    taps : rows of the source from that of the first tap to that of each tap
    weights : i8[tap, input, output]
    """

    name: str
    where: str
    source: Given | Store
    dims: tuple[int, ...]
    steps: tuple[int, ...]
    taps: tuple[int, ...]
    weights: NDArray[np.int8]

    @property
    def columns(self) -> int:
        return self.weights.shape[2]

    def tiles(self, size: int) -> int:
        """Tiles of weights."""
        taps, inputs, outputs = self.weights.shape
        return taps * strips(inputs, size) * strips(outputs, size)

    @property
    def planes(self) -> int:
        return math.prod(self.dims[:-2])


@dataclass(frozen=True, eq=False)
class Store:
    """What becomes of a layer's sums, and how it lies in the unified buffer; `activation.Scaling` explains the rest.

    Attributes
    ----------
    rule : for all columns; None for sums as they are
    window : of lines and rows in a line, for `pool`
    pooled_table : the byte that each pooled byte becomes, if it changes
    low, high : rows of padding along each axis
    border : the byte of the padding
    """

    layer: Layer
    rule: FixedPoint | FloatingPoint | None = None
    zero: int = 0
    signed: bool = True
    function: Function = Function.IDENTITY
    ceiling: int | None = None
    table: Table | None = None
    pool: Pool = Pool.NONE
    window: Window | None = None
    pooled_table: Table | None = None
    low: tuple[int, ...] = ()
    high: tuple[int, ...] = ()
    border: int = 0

    @property
    def columns(self) -> int:
        return self.layer.columns

    @property
    def dims(self) -> tuple[int, ...]:
        """Extents without padding."""
        dims = self.layer.dims
        return (*dims[:-2], *self.window.extents(*dims[-2:])) if self.window else dims

    @property
    def extents(self) -> tuple[int, ...]:
        """With padding."""
        if not self.is_padded:
            return self.dims
        return tuple(low + extent + high for low, extent, high in zip(self.low, self.dims, self.high, strict=True))

    @property
    def is_padded(self) -> bool:
        return any((*self.low, *self.high))

    @property
    def rows(self) -> int:
        return math.prod(self.extents) * (SUM_ROWS if self.function is Function.SUMS else 1)


@dataclass(frozen=True)
class Stage:
    """What the chip does from one step of the host to the next.

    Attributes
    ----------
    given : what the host gives it
    layers : each with what is stored of it
    wanted : what the host takes
    """

    given: list[Given] = field(default_factory=list)
    layers: list[tuple[Layer, list[Store]]] = field(default_factory=list)
    wanted: list[Store] = field(default_factory=list)
