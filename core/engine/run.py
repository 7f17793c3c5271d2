"""The run directory: everything that one training was made with, wrote and left off at.

Invariant: one process at a time trains in a run, and whenever it is killed, what lies there reads as a whole run that
can go on from `state.safetensors`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.engine import checkpoint
from core.engine.array import Array
from core.engine.checkpoint import written_whole
from core.engine.errors import CheckpointError, ConfigError, DataError, TileworkError, compose
from core.engine.precision import as_saved
from core.engine.provenance import describe, fingerprint, machine, versions

_RECORD, _CONFIG, _LOCK, _STATE, _METRICS = "run.json", "config.toml", ".lock", "state.safetensors", "metrics.jsonl"
_MODEL = "model.safetensors"
_LOCK_PATIENCE = 1.0  # seconds: whoever lists runs holds the lock for an instant


class Stopped(TileworkError):
    """Training stopped because it was asked to; the run can go on with ``--resume``."""


@dataclass(frozen=True)
class RunSummary:
    """A line of a list of runs.

    Attributes
    ----------
    status : ``running``, ``finished``, ``stopped`` (can be resumed; also after a kill) or ``failed``
    started : UTC, as in ``2026-11-22T17:00:00+00:00``
    """

    path: Path
    app: str
    status: str
    started: str


class RunDirectory:
    """One run on disk; made by `create`, `resume` or `open`.

    Attributes
    ----------
    path : the directory
    record : what ``run.json`` says: app, command, config, data, versions, machine, status, pid, times, result
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: IO[str] | None = None) -> None:
        self.path = path
        self.record = record
        self._lock = lock
        self._stop = threading.Event()

    @classmethod
    def create(cls, path: Path | str, *, app: str, command: Sequence[str], config: Mapping[str, Any], config_text: str,
               data: Sequence[Path] = (), origin: Mapping[str, Any] | None = None) -> RunDirectory:
        """A new run in a new or empty directory, or in the place of one that failed at once; locked for this process.

        Parameters
        ----------
        app : name of the app
        command : the words of the command line
        config : all settings, the seed among them
        config_text : the same as TOML
        data : input files and folders, whose fingerprints are recorded
        origin : how it was made from another run, for the record

        Raises
        ------
        ConfigError
            If the directory holds anything else, or a run.
        DataError
            If an input does not exist.
        """
        path = Path(path)
        fingerprints = [fingerprint(item) for item in data]
        check_vacant(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
        _remove_parts(path)
        record = {"app": app, "command": list(command), "config": dict(config), "data": fingerprints,
                  "versions": versions(), "machine": machine(), "started": _now(), "resumed": 0,
                  **({"origin": dict(origin)} if origin else {})}
        with written_whole(path / _CONFIG, "w") as file:
            file.write(config_text)
        (path / "report").mkdir(exist_ok=True)
        (path / _METRICS).unlink(missing_ok=True)
        run = cls(path, record, lock)
        run._note(status="running", pid=os.getpid())
        return run

    @classmethod
    def resume(cls, path: Path | str, data: Sequence[Path] = ()) -> RunDirectory:
        """An earlier run, locked for this process, its metrics cut back to the last checkpoint.

        Parameters
        ----------
        data : the input again, to see that it is still the same

        Raises
        ------
        CheckpointError
            If there is no run, or another process trains it.
        DataError
            If the input is not what the run began with.
        """
        path = Path(path)
        record = _read_record(path)
        run = cls(path, record, _take_lock(path))
        try:
            run._check_data([fingerprint(item) for item in data])
            if run.status != "finished":
                _remove_parts(path)
                saved = run.load_state()
                run._cut_metrics(int(saved[1]["metrics_bytes"]) if saved else 0)
                run._note(status="running", pid=os.getpid(), resumed=run.record["resumed"] + 1)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """A run to read from; nobody is kept from training it.

        Raises
        ------
        CheckpointError
            If there is no run.
        """
        return cls(Path(path), _read_record(Path(path)))

    def close(self) -> None:
        """Let others train the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def status(self) -> str:
        return str(self.record.get("status"))

    @contextlib.contextmanager
    def training(self) -> Iterator[RunDirectory]:
        """Around a training: SIGINT and SIGTERM ask it to stop, and the way it ends becomes the status of the run.

        Raises
        ------
        Stopped
            If the training was asked to stop, or interrupted.
        """
        try:
            with self._signals():
                yield self
        except Stopped:
            self._note(status="stopped", ended=_now())
            raise
        except KeyboardInterrupt:
            self._note(status="stopped", ended=_now())
            raise Stopped("interrupted; --resume goes on from the last checkpoint") from None
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk should not hide what happened
                self._note(status="failed", ended=_now(), error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.close()

    def finish(self, result: Mapping[str, Any], refused: int = 0) -> None:
        """Note that the training is done, its result (numbers and texts by name) and how many items were refused."""
        self.record.pop("error", None)
        self._note(status="finished", ended=_now(), result=dict(result), refused=refused)

    @property
    def stop_requested(self) -> bool:
        """Whether the training should end at the next step."""
        return self._stop.is_set()

    @property
    def is_quantised(self) -> bool:
        """Whether it was made from another run by giving weights fewer bits."""
        return "bits" in self.record.get("origin", {})

    def request_stop(self) -> None:
        """Ask the training to end at the next step, with a checkpoint."""
        self._stop.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread take signals
            return

        def stop(number: int, _: Any) -> None:
            if self.stop_requested:  # asked twice: do not wait for the step
                raise KeyboardInterrupt
            self.request_stop()

        former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _note(self, **fields: Any) -> None:
        self.record.update(fields)
        with written_whole(self.path / _RECORD, "w") as file:
            json.dump(plain(self.record), file, indent=2)

    @property
    def config_path(self) -> Path:
        return self.path / _CONFIG

    @property
    def model_path(self) -> Path:
        return self.path / _MODEL

    @property
    def state_path(self) -> Path:
        return self.path / _STATE

    @property
    def metrics_path(self) -> Path:
        return self.path / _METRICS

    @property
    def report_path(self) -> Path:
        return self.path / "report"

    def save_model(self, model: Any, metadata: Mapping[str, str] | None = None) -> None:
        """Write the arrays of a trained model, and texts such as units and scales, to ``model.safetensors``."""
        checkpoint.save_tree(self.model_path, model, metadata)

    def load_model(self, like: Any) -> Any:
        """The trained model, of the structure of `like` or its quantised form; raises as `checkpoint.tree_of`."""
        arrays, _ = checkpoint.load(self.model_path)
        return checkpoint.tree_of(arrays, as_saved(like, arrays), source=str(self.model_path))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """One more line of ``metrics.jsonl``."""
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(values)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl``, except one that is still being written."""
        try:
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def save_state(self, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
        """Write the one file that a resumed training needs."""
        length = 0
        with contextlib.suppress(FileNotFoundError), open(self.metrics_path, "rb") as file:
            os.fsync(file.fileno())  # the length in the state must never be ahead of the disk
            length = os.fstat(file.fileno()).st_size
        checkpoint.save(self.state_path, arrays, {**metadata, "metrics_bytes": str(length)})

    def load_state(self) -> tuple[dict[str, Array], dict[str, str]] | None:
        """What `save_state` wrote last; None before the first time."""
        return checkpoint.load(self.state_path) if self.state_path.exists() else None

    def _cut_metrics(self, length: int) -> None:
        with contextlib.suppress(FileNotFoundError), open(self.metrics_path, "r+b") as file:
            file.truncate(min(length, os.fstat(file.fileno()).st_size))

    def _check_data(self, found: list[dict[str, Any]]) -> None:
        known = self.record["data"]
        if [item["sha256"] for item in known] == [item["sha256"] for item in found]:
            return
        raise DataError(compose(f"the data is not what the run {self.path} began with", [
            ("found", "; ".join(describe(item) for item in found)),
            ("expected", "; ".join(describe(item) for item in known)),
            ("hint", "give --resume the same files, or start a new run for new data"),
        ]))


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite become null, paths and other objects text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def runs(folder: Path | str) -> list[RunSummary]:
    """The runs directly under a folder, latest first."""
    found = []
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        with contextlib.suppress(CheckpointError):
            record = _read_record(path)
            status = str(record.get("status"))
            if status == "running" and not _is_locked(path):
                status = "stopped"  # it was killed
            found.append(RunSummary(path, str(record.get("app")), status, str(record.get("started"))))
    return sorted(found, key=lambda run: (run.started, run.path.name), reverse=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(compose(f"there is no run in {path}", [
            ("found", "no run.json" if path.is_dir() else "no such directory"),
            ("hint", "a run is made by `tilework APP train DATA --out RUN`; --resume goes on with one")])) from None
    except ValueError as error:
        raise CheckpointError(f"{path / _RECORD} is damaged: {error}") from error
    if not isinstance(record, dict) or "config" not in record:
        raise CheckpointError(f"{path / _RECORD} is not the record of a run")
    return record


def is_part_of_a_run(path: Path) -> bool:
    """Whether a path is that of a file that a run consists of."""
    return path.name in (_RECORD, _CONFIG, _STATE, _METRICS, _MODEL) and (path.parent / _RECORD).exists()


def check_vacant(path: Path) -> None:
    """Raise `ConfigError` if a directory for a new run holds anything else, or a run."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path} is a file; a run needs a directory")
    is_spent = _failed_at_once(path)
    if (path / _RECORD).exists() and not is_spent:
        raise ConfigError(f"{path} holds a run already; go on with it by --resume, or choose another --out")
    # A process killed while it made the run leaves these and no record.
    ours = {_LOCK, _CONFIG, "report", *((_RECORD, _METRICS) if is_spent else ())}
    foreign = sorted(item.name for item in path.iterdir() if item.name not in ours and not _is_part(item)) \
        if path.exists() else []
    if foreign:
        raise ConfigError(compose(f"{path} is not empty", [
            ("found", ", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else "")),
            ("hint", "choose a new directory for --out")]))


def _failed_at_once(path: Path) -> bool:
    """Whether a run failed before its first checkpoint, as one with a wrong name of a column does: nothing is lost."""
    if not (path / _RECORD).exists() or (path / _STATE).exists():
        return False
    return _read_record(path).get("status") == "failed"


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(checkpoint.PART)


def _remove_parts(path: Path) -> None:
    """Remove what killed processes left half written; only the holder of the lock may."""
    for item in path.rglob("*"):
        if _is_part(item):
            item.unlink(missing_ok=True)


def _take_lock(path: Path) -> IO[str]:
    """The lock of a run; the system frees it when the process ends, however it ends."""
    lock = open(path / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115, held until the run is closed
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                lock.close()
                raise CheckpointError(f"the run {path} is being trained by {holder}; wait for it or stop it") from None
            time.sleep(0.02)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock


def _is_locked(path: Path) -> bool:
    try:
        with open(path / _LOCK, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
