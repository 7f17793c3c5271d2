"""The grammar of the command line, made from the records and settings of the apps.

Invariant: an option is written down once, as a field of a config; a command loads what it needs when it runs, so that
help is quick.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Group, Parameter

from apps import commands
from apps.app import App, Command, QuantizeSettings, Setting, load, settings

Call = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Takes the words of the grammar by name, all of them, and the settings that were given by field name."""

_SETTINGS = Group("Settings")


def grammar(words: Sequence[str], apps: Iterable[App]) -> cyclopts.App:
    """Commands for a command line; those of an app only if the words name it, because they load its settings."""
    root = cyclopts.App("tilework", help="Scientific applications on one small deep-learning engine.", version=_version,
                        help_format="plaintext")
    for app in apps:
        branch = cyclopts.App(app.name, help=f"{app.title}: {app.summary}")
        if app.name in words:
            _add_training(branch, app, words)
            _add_others(branch, app, words)
        root.command(branch)
    _add(root, "demo", "Run the main job end to end, on input that comes along.",
         [_option("out", Path | None, "folder for what it makes", None), _json()],
         lambda given, _: commands.demo(given["out"]))
    _add(root, "ui", "Open the web app, for this machine alone.", [_option("port", int, "port on 127.0.0.1", 8501)],
         lambda given, _: commands.web_app(given["port"]))
    _add(root, "devices", "Show what this machine offers and which kernels run on it.", [_json()],
         lambda given, _: commands.devices())
    root.command(_accel())
    _add(root, "bench", "Measure kernels beside those of other libraries; needs the source and its extra 'bench'.", [
        _words("parts of the names of what is measured; all if none"),
        _option("peers", Path | None, "python of the environment that has the other libraries", None),
        _option("quick", bool, "one short turn each", False),
        _option("resume", bool, "measure only what has no record yet", False)],
        lambda given, _: commands.bench(given.get("words", ()), given["peers"], given["quick"], given["resume"]))
    return root


def _accel() -> cyclopts.App:
    """The commands of the emulated chips."""
    branch = cyclopts.App("accel", help="Ask what a network costs on an emulated accelerator.")
    chip = _option("chip", str, "tpu-v1, tpu-v2, tpu-v3 or a TOML file of a machine", "tpu-v1")
    _add(branch, "topology", "Count the cycles of a layer list of SCALE-Sim on a systolic array.", [
        _positional("file", Path, "CSV of convolutions, or of M, N and K"),
        _option("array", str, "rows and columns, such as 128 or 128x64"),
        _option("dataflow", str, "what stays in place: ws weights, os outputs, is inputs", "ws"),
        _option("mode", str, "stall-free, pipelined, or full with the memory and vector unit of --chip", "stall-free"),
        chip, _json()],
        lambda given, _: commands.accel_topology(given["file"], given["array"], given["dataflow"], given["mode"],
                                                 given["chip"]))
    _add(branch, "report", "Write the steps of a network on a chip, their plots, and other chips beside it.", [
        _positional("model", str, "directory of a run, or resnet50, inception3, unet-2d, unet-3d, ffn, mlp0, mlp1, "
                                  "lstm0, lstm1, cnn0, cnn1"),
        _data("files or folders of which a run sees a batch, instead of the held-out part of its own", required=False),
        chip, _option("batch", int | None, "items at a time; 8, or as published, if not given", None),
        _option("out", Path, "folder to write to"), _json()],
        lambda given, _: commands.accel_report(given["model"], given["chip"], given["batch"], given.get("data", ()),
                                               given["out"]))
    _add(branch, "instructions", "Write the instruction stream of TPU v1 for a run of few bits, and run it on the "
                                 "simulated chip.", [
        _positional("run", Path, "directory of a run that quantize made"),
        _data("files or folders of which a run sees a batch, instead of the held-out part of its own", required=False),
        _option("with_host", bool, "let the host compute between two layers what the chip cannot", False),
        _option("out", Path, "text file to write"), _json()],
        lambda given, _: commands.accel_instructions(given["run"], given.get("data", ()), given["with_host"],
                                                     given["out"]))
    return branch


def _version() -> str:
    try:
        return importlib.metadata.version("tilework")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _add_training(branch: cyclopts.App, app: App, words: Sequence[str]) -> None:
    def train(given: Mapping[str, Any], values: Mapping[str, Any]) -> commands.Outcome:
        if given["dry_run"]:
            return commands.dry_run(app, given["data"], given["config"], values)
        return commands.train(app, given["data"], given["out"], given["config"], values, resume=given["resume"],
                              json_lines=given["json"], words=["tilework", *words])

    _add(branch, "train", app.train.summary, [
        _data(), _option("out", Path | None, "directory of the run, new or empty; only a dry run needs none", None),
        _option("config", Path | None, "TOML file of settings; options go over it", None),
        _option("resume", bool, "go on with the run in --out", False),
        _option("dry_run", bool, "read one sample through every stage, print the shapes, write nothing", False),
        _json()], train, settings(load(app.config)))


