"""Places in the unified buffer: where each value lies while somebody needs it.

Invariant: two values that are needed at the same time share no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """Rows that are taken from one step of a program to another, both included."""

    rows: int
    begin: int
    end: int


def place(lifetimes: Sequence[Lifetime]) -> list[int]:
    """First row of each, the lowest that is free, for lifetimes in the order of their begin."""
    first: list[int] = []
    for number, taken in enumerate(lifetimes):
        others = sorted((row, row + other.rows) for row, other in zip(first, lifetimes[:number], strict=True)
                        if other.end >= taken.begin)
        row = 0
        for begin, end in others:
            if begin - row >= taken.rows:
                break
            row = max(row, end)
        first.append(row)
    return first


def most(lifetimes: Sequence[Lifetime], first: Sequence[int]) -> tuple[int, int]:
    """The step in which the highest row is taken, and the rows up to there."""
    return max(((taken.begin, row + taken.rows) for row, taken in zip(first, lifetimes, strict=True)),
               key=lambda found: found[1], default=(0, 0))
