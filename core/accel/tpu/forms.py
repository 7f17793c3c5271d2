"""Forms: what a value of a graph is to TPU v1, and how the activation unit makes 8-bit numbers of it.

A value has a form while the chip can go on with it: sums that are on their way to bytes, bytes, or whatever a byte
stands for. Max pooling and cuts happen to bytes on the chip and to floats in the graph, which is the same, since
rescaling keeps the order of numbers.

Invariant: the bytes of a store are those of the graph, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import FloatingPoint, Table, Window, mean
from core.accel.tpu.instructions import Function, Pool
from core.accel.tpu.layers import Layer, Store
from core.engine.graph import Value

BYTES = np.arange(256).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Real:
    """Sums that become numbers: ``float(sums + bias) * factor``, cut, over step, rounded, moved to a zero point.

    Attributes
    ----------
    bias : i32[column]
    is_float : whether they are converted yet
    factor : f32[column], once they are multiplied
    low, high : of the cut, before the step
    window : of the largest number of each window, before the step
    step : once they are divided
    is_whole : whether they are rounded yet
    zero : once they are moved
    """

    layer: Layer
    bias: NDArray[np.int32]
    is_float: bool = False
    factor: NDArray[np.float32] | None = None
    low: float = -math.inf
    high: float = math.inf
    window: Window | None = None
    step: np.float32 | None = None
    is_whole: bool = False
    zero: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but a factor was applied to the floats."""
        return (self.is_float and self.step is None and not self.is_whole and self.window is None
                and math.isinf(self.low) and math.isinf(self.high))

    @property
    def may_be_cut(self) -> bool:
        """Whether they are floats in their own units."""
        return self.is_float and self.step is None and not self.is_whole

    def cut(self, low: float = -math.inf, high: float = math.inf) -> Real:
        """Numbers of at least `low`, then of at most `high`."""
        return dataclasses.replace(self, low=min(max(self.low, low), high), high=min(max(self.high, low), high))

    def store(self, signed: bool) -> Store:
        """What they are as bytes."""
        step = np.float32(1) if self.step is None else self.step
        factor = np.ones(self.layer.columns, np.float32) if self.factor is None else self.factor
        zero = self.zero or 0
        lowest, highest = (-128, 127) if signed else (0, 255)

        def byte(real: float) -> int:
            return int(np.clip(np.rint(np.float32(real) / step) + np.float32(zero), lowest, highest))

        low, high = byte(self.low), byte(self.high)
        function, ceiling, table = Function.IDENTITY, None, None
        if not math.isinf(self.low) or not math.isinf(self.high):
            if low == max(lowest, zero):
                function = Function.RELU if high == highest else Function.RELU6
                ceiling = high if function is Function.RELU6 else None
            else:
                function = Function.TABLE
                table = _cut(signed, low, high)
        return Store(self.layer, FloatingPoint(self.bias, factor, step), zero, signed, function, ceiling, table,
                     Pool.NONE if self.window is None else Pool.MAX, self.window)


@dataclass(frozen=True, eq=False)
class Bytes:
    """What a store holds."""

    store: Store


@dataclass(frozen=True, eq=False)
class Mask:
    """Where a value of sums compares with a number."""

    value: Value
    kind: str
    threshold: float


@dataclass(frozen=True, eq=False)
class Lookup:
    """What the bytes of a store stand for, or the sums of its bytes in windows.

    Attributes
    ----------
    values : of each byte from the lowest to the highest, or of each sum
    window : of the sums
    """

    store: Store
    values: NDArray[np.generic]
    window: Window | None = None

    def store_of(self) -> Store | None:
        """The store of what they are as bytes of the same type, if the chip has one."""
        if self.window is None:
            return looked_up(self.store, _table(self.store.signed, self.values))
        if self.store.pool is not Pool.NONE:
            return None
        count = self.window.size[0] * self.window.size[1]
        table = _table(self.store.signed, self.values[::count])  # of windows whose bytes are all equal
        means = mean(domain(self.store, count), count)
        if not np.array_equal(table[means.astype(np.uint8)], self.values.astype(np.uint8)):
            return None  # it depends on more than the mean
        return dataclasses.replace(self.store, pool=Pool.AVERAGE, window=self.window,
                                   pooled_table=None if np.array_equal(table, BYTES) else table)


def domain(store: Store, count: int = 1) -> NDArray[np.int64]:
    """The sums of so many bytes of a store."""
    return np.arange(count * 255 + 1) + _lowest(store.signed) * count


def looked_up(store: Store, table: Table) -> Store:
    """The store of other bytes for the bytes of a store."""
    if store.pool is not Pool.NONE:
        before = BYTES if store.pooled_table is None else store.pooled_table
        return dataclasses.replace(store, pooled_table=table[before])
    before = BYTES if store.table is None else store.table
    if store.function in (Function.RELU, Function.RELU6):
        before = _cut(store.signed, store.zero, 255 if store.ceiling is None else store.ceiling)
    return dataclasses.replace(store, function=Function.TABLE, ceiling=None, table=table[before])


def _cut(signed: bool, low: int, high: int) -> Table:
    """The table that cuts bytes."""
    numbers = np.arange(256) + _lowest(signed)
    return _table(signed, np.clip(numbers, max(low, numbers[0]), min(high, numbers[-1])))


def _lowest(signed: bool) -> int:
    return -128 if signed else 0


def _table(signed: bool, values: NDArray[np.generic]) -> Table:
    """The bytes of values in the order of the numbers, in that of their bits."""
    found = np.empty(256, np.uint8)
    found[(np.arange(256) + _lowest(signed)) & 255] = values.astype(np.uint8)
    return found
