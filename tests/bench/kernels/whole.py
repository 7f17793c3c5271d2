"""Rows that need a process of their own: peak memory, and the first call with and without compiled kernels.

Invariant: nothing but the one computation has run in the process before.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path

from tests.bench.kernels.measure import Record
from tests.bench.kernels.processes import OURS, Setting, WorkerProcess
from tests.bench.kernels.rows import Row

VARIANTS = {OURS: (None,), "torch": ("eager", "compiled"), "jax": (None,)}
"""Who can train a network, and in what ways."""
SECONDS = 0.5


def measure(row: Row, setting: Setting, log: Path, names: list[str]) -> Record:
    """Measure a row of `rows.processes` with the workers of these names."""
    record = Record(row.name, row.family, load=(os.getloadavg()[0],) * 2)
    if row.family == "memory":
        _memory(row, setting, log, names, record)
    else:
        _first_call(row, setting, log, record, warm=row.family == "warm")
    return record


def _memory(row: Row, setting: Setting, log: Path, names: list[str], record: Record) -> None:
    """Greatest resident bytes of a process that has made a few steps; a record's times are bytes here."""
    for name in names:
        for variant in VARIANTS.get(name, ()):
            label = f"{name} {variant}" if variant else name
            worker = WorkerProcess(name, setting, log)
            answer = worker.ask("build", work=row.work | ({"variant": variant} if variant else {}))
            nbytes = worker.ask("memory").get("bytes") if "norms" in answer else None
            worker.close()
            if nbytes is None:
                record.left_out[label] = answer.get("unsupported") or answer["failed"]
            elif name == OURS:
                record.ours = nbytes
            else:
                record.peers[label] = nbytes


def _first_call(row: Row, setting: Setting, log: Path, record: Record, warm: bool) -> None:
    """Seconds that the first call takes beyond what a call takes, with an empty store of kernels or a full one.

    Of warm processes the median of three: a virtual machine may have to get the memory that a process touches first
    from its host, which takes longer than all the rest, and the processes before leave it to the next.
    """
    beyond = []
    with tempfile.TemporaryDirectory() as folder:
        private = dataclasses.replace(setting, environment={"TILEWORK_CACHE": folder})
        for _ in range(4 if warm else 1):
            worker = WorkerProcess(OURS, private, log)
            first = worker.ask("build", work=row.work)
            steady = worker.ask("measure", variant="jit", seconds=SECONDS) if "seconds" in first else first
            worker.close()
            if "failed" in steady:
                record.left_out[OURS] = steady["failed"]
                return
            beyond.append(first["seconds"]["jit"] - steady["seconds"])
    record.ours = statistics.median(beyond[1:] or beyond)
