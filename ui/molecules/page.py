"""The page of the molecules app: Data, Train, Results, Predict.

Invariant: only the tab that is open runs; which one that is stands in the address, so that a reload keeps it.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.molecules.app import APP
from core.engine.backends import MODULES
from core.engine.errors import TileworkError
from ui import datasets, forms, results, training
from ui.molecules import data, drawings, predict
from ui.session import show_error

FIRST = ("targets", "units", "model", "epochs", "batch_size", "rate", "split", "ensemble")


def page() -> None:
    """Show the page."""
    st.title(APP.title)
    tabs = st.tabs(["Data", "Train", "Results", "Predict"], key="tab", bind="query-params")
    if tabs[0].open:
        with tabs[0]:
            data.tab()
    if tabs[1].open:
        with tabs[1]:
            chosen = datasets.current(APP)
            training.tab(APP, chosen, FIRST, _options(chosen))
    if tabs[2].open:
        with tabs[2]:
            results.tab(APP, drawings.worst, predict.units)
    if tabs[3].open:
        with tabs[3]:
            predict.tab()


def _options(path: Path | None) -> forms.Options:
    """Columns of the data set and backends of the machine, to choose from."""
    options = {"device": tuple(MODULES)}
    if path is None:
        return options
    try:
        columns = data.columns_of(datasets.version(path))
    except TileworkError as error:
        show_error(error)
        return options
    return options | ({"targets": columns.numeric} if columns.numeric else {})
