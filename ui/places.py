"""Where runs and data may lie: folders that the environment names, and nothing outside them.

Invariant: a path that comes from the browser is opened only after `inside` or `new_run` gave it back.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.engine.checkpoint import written_whole
from core.engine.errors import ConfigError, DataError

LARGEST_UPLOAD = 50 * 2**20
LONGEST_LISTING, DEEPEST_LISTING = 300, 3
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def runs_root() -> Path:
    """The folder of runs: TILEWORK_RUNS, or ``runs`` in the working directory."""
    return Path(os.environ.get("TILEWORK_RUNS") or "runs").absolute()


def own_data() -> Path:
    """Where uploads and sample data sets are kept."""
    return runs_root() / ".data"


def job_folder(run: Path) -> Path:
    """Where the process that trains a run has its log."""
    return run.parent / ".jobs" / run.name


def data_roots() -> tuple[Path, ...]:
    """Folders that data is read from: our own, the working directory, and those of TILEWORK_DATA."""
    named = os.environ.get("TILEWORK_DATA", "").split(os.pathsep)
    return tuple(dict.fromkeys([own_data(), Path.cwd(), *(Path(name).absolute() for name in named if name)]))


def inside(text: str, roots: Sequence[Path]) -> Path:
    """The existing file of a path, absolute or relative to one of the roots, links resolved.

    Raises
    ------
    DataError
        If there is none inside the roots; a file outside them gives the same message as one that does not exist.
    """
    for root in roots:
        try:
            # Strictly: behind a loop of links, resolve would leave later links as they are.
            path, whole = (root / text).resolve(strict=True), root.resolve(strict=True)
            hidden = any(part.startswith(".") for part in path.relative_to(whole).parts)
            if not hidden and path.is_file():
                return path
        except (OSError, RuntimeError, ValueError):  # not there, too long, a loop, a null character, outside
            continue
    shown = "".join(character if character.isprintable() else "?" for character in text[:200])
    raise DataError(f"there is no data file {shown!r} in {', '.join(map(str, roots))}. Name further folders in the "
                    "environment variable TILEWORK_DATA before the web app starts, or upload the file.")


def data_files(suffixes: Sequence[str]) -> list[str]:
    """Data files at most `DEEPEST_LISTING` folders below the roots, at most `LONGEST_LISTING` of them."""
    found: dict[str, None] = {}
    for root in data_roots():
        for path in _walk(root):
            if path.name.lower().removesuffix(".gz").endswith(tuple(suffixes)):
                found[str(path)] = None
            if len(found) == LONGEST_LISTING:
                return list(found)
    return list(found)


def _walk(root: Path) -> Iterator[Path]:
    runs = str(runs_root())
    for folder, folders, files in os.walk(root):
        if len(Path(folder).relative_to(root).parts) >= DEEPEST_LISTING:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__"))
                            and os.path.join(folder, name) != runs)
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def keep_upload(name: str, content: bytes, suffixes: Sequence[str]) -> Path:
    """Write an upload under a harmless name that holds its digest; gives the path.

    Raises
    ------
    DataError
        If it is too large or of another format.
    """
    if len(content) > LARGEST_UPLOAD:
        raise DataError(f"the upload has {len(content) / 2**20:.0f} MB, the limit is {LARGEST_UPLOAD // 2**20} MB; "
                        "put the file into a data folder and give its path")
    lower = name.lower()
    packed = ".gz" if lower.endswith(".gz") else ""
    suffix = next((suffix for suffix in suffixes if lower.removesuffix(".gz").endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"the upload must be one of {', '.join(suffixes)}, gzipped or not")
    stem = re.sub(r"[^a-z0-9]+", "-", lower.removesuffix(".gz").removesuffix(suffix)).strip("-")[:40] or "upload"
    path = own_data() / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}{packed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, "wb") as file:
        file.write(content)
    return path


def new_run(name: str) -> Path:
    """The directory of a new run; raises `ConfigError` for a name that is impossible or taken."""
    if not _RUN_NAME.fullmatch(name) or ".." in name:
        raise ConfigError("a run's name has at most 64 letters, digits, dots, hyphens and underscores, and begins with "
                          "a letter or a digit")
    path = runs_root() / name
    if (path / "run.json").exists():
        raise ConfigError(f"there is a run named {name} already; choose another name")
    return path


def free_name(stem: str) -> str:
    """A name for a run that is not taken, such as ``molecules-3``."""
    number = 1
    while (path := runs_root() / f"{stem}-{number}").exists() or job_folder(path).exists():
        number += 1
    return path.name
