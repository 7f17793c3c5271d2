"""Collectives among the chips of a slice, and the steps of training that need them.

Invariant: times come from the links of the machine file and the extents of the slice alone.

With V bytes in all, N chips, and axes of which each carries W bytes a second (both directions of a ring; one where the
ends of an axis are not joined), as the scaling book has it:

* all-gather and reduce-scatter: ``V * (N - 1) / N / (sum of W)``, but at least the way around, a hop after the other:
  ``hop * sum of (extent / 2)``, or the whole length of an axis without a ring;
* all-reduce: a reduce-scatter and an all-gather, twice that.

A ring is a slice of one axis. Each axis carries its share of the data at the same time as the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.accel.tpu.machine import Links, Machine
from core.engine.errors import ConfigError, compose


@dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes
    ----------
    seconds : until every chip is done
    sent : bytes that each chip sends
    bound_by : ``links`` or ``latency``
    """

    seconds: float
    sent: float
    bound_by: str


@dataclass(frozen=True)
class Slice:
    """A block of a pod's torus, such as 4 x 8 chips; an axis is a ring only if the block has all of it.

    Raises
    ------
    ConfigError
        If the machine has no links, or its torus does not hold the block.
    """

    machine: Machine
    extents: tuple[int, ...]

    def __post_init__(self) -> None:
        torus = self.machine.system.torus
        if not torus:
            raise ConfigError(f"{self.machine.name} has no links between chips")
        if len(self.extents) != len(torus) or not all(0 < own <= whole for own, whole in
                                                      zip(self.extents, torus, strict=False)):
            raise ConfigError(compose(f"a slice of {self.machine.name} cannot be {_times(self.extents)}", [
                ("torus", _times(torus)), ("hint", "give an extent from 1 to that of the torus for each axis")]))

    @property
    def chips(self) -> int:
        return math.prod(self.extents)

    @property
    def _links(self) -> Links:
        assert self.machine.links is not None
        return self.machine.links

    def _axes(self) -> list[tuple[int, bool]]:
        """Extent of each axis that has more than one chip, and whether it is a ring."""
        return [(own, own == whole and own > 2) for own, whole in
                zip(self.extents, self.machine.system.torus, strict=True) if own > 1]

    def all_gather(self, nbytes: float) -> Collective:
        """Every chip gets all `nbytes`, of which it has its share."""
        return self._exchange(nbytes, 1)

    def reduce_scatter(self, nbytes: float) -> Collective:
        """Every chip has `nbytes` and gets its share of the sum."""
        return self._exchange(nbytes, 1)

    def all_reduce(self, nbytes: float) -> Collective:
        """Every chip has `nbytes` and gets the sum."""
        return self._exchange(nbytes, 2)

    def _exchange(self, nbytes: float, times: int) -> Collective:
        axes = self._axes()
        if not axes:
            return Collective(0.0, 0.0, "latency")
        moved = nbytes * (self.chips - 1) / self.chips
        width = sum(self._links.bandwidth * (2 if ring else 1) for _, ring in axes)
        hops = sum(extent / 2 if ring else extent - 1 for extent, ring in axes)
        latency, transfer = hops * self._links.hop, moved / width
        return Collective(times * max(latency, transfer), times * moved,
                          "links" if transfer > latency else "latency")


@dataclass(frozen=True)
class ParallelStep:
    """Seconds of a step of all chips.

    Attributes
    ----------
    compute, exchange : of each chip; the step takes both if nothing overlaps
    seconds : of the step
    efficiency : the time that chips compute, 0..1
    """

    compute: float
    exchange: float
    seconds: float

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def data_parallel(chips: Slice, compute: float, gradient_bytes: float, overlapped: bool = True) -> ParallelStep:
    """Each chip has all weights and a part of the batch; gradients are added up at the end of a step.

    Parameters
    ----------
    compute : seconds of a chip for its part of the batch, forward and backward
    overlapped : gradients travel while those of earlier layers are computed
    """
    exchange = chips.all_reduce(gradient_bytes).seconds
    return ParallelStep(compute, exchange, max(compute, exchange) if overlapped else compute + exchange)


def model_parallel(chips: Slice, compute: float, activation_bytes: Sequence[float]) -> ParallelStep:
    """Each chip has a part of every layer's columns; the result of each layer is gathered before the next one begins.

    Parameters
    ----------
    compute : seconds of one chip for the whole model
    activation_bytes : results that are gathered, of all chips together
    """
    exchange = sum(chips.all_gather(nbytes).seconds for nbytes in activation_bytes)
    part = compute / chips.chips
    return ParallelStep(part, exchange, part + exchange)


def _times(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))
