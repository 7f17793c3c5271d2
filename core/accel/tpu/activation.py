"""The activation unit of TPU v1: what it makes of sums, and the numbers that it does this by.

A sum gets a bias, is rescaled, moved to the zero point of the output and cut to 8 bits; a table or a window may follow.
The paper does not say where the chip keeps these numbers, nor how it rounds. There are two rules: `FixedPoint` is
TFLite's, in integers; `FloatingPoint` is that of the engine's quantised layers, which have float32 between two layers.

Invariant: everything is exact or rounded as IEEE 754 says, so that there is one result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.instructions import Function, Pool
from core.accel.tpu.requantisation import rescale

Table = NDArray[np.uint8]
"""u8[256]: the byte that each byte becomes, by the number of its bits."""


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """TFLite's rule.

    Attributes
    ----------
    bias, q31, shift : i64[column], see `requantisation`
    """

    bias: NDArray[np.int64]
    q31: NDArray[np.int64]
    shift: NDArray[np.int64]

    def scaled(self, sums: NDArray[np.int32]) -> NDArray[Any]:
        """Whole numbers [row, column], before they are moved and cut."""
        return rescale((sums + self.bias).astype(np.int32), self.q31, self.shift)

    def columns(self, begin: int, count: int) -> FixedPoint:
        """Some of the columns; what is missing at the end is 0."""
        return FixedPoint(*(_some(part, begin, count) for part in (self.bias, self.q31, self.shift)))


@dataclass(frozen=True, eq=False)
class FloatingPoint:
    """``round(float(sum + bias) * factor / step)`` in float32, ties to even.

    Attributes
    ----------
    bias : i32[column]; the sum with it wraps around
    factor : f32[column], what 1 of a sum stands for
    step : f32[], what 1 of the result stands for
    """

    bias: NDArray[np.int32]
    factor: NDArray[np.float32]
    step: np.float32

    def scaled(self, sums: NDArray[np.int32]) -> NDArray[Any]:
        """Whole numbers [row, column] as float32, before they are moved and cut."""
        real: NDArray[Any] = (sums + self.bias).astype(np.float32) * self.factor
        return np.rint(real / self.step)

    def columns(self, begin: int, count: int) -> FloatingPoint:
        """Some of the columns; what is missing at the end is 0."""
        return FloatingPoint(_some(self.bias, begin, count), _some(self.factor, begin, count), self.step)


def _some(part: NDArray[Any], begin: int, count: int) -> NDArray[Any]:
    found = part[begin:begin + count]
    return np.pad(found, (0, count - found.size))


@dataclass(frozen=True, eq=False)
class Window:
    """Windows of rows that lie in lines.

    Attributes
    ----------
    size, stride, low, high : of lines, and of rows in a line; low and high are padding, which counts for nothing
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (0, 0)

    def extents(self, lines: int, length: int) -> tuple[int, int]:
        """Lines and rows of a line that the windows of so many lines make."""
        first, second = ((extent + low + high - size) // stride + 1 for extent, size, stride, low, high in
                         zip((lines, length), self.size, self.stride, self.low, self.high, strict=True))
        return first, second

    def taken(self, begin: int, end: int, lines: int) -> tuple[int, int]:
        """First line that the windows from begin to end touch, and the line behind the last one, of so many."""
        first, last = self._reach(begin, end)
        return max(first, 0), min(last, lines)

    def of(self, begin: int, end: int, lines: int) -> Window:
        """The windows from begin to end, on the lines that these touch."""
        first, last = self._reach(begin, end)
        return Window(self.size, self.stride, (max(-first, 0), self.low[1]), (max(last - lines, 0), self.high[1]))

    def _reach(self, begin: int, end: int) -> tuple[int, int]:
        """As `taken`, with lines of padding, which are outside of 0..lines."""
        first = begin * self.stride[0] - self.low[0]
        return first, first + (end - 1 - begin) * self.stride[0] + self.size[0]


