"""Outputs: what a command must not write over.

Invariant: no command replaces its own input, a file that a run consists of, or what is neither a file nor a folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.engine.errors import ConfigError

_OF_A_RUN = {"run.json", "config.toml", "model.safetensors", "state.safetensors", "metrics.jsonl"}


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise `ConfigError` if a file or folder that will be written would take such a place."""
    if not path.exists():
        return
    if any(given.exists() and path.samefile(given) for given in inputs):
        raise ConfigError(f"{path} is the input, which would be lost; write to another place")
    if path.name in _OF_A_RUN and (path.parent / "run.json").exists():
        raise ConfigError(f"{path} is a part of the run {path.parent}; write to another place")
    if not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path} is neither a file nor a folder; write to another place")


def files_of(source: str) -> list[Path]:
    """Where an input may lie that is a path, or an address of something in it, such as ``FILE.h5:dataset``."""
    return [Path(part) for part in (source, source.rpartition(":")[0]) if part]
