"""What all pages share: how errors and other people's text are shown, and how a run is chosen.

Invariant: text from files and messages passes `plain` before it becomes part of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from core.engine.errors import TileworkError
from ui.jobs import Training

STATUS_MARKS = {"starting": "●", "running": "●", "finished": "✓", "stopped": "◼", "failed": "✕"}


def plain(text: str) -> str:
    """Text with everything escaped that Markdown would take for formatting."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:])", r"\\\1", " ".join(text.split()))


def show_error(error: TileworkError | str) -> None:
    """The message of an error: its first line as the sentence, the rest as it is aligned."""
    headline, _, rest = str(error).strip().partition("\n")
    headline = headline[:1].upper() + headline[1:]
    body = f"\n\n```text\n{rest.replace('```', '')}\n```" if rest else ""
    st.error(plain(headline) + body, icon=":material/error:")


def choose_run(label: str, trainings: Sequence[Training], key: str) -> Training:
    """A selectbox of trainings; the one that was looked at last on another tab comes first.

    Parameters
    ----------
    trainings : at least one
    """
    names = [training.name for training in trainings]
    marks = {training.name: f"{STATUS_MARKS[training.status]} {training.name}" for training in trainings}
    current = st.session_state.get("current run")
    if st.session_state.get(key) not in names or st.session_state.pop("jump", False):
        st.session_state[key] = current if current in names else names[0]
    name = st.selectbox(label, names, format_func=lambda name: marks.get(name, name), key=key)
    st.session_state["current run"] = name
    return next(training for training in trainings if training.name == name)


def jump_to(name: str) -> None:
    """Make a run the chosen one from the next pass over the page on."""
    st.session_state["current run"], st.session_state["jump"] = name, True


def ago(time: str) -> str:
    """A UTC time such as ``2026-11-22T17:00:00+00:00`` in words."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return "at an unknown time"
    if seconds < 90:
        return "just now"
    return f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """A time span in its two largest units at most."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86400:.0f} days"


def number(value: Any) -> str:
    """A value of a report, short."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
