"""Molecules as pictures.

Invariant: whatever text is given, there is a picture or a sentence, never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from apps.molecules.readers import parse_smiles
from core.engine.errors import DataError
from ui.session import number, plain

COLUMNS = 3
WIDTH, HEIGHT = 300, 190


def svg(text: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """An SVG of a SMILES; raises `DataError` if it is none."""
    molecule = Chem.Mol(parse_smiles(text))
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, molecule)
    drawer.FinishDrawing()
    return drawer.GetDrawingText().split("?>", 1)[-1]


def show(text: str) -> None:
    """The picture of a SMILES, or the text where there is no picture of it."""
    try:
        st.image(svg(text), width="stretch", alt=text)
    except DataError:
        st.markdown(plain(text[:200]))


def grid(texts: Sequence[str], captions: Sequence[str]) -> None:
    """Pictures side by side, each with a line of Markdown under it."""
    for start in range(0, len(texts), COLUMNS):
        columns = st.columns(COLUMNS)
        for column, text, caption in zip(columns, texts[start:start + COLUMNS], captions[start:start + COLUMNS],
                                         strict=False):
            with column, st.container(border=True, height="stretch"):
                show(text)
                st.caption(caption)


def worst(rows: Sequence[dict[str, Any]], unit: str) -> None:
    """Test molecules with the largest errors."""
    grid([row["molecule"] for row in rows], [
        f"Row {plain(str(row['row']))}: measured {number(row['measured'])}, predicted **{number(row['predicted'])}** "
        f"{plain(unit)}" for row in rows])
