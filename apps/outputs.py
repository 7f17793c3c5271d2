"""Outputs: what a command must not write over.

Invariant: no command replaces its own input, a file that a run consists of, or what is neither a file nor a folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.engine.errors import ConfigError


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise `ConfigError` if a file or folder that will be written would take such a place."""
    from core.engine.run import is_part_of_a_run  # slow to import

    if not path.exists():
        return
    if any(given.exists() and path.samefile(given) for given in inputs):
        raise ConfigError(f"{path} is the input, which would be lost; write to another place")
    if is_part_of_a_run(path):
        raise ConfigError(f"{path} is a part of the run {path.parent}; write to another place")
    if not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path} is neither a file nor a folder; write to another place")


def files_of(source: str) -> list[Path]:
    """Where an input may lie that is a path, or an address of something in it, such as ``FILE.h5:dataset``."""
    return [Path(part) for part in (source, source.rpartition(":")[0]) if part]
