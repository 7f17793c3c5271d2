"""Items of the input that were refused, listed with their reasons.

Invariant: the list appears whole or not at all, and without refusals there is none.
"""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

from core.engine.checkpoint import written_whole
from core.engine.errors import ConfigError

LONGEST_TEXT = 500
"""Characters of a refused item that `refused.csv` repeats."""


_COLUMNS = ("row", "reason", "text")


class Refusals:
    """The list of refused items: a CSV file of row, reason and text that appears when the list is closed.

    Parameters
    ----------
    path : the file; without refusals there is none, and an earlier one is removed

    Raises
    ------
    ConfigError
        If a file is there that is no such list.
    """

    def __init__(self, path: Path) -> None:
        if path.is_file() and path.stat().st_size and _first_line(path) != ",".join(_COLUMNS):
            raise ConfigError(f"{path} is not a list of refused items, and would be replaced by one; rename it, or "
                              "choose another --out")
        self.path = path
        self.count = 0
        self._stack = contextlib.ExitStack()
        self._rows: Any = None

    def add(self, row: int | str, reason: str, text: str = "") -> None:
        """Note an item: its number or name in the input, why it was refused, and what it says."""
        if self._rows is None:
            file = self._stack.enter_context(written_whole(self.path, "w"))
            self._rows = csv.writer(file)
            self._rows.writerow(_COLUMNS)
        shown = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
        self._rows.writerow((row, reason, shown.encode("utf-8", "replace").decode()))
        self.count += 1

    def __enter__(self) -> Refusals:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)
        if failure[0] is None and self.count == 0:
            self.path.unlink(missing_ok=True)


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return file.readline(LONGEST_TEXT).strip()
