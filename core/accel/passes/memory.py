"""Memory: places in one arena for the buffers of a plan.

Invariant: two buffers that are alive at the same step do not overlap, and each begins at a multiple of `ALIGNMENT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core.accel.step import Buffer

ALIGNMENT = 64
Offset = TypeVar("Offset", int, NDArray[np.int64])


@dataclass
class Lifetime:
    """First and last step that touch a buffer."""

    buffer: Buffer
    first: int
    last: int


def lifetimes(touched: Sequence[Iterable[Buffer]]) -> list[Lifetime]:
    """Lifetimes of the buffers that each step touches."""
    known: dict[Buffer, Lifetime] = {}
    for step, buffers in enumerate(touched):
        for buffer in buffers:
            known.setdefault(buffer, Lifetime(buffer, step, step)).last = step
    return list(known.values())


def place(spans: Sequence[Lifetime]) -> tuple[dict[Buffer, int], int]:
    """Offsets in bytes, and the size of the arena.

    Buffers are placed from the largest to the smallest, each in the lowest gap between those that live at the same time
    (Pisarchyk and Lee, arXiv 2001.03288, greedy by size).
    """
    ordered = sorted(spans, key=lambda span: -span.buffer.nbytes)
    firsts, lasts, begins, ends = np.zeros((4, len(ordered)), np.int64)
    offsets: dict[Buffer, int] = {}
    for number, span in enumerate(ordered):
        living = np.flatnonzero((firsts[:number] <= span.last) & (lasts[:number] >= span.first))
        living = living[np.argsort(begins[living], kind="stable")]
        # Gaps lie behind each of the living and in front of the first; the last one has no end.
        starts = np.append(0, aligned(np.maximum.accumulate(ends[living])))
        fits = starts[:-1] + span.buffer.nbytes <= begins[living]
        begin = int(starts[fits.argmax() if fits.any() else -1])
        offsets[span.buffer] = begin
        firsts[number], lasts[number] = span.first, span.last
        begins[number], ends[number] = begin, begin + span.buffer.nbytes
    return offsets, aligned(int(ends.max(initial=0)))


def aligned(offset: Offset) -> Offset:
    """The first multiple of `ALIGNMENT` from an offset on."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
