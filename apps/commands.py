"""What each command does, once its words are understood.

Invariant: a command gives an `Outcome` or raises; it prints no results and chooses no exit code.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.app import (
    App,
    Command,
    Quantisable,
    QuantizeSettings,
    Report,
    apps,
    config_values,
    dump_config,
    load,
    load_config,
)
from apps.outputs import check_output, files_of
from apps.progress import LOGGER, display
from core.engine.errors import ConfigError, DataError, compose


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes
    ----------
    numbers : results by name
    written : the run, folder, file or address that holds the rest
    refused : items of the input that were refused
    refusals : where they are listed
    record : further keys of the JSON object; a list of rows is a table on the terminal
    """

    numbers: Mapping[str, Any]
    written: Path | str | None = None
    refused: int = 0
    refusals: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


def train(app: App, data: Sequence[Path], out: Path | None, config_file: Path | None, given: Mapping[str, Any], *,
          resume: bool, json_lines: bool, words: Sequence[str]) -> Outcome:
    """Train, or go on training, in the run `out`.

    Parameters
    ----------
    given : settings of the command line by field name
    words : the command line, for the record
    """
    from core.engine.backends import backend
    from core.engine.refusals import Refusals
    from core.engine.run import RunDirectory

    if out is None:
        raise ConfigError("--out is missing: the directory of the run")
    _check_inputs(data)
    config_type = load(app.config)
    if resume:
        begun = RunDirectory.open(out)
        if begun.is_quantised:
            raise ConfigError(f"{out} was begun by quantize; go on with it by its command and --resume")
        config = _same_config(config_type, begun.config_path, config_file, given)
        run = RunDirectory.resume(out, data)
    else:
        config = load_config(config_type, config_file, given)
        backend(config.device)
        run = RunDirectory.create(out, app=app.name, command=words, config=config_values(config),
                                  config_text=dump_config(config), data=data)
    refusals = run.path / "refused.csv"
    if run.status == "finished":
        LOGGER.info("%s is finished; there is nothing left to do", run.path)
        run.close()
        return Outcome(run.record["result"], run.path, run.record["refused"], refusals)
    with run.training():
        with Refusals(refusals) as refused:
            training = load(app.train.function)(data=tuple(data), config=config, run=run, refused=refused)
            report = _watch(training, json_lines)
        report.save(run.report_path)
        run.finish(report.numbers, refused.count)
    return Outcome(report.numbers, run.path, refused.count, refusals)


def _watch(training: Generator[Any, None, Report], json_lines: bool) -> Report:
    """Show the progress of a training to its end; gives its report."""
    shown = display(json_lines)
    try:
        while True:
            shown.show(next(training))
    except StopIteration as end:
        return end.value
    finally:
        shown.close()


def _same_config(config_type: type, stored: Path, config_file: Path | None, given: Mapping[str, Any]) -> Any:
    """The config of a run, if the command line does not ask for another."""
    config = load_config(config_type, stored)
    wanted = load_config(config_type, config_file or stored, given)
    was, now = config_values(config), config_values(wanted)
    changed = [name for name in was if was[name] != now[name]]
    rows = [(name, f"{now[name]} is asked for, the run began with {was[name]}") for name in changed]
    if rows:
        raise ConfigError(compose("--resume goes on with the settings that the run began with", [
            *rows, ("hint", "leave these settings out, or start a new run")]))
    return config


def dry_run(app: App, data: Sequence[Path], config_file: Path | None, given: Mapping[str, Any]) -> Outcome:
    """One sample through every stage; nothing is written."""
    _check_inputs(data)
    config = load_config(load(app.config), config_file, given)
    return Outcome({name: str(shape) for name, shape in load(app.dry_run)(data=tuple(data), config=config).items()})


def evaluate(app: App, run_path: Path, data: Sequence[Path], out: Path | None, given: Mapping[str, Any]) -> Outcome:
    """Evaluate the model of a run on data; the report goes to a folder, by default beside that of the training."""
    from core.engine.refusals import Refusals
    from core.engine.run import RunDirectory

    _check_inputs(data)
    run = RunDirectory.open(run_path)
    out = out or run.path / "evaluation"
    check_output(out / "refused.csv", data)
    out.mkdir(parents=True, exist_ok=True)
    with Refusals(out / "refused.csv") as refused:
        report = _call(app.evaluate, given, run=run, config=load_config(load(app.config), run.config_path),
                       data=tuple(data), out=out, refused=refused)
    for path in report.files(out):
        check_output(path, data)
    report.save(out)
    return Outcome(report.numbers, out, refused.count, refused.path)


