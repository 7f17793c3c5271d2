"""Kernels and networks, ours beside the best of the peers; writes docs/results/kernels.md and its plots.

    python -m tests.bench [WORD ...] [--quick] [--resume] [--peers PYTHON]

Words select rows by parts of their names: ``conv-f32``, ``matmul-bf16``, ``"training inception"``; a word that is a
family selects it alone. Without words everything is measured: 20 minutes on an idle machine, and other work on it makes
figures wrong. Records are kept beside the page, one JSON line a row: --resume measures only what they lack, --report
measures nothing and writes the page anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.kernels import records, report, whole
from tests.bench.kernels.measure import QUICK, Effort, Record, measure
from tests.bench.kernels.processes import OURS, PEERS, ROOT, Setting, WorkerProcess
from tests.bench.kernels.rows import Row, processes, rows

PAGE = ROOT / "docs" / "results" / "kernels.md"
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
            "asimd")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code."""
    arguments = _parser().parse_args(words)
    path = arguments.out.with_suffix(".jsonl")
    known, machine = records.read(path)
    chosen = [] if arguments.report else _selected(arguments.words, [*rows(), *processes()])
    if not (chosen or arguments.report):
        print(f"no row has {' or '.join(arguments.words)} in its name", file=sys.stderr)
        return 2
    if arguments.resume:
        chosen = [row for row in chosen if row.name not in known]
    if chosen:
        _measure(chosen, arguments, path)
        known, machine = records.read(path)
    order = {row.name: number for number, row in enumerate([*rows(), *processes()])}
    known = {name: known[name] for name in sorted(known.keys() & order.keys(), key=order.__getitem__)}
    if not known:
        print(f"there are no records in {path} to report", file=sys.stderr)
        return 2
    report.write(known, machine, arguments.out)
    for family, count, ratio in report.summary(known):
        print(f"{family:<18} {count:4d} rows  mean ratio {ratio:.2f}")
    print(f"written to {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--quick", action="store_true", help="one short turn each: does everything run?")
    parser.add_argument("--resume", action="store_true", help="measure only rows without a record")
    parser.add_argument("--report", action="store_true", help="write the page from the records")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench" / "bin" / "python", metavar="PYTHON",
                        help="interpreter of the environment that has the peers")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="PAGE.md")
    return parser


def _selected(words: Sequence[str], every: Sequence[Row]) -> list[Row]:
    families = {row.family for row in every}
    return [row for row in every
            if not words or any(word == row.family or (word not in families and word in row.name) for word in words)]


def _measure(chosen: Sequence[Row], arguments: argparse.Namespace, path: Path) -> None:
    setting = Setting(arguments.peers, arguments.threads)
    effort = QUICK if arguments.quick else Effort()
    log = Path(tempfile.gettempdir()) / "tilework-bench.log"
    print(f"{len(chosen)} rows; what the libraries print goes to {log}", file=sys.stderr)
    workers, versions = _present(setting, log)
    records.append(path, {records.MACHINE: _machine(setting, effort, versions)})
    names = [worker.name for worker in workers]
    single = {row.name for row in processes()}
    try:
        for number, row in enumerate(chosen, 1):
            begin = time.monotonic()
            record = (whole.measure(row, setting, log, names) if row.name in single
                      else measure(row, workers, effort))
            records.append(path, record.plain())
            print(f"[{number}/{len(chosen)}] {_line(record)}  {time.monotonic() - begin:.1f} s", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()


def _present(setting: Setting, log: Path) -> tuple[list[WorkerProcess], dict[str, str]]:
    """The workers that start, ours the first, and the versions of what they run."""
    workers, versions = [], {}
    for name in (OURS, *PEERS):
        worker = WorkerProcess(name, setting, log)
        try:
            answer = worker.ask("about")
        except FileNotFoundError:
            answer = {"failed": f"there is no {setting.peers}; make one with the extra bench, or name it with --peers"}
        if "versions" in answer:
            workers.append(worker)
            versions |= answer["versions"]
        elif name == OURS:
            sys.exit(f"our own worker does not start: {answer['failed']}; see {log}")
        else:
            print(f"{name} is left out: {answer['failed']}", file=sys.stderr)
    return workers, versions


def _machine(setting: Setting, effort: Effort, versions: dict[str, str]) -> dict[str, Any]:
    from core.engine.provenance import processor

    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.partition("\t")[0] in ("flags", "Features"):
            flags = set(line.partition(":")[2].split())
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "processor": processor(),
            "features": " ".join(name for name in FEATURES if name in flags), "threads": setting.threads,
            "rounds": effort.rounds, "versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _line(record: Record) -> str:
    if record.ratio is None:
        text = record.left_out.get(OURS, "no peer") if record.ours is None else f"{record.ours:.3g}"
        return f"{record.name}: {text}"
    return f"{record.name}: {record.ratio:.2f} of {record.best}"


if __name__ == "__main__":
    sys.exit(main())
