"""The tab Data: which file, what is in it, what would be refused, and one molecule through every stage.

Invariant: rows are judged by the readers that the training uses, so that what is refused here is refused there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import streamlit as st

from apps.app import load, settings
from apps.molecules.app import APP
from apps.molecules.config import MoleculesConfig
from apps.molecules.formats import FORMATS
from apps.molecules.readers import Record, Refusal, columns, read_rows, text_column
from core.engine.errors import DataError, TileworkError
from ui import datasets, forms, plots
from ui.datasets import Version
from ui.molecules import drawings
from ui.session import plain, show_error

SUFFIXES = tuple(FORMATS)
LISTED = tuple(suffix for suffix in FORMATS if suffix != ".txt")
"""Any .txt may be typed, but a listing of them would be mostly other things."""

LOOKED_AT = 20  # rows that tell which columns hold numbers
CHECKED = 2000  # rows that are judged without being asked to
SHOWN = 6
LONGEST_LIST = 500


@dataclass(frozen=True)
class Columns:
    """What a file has: the column of the molecules, and those whose first values are numbers."""

    molecule: str
    numeric: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """How the first rows of a file fared.

    Attributes
    ----------
    rows, refused : how many were looked at, and how many of them were refused
    refusals : the first of them
    first : text of the first usable molecules
    values : of the target, where it is known
    whole : whether these are all rows of the file
    """

    rows: int
    refused: int
    refusals: tuple[Refusal, ...]
    first: tuple[str, ...]
    values: tuple[float, ...]
    whole: bool


def tab() -> None:
    """Show the tab."""
    path = datasets.choose(APP, LISTED)
    if path is None:
        st.info("Choose a data set to begin: CSV with a column of SMILES or reactions, SDF or XYZ. With none at hand, "
                "take the sample.")
        return
    version = datasets.version(path)
    try:
        found = columns_of(version)
        target = _target(found)
        whole = st.session_state.get("whole file") == version
        check = check_rows(version, target, whole)
        _summary(path, found, check, version)
        _refusals(check)
        st.subheader("First molecules")
        drawings.grid(check.first, [plain(text) for text in check.first])
        if target:
            if check.values:
                st.subheader(f"Values of {plain(target)}")
                st.altair_chart(plots.distribution(check.values, target), alt=f"Distribution of {target}")
            _stages(version, target)
    except TileworkError as error:
        show_error(error)


@st.cache_data(show_spinner="Reading the file", max_entries=50)
def columns_of(version: Version) -> Columns:
    """The columns of a file; raises `DataError` if it cannot be read."""
    path = Path(version[0])
    molecule = text_column(path)
    names = [name for name in columns(path) if name != molecule]
    looked = [row for row in islice(read_rows(path, extras=names), LOOKED_AT) if isinstance(row, Record)]
    return Columns(molecule, tuple(name for name in names if _is_numeric([row.extras[name] for row in looked])))


def _is_numeric(values: list[str]) -> bool:
    """Whether some values are numbers, and all others blank."""
    given = [value for value in values if value.strip()]
    try:
        return bool(given) and all(math.isfinite(float(value)) for value in given)
    except ValueError:
        return False


@st.cache_data(show_spinner="Checking the rows", max_entries=50)
def check_rows(version: Version, target: str, whole: bool) -> Check:
    """Judge the rows of a file, the first `CHECKED` of them or all."""
    rows, refused, ended = 0, 0, True
    refusals: list[Refusal] = []
    first: list[str] = []
    values: list[float] = []
    for rows, row in enumerate(read_rows(version[0], targets=(target,) if target else ()), 1):
        if isinstance(row, Refusal):
            refused += 1
            refusals += [row] if len(refusals) < LONGEST_LIST else []
        else:
            first += [row.text] if len(first) < SHOWN else []
            values += [float(row.targets[0])] if target and math.isfinite(row.targets[0]) else []
        if rows == CHECKED and not whole:
            ended = False
            break
    if not rows:
        raise DataError(f"{Path(version[0]).name} has no rows")
    return Check(rows, refused, tuple(refusals), tuple(first), tuple(values), ended)


def _target(found: Columns) -> str:
    """The column that is to be learned; the form of the training starts from the same choice."""
    if not found.numeric:
        st.warning(f"Besides {plain(found.molecule)} there is no column of numbers. The file can be predicted, but not "
                   "learned from.")
        return ""
    targets = next(item for item in settings(MoleculesConfig) if item.name == "targets")
    chosen = forms.widget(targets, f"{APP.name}-form", found.numeric)
    if not chosen:
        st.caption("Choose what is to be learned, to see its values and a molecule on its way through every stage.")
    return chosen[0] if chosen else ""


def _summary(path: Path, found: Columns, check: Check, version: Version) -> None:
    first, second, third, fourth = st.columns(4)
    first.metric("Rows" if check.whole else "Rows checked", f"{check.rows:,}")
    second.metric("Usable", f"{check.rows - check.refused:,}")
    third.metric("Refused", f"{check.refused:,}")
    fourth.metric("Molecules are in", plain(found.molecule))
    if not check.whole and st.button(f"Check all rows of {path.name}"):
        st.session_state["whole file"] = version
        st.rerun()


def _refusals(check: Check) -> None:
    st.subheader("What would be refused")
    if not check.refused:
        st.success("Nothing: every row " + ("is usable." if check.whole else f"of the first {check.rows:,} is usable."),
                   icon=":material/check_circle:")
        return
    st.write(f"{check.refused:,} of {check.rows:,} rows. The others are used; a training lists what it refused.")
    st.dataframe([{"Row": row.row, "Reason": row.reason, "Text": row.text} for row in check.refusals], hide_index=True,
                 height="content" if len(check.refusals) < 10 else 400,
                 column_config={"Row": st.column_config.NumberColumn(width="small"),
                                "Reason": st.column_config.TextColumn(width="large")})


def _stages(version: Version, target: str) -> None:
    st.subheader("One molecule through every stage")
    st.table([{"Stage": name, "What it is there": plain(shape)} for name, shape in stages(version, target).items()],
             hide_index=True)
    st.caption("With the default settings. Shapes are in square brackets; the network is only traced, not run.")


@st.cache_data(show_spinner="Tracing the network", max_entries=50)
def stages(version: Version, target: str) -> dict[str, str]:
    """The dry run of the first usable row."""
    shapes = load(APP.dry_run)(data=(Path(version[0]),), config=MoleculesConfig(targets=(target,)))
    return {name: str(shape) for name, shape in shapes.items()}
