"""The cycle model beside the published counters of TPU v1: ``python -m tests.bench.tpu_counters DATA``.

Invariant: published figures are those of ``DATA/accel/tpu_v1/paper_tables.json`` (arXiv 1704.04760), ours are computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.accel.tpu.applications import APPLICATIONS
from core.accel.tpu.counters import counters, run, stream
from core.accel.tpu.machine import changed, machine

ROWS = {"array active": "array_active", "useful MACs": "useful_macs", "unused MACs": "unused_macs",
        "weight stall": "weight_stall", "weight shift": "weight_shift", "non-matrix": "non_matrix",
        "RAW stalls": "raw_stalls", "input stalls": "input_data_stalls", "TOPS": "TOPS"}
COMPARED = ("array active", "useful MACs", "weight stall", "weight shift")
CHIP = machine("tpu-v1")
VARIANTS: dict[str, dict[str, Any]] = {
    "memory x4": {"memory.bandwidth": 4 * CHIP.memory.bandwidth, "memory.streaming": 4 * CHIP.memory.streaming},
    "clock x4": {"clock": 4 * CHIP.clock},
    # The same FIFO, which holds one of the larger tiles, and as many rows of sums.
    "array 512": {"array.rows": 512, "array.columns": 512, "array.weight_shift": 512, "memory.fifo_tiles": 1,
                  "accumulators.capacity": 8 << 20}}


def table(cells: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    head, *rows = cells
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]
    return "\n".join(lines) + "\n"


def compared(published: dict[str, Any]) -> str:
    """Table 3, ours / the paper's, then mean errors and those of TOPS."""
    found = {name: counters(CHIP, make()) for name, make in APPLICATIONS.items()}
    paper = {name: {row: published["table3"][key][published["table3"]["apps"].index(name)] for row, key in ROWS.items()}
             for name in found}
    cells = [["ours / paper", *found]]
    cells += [[row, *(f"{found[name][row]:.1f} / {paper[name][row]:g}" for name in found)] for row in ROWS]
    errors = (statistics.mean(abs(found[name][row] - paper[name][row]) for row in COMPARED) for name in found)
    cells += [["mean error of active, useful, stall, shift (points)", *(f"{error:.2f}" for error in errors)]]
    for row in ("TOPS", "useful MACs"):
        ratios = (100 * abs(found[name][row] / paper[name][row] - 1) for name in found)
        cells += [[f"error of {row} (%)", *(f"{ratio:.1f}" for ratio in ratios)]]
    cells += [["Table 7 (%)", *(f"{published['table7_model_vs_hw_cycles_pct'][name]:g}" for name in found)]]
    return table(cells)


def variants() -> str:
    """Times as fast as the chip as it is, without the host, as in figure 11."""
    cells = [["times as fast", *APPLICATIONS]]
    for label, changes in VARIANTS.items():
        chip = changed(CHIP, changes)
        cells.append([label, *(f"{run(CHIP, make(), host=False).seconds / run(chip, make(), host=False).seconds:.2f}"
                               for make in APPLICATIONS.values())])
    return table(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    path = parser.parse_args().data / "accel/tpu_v1/paper_tables.json"
    print(compared(json.loads(path.read_text(encoding="utf-8"))))
    print(variants())
    for side in (256, 512):
        chip = changed(CHIP, {"array.rows": side, "array.columns": side, "array.weight_shift": side})
        found = stream(chip, 96, 600, 600)
        print(f"600 x 600 on {side} x {side}: {found.steps} steps, {found.seconds * 1e6:.1f} us")


if __name__ == "__main__":
    main()
