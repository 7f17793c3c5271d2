"""Outputs: files and folders that a command makes in many steps.

Invariant: an output appears whole or not at all, and never in the place of another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.engine.checkpoint import PART, make_folder_for, sync_folder
from core.engine.errors import ConfigError


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A path of the same name to make a file or folder at; it becomes `out` when the block ends, or is dropped.

    Raises
    ------
    ConfigError
        If there is something at `out`, or a file in the place of its folder.
    """
    if os.path.lexists(out):
        raise ConfigError(f"--out {out} exists; choose another name, or remove it")
    make_folder_for(out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=PART, dir=out.parent))
    try:
        made = folder / out.name
        yield made
        if made.is_file():
            with open(made, "rb") as file:
                os.fsync(file.fileno())
        os.rename(made, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
