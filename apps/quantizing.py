"""Quantize: a run whose weights have fewer bits, made from a trained one; what that does to size, speed and metrics.

Invariant: the new run appears when the model is measured in both forms, and its model when any training for few bits is
done; until then that goes on with ``--resume``.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.app import App, FineTuning, Quantisable, QuantizeSettings, Report, load, load_config
from apps.progress import LOGGER
from core.engine import checkpoint
from core.engine.errors import ConfigError, DataError, compose
from core.engine.jit import jit
from core.engine.module import child, map_modules, with_child
from core.engine.precision import calibrate, quantise
from core.engine.precision.quantised import Quantised
from core.engine.precision.training import converted, trainable
from core.engine.precision.weights import BITS
from core.engine.provenance import describe, fingerprint
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory, check_vacant
from core.engine.schedule import cosine
from core.engine.train import Progress, fit, shifted

TURNS = 15
"""Of both models, one after the other; the median of the ratios of their times counts."""
LAST_RATE = 0.01
"""Of a training for few bits, as a share of its first rate: at the end no weight shall jump between numbers."""


def quantize(app: App, run: RunDirectory, data: tuple[Path, ...], out: Path, settings: QuantizeSettings,
             refused: Refusals, words: Sequence[str], *, resume: bool) -> Generator[Progress, None, Report]:
    """Make the run `out` from a run, see `commands.quantize`; yields the progress of its training, if there is one."""
    origin = _origin(run, settings)
    if resume:
        begun = _begun(out, origin)
        if begun.status == "finished":
            LOGGER.info("%s is finished; there is nothing left to do", out)
            return Report(begun.record["result"])
    else:
        check_vacant(out)
    config = load_config(load(app.config), run.config_path)
    subject: Quantisable = load(app.quantisable)(run=run, config=config, data=data, refused=refused)
    tunings = subject.fine_tunings(settings.train_on) if settings.epochs else ()
    ranges = calibrate(subject.call, subject.model, subject.batches, config.device)
    small = quantise(subject.model, ranges, settings.bits)
    scores = {"before": subject.score(subject.model), "after": _scored(subject, small)}
    faster = speed(subject.call, (subject.model, small), subject.batches[0], config.device)
    seen = (*data, *settings.train_on)
    made = RunDirectory.resume(out, seen) if resume else RunDirectory.create(
        out, app=app.name, command=words, config=run.record["config"], data=seen,
        config_text=run.config_path.read_text(encoding="utf-8"),
        origin=origin | {"calibration": f"least and largest activation in {len(subject.batches)} batches"})
    with made.training():
        if tunings:
            model = trainable(subject.model, ranges, settings.bits)
            small = converted((yield from fine_tuned(model, tunings, settings, config.device, made)))
            scores = {"before": scores["before"], "rounded": scores["after"], "after": _scored(subject, small)}
        subject.save(made, small)
        report = compared(run, made, scores, faster, layers(small, ranges))
        report.save(made.report_path)
        made.finish(report.numbers, refused.count)
    return report


def _scored(subject: Quantisable, small: Any) -> Mapping[str, float]:
    """Metrics of a model of few bits; none if it is so bad that there is nothing to measure."""
    try:
        return subject.score(small)
    except DataError as error:  # which the model in f32 did not meet
        LOGGER.info("the model of few bits cannot be measured: %s", error)
        return {}


def _origin(run: RunDirectory, settings: QuantizeSettings) -> dict[str, Any]:
    """How a run is made from another one, for the record; refuses what cannot be done."""
    if settings.bits not in BITS:
        raise ConfigError(f"--bits is one of {', '.join(map(str, BITS))}; found {settings.bits}")
    if run.is_quantised:
        raise ConfigError(f"{run.path} is quantised already; quantise the run that it was made from, "
                          f"{run.record['origin']['run']}")
    return {"run": str(run.path.resolve()), "model": fingerprint(run.model_path.resolve()), "bits": settings.bits,
            "epochs": settings.epochs, "rate": settings.rate}


def _begun(out: Path, origin: Mapping[str, Any]) -> RunDirectory:
    """The run that is being made, to go on with; raises `ConfigError` if it began in another way."""
    begun = RunDirectory.open(out)
    was = begun.record.get("origin", {})
    rows = [(name, f"{value} is asked for, it began with {was.get(name)}") for name, value in origin.items()
            if was.get(name) != value]
    if rows:
        raise ConfigError(compose(f"{out} was not begun by this command", [
            *rows, ("hint", "repeat the command that it began with, or choose another --out")]))
    return begun


def fine_tuned(model: Any, tunings: Sequence[FineTuning], settings: QuantizeSettings, device: str,
               made: RunDirectory) -> Generator[Progress, None, Any]:
    """A trainable model with its parts trained on, one after the other."""
    for number, tuning in enumerate(tunings):
        training = _tuned(tuning, child(model, tuning.part), f"part {number + 1}", settings, device, made)
        part = yield from shifted(training, number * settings.epochs, len(tunings) * settings.epochs)
        model = with_child(model, tuning.part, part)
    return model


def _tuned(tuning: FineTuning, part: Any, name: str, settings: QuantizeSettings, device: str,
           made: RunDirectory) -> Generator[Progress, None, Any]:
    """One part trained on, or taken from its file if that is done."""
    path = made.path / "parts" / f"{name}.safetensors"
    if path.exists():
        return checkpoint.load_tree(path, part)
    rate = settings.rate or tuning.rate
    fitted = yield from fit(
        jit(tuning.step, device=device), tuning.start(part), tuning.batches, epochs=settings.epochs,
        schedule=cosine(rate, rate * LAST_RATE, settings.epochs * tuning.steps), key=tuning.key, run=made, name=name,
        items=tuning.items)
    path.parent.mkdir(exist_ok=True)
    checkpoint.save_tree(path, fitted.parameters)
    return fitted.parameters


def compared(run: RunDirectory, made: RunDirectory, scores: Mapping[str, Mapping[str, float]], faster: float,
             rows: Sequence[Mapping[str, Any]]) -> Report:
    """Size, speed, and the metrics of each state of the model, in a table too; NaN where it has none."""
    sizes = [one.model_path.stat().st_size for one in (run, made)]
    numbers: dict[str, Any] = {
        "bits": made.record["origin"]["bits"], "layers": len(rows), "bytes before": sizes[0], "bytes after": sizes[1],
        "times smaller": sizes[0] / sizes[1], "times faster": faster}
    metrics = [{"metric": name} | {state: found.get(name, math.nan) for state, found in scores.items()}
               for name in scores["before"]]
    numbers |= {f"{row['metric']} {state}": row[state] for row in metrics for state in scores}
    return Report(numbers, {"layers": rows, "metrics": metrics})


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
    hint = ("hint", "name the data to measure on behind the run, and what to train on with --train-on")
    if run.record["command"][2:3] != ["train"]:
        raise DataError(compose(f"{run.path} was not trained here, so its training data is not known", [hint]))
    for path, item in zip(paths, known, strict=True):
        found = fingerprint(path) if path.exists() else None
        if found is None or found["sha256"] != item["sha256"]:
            raise DataError(compose(f"the data that {run.path} was trained on is not there any more", [
                ("found", describe(found) if found else f"no {path}"), ("expected", describe(item)), hint]))
    LOGGER.info("taking the data that the run was trained on: %s", ", ".join(map(str, paths)))
    return paths
