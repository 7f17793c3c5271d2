"""Object code of kernels, compiled once per machine and kept on disk, and whatever else is kept beside it.

Invariant: an entry is found by a key that covers everything that shapes its content (see `fingerprint`, `planstore`)
and is used only if that has the digest in its header, so that it is neither stale nor damaged. A hit never imports
numba.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from core import STARTED
from core.accel import fingerprint, objects
from core.accel.objects import ObjectCode
from core.engine.errors import DeviceError, compose

CAPACITY = 512 << 20
"""Bytes that the entries may take; those used least recently go first."""

_MAGIC = b"tilework entry 2\n"
_KINDS = (".kernel", ".plan")
_log = logging.getLogger("tilework.store")
_CLOCK_STEP = 1.0
"""Seconds by which the time of a change may be too early: some file systems count whole ones."""


def address(text: str) -> int:
    """Native address of a compiled kernel.

    The code follows numba's raw convention: ``int32 f(void** result, void** exception, ...)``, the function's own
    arguments behind two scratch slots.

    Parameters
    ----------
    text : Python source that defines the function `kernel`. It may also define ``SIGNATURE``, a numba signature
        (otherwise ``pointer.KERNEL``), and ``FASTMATH``, a set of LLVM flags (otherwise ``objects.FASTMATH``)

    Raises
    ------
    DeviceError
        If others may write to the directory of the store, or numba is needed and missing.
    """
    return default().address(text)


def addresses(texts: Iterable[str]) -> list[int]:
    """Native addresses of the kernels of several texts, in their order."""
    return [address(text) for text in texts]


class Store:
    """A directory of object code, and the code that this process has loaded.

    Parameters
    ----------
    directory : where entries are kept; made with mode 0700 if missing
    capacity : bytes that the entries may take together

    Raises
    ------
    DeviceError
        If the directory belongs to another user or others may write to it.
    OSError
        If the directory cannot be made.
    """

    def __init__(self, directory: Path, capacity: int = CAPACITY) -> None:
        self.directory = directory
        self.capacity = capacity
        self._loaded: dict[str, int] = {}
        self._room = 0  # bytes that entries may yet take, as far as this process knows
        self._lock = threading.Lock()
        _make_private(directory)
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release,
                            after_in_child=self._lock.release)

    def address(self, text: str) -> int:
        """Native address of a compiled kernel; see `store.address`."""
        found = self._loaded.get(text)
        if found is None:
            with self._lock:
                found = self._address(text)
        return found

    def compile(self, text: str) -> None:
        """Compile the kernel of a text, unless it was found by now, and keep it; this process does not load it."""
        with self._lock:
            if self.missing([text]):
                self._compile(text, self._path(text).name)

    def entries(self) -> set[str]:
        """Names of the entries of all kernels in the directory."""
        return {path.name for path in self.directory.glob("*.kernel")}

    def used(self) -> set[str]:
        """Names of the entries of all kernels that this process has loaded."""
        return {self._path(text).name for text in self._loaded}

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those texts, each once, whose kernels this process has not loaded and the directory lacks."""
        return [text for text in dict.fromkeys(texts)
                if text not in self._loaded and not self._path(text).exists()]

    def _path(self, text: str) -> Path:
        return self.directory / f"{fingerprint.key(text, fingerprint.closure(text))}.kernel"

    def _address(self, text: str) -> int:
        """As `address`, for who holds the lock: a kernel loads what it calls."""
        found = self._loaded.get(text)
        if found is None:
            name = self._path(text).name
            body = self.read(name)
            code = self._compile(text, name) if body is None else _code(body)
            found = self._loaded[text] = objects.link(code, self._address)
        return found

    def _compile(self, text: str, name: str) -> ObjectCode:
        code = objects.compile_text(text, name[:12])
        head = json.dumps([code.symbol, code.callees]).encode()
        self.keep(name, head + b"\n" + code.content, map(fingerprint.source, fingerprint.closure(text)))
        return code

    def read(self, name: str) -> bytes | None:
        """The content of an entry, marked as used; None if there is none or it is damaged."""
        return _read(self.directory / name)

    def keep(self, name: str, content: bytes, sources: Iterable[Path]) -> None:
        """Write an entry, unless its content may not belong to its key, since a source of it was edited."""
        if late := edited(sources):  # the process may have imported the file before the edit
            _log.warning("%s is not kept: %s changed after this process began", name, ", ".join(map(str, late)))
            return
        try:
            _write(self.directory / name, content)
            self._room -= len(content)
            if self._room < 0:
                self._prune()
        except OSError as error:
            _log.warning("%s is not kept: %s", name, error)

    def _prune(self) -> None:
        """Remove the entries used least recently if they take too much, and what killed processes left behind.

        Some room is made with them, as looking through a full directory for each new entry would take long.
        """
        entries = []
        for path in self.directory.iterdir():
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # another process removed it first
            if path.suffix in _KINDS:
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif path.suffix == ".part" and status.st_mtime < time.time() - 3600:
                path.unlink(missing_ok=True)
        self._room = self.capacity - sum(size for _, size, _ in entries)
        wanted = self.capacity // 16 if self._room < 0 else 0
        for _, size, path in sorted(entries):
            if self._room >= wanted:
                break
            path.unlink(missing_ok=True)
            self._room += size


def _code(body: bytes) -> ObjectCode:
    """The object code that an entry holds."""
    head, _, content = body.partition(b"\n")
    symbol, callees = json.loads(head)
    return ObjectCode(symbol, tuple(callees), content)


def edited(sources: Iterable[Path]) -> list[Path]:
    """Those files that changed, or went, after this process began to read the program."""
    return [path for path in sources if not path.exists() or path.stat().st_mtime > STARTED - _CLOCK_STEP]


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    magic, digest, body = content[:len(_MAGIC)], content[len(_MAGIC):len(_MAGIC) + 32], content[len(_MAGIC) + 32:]
    return body if magic == _MAGIC and hashlib.sha256(body).digest() == digest else None


def _write(path: Path, body: bytes) -> None:
    """Put an entry in place in one step: other processes see all of it or nothing."""
    descriptor, temporary = tempfile.mkstemp(suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _make_private(directory: Path) -> None:
    """Make the directory, and refuse it if anybody else could plant code in it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DeviceError(compose(f"the kernel cache {directory} is not private", [
            ("found", f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"),
            ("expected", f"owner {os.getuid()}, no write permission for group and others"),
            ("rule", "what lies there runs as native code, so only you may write there"),
            ("hint", f"chmod 700 {directory}, or set TILEWORK_CACHE to a directory of your own"),
        ]))


_default: Store | None = None
_default_lock = threading.Lock()


def default() -> Store:
    """The store of this process: in ``$TILEWORK_CACHE``, the user's cache directory, or else a temporary one."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                try:
                    _default = Store(directory())
                except (OSError, RuntimeError) as error:  # no place to write, or no home
                    _default = Store(_temporary())
                    _log.warning("kernels are kept in %s until the process ends: %s", _default.directory, error)
    return _default


def directory() -> Path:
    """Where the store of this process keeps its entries, unless that place cannot be made."""
    if chosen := os.environ.get("TILEWORK_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "tilework" / "kernels"


def _temporary() -> Path:
    """A directory of this process alone; its forked children leave it in place."""
    directory, owner = Path(tempfile.mkdtemp(prefix="tilework-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return directory
