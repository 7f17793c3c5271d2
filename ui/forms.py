"""A form from a config dataclass: one input a setting, with its range, choices, unit and help.

Invariant: what the form gives was checked by the same `load_config` that the command line uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps.app import Setting, load_config, settings
from core.engine.errors import ConfigError
from ui.session import show_error

Options = Mapping[str, Sequence[str]]
"""Values that a text setting may have, by field name, where they depend on the data or the machine."""

_LARGEST_INTEGER = 2**53 - 1  # what a browser holds exactly


def show(config: type, key: str, *, first: Sequence[str], options: Options | None = None,
         columns: int = 2) -> Any | None:
    """Show the form; gives the config, or None after a sentence about what is wrong.

    Parameters
    ----------
    config : subclass of `TrainingConfig`
    key : of the widgets; their values live as long as the browser session
    first : names of the settings that stand open, in this order; the others are folded away
    """
    options = options or {}
    items = {item.name: item for item in settings(config)}
    values = _grid([items[name] for name in first], key, options, columns)
    with st.expander("All other settings"):
        values |= _grid([item for name, item in items.items() if name not in first], key, options, columns)
    try:
        return checked(config, values)
    except ConfigError as error:
        show_error(error)
        return None


def checked(config: type, values: Mapping[str, Any]) -> Any:
    """A config from the values of a form; raises `ConfigError` in the words of the form."""
    for item in settings(config):
        if item.required and values.get(item.name) in (None, "", ()):
            raise ConfigError(f"{label(item)} is still empty: {item.help or item.limits}")
    return load_config(config, None, values)


def _grid(items: Sequence[Setting], key: str, options: Options, columns: int) -> dict[str, Any]:
    values = {}
    for start in range(0, len(items), columns):
        for item, column in zip(items[start:start + columns], st.columns(columns, vertical_alignment="bottom"),
                                strict=False):
            with column:
                values[item.name] = widget(item, key, options.get(item.name, ()))
    return values


def label(item: Setting) -> str:
    """A setting's name for people, with its unit."""
    words = (item.option or item.name).replace("_", " ")
    return words[:1].upper() + words[1:] + (f" ({item.unit})" if item.unit else "")


def widget(item: Setting, key: str, options: Sequence[str] = ()) -> Any:
    """The input of one setting; gives its value, not yet checked.

    Parameters
    ----------
    options : values to choose from, instead of the setting's own choices
    """
    choices = tuple(options) or item.choices
    # Other choices make another widget: what was chosen from a former data set may not exist in this one.
    place = f"{key}.{item.name}" + (f".{'|'.join(choices)}" if options else "")
    shared: dict[str, Any] = {"key": place, "help": f"{item.help}. Option {item.flag}, {item.limits}.",
                              "persist_state": "session"}
    if item.kind is bool:
        return st.checkbox(label(item), bool(item.default), **shared)
    if item.many:
        return _several(item, choices, shared)
    if item.kind in (int, float):
        return _number(item, shared)
    if choices:
        index = choices.index(item.default) if item.default in choices else 0 if not item.optional else None
        return st.selectbox(label(item), choices, index, **shared, placeholder="automatic")
    text = st.text_input(label(item), "" if item.required or item.default is None else str(item.default), **shared,
                         placeholder="automatic" if item.optional else None)
    return None if item.optional and not text else text


def _several(item: Setting, choices: tuple[str, ...], shared: dict[str, Any]) -> tuple[Any, ...]:
    if choices:
        default = choices[:1] if item.required and len(choices) == 1 else () if item.required else item.default
        return tuple(st.multiselect(label(item), choices, [value for value in default if value in choices], **shared,
                                    placeholder="choose" if item.required else "none"))
    default = () if item.required else item.default
    text = st.text_input(label(item), ", ".join(map(str, default)), **shared, placeholder="separated by commas")
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if item.kind in (str, Path):
        return words
    try:
        return tuple(item.kind(word) for word in words)
    except ValueError:
        return words  # the check says what is wrong with them


def _number(item: Setting, shared: dict[str, Any]) -> float | None:
    kind: Any = item.kind
    low = None if item.low is None else kind(item.low)
    high = None if item.high is None else kind(min(item.high, _LARGEST_INTEGER))
    default = None if item.required or item.default is None else item.default
    shaped: dict[str, Any] = {"step": 1} if kind is int else {"step": _step(default), "format": "%g"}
    value: float | None = st.number_input(label(item), low, high, default, **shaped, **shared,
                                          placeholder="automatic" if item.optional else None)
    return value


def _step(default: float | None) -> float:
    """A step that changes the digit behind the leading one of the default."""
    return 10.0 ** (math.floor(math.log10(abs(default))) - 1) if default else 0.1
