"""Memory: places in one arena for the buffers of a plan.

Invariant: two buffers that are alive at the same step do not overlap, and each begins at a multiple of `ALIGNMENT`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.accel.step import Buffer

ALIGNMENT = 64


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
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[Buffer, int] = {}
    size = 0
    for span in sorted(spans, key=lambda span: -span.buffer.nbytes):
        offset = 0
        for begin, end, other in placed:
            coexist = other.first <= span.last and span.first <= other.last
            if coexist and begin < offset + span.buffer.nbytes and offset < end:
                offset = aligned(end)
        offsets[span.buffer] = offset
        end = offset + span.buffer.nbytes
        insort(placed, (offset, end, span), key=lambda entry: entry[0])
        size = max(size, end)
    return offsets, aligned(size)


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
