"""Measuring a row: workers build it once, then take turns, and the medians of their turns are compared.

Invariant: a time never stands alone; a record holds ours and every peer's from the same run, in turns. Peers that
compute something else, by the root mean square of their first result, do not count.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.kernels.processes import OURS, WorkerProcess
from tests.bench.kernels.rows import Row

SETTLE = 0.02
"""Seconds between two turns, in which threads of the last one go to sleep."""
HOPELESS = 1.6
"""A peer that takes so many times the best one's time in the first round is measured no more."""
DISTURBED, PATIENCE = 1.25, 3
"""Rounds go on while a median is so many times the fastest call, up to so many times the rounds: a neighbour of the
machine comes and goes within a second or two, for us and for the peers alike."""
TOLERANCE = {"f32": 2e-3, "bf16": 2e-2, "int8": 2e-3}
"""Relative difference of root mean squares that counts as the same computation."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds if nothing disturbs them, seconds of a turn, and seconds of a call from which three
    rounds must do."""

    rounds: int = 5
    seconds: float = 0.06
    slow: float = 0.5


QUICK = Effort(rounds=1, seconds=0.02, slow=0.02)


@dataclass
class Record:
    """What was measured of a row; times are medians in seconds.

    Attributes
    ----------
    ours : of a call
    peers : of a call, by framework and variant
    least : the fastest call of each, ours among them, which other work on the machine disturbs least
    left_out : why a peer has no time
    load : of the machine, before and after: threads that wanted to run, the average of a minute
    """

    name: str
    family: str
    ours: float | None = None
    peers: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    flops: int = 0
    nbytes: int = 0
    count: int = 1
    load: tuple[float, float] = (0.0, 0.0)

    @property
    def best(self) -> str | None:
        """The fastest peer."""
        return min(self.peers, key=self.peers.__getitem__, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours; above 1 we are faster."""
        return self.peers[self.best] / self.ours if self.best and self.ours else None

    def plain(self) -> dict[str, Any]:
        """The record as JSON."""
        return asdict(self)


def measure(row: Row, workers: Sequence[WorkerProcess], effort: Effort) -> Record:
    """Measure a row with these workers, ours the first."""
    begin = os.getloadavg()[0]
    record = Record(row.name, row.family, flops=row.flops, nbytes=row.nbytes, count=row.count)
    turns = _built(row, workers, record)
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(PATIENCE * effort.rounds):
        if number >= effort.rounds and not _is_disturbed(times, record.least):
            break
        for name, (worker, variant) in turns.items():
            time.sleep(SETTLE)
            answer = worker.ask("measure", variant=variant, seconds=effort.seconds)
            if "failed" in answer:
                record.left_out[name] = answer["failed"]
            else:
                times[name].append(answer["seconds"])
                record.least[name] = min(answer["fastest"], record.least.get(name, answer["fastest"]))
        turns = {name: turn for name, turn in turns.items() if name not in record.left_out}
        if number == 0:
            turns = _hopeful(turns, times)
        if number == 2 and max((times[name][0] for name in turns), default=0) > effort.slow:
            break
    medians = {name: statistics.median(each) for name, each in times.items() if each}
    record.ours = medians.pop(OURS, None)
    record.peers = medians
    record.load = (begin, os.getloadavg()[0])
    return record


def _is_disturbed(times: dict[str, list[float]], least: dict[str, float]) -> bool:
    """Whether other work on the machine was in the way of ours or of the best peer."""
    medians = {name: statistics.median(each) for name, each in times.items() if each}
    best = min((name for name in medians if name != OURS), key=medians.__getitem__, default=OURS)
    return any(medians[name] > DISTURBED * least[name] for name in {OURS, best} & medians.keys())


def _built(row: Row, workers: Sequence[WorkerProcess], record: Record) -> dict[str, tuple[WorkerProcess, str]]:
    """The variants that compute the row, by name."""
    turns: dict[str, tuple[WorkerProcess, str]] = {}
    norms: dict[str, float | None] = {}
    for worker in workers:
        answer = worker.ask("build", work=row.work)
        if "norms" not in answer:
            record.left_out[worker.name] = answer.get("unsupported") or answer["failed"]
            continue
        for variant, norm in answer["norms"].items():
            name = OURS if worker.name == OURS else f"{worker.name} {variant}"
            turns[name], norms[name] = (worker, variant), norm
    for name in _differing(norms, TOLERANCE[row.work.get("dtype", "f32")]):
        record.left_out[name] = f"computes something else: {norms[name]:.6g}, ours {norms[OURS]:.6g}"
        del turns[name]
    return turns


def _differing(norms: dict[str, float | None], tolerance: float) -> list[str]:
    ours = norms.get(OURS)
    if ours is None:
        return []
    return [name for name, norm in norms.items() if norm is not None and not abs(norm - ours) <= tolerance * abs(ours)]


def _hopeful(turns: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    """Ours, and the peers that may yet be the best."""
    peers = [times[name][0] for name in turns if name != OURS]
    limit = HOPELESS * min(peers, default=0)
    return {name: turn for name, turn in turns.items() if name == OURS or times[name][0] <= limit}