def _add_others(branch: cyclopts.App, app: App, words: Sequence[str]) -> None:
    run = _positional("run", Path, "directory of a run")
    _add(branch, "evaluate", app.evaluate.summary,
         [run, _data(), _option("out", Path | None, "folder of the report; else RUN/evaluation", None), _json()],
         lambda given, values: commands.evaluate(app, given["run"], given["data"], given["out"], values),
         _own(app.evaluate))
    _add(branch, "predict", app.predict.summary,
         [run, _source(app.predict), _option("out", Path, "file to write"), _json()],
         lambda given, values: commands.predict(app, given["run"], given["input"], given["out"], values),
         _own(app.predict))
    if app.quantisable:
        _add(branch, "quantize", "turn a run into one whose weights have few bits, and measure both", [
            run, _data("files or folders to measure on, instead of the held-out part of the run's own", required=False),
            _option("out", Path, "directory of the new run, new or empty"),
            _option("resume", bool, "go on with the training in --out", False), _json()],
            lambda given, values: commands.quantize(
                app, given["run"], given.get("data", ()), given["out"], values, resume=given["resume"],
                json_lines=given["json"], words=["tilework", *words]), settings(QuantizeSettings))
    _add(branch, "sample", app.sample.summary, [_option("out", Path, "folder to write to"), _json()],
         lambda given, values: commands.sample(app, given["out"], values), _own(app.sample))
    for name, command in app.extra.items():
        out = _option("out", str if command.stores else Path, "what to write")
        _add(branch, name, command.summary, [_source(command), out, _json()],
             partial(_extra, command), _own(command))


def _source(command: Command) -> inspect.Parameter:
    hint = "address, such as FILE.h5:dataset" if command.addresses else "file or folder"
    return _positional("input", str, hint)


def _extra(command: Command, given: Mapping[str, Any], values: Mapping[str, Any]) -> commands.Outcome:
    return commands.extra(command, given["input"], given["out"], values)


def _own(command: Command) -> tuple[Setting, ...]:
    return settings(load(command.settings)) if command.settings else ()


def _add(parent: cyclopts.App, name: str, summary: str, parameters: Iterable[inspect.Parameter], call: Call,
         own: Sequence[Setting] = ()) -> None:
    """A command of these parameters and settings that runs `call`."""
    parameters = [*parameters, *map(_setting_option, own)]
    signature = inspect.Signature(parameters)

    def run(*words: Any, **options: Any) -> Any:
        bound = signature.bind(*words, **options)
        values = {item.name: _value(item, bound.arguments[item.name]) for item in own if item.name in bound.arguments}
        bound.apply_defaults()
        return call(bound.arguments, values)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parent.command(run, name=name, help=summary)


def _positional(name: str, kind: Any, help: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[kind, Parameter(help=help)])


def _data(help: str = "files or folders in the app's formats", required: bool = True) -> inspect.Parameter:
    hint = Annotated[Path, Parameter(help=help, required=required)]
    return inspect.Parameter("data", inspect.Parameter.VAR_POSITIONAL, annotation=hint)


def _words(help: str) -> inspect.Parameter:
    hint = Annotated[str, Parameter(help=help)]
    return inspect.Parameter("words", inspect.Parameter.VAR_POSITIONAL, annotation=hint)


def _option(name: str, kind: Any, help: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    hint = Annotated[kind, Parameter(name=f"--{name.replace('_', '-')}", help=help, negative="", show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _json() -> inspect.Parameter:
    return _option("json", bool, "print the results as one JSON object", False)


def _setting_option(item: Setting) -> inspect.Parameter:
    """The option of a setting; lists come as words, which `_value` reads."""
    kind: Any = tuple[str, ...] if item.many else item.kind
    limited = item.choices or item.low is not None or item.high is not None
    notes = [item.limits] if limited else []
    notes += [item.unit] if item.unit else []
    notes += ["required"] if item.required else []
    notes += ["can be repeated" if item.kind in (str, Path) else "with commas, or repeated"] if item.many else []
    help = f"{item.help} ({', '.join(notes)})" if notes else item.help
    hint = Annotated[kind | None, Parameter(name=item.flag, help=help, group=_SETTINGS, show_default=_default(item),
                                            metavar=item.kind.__name__.upper(),
                                            negative=None if item.kind is bool else "")]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, annotation=hint,
                             default=None if item.required else item.default)


def _default(item: Setting) -> str | bool:
    """A default as it would be typed; False where there is nothing to show."""
    if item.required or item.default in (None, (), ""):
        return False
    return " ".join(map(str, item.default)) if item.many else str(item.default)


def _value(item: Setting, given: Any) -> Any:
    """What was given for a setting; numbers of a list may stand in one word, with commas between them."""
    if not item.many:
        return given
    if item.kind in (str, Path):
        return given
    try:
        return tuple(item.kind(number) for word in given for number in word.split(","))
    except ValueError:
        raise item.error(given) from None


