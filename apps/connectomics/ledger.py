"""The ledger of a blocked run: a folder that says what is computed, by whom, and what is done.

    ledger.json         what is computed: the function, its arguments, the grid
    claims/00012.lock   locked while a process computes block 12; a line for each process that began it
    blocks/00012.npz    what it found, compressed, with checksums

Invariant: a block is done exactly when its file has its final name, and while the process that computes it lives,
nobody else computes it. Locks are `flock`: the kernel frees them however their process ends, so that a block whose
process was killed can be claimed at once, and no clock is trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from apps.connectomics.blocks import Grid
from core.engine.checkpoint import PART, written_whole
from core.engine.errors import CheckpointError, ConfigError, compose

_RECORD, _LOCK, _CLAIMS, _BLOCKS = "ledger.json", ".lock", "claims", "blocks"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError, RuntimeError)
_LONGEST_SHOWN = 200
_FASTEST = 1
"""Level of zlib; it makes labels of neurites thirty times smaller, its default sixty times in twice the time."""


@dataclass(frozen=True)
class Task:
    """What is computed, which decides the results alone.

    Attributes
    ----------
    function : dotted path, such as ``apps.connectomics.segment:segment_block``; called with a `Block` and the
        arguments, gives arrays by name; if there are ``labels``, they are u32[z, y, x] of the block's box
    arguments : all that the results depend on, as JSON can hold it: addresses, settings, the digest of a model
    grid : the blocks
    """

    function: str
    arguments: Mapping[str, Any]
    grid: Grid

    def record(self) -> dict[str, Any]:
        """As JSON says it."""
        grid = {"shape": self.grid.shape, "core": self.grid.core, "overlap": self.grid.overlap}
        record: dict[str, Any] = json.loads(json.dumps(
            {"function": self.function, **grid, "arguments": dict(self.arguments)}, allow_nan=False))
        return record

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Task:
        """The task of a record."""
        grid = Grid(*(tuple(record[name]) for name in ("shape", "core", "overlap")))
        return cls(record["function"], record["arguments"], grid)


class Ledger:
    """The ledger in a folder; any number of processes and machines that share the folder may hold one.

    Parameters
    ----------
    folder : of the blocked run, and of nothing else
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, task: Task) -> None:
        """Write down what is to be computed, or see that it is what the folder was begun with.

        Raises
        ------
        ConfigError
            If the folder was begun with another task or holds anything else, or its file system has no locks.
        """
        self._refuse_foreign()
        for name in (_CLAIMS, _BLOCKS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with open(self.folder / _LOCK, "a", encoding="utf-8") as lock:
            self._take(lock, wait=True)
            if (self.folder / _RECORD).exists():
                self._refuse_other(task)
                return
            with written_whole(self.folder / _RECORD, "w") as file:
                json.dump(task.record(), file, indent=2)

    @functools.cached_property
    def task(self) -> Task:
        """What is computed.

        Raises
        ------
        CheckpointError
            If the folder holds no ledger.
        """
        try:
            return Task.parse(json.loads((self.folder / _RECORD).read_text(encoding="utf-8")))
        except OSError as error:
            raise CheckpointError(compose(f"there is no blocked run in {self.folder}", [
                ("found", f"{_RECORD}: {error.strerror}"),
                ("hint", "all machines must see the folder under this path")])) from None
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{self.folder / _RECORD} is damaged: {error}") from error

    def done(self, number: int) -> bool:
        """Whether the results of a block are there."""
        return self._results(number).exists()

    def undone(self) -> list[int]:
        """The blocks that are not done, ascending."""
        names = set(os.listdir(self.folder / _BLOCKS))
        return [number for number in range(len(self.task.grid)) if self._results(number).name not in names]

    @contextlib.contextmanager
    def claim(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Claim a block while the context lasts; gives whether it is to be computed now, here.

        It is not if it is done, or if another process computes it.

        Parameters
        ----------
        wait : whether to wait for a process that computes it, to take over if that is killed
        """
        if self.done(number):
            yield False
            return
        with open(self._claims(number), "a", encoding="utf-8") as lock:
            ours = self._take(lock, wait) and not self.done(number)
            if ours:
                self._remove_parts(number)
                lock.write(f"process {os.getpid()} on {platform.node()}\n")
                lock.flush()
            yield ours

    def claimants(self, number: int) -> list[str]:
        """The processes that began a block, first to last; more than one if others were killed meanwhile."""
        try:
            return self._claims(number).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def save(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Note the results of a block, which thereby is done; only who has claimed it may."""
        with written_whole(self._results(number)) as file, \
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_FASTEST) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    def load(self, number: int, name: str) -> NDArray[Any]:
        """One of the results of a block, by name.

        Raises
        ------
        CheckpointError
            If it is not done, or its file is damaged.
        """
        path = self._results(number)
        try:
            with zipfile.ZipFile(path) as archive:
                # It is read as a whole first, because only then its checksum is known to be right.
                content = io.BytesIO(archive.read(f"{name}.npy"))
            return np.lib.format.read_array(content, allow_pickle=False)
        except FileNotFoundError:
            raise CheckpointError(f"block {number} of the blocked run in {self.folder} is not done") from None
        except _DAMAGED as error:
            raise CheckpointError(compose(f"{path} is damaged", [
                ("found", str(error)),
                ("hint", "remove the file and run again; no other block is computed again")])) from error

    def _results(self, number: int) -> Path:
        return self.folder / _BLOCKS / f"{number:05}.npz"

    def _claims(self, number: int) -> Path:
        return self.folder / _CLAIMS / f"{number:05}.lock"

    def _take(self, lock: IO[str], wait: bool) -> bool:
        """Lock a file until it is closed; gives whether it is locked."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise ConfigError(compose(f"blocks cannot be claimed in {self.folder}", [
                ("found", f"a file system without locks: {error.strerror}"),
                ("hint", "choose a folder on another file system, or have this one mounted with locks")])) from error
        return True

    def _remove_parts(self, number: int) -> None:
        """Remove what killed processes left half written of a block that is claimed."""
        if self.claimants(number):
            for part in self._results(number).parent.glob(f".{self._results(number).name}.*{PART}"):
                part.unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        """Refuse a folder of something else; a process that was killed while it began leaves these and no record."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file; a blocked run needs a folder to work in")
        names = sorted(item.name for item in self.folder.iterdir()) if self.folder.exists() else []
        foreign = [name for name in names if name not in (_LOCK, _CLAIMS, _BLOCKS) and not name.endswith(PART)]
        if foreign and _RECORD not in names:
            raise ConfigError(compose(f"{self.folder} is not empty", [
                ("found", ", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else "")),
                ("hint", "choose a new folder for the blocked run")]))

    def _refuse_other(self, task: Task) -> None:
        was, now = self.task.record(), task.record()
        arguments = was.pop("arguments"), now.pop("arguments")
        if rows := [*_differences(was, now), *_differences(*arguments)]:
            raise ConfigError(compose(f"the blocked run in {self.folder} began with other settings", [
                *rows, ("hint", "ask for the same, or choose a new folder")]))


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, f"{_shown(now.get(name))} is asked for, the run began with {_shown(was.get(name))}")
            for name in {**was, **now} if was.get(name) != now.get(name)]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} …"
