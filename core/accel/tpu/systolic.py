"""Cycles of a matrix product on a systolic array, by closed formulas.

Invariant: all counts are exact integers of any size; a mode later in `MODES` refines the one before it.

A product ``[M, K] @ [K, N]`` on an array of R x C multipliers falls into folds: a fold keeps one R x C tile in place
while T rows pass it.

| dataflow | in place | rows Sr | columns Sc | passing T | head |
|---|---|---|---|---|---|
| ws | weights | K | N | M | R |
| is | inputs | K | M | N | R |
| os | outputs | M | N | K | 0 |

`F = ceil(Sr / R) * ceil(Sc / C)` folds, and `head` cycles put a tile in place.

* ``stall-free``: ``F * (head + R + C + T - 2) - 1``. One fold after the other; equal to what SCALE-Sim 2 and 3 report
  (Samajdar et al., ISPASS 2020, whose output-stationary formula has another R for the drain, which the program leaves
  out).
* ``pipelined``: ``head + (F - 1) * max(T, R) + (R + C + T - 2) - 1``. The next tile is put in place, or the last
  outputs are moved out, in R cycles while T rows pass, as a TPU does. ONNXim's formula for ws differs in the first
  tile: 2R - 1 instead of R, because its weights enter skewed; one fold would then take longer than in SCALE-Sim.
* ``full``: as ``pipelined``, on a machine; see `full_cycles`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.accel.tpu.machine import Machine

DATAFLOWS = ("ws", "os", "is")
MODES = ("stall-free", "pipelined", "full")

Counts = NDArray[np.object_]
"""Python integers, so that no product overflows."""


@dataclass(frozen=True)
class Product:
    """A matrix product ``[m, k] @ [k, n]``."""

    m: int
    k: int
    n: int

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n


def convolution(height: int, width: int, kernel: tuple[int, int], channels: int, filters: int,
                stride: tuple[int, int]) -> Product:
    """The product of a convolution without padding: a row an output pixel, the taps in its depth.

    ``M = ceil((H - r + s) / s) * ceil((W - c + s) / s)``, ``K = r * c * channels``, ``N = filters``.
    """
    rows, columns = (-(-(extent - size + step) // step)
                     for extent, size, step in zip((height, width), kernel, stride, strict=True))
    return Product(rows * columns, math.prod(kernel) * channels, filters)


@dataclass(frozen=True)
class _Folds:
    """The folds of a product; each field a count or an array of them."""

    count: Any
    passing: Any
    head: Any


def _counts(values: ArrayLike) -> Counts:
    """Exact integers from numbers or arrays of them."""
    array = np.asarray(values)
    return array if array.dtype == object else array.astype(np.int64).astype(object)


def _ceil(value: Any, unit: Any) -> Any:
    return -(-value // unit)


def _folds(m: Counts, k: Counts, n: Counts, rows: Counts, columns: Counts, dataflow: NDArray[np.str_]) -> _Folds:
    down = np.where(dataflow == "os", m, k)
    across = np.where(dataflow == "is", m, n)
    passing = np.where(dataflow == "ws", m, np.where(dataflow == "os", k, n))
    return _Folds(_ceil(down, rows) * _ceil(across, columns), passing, np.where(dataflow == "os", 0, rows))


def cycles(m: ArrayLike, k: ArrayLike, n: ArrayLike, rows: ArrayLike, columns: ArrayLike, dataflow: ArrayLike,
           mode: str = "stall-free") -> Any:
    """Cycles of products ``[m, k] @ [k, n]`` on arrays of `rows` x `columns`.

    Parameters
    ----------
    m, k, n, rows, columns : integers above 0, or arrays of them that broadcast
    dataflow : ``"ws"``, ``"os"`` or ``"is"``, or an array of these
    mode : ``"stall-free"`` or ``"pipelined"``

    Returns
    -------
    an int, or an array of Python integers
    """
    m, k, n, rows, columns = map(_counts, (m, k, n, rows, columns))
    flow = np.asarray(dataflow, dtype=np.str_)
    assert np.isin(flow, DATAFLOWS).all() and mode in MODES[:2]
    folds = _folds(m, k, n, rows, columns, flow)
    last = rows + columns + folds.passing - 2
    if mode == "stall-free":
        found = folds.count * (folds.head + last) - 1
    else:
        found = folds.head + (folds.count - 1) * np.maximum(folds.passing, rows) + last - 1
    return found if np.ndim(found) else int(found)


def utilisation(macs: int, rows: int, columns: int, taken: int) -> float:
    """Multiply-accumulates done over those that the array could do, 0..1.

    A 1 x 1 array that keeps its outputs has a cycle less than products, because SCALE-Sim counts from 0: at most 1.
    """
    return min(macs / (rows * columns * max(taken, 1)), 1.0)


def full_cycles(product: Product, machine: Machine, dataflow: str) -> int:
    """Cycles of a product on one array of a machine, with memory, buffers and the vector unit.

    As ``pipelined``, with three changes:

    * Operands that are kept in the buffer come from it, weights are read from memory. An operand that does not fit in
      half of the buffer (the other half is being filled) goes through memory each time that a fold reads or writes it.
    * With accumulators, at most half of their rows pass a stationary tile at a time, so that there are more folds.
    * A fold takes at least its share of the memory traffic at ``memory.streaming``, and of the outputs through the
      vector unit; the first tile of weights is waited for.

    The array has the memory, the buffer and the vector unit of its chip for itself.
    """
    array = machine.array
    m, k, n, rows, columns = map(_counts, (product.m, product.k, product.n, array.rows, array.columns))
    whole = _folds(m, k, n, rows, columns, np.asarray(dataflow))
    folds, passing, head = int(whole.count), int(whole.passing), int(whole.head)
    limit = passing
    if machine.accumulator_rows and dataflow != "os":
        limit = min(passing, max(machine.accumulator_rows // 2, 1))
    pieces, rest = _ceil(passing, limit), passing - (_ceil(passing, limit) - 1) * limit
    per_cycle = machine.memory.streaming / machine.clock
    shared = math.ceil(_traffic(product, machine, dataflow, pieces) / per_cycle / (folds * pieces))
    elements = _ceil(_ceil(product.m * product.n, machine.vector.lanes), folds * pieces)
    least = max(array.rows, shared, elements)
    steps = folds * ((pieces - 1) * max(limit, least) + max(rest, least))
    first = math.ceil(min(product.k, array.rows) * min(product.n, array.columns) * machine.weight_bytes / per_cycle)
    return first + head + steps - max(rest, least) + array.rows + array.columns + rest - 3


def _traffic(product: Product, machine: Machine, dataflow: str, pieces: int) -> int:
    """Bytes between memory and chip."""
    rows, columns, width = machine.array.rows, machine.array.columns, machine.weight_bytes
    down = _ceil(product.m if dataflow == "os" else product.k, rows)
    across = _ceil(product.m if dataflow == "is" else product.n, columns)
    inputs, weights, outputs = (width * size for size in (product.m * product.k, product.k * product.n,
                                                          product.m * product.n))
    # How often the folds go over each operand.
    times = {"ws": (across, pieces), "is": (pieces, across), "os": (across, down)}[dataflow]
    half = machine.buffer.capacity // 2
    found = weights * (1 if weights <= half else times[1])
    if inputs > half:
        found += inputs * times[0]
    if outputs > half:
        found += outputs
    return found
