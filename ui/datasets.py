"""Choosing a data set: by path under the roots, by a small upload, or the sample that an app brings.

Invariant: what is chosen is a file inside the roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps import commands
from apps.app import App
from core.engine.errors import TileworkError
from ui import places
from ui.session import plain, show_error

Version = tuple[str, int, int]
"""Path, time of change and size of a file; what a cache of its contents is keyed by."""


def choose(app: App, suffixes: Sequence[str]) -> Path | None:
    """Show the ways to a data set; gives the one that is chosen, or None after saying what to do."""
    key = f"{app.name}-data"
    _take_new(key)
    files = listing(suffixes)
    chosen = st.session_state.get(key)
    files = files if not chosen or chosen in files else [chosen, *files]
    chosen = st.selectbox("Data set", files, None, key=key, accept_new_options=True, persist_state="session",
                          placeholder="choose a file, or type its path", format_func=short,
                          help=f"Files in {', '.join(map(str, places.data_roots()))}.")
    with st.expander("Upload a file, or take the sample", expanded=chosen is None):
        left, right = st.columns(2)
        with left:
            _upload(key, suffixes)
        with right:
            _sample(app, key)
    return current(app)


def current(app: App) -> Path | None:
    """The data set that is chosen, if it is still there."""
    chosen = st.session_state.get(f"{app.name}-data")
    if not chosen:
        return None
    try:
        return places.inside(chosen, places.data_roots())
    except TileworkError as error:
        show_error(error)
        return None


def version(path: Path) -> Version:
    """What changes when the file does."""
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def _take_new(key: str) -> None:
    """Choose what an upload or a sample put here in the last pass; a widget cannot be changed once it is shown."""
    new = st.session_state.pop(f"{key}-new", None)
    if new is not None:
        st.session_state[key] = new


def _choose_next(key: str, path: Path) -> None:
    st.session_state[f"{key}-new"] = str(path)
    st.rerun()


def listing(suffixes: Sequence[str]) -> list[str]:
    """Data files under the roots, as they were a few seconds ago at most."""
    return _listing(tuple(suffixes), places.data_roots())


@st.cache_data(ttl=5, show_spinner=False)
def _listing(suffixes: tuple[str, ...], roots: tuple[Path, ...]) -> list[str]:
    """`roots` are named so that other roots are another entry."""
    return places.data_files(suffixes)


def short(path: str) -> str:
    """A path without the root that it lies in."""
    for root in places.data_roots():
        if Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    return path


def _upload(key: str, suffixes: Sequence[str]) -> None:
    upload: Any = st.file_uploader("Upload (up to 50 MB)", key=f"{key}-upload", max_upload_size=50)
    if upload is None or st.session_state.get(f"{key}-taken") == upload.file_id:
        return
    try:
        path = places.keep_upload(upload.name, upload.getvalue(), suffixes)
    except TileworkError as error:
        show_error(error)
        return
    st.session_state[f"{key}-taken"] = upload.file_id
    _choose_next(key, path)


def _sample(app: App, key: str) -> None:
    st.write(f"To try the app: {plain(app.sample.summary)}.")
    if not st.button("Take the sample data set", key=f"{key}-sample", icon=":material/science:"):
        return
    try:
        outcome = commands.sample(app, places.own_data() / app.name, {})
    except TileworkError as error:
        show_error(error)
        return
    _choose_next(key, Path(str(outcome.numbers["file"])))
