"""The home page: the runs there are, the apps, and this machine.

Invariant: it writes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from apps import commands
from apps.app import apps
from core.engine.provenance import processor
from ui import jobs, places
from ui.session import STATUS_MARKS, ago, number


def page(pages: Sequence[StreamlitPage]) -> None:
    """Show the page; `pages` are those of the apps, in their order."""
    st.title("Tilework")
    for app, target in zip(apps(), pages, strict=True):
        with st.container(border=True):
            st.page_link(target, label=f"**{app.title}**", icon=":material/arrow_forward:")
            st.write(app.summary[:1].upper() + app.summary[1:] + ".")
    st.header("Runs")
    _runs()
    st.header("This machine")
    _machine()


@st.fragment(run_every=10)
def _runs() -> None:
    trainings = jobs.trainings()
    if not trainings:
        st.info(f"There are no runs in {places.runs_root()} yet. Open an app above, take its sample data set in the "
                "tab **Data**, and start a training in the tab **Train**.")
        return
    st.dataframe([_row(training) for training in trainings], hide_index=True, column_config={
        "Result": st.column_config.TextColumn(width="large")})
    st.caption(f"Runs are folders in {places.runs_root()}; the environment variable TILEWORK_RUNS names another place.")


def _row(training: jobs.Training) -> dict[str, str]:
    result = training.record.get("result") or {}
    shown = [f"{name} {number(value)}" for name, value in result.items()
             if "baseline" not in name and isinstance(value, float)][:4]
    return {"Run": training.name, "App": training.app, "Status": f"{STATUS_MARKS[training.status]} {training.status}",
            "Started": ago(training.started), "Result": ", ".join(shown) or training.failure.partition("\n")[0]}


def _machine() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    root = places.runs_root()
    free = shutil.disk_usage(root if root.is_dir() else root.parent if root.parent.is_dir() else "/").free / 2**30
    first, second, third, fourth = st.columns(4)
    first.metric("Cores", os.cpu_count() or 1)
    second.metric("Memory", f"{memory:.1f} GB")
    third.metric("Free for runs", f"{free:.0f} GB")
    fourth.metric("Kernels", _devices()["kernels"])
    st.caption(processor())


@st.cache_data(show_spinner="Looking at the processor")
def _devices() -> dict[str, Any]:
    return dict(commands.devices().numbers)
