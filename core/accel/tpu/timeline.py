"""The array's timeline: weight tiles on their way from memory into the array, and what the array waits for.

Invariant: every cycle of the array is active, a weight stall, a weight shift or non-matrix; the four add up to the end
of its last work.

* Memory loads tiles one after the other into a FIFO, and stops while it is full.
* A tile is shifted from the FIFO into the array's second set of weights as soon as that set is free.
* The array works on a tile, and then takes over the second set.

A cycle without work is non-matrix if what the tile is to be multiplied with is not ready; else a weight shift if one is
under way; else a weight stall.
"""

from __future__ import annotations

from collections import deque

from core.accel.tpu.machine import Machine

_SAME = 1e-6  # cycles: steps of a steady stream differ by rounding only


class Timeline:
    """Cycles as tiles go by, in one array; all times count from the begin.

    Attributes
    ----------
    loaded : when the last tile was in the FIFO
    began, ended : when the array began and ended its work on the last tile
    active, weight_stall, weight_shift, non_matrix : cycles so far, by cause
    """

    def __init__(self, machine: Machine) -> None:
        self.shift = float(machine.array.weight_shift)
        self.loaded = self.began = self.ended = 0.0
        self.active = self.weight_stall = self.weight_shift = self.non_matrix = 0.0
        self._left = deque([0.0] * machine.memory.fifo_tiles, maxlen=machine.memory.fifo_tiles)

    @property
    def spent(self) -> tuple[float, float, float, float]:
        """Active, weight stall, weight shift and non-matrix cycles so far."""
        return self.active, self.weight_stall, self.weight_shift, self.non_matrix

    def tiles(self, count: int, work: float, load: float, ready: float) -> None:
        """Tiles that each take `load` cycles of memory and `work` cycles of the array, which begins when `ready`.

        Once the FIFO and the array go in step, all further tiles take what the last one took.
        """
        steady = 0
        last: tuple[float, ...] = (0.0,) * 6
        while count:
            before = (*self.spent, self.loaded, self.ended)
            self._tile(work, load, ready)
            count -= 1
            step = tuple(now - then for now, then in zip((*self.spent, self.loaded, self.ended), before, strict=True))
            steady = steady + 1 if all(abs(a - b) < _SAME for a, b in zip(step, last, strict=True)) else 0
            last = step
            if steady > len(self._left) + 2:
                self._repeat(count, step)
                return

    def _tile(self, work: float, load: float, ready: float) -> None:
        self.loaded = max(self.loaded, self._left[0]) + load
        shifting = max(self.loaded, self.began)
        shifted = shifting + self.shift
        self._left.append(shifted)
        begin = max(shifted, self.ended, ready)
        idle = self.ended + max(ready - self.ended, 0.0)
        shift = max(begin - max(shifting, idle), 0.0)
        self.non_matrix += idle - self.ended
        self.weight_shift += shift
        self.weight_stall += begin - idle - shift
        self.active += work
        self.began, self.ended = begin, begin + work

    def _repeat(self, count: int, step: tuple[float, ...]) -> None:
        active, stall, shift, non_matrix, _, period = (count * part for part in step)
        self.active += active
        self.weight_stall += stall
        self.weight_shift += shift
        self.non_matrix += non_matrix
        self.loaded += period
        self.began += period
        self.ended += period
        self._left = deque((left + period for left in self._left), maxlen=self._left.maxlen)


def pieces(machine: Machine, rows: int) -> list[int]:
    """Rows in equal pieces that fit the accumulators."""
    limit = machine.accumulator_rows or rows
    count = -(-rows // limit)
    return [rows // count + (number < rows % count) for number in range(count)]


def waiting(machine: Machine, elements: int, operations: int) -> float:
    """Cycles from the array's last work on a product until a chain of vector operations on the result can be read.

    The last row leaves the array after R + C cycles. The vector unit reads one half of the accumulators while the other
    one fills, so that what is in a half is left to do; without accumulators it keeps up with the array.
    """
    rows = -(-elements // machine.vector.lanes)
    left = min(rows, (machine.accumulator_rows or 0) // 2)
    return (machine.array.rows + machine.array.columns
            + operations * (left + machine.vector.synchronisation * machine.clock))
