"""The record of an app, and its settings: one frozen dataclass for the command line, the TOML file, the form, the run.

Invariant: importing this file, or the record of an app, imports no numerical library; functions are named by dotted
paths and loaded when they run.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import importlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.engine.errors import ConfigError, compose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from core.engine.run import RunDirectory

APPS = ("apps.molecules.app:APP", "apps.connectomics.app:APP")
"""Dotted paths of the records of all apps."""


@dataclass(frozen=True)
class Command:
    """One command of an app.

    Attributes
    ----------
    function : dotted path, such as ``apps.molecules.predict:predict``; what it is called with is told in `App`
    summary : one line for the help
    settings : dotted path of a frozen dataclass of further settings, handed over as ``settings=``; empty for none
    addresses : the input is a text such as ``FILE.h5:dataset`` or ``gs://bucket/volume``, which the function opens
        itself; otherwise it is the path of a file or folder that exists
    stores : what it makes may lie in an object store: ``out`` is a text, such as ``gs://bucket/volume.zarr``, which the
        function checks itself. It refuses no items, and is called without ``refused``
    """

    function: str
    summary: str
    settings: str = ""
    addresses: bool = False
    stores: bool = False


@dataclass(frozen=True)
class App:
    """What the command line and the web app need to know of an app.

    Functions are called with keyword arguments. `Report` is what they give to print and to keep.

    Attributes
    ----------
    name : first word of the command line
    title, summary : for people
    config : dotted path of the settings of a training, a subclass of `TrainingConfig`
    train : ``(data: tuple[Path, ...], config, run: RunDirectory, refused: Refusals)``, a generator that yields
        `core.engine.train.Progress` (most simply ``fitted = yield from fit(..., run=run)``), writes the model with
        ``run.save_model`` and returns a `Report`
    dry_run : dotted path of ``(data, config)``, which reads one sample through every stage, writes nothing and gives a
        mapping of stage to shape
    evaluate : ``(run, config, data, out: Path, refused)``, gives a `Report`, which is written to the folder `out`
    predict : ``(run, config, input, out: Path, refused)``, writes the file `out`, gives a `Report`
    sample : ``(out: Path)``, writes a small data set to a folder, gives a `Report`
    extra : further commands by name: ``(input, out: Path, refused)``, give a `Report`
    quantisable : dotted path of ``(run, config, data, refused)``, gives a `Quantisable`; data is empty for the held-out
        part of the run's own. Without it the models of the app have no form of fewer bits.
    """

    name: str
    title: str
    summary: str
    config: str
    train: Command
    dry_run: str
    evaluate: Command
    predict: Command
    sample: Command
    extra: Mapping[str, Command] = field(default_factory=dict)
    quantisable: str = ""


@dataclass(frozen=True)
class Quantisable:
    """What ``quantize``, and a report of a chip, need to know of a trained model.

    Attributes
    ----------
    model : tree of modules
    call : ``(model, batch)``, pure
    batches : of data that the model may be calibrated on, not of those that it is measured on if there are others
    score : from a model to its metrics on the data that it is measured on
    save : writes a model of any precision into a run
    fine_tunings : from files or folders to how the model is trained on with few bits in mind; from none, on what the
        run was trained on
    """

    model: Any
    call: Callable[[Any, Any], Any]
    batches: Sequence[Any]
    score: Callable[[Any], Mapping[str, float]]
    save: Callable[[RunDirectory, Any], None]
    fine_tunings: Callable[[tuple[Path, ...]], Sequence[FineTuning]]


@dataclass(frozen=True)
class FineTuning:
    """How a trained model, or a part of it that learns by itself, is trained on; mostly arguments of `fit`.

    Attributes
    ----------
    part : dotted path in the model; empty for all of it
    start : from the part, whose layers may be others than it was trained with, to the `State` to begin with
    step : see `core.engine.train.fit`
    batches : of an epoch (0, 1, ...); the same for the same epoch
    steps : batches of an epoch
    rate : highest learning rate of the first training
    items : how many items a batch holds
    key : u32[2] if the step takes one
    """

    part: str
    start: Callable[[Any], Any]
    step: Callable[..., Any]
    batches: Callable[[int], Iterable[Any]]
    steps: int
    rate: float
    items: Callable[[Any], int]
    key: Any = None


@dataclass(frozen=True)
class Report:
    """What a command found.

    Attributes
    ----------
    numbers : results by name, for the terminal, JSON and ``report.json``
    tables : rows by name, curves among them; each becomes a CSV file
    arrays : example arrays by name, for whoever draws
    """

    numbers: Mapping[str, float | int | str]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def files(self, folder: Path) -> list[Path]:
        """What `save` writes."""
        tables = [f"{name}.csv" for name in self.tables]
        return [folder / name for name in ("report.json", *tables, *(["arrays.safetensors"] if self.arrays else []))]

    def save(self, folder: Path) -> None:
        """Write ``report.json``, one CSV file a table, and ``arrays.safetensors`` if there are arrays."""
        from core.engine import checkpoint
        from core.engine.run import plain

        folder.mkdir(parents=True, exist_ok=True)
        numbers, *rest = self.files(folder)
        with checkpoint.written_whole(numbers, "w") as file:
            json.dump(plain(self.numbers), file, indent=2)
        for path, rows in zip(rest, self.tables.values(), strict=False):
            with checkpoint.written_whole(path, "w") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
        if self.arrays:
            checkpoint.save(rest[-1], self.arrays)


def load(path: str) -> Any:
    """The object that a dotted path such as ``apps.molecules.app:APP`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def apps(paths: Sequence[str] = APPS) -> tuple[App, ...]:
    """The records of apps."""
    return tuple(load(path) for path in paths)


def setting(default: Any = dataclasses.MISSING, help: str = "", *, low: float | None = None, high: float | None = None,
            choices: Sequence[str] | None = None, unit: str = "", option: str = "") -> Any:
    """A field of a config: bool, int, float, str, Path, a tuple of one of these, or one of these or None.

    Parameters
    ----------
    default : without one the setting must be given
    help : one line
    low, high : the range, both ends included
    choices : the values that a text may have
    unit : of the number
    option : name on the command line where it is not the field's own, such as ``target`` for a field `targets`
    """
    return field(default=default, metadata={"setting": {
        "help": help, "low": low, "high": high, "choices": tuple(choices) if choices else (), "unit": unit,
        "option": option}})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of every training; the config of an app adds its own."""

    seed: int = setting(0, "start of all random numbers", low=0, high=2**32 - 1)
    device: str = setting("cpu", "backend that trains: cpu, reference, or an emulated TPU such as tpu-v2")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How a run gets weights of few bits."""

    bits: int = setting(8, "of a weight: 8, 4, 2 (ternary) or 1; activations have 8")
    epochs: int = setting(0, "passes of training with few bits in mind, from the weights of the run; 0 for none", low=0,
                          high=1_000_000)
    rate: float | None = setting(None, "highest learning rate of that; by default that of the run's own training",
                                 low=1e-8, high=10)
    train_on: tuple[Path, ...] = setting((), "file or folder to train on, instead of what the run was trained on")

    def __post_init__(self) -> None:
        if not self.epochs and (self.train_on or self.rate is not None):
            raise ConfigError("--train-on and --rate are for training with few bits in mind: add --epochs")


_MISSING = dataclasses.MISSING
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """One field of a config, as its annotation and `setting` describe it.

    Attributes
    ----------
    kind : bool, int, float, str or Path; of the items if there are `many`
    many : whether it is a tuple
    optional : whether None is allowed
    default : ``dataclasses.MISSING`` if it must be given
    """

    name: str
    kind: type
    many: bool
    optional: bool
    default: Any
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    option: str = ""

    @property
    def flag(self) -> str:
        """The option of the command line, such as ``--hidden-size``."""
        return "--" + (self.option or self.name).replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is _MISSING

    @property
    def limits(self) -> str:
        """What values are allowed, in words such as ``1..1000`` or ``dmpnn or mpnn``."""
        if self.choices:
            return " or ".join(choice or '""' for choice in self.choices)
        if self.low is None and self.high is None:
            return _KINDS[self.kind]
        if self.high is None:
            return f"at least {self.low}"
        return f"at most {self.high}" if self.low is None else f"{self.low}..{self.high}"

    def convert(self, value: Any) -> Any:
        """The value of a command line or a TOML file in the field's own type, checked.

        Raises
        ------
        ConfigError
            If it is of another type, out of range or not among the choices.
        """
        if value is None and self.optional:
            return None
        if self.many and not isinstance(value, list | tuple):
            raise self.error(value)
        try:
            return tuple(map(self._item, value)) if self.many else self._item(value)
        except ValueError:
            raise self.error(value) from None

    def _item(self, value: Any) -> Any:
        """One value in the field's own type; raises `ValueError` if it cannot be."""
        if self.kind is Path and isinstance(value, str):
            value = Path(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise ValueError
        if isinstance(value, int | float) and not self._in_range(value):
            raise ValueError
        if self.kind in (str, Path) and ((self.choices and value not in self.choices) or not _is_unicode(str(value))):
            raise ValueError
        return value

    def _in_range(self, value: float) -> bool:
        return (math.isfinite(value) and (self.low is None or value >= self.low)
                and (self.high is None or value <= self.high))

    def error(self, value: Any) -> ConfigError:
        """What to raise for an impossible value."""
        shown = "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list | tuple) else _toml(value)
        expected = f"{'a list, each ' if self.many else ''}{self.limits}{f' {self.unit}' if self.unit else ''}"
        nearest = difflib.get_close_matches(str(value), self.choices, n=1)
        return ConfigError(compose(f"{self.name} cannot be {shown}", [
            ("expected", expected), ("setting", f"{self.flag}: {self.help}" if self.help else self.flag),
            *([("hint", f"did you mean {nearest[0]}?")] if nearest else [])]))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def settings(config: type) -> tuple[Setting, ...]:
    """The settings of a config, in the order of its fields.

    Raises
    ------
    TypeError
        If a field is of a type that a command line and a TOML file cannot hold.
    """
    hints = typing.get_type_hints(config)
    return tuple(_setting(item, hints[item.name]) for item in dataclasses.fields(config))


def _setting(item: dataclasses.Field[Any], hint: Any) -> Setting:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    optional = types.NoneType in members and len(members) == 2
    if optional:
        hint = next(kind for kind in members if kind is not types.NoneType)
    many = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if many else hint
    if kind not in _KINDS or (many and kind is bool) or (many and typing.get_args(hint)[1:] != (...,)):
        raise TypeError(f"the setting {item.name} is of the type {item.type}; a setting is a bool, int, float, str or "
                        f"Path, tuple[one of these, ...], or one of these or None")
    if optional and item.default is not None:
        raise TypeError(f"the setting {item.name} may be None, so None must be its default: TOML has no word for it")
    return Setting(item.name, kind, many, optional, item.default, **item.metadata.get("setting", {}))


def validate(config: Any) -> None:
    """Check every setting of a config; raises `ConfigError` that names the setting, its value and its range."""
    for item in settings(type(config)):
        item.convert(getattr(config, item.name))


def load_config(config: type, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Any:
    """A config from its defaults, then a TOML file, then overrides by field name.

    Raises
    ------
    ConfigError
        If the file cannot be read, a name is unknown, a value is impossible, or a setting without default is missing.
    """
    known = {item.name: item for item in settings(config)}
    given = {**(_read_toml(path) if path else {}), **(overrides or {})}
    for name in given.keys() - known.keys():
        nearest = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(compose(f"there is no setting {name!r}" + (f" (in {path})" if path else ""), [
            ("hint", f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}")]))
    values = {name: item.convert(given[name]) for name, item in known.items() if name in given}
    for item in known.values():
        if item.required and item.name not in values:
            raise ConfigError(f"{item.flag} is missing: {item.help or item.limits}")
    return config(**values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not TOML: {error}") from error


def config_values(config: Any) -> dict[str, Any]:
    """The settings of a config by name."""
    return {item.name: getattr(config, item.name) for item in settings(type(config))}


def dump_config(config: Any) -> str:
    """A config as TOML, with help and units as comments; `load_config` reads the same config back."""
    lines = []
    for item in settings(type(config)):
        value = getattr(config, item.name)
        note = ", ".join(part for part in (item.help, item.limits, item.unit) if part)
        lines += [f"# {note}", f"# {item.name} =" if value is None else f"{item.name} = {_toml(value)}", ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