@dataclass(frozen=True, eq=False)
class Pooling:
    """What follows windows.

    Attributes
    ----------
    lines, length : lines of the sums, and rows of each
    table : the byte that each pooled byte becomes, if it changes
    """

    window: Window
    lines: int
    length: int
    table: Table | None = None

    def pooled(self, values: NDArray[np.int64], pool: Pool) -> NDArray[np.int64]:
        """Maxima, or means with halves rounded away from zero, as TFLite's AVERAGE_POOL_2D has them.

        Parameters
        ----------
        values : i64[row, column] of all lines

        Returns
        -------
        i64[row, column]
        """
        planes = values.reshape(self.lines, self.length, -1)
        shape = (*self.window.extents(self.lines, self.length), planes.shape[2])
        if pool is Pool.MAX:
            found = np.full(shape, np.iinfo(np.int64).min)
            for target, source in self._taps(shape[0], shape[1]):
                found[target] = np.maximum(found[target], planes[source])
            return found.reshape(-1, shape[2])
        total, count = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for target, source in self._taps(shape[0], shape[1]):
            total[target] += planes[source]
            count[target] += 1
        return mean(total, count).reshape(-1, shape[2])

    def _taps(self, lines: int, length: int) -> Iterator[tuple[Any, Any]]:
        """For each tap, the windows in which it is no padding, and the rows that it meets there."""
        window = self.window
        for tap in itertools.product(range(window.size[0]), range(window.size[1])):
            target, source = [], []
            for at, low, stride, windows, rows in zip(tap, window.low, window.stride, (lines, length),
                                                      (self.lines, self.length), strict=True):
                places = np.arange(windows) * stride + at - low
                inside = np.flatnonzero((places >= 0) & (places < rows))
                target.append(inside)
                source.append(places[inside])
            yield np.ix_(*target), np.ix_(*source)


def mean(total: NDArray[np.int64], count: Any) -> NDArray[np.int64]:
    """total / count, halves rounded away from zero."""
    found: NDArray[np.int64] = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count))
    return found


@dataclass(frozen=True, eq=False)
class Scaling:
    """What the activation unit does to one strip of columns.

    Attributes
    ----------
    rule : how sums are rescaled; None for sums that leave as they are
    zero : zero point of the bytes
    signed : whether the bytes are i8, else u8
    ceiling : the byte that RELU6 cuts at
    table : what TABLE makes of the bytes
    pooling : what is done to windows of them
    """

    rule: FixedPoint | FloatingPoint | None
    zero: int = 0
    signed: bool = True
    ceiling: int | None = None
    table: Table | None = None
    pooling: Pooling | None = None

    def lacks(self, function: Function, pool: Pool) -> str:
        """What it would need for a function and a pool, and has not; empty if nothing."""
        if function is Function.SUMS:
            return ""
        if self.rule is None:
            return "rule"
        if function is Function.RELU6 and self.ceiling is None:
            return "ceiling"
        if function is Function.TABLE and self.table is None:
            return "table"
        return "window" if pool is not Pool.NONE and self.pooling is None else ""

    def taken(self, rows: int) -> int:
        """Rows of sums from which so many rows of bytes are made."""
        return rows if self.pooling is None else self.pooling.lines * self.pooling.length

    def bytes_of(self, sums: NDArray[np.int32], function: Function, pool: Pool) -> NDArray[np.uint8]:
        """u8[row, column] of sums i32[row, column]; i8 by their bits."""
        if function is Function.SUMS:
            return sums.view(np.uint8).reshape(len(sums), -1, 4).swapaxes(1, 2).reshape(4 * len(sums), -1)
        assert self.rule is not None
        low, high = (-128, 127) if self.signed else (0, 255)
        if function in (Function.RELU, Function.RELU6):
            low = max(low, self.zero)
        if function is Function.RELU6:
            assert self.ceiling is not None
            high = self.ceiling
        scaled = self.rule.scaled(sums)
        found = np.clip(scaled + scaled.dtype.type(self.zero), low, high).astype(np.int64)
        if function is Function.TABLE:
            assert self.table is not None
            found = self._looked_up(self.table, found)
        if pool is not Pool.NONE:
            assert self.pooling is not None
            found = self.pooling.pooled(found, pool)
            if self.pooling.table is not None:
                found = self._looked_up(self.pooling.table, found)
        return found.astype(np.uint8)

    def _looked_up(self, table: Table, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return table[values & 255].view(np.int8 if self.signed else np.uint8).astype(np.int64)
