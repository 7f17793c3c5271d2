"""Quantize: a run whose weights have fewer bits, made from a trained one; what that does to size, speed and metrics.

Invariant: the new run appears when everything is measured; until then nothing is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.app import App, Quantisable, Report, load, load_config
from apps.progress import LOGGER
from core.engine.errors import ConfigError, DataError, compose
from core.engine.jit import jit
from core.engine.module import map_modules
from core.engine.precision import calibrate, quantise
from core.engine.precision.quantised import Quantised
from core.engine.precision.weights import BITS
from core.engine.provenance import describe, fingerprint
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory, check_vacant

TURNS = 15
"""Of both models, one after the other; the median of the ratios of their times counts."""


def quantize(app: App, run: RunDirectory, data: tuple[Path, ...], out: Path, bits: int,
             refused: Refusals, words: Sequence[str]) -> Report:
    """Make the run `out` from a run; see `commands.quantize`."""
    check_vacant(out)
    if bits not in BITS:
        raise ConfigError(f"--bits is one of {', '.join(map(str, BITS))}; found {bits}")
    if run.is_quantised:
        raise ConfigError(f"{run.path} is quantised already; quantise the run that it was made from, "
                          f"{run.record['origin']['run']}")
    config = load_config(load(app.config), run.config_path)
    subject: Quantisable = load(app.quantisable)(run=run, config=config, data=data, refused=refused)
    ranges = calibrate(subject.call, subject.model, subject.batches, config.device)
    small = quantise(subject.model, ranges, bits)
    before, after = subject.score(subject.model), subject.score(small)
    faster = speed(subject.call, (subject.model, small), subject.batches[0], config.device)
    made = RunDirectory.create(
        out, app=app.name, command=words, config=run.record["config"], data=data,
        config_text=run.config_path.read_text(encoding="utf-8"),
        origin={"run": str(run.path.resolve()), "model": fingerprint(run.model_path), "bits": bits,
                "calibration": f"least and largest activation in {len(subject.batches)} batches"})
    with made.training():
        subject.save(made, small)
        report = compared(run, made, bits, (before, after), faster, layers(small, ranges))
        report.save(made.report_path)
        made.finish(report.numbers, refused.count)
    return report


def compared(run: RunDirectory, made: RunDirectory, bits: int, scores: tuple[Mapping[str, float], Mapping[str, float]],
             faster: float, rows: Sequence[Mapping[str, Any]]) -> Report:
    """Size, speed and metrics before and after."""
    sizes = [one.model_path.stat().st_size for one in (run, made)]
    numbers: dict[str, Any] = {"bits": bits, "layers": len(rows), "bytes before": sizes[0], "bytes after": sizes[1],
                               "times smaller": sizes[0] / sizes[1], "times faster": faster}
    before, after = scores
    for name, value in before.items():
        numbers |= {f"{name} before": value, f"{name} after": after[name]}
    return Report(numbers, {"layers": rows})


def layers(model: Any, ranges: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """One row a quantised layer: its name, its weights, and the range that was seen of what it takes."""
    rows: list[dict[str, Any]] = []

    def note(path: str, part: Any) -> None:
        if isinstance(part, Quantised):
            low, high = ranges[path]
            rows.append({"layer": path, "weights": part.numbers.size, "least": low, "largest": high,
                         "scale": float(part.input_scale), "zero point": int(part.zero_point)})

    map_modules(note, model)
    return rows


def speed(call: Callable[[Any, Any], Any], models: tuple[Any, Any], batch: Any, device: str) -> float:
    """How many times as fast the second model is, on one batch, both in turns."""
    programs = [jit(call, device=device).bind(model) for model in models]
    ratios = []
    for _ in range(TURNS + 1):
        times = []
        for program in programs:
            begin = time.perf_counter()
            program(batch)
            times.append(time.perf_counter() - begin)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])  # the first turn compiles


def own_data(run: RunDirectory) -> tuple[Path, ...]:
    """The files that a run was trained on.

    Raises
    ------
    DataError
        If there are none, or they are not what they were.
    """
    known = run.record["data"]
    paths = tuple(Path(item["path"]) for item in known)
    hint = ("hint", "name the data to measure on behind the run")
    if run.record["command"][2:3] != ["train"]:
        raise DataError(compose(f"{run.path} was not trained here, so it has no held-out part of its data", [hint]))
    for path, item in zip(paths, known, strict=True):
        found = fingerprint(path) if path.exists() else None
        if found is None or found["sha256"] != item["sha256"]:
            raise DataError(compose(f"the data that {run.path} was trained on is not there any more", [
                ("found", describe(found) if found else f"no {path}"), ("expected", describe(item)), hint]))
    LOGGER.info("measuring on the held-out part of %s", ", ".join(map(str, paths)))
    return paths
