"""The report: machine, verdicts, a table and a roofline plot a family, written from records alone.

Invariant: a ratio is the best peer's time over ours, from one run; above 1 we are faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.accel.tpu import roofline
from tests.bench.kernels.aims import AIMS, Records, mean_ratio, peak
from tests.bench.kernels.measure import Record
from tests.bench.kernels.rows import processes, rows

TITLES = {
    "conv-f32": "f32 convolution", "conv-f32-dx": "f32 convolution, input gradient",
    "conv-f32-dw": "f32 convolution, weight gradient", "conv-bf16": "bf16 convolution",
    "conv-int8": "int8 convolution", "matmul-f32": "f32 product", "matmul-f32-small": "f32 product, small",
    "matmul-bf16": "bf16 product", "matmul-int8": "int8 product", "rows": "Row kernels",
    "segment": "Segments of molecular batches", "lstm": "LSTM", "mlp": "Perceptron",
    "inference": "Whole networks, inference", "training": "Whole networks, training step",
    "memory": "Peak memory of a process", "cold": "Kernels compiled from nothing", "warm": "Warm start"}
PLOTTED = ("conv-f32", "conv-f32-dx", "conv-f32-dw", "conv-bf16", "conv-int8", "matmul-f32", "matmul-bf16",
           "matmul-int8", "rows")
PRECISIONS = ("f32", "bf16", "int8")
_VERDICTS = {True: "reached", False: "short", None: "open"}

INTRODUCTION = """# Results: kernels

`tilework bench` measures this page: every row is one computation, ours beside PyTorch (eager and compiled),
onnxruntime, OpenVINO and JAX, each in a process of its own with the same {threads} threads on the same cores. The
processes take turns; a figure is the median of {rounds} turns after warm-up, or of up to three times as many while the
median of ours or of the best peer is more than a quarter above its fastest call, and the ratio is the best peer's time
over ours: above 1 we are faster. All draw the same numbers, and a peer counts only if its result has the same root mean
square. Inputs lie as each library prefers; weights of inference are constants, which a library may prepare once.
PyTorch compiles whole networks and chains, not lone convolutions and products, for which the compiler calls the same
library. OpenVINO's bf16 is its float32 model with bf16 inside; int8 of onnxruntime, OpenVINO and PyTorch are their
quantised layers. Names of layers are batch, extents and channels of the input, then extents and channels out.

"Reached", "short" and "open" (not all measured) are verdicts on these records. The load is the number of threads that
wanted to run, the average of a minute; beyond {threads} other work disturbed the row, and the ratio of the fastest
calls ("undisturbed") tells more than that of the medians. A peak is that of the fastest call.
"""


def write(records: Records, machine: Mapping[str, Any], out: Path) -> None:
    """Write the page and its plots beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(records, machine, _plots(records, out)), encoding="utf-8")


def page(records: Records, machine: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The page; `plots` names the picture of a family."""
    parts = [INTRODUCTION.format(threads=machine.get("threads", "?"), rounds=machine.get("rounds", "?")),
             _machine(records, machine), "## Aims\n", _aims(records)]
    for family, title in TITLES.items():
        found = [record for record in records.values() if record.family == family]
        if found:
            parts += [f"## {title}\n", *([f"![roofline of {title}]({plots[family]})\n"] if family in plots else []),
                      _table(found)]
    return "\n".join(parts)


def summary(records: Records) -> list[tuple[str, int, float]]:
    """Family, rows that have a ratio, and their mean ratio."""
    found = []
    for family in TITLES:
        compared = [record for record in records.values() if record.family == family and record.ratio]
        if compared:
            found.append((family, len(compared), mean_ratio(compared)))
    return found


def _machine(records: Records, machine: Mapping[str, Any]) -> str:
    lines = ["## Machine\n", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    for name in PRECISIONS:
        if roof := peak(records, name):
            lines.append(f"| measured {name} peak, registers only | {roof / 1e9:,.0f} GFLOP/s |")
    if bandwidth := _bandwidth(records):
        lines.append(f"| measured copy, bytes read and written | {bandwidth / 1e9:.1f} GB/s |")
    return "\n".join(lines) + "\n"


def _bandwidth(records: Records) -> float | None:
    record = records.get("peak copy")
    return record.nbytes / record.least["ours"] if record and record.ours else None


def _aims(records: Records) -> str:
    expected = Counter(row.family for row in (*rows(), *processes()))
    lines = ["| what | aim | measured | verdict |", "|---|---|---|---|"]
    for aim in AIMS:
        verdict = aim.judge(records, expected)
        lines.append(f"| {aim.what} | {aim.wanted} | {verdict.figure} | {_VERDICTS[verdict.reached]} |")
    return "\n".join(lines) + "\n"


def _table(found: Sequence[Record]) -> str:
    lines = ["| row | times | ours | best peer | its time | ratio | undisturbed | GFLOP/s | load |",
             "|---|---|---|---|---|---|---|---|---|"]
    for record in sorted(found, key=lambda record: record.ratio or 0):
        lines.append("| " + " | ".join(_cells(record)) + " |")
    return "\n".join(lines) + "\n"


def _cells(record: Record) -> list[str]:
    show = _bytes if record.family == "memory" else _time
    what = record.name.removeprefix(record.family).strip()
    if record.ours is None:
        return [what, str(record.count), record.left_out.get("ours", "failed"), "", "", "", "", "", ""]
    speed = f"{record.flops / record.ours / 1e9:,.1f}" if record.flops else ""
    best, ratio = record.best, record.ratio
    if best is None or ratio is None:
        return [what, str(record.count), show(record.ours), "none", "", "", "", speed, f"{max(record.load):.1f}"]
    peers = [time for name, time in record.least.items() if name != "ours"]
    undisturbed = f"{min(peers) / record.least['ours']:.2f}" if peers and "ours" in record.least else ""
    return [what, str(record.count), show(record.ours), best, show(record.peers[best]), f"{ratio:.2f}", undisturbed,
            speed, f"{max(record.load):.1f}"]


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else \
        f"{seconds * 1e6:.3g} us"


def _bytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _plots(records: Records, out: Path) -> dict[str, str]:
    """Draw the families that have rows; gives the file name of each."""
    bandwidth = _bandwidth(records)
    drawn = {}
    for family in PLOTTED:
        precision = next((name for name in PRECISIONS if name in family), "f32")
        roof = peak(records, precision)
        found = _points(record for record in records.values() if record.family.removesuffix("-small") == family)
        if found and roof and bandwidth:
            path = out.with_name(f"{out.stem}-{family}.svg")
            path.write_text(roofline.plot(TITLES[family], found, {precision: roof}, bandwidth), encoding="utf-8")
            drawn[family] = path.name
    return drawn


def _points(records: Iterable[Record]) -> list[roofline.Point]:
    """The rows that have operations, bytes and a time."""
    return [roofline.Point(record.name, record.flops / record.nbytes, record.flops / record.ours,
                           record.flops / record.peers[record.best] if record.best else None)
            for record in records if record.flops and record.nbytes and record.ours]
