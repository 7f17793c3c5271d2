"""Schedules: the learning rate as a function of the step, in plain Python.

Invariant: a schedule keeps nothing between calls, so that a resumed run continues with the same rates. The rate enters
the compiled step as an f32 scalar; steps count from 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from core.engine.errors import ConfigError

Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: rate


def linear(start: float, end: float, steps: int, *, begin: int = 0) -> Schedule:
    """`start` until the step `begin`, then a straight line that reaches `end` after `steps` more and stays."""
    return lambda step: start + (end - start) * _part(step - begin, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Half a cosine from `start` to `end` in `steps` (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5)."""
    return lambda step: end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _part(step, steps)))


def exponential(start: float, end: float, steps: int) -> Schedule:
    """A constant factor a step, from `start` to `end` in `steps`; both above 0."""
    if min(start, end) <= 0:
        raise ConfigError(f"an exponential schedule needs rates above 0, found {start} and {end}")
    return lambda step: start * (end / start) ** _part(step, steps)


def warm_up(initial: float, steps: int, after: Schedule) -> Schedule:
    """A straight line from `initial` to the first rate of `after` in `steps`, then `after` from its step 0."""
    rising = linear(initial, after(0), steps)
    return lambda step: rising(step) if step < steps else after(step - steps)


def noam_like(initial: float, peak: float, final: float, *, warm_up_steps: int, steps: int) -> Schedule:
    """Linear from `initial` to `peak`, then exponential to `final` at `steps`: chemprop's schedule.

    Chemprop takes 1e-4, 1e-3 and 1e-4, and warms up for two epochs (chemprop v2, ``build_NoamLike_LRSched``).
    """
    return warm_up(initial, warm_up_steps, exponential(peak, final, steps - warm_up_steps))


def _part(step: int, steps: int) -> float:
    """The part of a phase that is over, in 0..1."""
    return min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0


@dataclass(frozen=True)
class ReduceOnPlateau:
    """A rate that falls when a validation loss stops falling (as torch's ReduceLROnPlateau with threshold 0).

    It is a value: `observe` gives the next one, and its fields are what a checkpoint has to keep.

    Attributes
    ----------
    rate : the present rate
    factor : of a reduction, 0 < factor < 1
    patience : observations without a new best that are let pass; the next one reduces the rate
    minimum : the rate never falls below
    best : the smallest loss observed
    waited : observations since the best, or since the last reduction
    """

    rate: float
    factor: float = 0.5
    patience: int = 10
    minimum: float = 0.0
    best: float = math.inf
    waited: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < 1.0:
            raise ConfigError(f"factor lies in 0 < factor < 1, found {self.factor}")

    def observe(self, loss: float) -> Self:
        """The state after one more validation loss; NaN counts as no improvement."""
        if loss < self.best:
            return dataclasses.replace(self, best=loss, waited=0)
        if self.waited < self.patience:
            return dataclasses.replace(self, waited=self.waited + 1)
        return dataclasses.replace(self, rate=max(self.rate * self.factor, self.minimum), waited=0)
