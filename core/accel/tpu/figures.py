"""Figures: dataclasses read from tables of a TOML file, whose numbers may have units.

Invariant: every number that is read is above zero, and what cannot be a figure is refused with its name, its file and
a hint.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from core.engine.errors import ConfigError, compose

_POWERS = {"": 1.0, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
           "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(r"([\d.]+(?:e\d+)?) ?(|u|m|k|M|G|T|Ki|Mi|Gi|Ti)(Hz|B/s|b/s|B|s)")
_EXAMPLES = {"Hz": '"700 MHz"', "s": '"7 us"', "B": '"24 MiB"', "B/s": '"34 GB/s" or "496 Gb/s"'}


def quantity(unit: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that a file gives as a number of this unit, or as text with a prefix, such as ``"34 GB/s"``."""
    return field(default=default, metadata={"unit": unit})


def read(kind: type, given: Mapping[str, Any], source: str, prefix: str) -> Any:
    """A dataclass from a table of a file; `source` names the file, and `prefix` the way to the table, in errors."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in given.keys() - fields.keys():
        nearest = difflib.get_close_matches(key, fields, n=1)
        raise refused(source, prefix + key, "there is no such figure",
                      f"did you mean {prefix}{nearest[0]}?" if nearest else f"there are {', '.join(fields)}")
    values = {}
    for key, item in fields.items():
        if key in given:
            values[key] = _value(hints[key], item, given[key], source, prefix + key)
        elif item.default is dataclasses.MISSING:
            raise refused(source, prefix + key, "is missing", f"give {_expected(hints[key], item)}")
    return kind(**values)


def _value(hint: Any, item: dataclasses.Field[Any], given: Any, source: str, name: str) -> Any:
    hint = next((member for member in typing.get_args(hint) if member is not types.NoneType), hint) \
        if isinstance(hint, types.UnionType) else hint
    wrong = refused(source, name, f"cannot be {given!r}", f"give {_expected(hint, item)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(given, dict):
            raise wrong
        return read(typing.cast(type, hint), given, source, f"{name}.")
    if typing.get_origin(hint) is tuple:
        if not isinstance(given, list) or not all(_is_count(entry) for entry in given):
            raise wrong
        return tuple(given)
    if typing.get_origin(hint) is not None:  # a mapping of names to counts
        if not isinstance(given, dict) or not given or not all(map(_is_count, given.values())):
            raise wrong
        return types.MappingProxyType(given)
    if hint in (str, bool):
        if not isinstance(given, hint):
            raise wrong
        return given
    unit = item.metadata.get("unit")
    if unit:
        amount = _amount(given, unit)
        if amount is None:
            raise wrong
        return int(amount) if hint is int else amount
    if not _is_count(given):
        raise wrong
    return given


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given > 0


def _amount(given: Any, unit: str) -> float | None:
    """A quantity in its unit; None if it is not one above zero."""
    found = _QUANTITY.fullmatch(given) if isinstance(given, str) else None
    if found is not None:
        number, power, word = found.groups()
        bits = word == "b/s" and unit == "B/s"
        if word != unit and not bits:
            return None
        try:
            amount = float(number) * _POWERS[power] / (8 if bits else 1)
        except ValueError:  # such as 1.2.3
            return None
    elif isinstance(given, int | float) and not isinstance(given, bool):
        amount = float(given)
    else:
        return None
    return amount if math.isfinite(amount) and amount > 0 else None


def _expected(hint: Any, item: dataclasses.Field[Any]) -> str:
    unit = item.metadata.get("unit")
    if unit:
        return f"a number of {unit} above 0, or text such as {_EXAMPLES[unit]}"
    if dataclasses.is_dataclass(hint):
        return f"a table of {', '.join(part.name for part in dataclasses.fields(hint))}"
    if typing.get_origin(hint) is tuple:
        return "a list of whole numbers above 0"
    words = {int: "a whole number above 0", bool: "true or false", str: "text"}
    return words.get(hint, "a table of names and whole numbers above 0")


def refused(source: str, name: str, found: str, hint: str) -> ConfigError:
    """The error that says what is wrong with a figure of a file."""
    return ConfigError(compose(f"{name} {found}", [("file", source), ("hint", hint)]))