def predict(app: App, run_path: Path, source: str, out: Path, given: Mapping[str, Any]) -> Outcome:
    """Predict for an input; the predictions go to a file."""
    from core.engine.run import RunDirectory

    run = RunDirectory.open(run_path)
    return _convert(app.predict, source, out, given, run=run, config=load_config(load(app.config), run.config_path))


def quantize(app: App, run_path: Path, data: Sequence[Path], out: Path, given: Mapping[str, Any], *, resume: bool,
             json_lines: bool, words: Sequence[str]) -> Outcome:
    """Turn a run into one of few bits, a run like any other; see `apps.quantizing`.

    Parameters
    ----------
    data : what to measure on; empty for the held-out part of the run's own
    given : settings of the command line by field name
    words : the command line, for the record
    """
    from apps.quantizing import quantize
    from core.engine.checkpoint import make_folder_for
    from core.engine.refusals import Refusals
    from core.engine.run import RunDirectory

    settings = load_config(QuantizeSettings, None, given)
    _check_inputs([*data, *settings.train_on])
    make_folder_for(out)
    refusals = out.with_name(f"{out.name}.refused.csv")
    check_output(refusals, [*data, *settings.train_on])
    with Refusals(refusals) as refused:
        making = quantize(app, RunDirectory.open(run_path), tuple(data), out, settings, refused, words, resume=resume)
        report = _watch(making, json_lines)
    return Outcome(report.numbers, out, refused.count, refused.path)


def extra(command: Command, source: str, out: Path | str, given: Mapping[str, Any]) -> Outcome:
    """A command of an app's own; `out` is a text if it may be an address."""
    if isinstance(out, Path):
        return _convert(command, source, out, given)
    return Outcome(_call(command, given, input=source, out=out).numbers, out)


def sample(app: App, out: Path, given: Mapping[str, Any]) -> Outcome:
    """A small data set of the app."""
    return Outcome(_call(app.sample, given, out=out).numbers, out)


def _convert(command: Command, source: str, out: Path, given: Mapping[str, Any], **arguments: Any) -> Outcome:
    """Run a command that makes `out` from an input, and from what its settings name."""
    from core.engine.checkpoint import make_folder_for
    from core.engine.refusals import Refusals

    if not command.addresses:
        _check_inputs([Path(source)])
    make_folder_for(out)
    refusals = _refusals_beside(out)
    named = [source, *(str(value) for value in given.values() if isinstance(value, str | Path))]
    for path in (out, refusals):
        check_output(path, itertools.chain(*map(files_of, named)))
    with Refusals(refusals) as refused:
        report = _call(command, given, input=source if command.addresses else Path(source), out=out, refused=refused,
                       **arguments)
    return Outcome(report.numbers, out, refused.count, refused.path)


def _refusals_beside(out: Path) -> Path:
    """``refused.csv`` in the folder of `out`; in a run, which has a list of that name, one named after `out`."""
    path = out.with_name("refused.csv")
    if out == path:
        raise ConfigError(f"--out {out} is the name of the list of refused items; choose another")
    return out.with_suffix(".refused.csv") if (out.parent / "run.json").exists() else path


def _call(command: Command, given: Mapping[str, Any], **arguments: Any) -> Report:
    if command.settings:
        arguments["settings"] = load_config(load(command.settings), None, given)
    return load(command.function)(**arguments)


