"""The report of a network on a chip: numbers, a table of its steps, a roofline plot, a Gantt chart, other chips.

Invariant: what is written comes from one `Estimate`; nothing here times anything itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.accel.tpu import gantt, roofline
from core.accel.tpu.applications import APPLICATIONS
from core.accel.tpu.architectures import ARCHITECTURES
from core.accel.tpu.collectives import Slice, data_parallel, model_parallel
from core.accel.tpu.counters import counters, run
from core.accel.tpu.cycles import estimate
from core.accel.tpu.machine import Machine, machine, names
from core.accel.tpu.networks import network
from core.accel.tpu.steps import Estimate, Step
from core.engine.errors import ConfigError, DeviceError
from core.engine.graph import Graph

ALIASES = {"inception3": "inception-v3"}
BATCH = 8

Timed = Callable[[Machine], Estimate]


@dataclass(frozen=True)
class Report:
    """Numbers by name, and the text of each file by its name."""

    numbers: Mapping[str, Any]
    files: Mapping[str, str]


def report(model: str, chip: str, batch: int | None) -> Report:
    """The report of a named network.

    Parameters
    ----------
    model : a name of `architectures` or of `applications`, in small letters
    chip : name or file of a machine
    batch : None for 8, or for the batch of an application, which has no other

    Raises
    ------
    ConfigError
        If there is no such network or chip.
    DeviceError
        If the network does not fit the chip.
    """
    timed, batch = _timed(model, batch)
    made = _report(f"{model}, batch {batch}", timed, machine(chip))
    files = dict(made.files)
    if model in _applications():
        files["counters.csv"] = _csv([{"row": name, "value": value} for name, value in
                                      counters(machine(chip), _applications()[model]()).items()])
    return Report({"batch": batch, **made.numbers}, files)


def report_of_graph(name: str, graph: Graph, held: int, chip: str) -> Report:
    """The report of a graph whose first `held` inputs are weights; raises as `report` does."""
    return _report(name, lambda other: estimate(graph, other, held), machine(chip))


def _report(name: str, timed: Timed, chosen: Machine) -> Report:
    found = timed(chosen)
    title = f"{name}, on {chosen.name}"
    numbers = {"chip": chosen.name, "milliseconds": 1e3 * found.seconds, "TOPS": found.tops,
               "utilisation": found.utilisation, **_percent(found)}
    chips = _chips(timed, chosen)
    rows = [_row(found, step) for step in found.steps]
    files = {"steps.csv": _csv(rows), "chips.csv": _csv(chips), "roofline.svg": _roofline(title, found),
             "units.svg": gantt.plot(title, found),
             "report.txt": "\n".join([title, "", _text([{"": name, "value": _shown(value)}
                                                        for name, value in numbers.items()]),
                                      "Steps", "", _text(rows), "Chips", "", _text(chips)])}
    if chosen.links is not None:
        files["pods.csv"] = _csv(list(_pods(found)))
    return Report(numbers, files)


def _applications() -> dict[str, Callable[[], Any]]:
    return {name.lower(): make for name, make in APPLICATIONS.items()}


def _timed(model: str, batch: int | None) -> tuple[Timed, int]:
    """What times a network on any chip, and its batch."""
    if model in _applications():
        application = _applications()[model]()
        if batch not in (None, application.batch):
            raise ConfigError(f"--batch cannot be {batch}: {model} is known with a batch of {application.batch} only")
        return lambda chip: run(chip, application), application.batch
    name = ALIASES.get(model, model)
    if name not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, *ALIASES, *_applications()])
        raise ConfigError(f"there is no network {model!r}; there are {known}")
    batch = BATCH if batch is None else batch
    if batch < 1:
        raise ConfigError(f"--batch cannot be {batch}; give a number above 0")
    made = network(name, batch)
    return lambda chip: estimate(made.graph, chip, made.held), batch


def _percent(found: Estimate) -> dict[str, float]:
    return {f"% {kind}": 100 * spent / found.total for kind, spent in found.cycles().items()}


def _row(found: Estimate, step: Step) -> dict[str, Any]:
    to_micros = 1e6 / found.machine.clock
    return {"layer": step.layer, "ops": step.name, "source": step.source, "unit": step.unit,
            "begin us": step.begin * to_micros, "cycles": step.cycles, "utilisation": step.utilisation(found.machine),
            "MACs": step.macs, "vector operations": step.operations, "weight bytes": step.weight_bytes,
            "spilled bytes": step.spilled_bytes, "bound by": step.bound_by, **step.spent,
            "vector cycles": step.vector, "memory cycles": step.memory}


def _chips(timed: Timed, chosen: Machine) -> list[dict[str, Any]]:
    """The network on the chosen chip and on those that come along."""
    others = [machine(name) for name in names() if name != chosen.name]
    return [_chip(timed, chip) for chip in (chosen, *others)]


def _chip(timed: Timed, chip: Machine) -> dict[str, Any]:
    try:
        found = timed(chip)
    except DeviceError as error:
        return {"chip": chip.name, "milliseconds": "", "TOPS": "", "utilisation": "", "most cycles": "",
                "note": str(error).splitlines()[0]}
    spent = found.cycles()
    return {"chip": chip.name, "milliseconds": 1e3 * found.seconds, "TOPS": found.tops,
            "utilisation": found.utilisation, "most cycles": max(spent, key=spent.__getitem__), "note": ""}


def _pods(found: Estimate) -> Iterator[dict[str, Any]]:
    """Slices of the chip's torus, each twice the one before.

    A training step has the batch on each chip, takes three times the network's time, for the products with the
    gradients of both operands, and adds up gradients of the bytes of the weights. A shared network has a part of each
    layer on each chip.
    """
    chip = found.machine
    extents = [1] * len(chip.system.torus)
    while True:
        chips = Slice(chip, tuple(extents))
        data = data_parallel(chips, 3 * found.seconds, found.weight_bytes, overlapped=False)
        model = model_parallel(chips, found.seconds, [step.result_bytes for step in found.steps if step.macs])
        yield {"slice": "x".join(map(str, extents)), "chips": chips.chips, "training step ms": 1e3 * data.seconds,
               "its efficiency": data.efficiency, "shared network ms": 1e3 * model.seconds,
               "its share of computing": model.efficiency}
        growing = [axis for axis, whole in enumerate(chip.system.torus) if 2 * extents[axis] <= whole]
        if not growing:
            return
        extents[min(growing, key=extents.__getitem__)] *= 2


def _roofline(title: str, found: Estimate) -> str:
    """Steps of the arrays under the peak and the bandwidth of memory."""
    chip = found.machine
    points = [roofline.Point(f"{step.layer} {step.name}", 2 * step.macs / step.nbytes,
                             2 * step.macs / step.cycles * chip.clock)
              for step in found.steps if step.macs and step.nbytes and step.cycles]
    return roofline.plot(title, points, {chip.name: chip.peak}, chip.memory.bandwidth, "memory") if points else ""


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in columns."""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
