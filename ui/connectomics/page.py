"""The page of the connectomics app: Data, Train.

Invariant: only the tab that is open runs; which one that is stands in the address, so that a reload keeps it.
"""

from __future__ import annotations

import streamlit as st

from apps.connectomics.app import APP
from core.engine.backends import MODULES
from ui import datasets, training
from ui.connectomics import sections

FIRST = ("raw", "labels", "depth", "features", "field_of_view", "deltas", "epochs", "steps")


def page() -> None:
    """Show the page."""
    st.title(APP.title)
    tabs = st.tabs(["Data", "Train"], key="tab", bind="query-params")
    if tabs[0].open:
        with tabs[0]:
            sections.tab()
    if tabs[1].open:
        with tabs[1]:
            training.tab(APP, datasets.current(APP), FIRST, {"device": tuple(MODULES)})
