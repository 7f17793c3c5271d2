"""The web app's first file: settings of the page, and one page an app.

Invariant: it knows the apps by their records alone; the page of an app is ``ui.APP.page``.
A folder named ``pages`` here would be taken by streamlit for scripts to run.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import streamlit as st

from apps.app import apps
from ui import home

ICON = Path(__file__).with_name("icon.svg")  # a named icon would be fetched from elsewhere
ICONS = {"molecules": ":material/hexagon:", "connectomics": ":material/neurology:"}


def main() -> None:
    """Show the page that the address asks for."""
    st.set_page_config(page_title="Tilework", page_icon=ICON, layout="wide")
    pages = [st.Page(importlib.import_module(f"ui.{app.name}.page").page, title=app.title, url_path=app.name,
                     icon=ICONS.get(app.name)) for app in apps()]
    first = st.Page(lambda: home.page(pages), title="Home", icon=":material/home:", url_path="home", default=True)
    st.navigation([first, *pages], position="top").run()


main()