def _check_inputs(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder {path}")


def demo(out: Path | None) -> Outcome:
    """The main job, end to end."""
    report = load("apps.demo:main")(out=out)
    return Outcome(report.numbers, out)


def web_app(port: int) -> int:
    """Serve the web app to this machine alone until it is interrupted; gives the server's exit code."""
    found = importlib.util.find_spec("ui.main")
    if importlib.util.find_spec("streamlit") is None or found is None or found.origin is None:
        raise ConfigError("the web app needs streamlit and the package ui; install tilework as a whole")
    command = [sys.executable, "-m", "streamlit", "run", found.origin, "--server.address", "127.0.0.1",
               "--server.port", str(port), "--server.headless", "false", "--server.maxUploadSize", "50",
               "--client.showErrorDetails", "none", "--browser.gatherUsageStats", "false",
               "--server.showEmailPrompt", "false"]
    server = subprocess.Popen(command)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return server.wait()  # the terminal interrupted the server too, and it ends by itself


def devices() -> Outcome:
    """Backends and what this machine offers them."""
    from core.engine.backends import MODULES
    from core.engine.provenance import processor

    # By name: apps otherwise know nothing of how a model runs.
    chips, store, threads = (importlib.import_module(f"core.accel.{name}") for name in ("chips", "store", "threads"))
    features = importlib.import_module("llvmlite.binding").get_host_cpu_features()
    chip = chips.host()
    return Outcome({
        "backends": ", ".join(MODULES),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads.pool().threads,
        "kernels": f"{chip.name}, {chip.lanes} float32 lanes; products of " + " and ".join(
            f"{element} by {chips.unit_for(chip, element)}" for element in ("bf16", "i8")),
        "features": " ".join(sorted(name for name, present in features.items() if present)),
        "store": str(store.directory()),
    })


def accel_topology(path: Path, array: str, dataflow: str, mode: str, chip: str) -> Outcome:
    """Cycles of a layer list on a systolic array."""
    _check_inputs([path])
    topology = importlib.import_module("core.accel.tpu.topology")
    return Outcome({}, record=topology.topology(path, array, dataflow, mode, chip))


def accel_report(model: str, chip: str, batch: int | None, data: Sequence[Path], out: Path) -> Outcome:
    """Tables and pictures of a network, or of the model of a run, on an emulated chip, in a folder.

    Parameters
    ----------
    data : of which a batch is taken for a run; empty for the held-out part of its own
    """
    from core.engine.checkpoint import written_whole

    report = importlib.import_module("core.accel.tpu.report")
    if not (Path(model) / "run.json").exists():
        found = report.report(model, chip, batch)
    elif batch is not None:
        raise ConfigError("--batch is for named networks; a run's batches are those of its data")
    else:
        found = report.report_of_graph(*_graph_of_run(Path(model), data)[:3], chip)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in found.files.items():
        with written_whole(out / name, "w") as file:
            file.write(text)
    return Outcome(found.numbers, out)


def accel_instructions(run: Path, data: Sequence[Path], with_host: bool, out: Path) -> Outcome:
    """The instruction stream of TPU v1 for the model of a run, in a file, and what it gives on the simulated chip.

    Parameters
    ----------
    data : of which a batch is taken; empty for the held-out part of the run's own
    with_host : whether the host may compute between two layers of the chip
    """
    from core.engine.checkpoint import make_folder_for, written_whole

    make_folder_for(out)
    name, graph, held, arrays = _graph_of_run(run, data)
    found = importlib.import_module("core.accel.tpu.listing").listing(name, graph, held, arrays, with_host)
    with written_whole(out, "w") as file:
        file.write(found.text)
    return Outcome(found.numbers, out)


def _graph_of_run(path: Path, data: Sequence[Path]) -> tuple[str, Any, int, list[Any]]:
    """Name and graph of the model of a run on its first batch, how many inputs are weights, and all inputs' arrays."""
    from core.engine import tree
    from core.engine.array import as_array
    from core.engine.jit import close, jit
    from core.engine.refusals import Refusals
    from core.engine.run import RunDirectory

    _check_inputs(data)
    run = RunDirectory.open(path)
    app = next(app for app in apps() if app.name == run.record["app"])
    with tempfile.TemporaryDirectory() as folder, Refusals(Path(folder) / "refused.csv") as refused:
        subject: Quantisable = load(app.quantisable)(
            run=run, config=load_config(load(app.config), run.config_path), data=tuple(data), refused=refused)
    arguments = subject.model, subject.batches[0]
    graph = close(jit(subject.call).trace(*arguments))
    arrays = [as_array(leaf).storage for leaf in tree.leaves(arguments)]
    return f"{app.name} {path.name}", graph, len(tree.leaves(subject.model)), arrays


def bench(words: Sequence[str], peers: Path | None, quick: bool, resume: bool) -> int:
    """Run the benchmarks of a checkout; gives their exit code."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "tests" / "bench" / "__main__.py").is_file():
        raise ConfigError("benchmarks come with the source: run this from a checkout of Tilework, installed with -e")
    options = [*(["--quick"] if quick else []), *(["--resume"] if resume else []),
               *(["--peers", str(peers.absolute())] if peers else [])]
    return subprocess.run([sys.executable, "-m", "tests.bench", *words, *options], cwd=root, check=False).returncode
