"""Long work as processes of their own: started through our command line, and found again through their files.

Invariant: nothing about a job lives in the server's memory alone; a new page, browser or server sees the same jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apps
from apps.app import App, dump_config
from core.engine.checkpoint import written_whole
from core.engine.errors import CheckpointError, ConfigError
from core.engine.run import RunDirectory, runs
from ui import places

_JOB, _OUTPUT, _LOG = "job.json", "output.json", "log.txt"
_LONGEST_MESSAGE = 4000
ACTIVE = ("starting", "running")


@dataclass(frozen=True)
class Job:
    """A command line that runs, or ran, in the background.

    Attributes
    ----------
    folder : where its record, output and log are
    pid : process id
    words : the command line after ``python -m apps.cli``
    started : UTC
    """

    folder: Path
    pid: int
    words: tuple[str, ...]
    started: str

    @property
    def alive(self) -> bool:
        """Whether the process still runs; a process that only inherited the number does not count."""
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[:-1]
            return told[-len(self.words):] == [os.fsencode(word) for word in self.words]
        return False

    @property
    def outcome(self) -> dict[str, Any] | None:
        """The JSON object that the command printed at its end; None before, and if it was killed."""
        try:
            outcome = json.loads((self.folder / _OUTPUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return outcome if isinstance(outcome, dict) else None

    @property
    def failure(self) -> str:
        """Why an ended job failed; empty if it did not."""
        outcome = self.outcome
        if outcome is not None:
            return str(outcome.get("error", ""))
        with contextlib.suppress(OSError):
            log = (self.folder / _LOG).read_text(encoding="utf-8", errors="replace")
            if log.strip():
                return f"it ended without a result; its last words were\n{log[-_LONGEST_MESSAGE:].strip()}"
        return "it was ended from outside, or the machine went down"


def start(folder: Path, words: Sequence[str]) -> Job:
    """Run a command line in the background; it outlives the server.

    Parameters
    ----------
    folder : for the job's files; those of an earlier job in it are replaced
    words : the command line after ``tilework``; paths in it should be absolute
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = (*words, "--json")
    with open(folder / _OUTPUT, "wb") as output, open(folder / _LOG, "wb") as log:
        # -P keeps a folder `apps` in the working directory from being taken for ours.
        process = subprocess.Popen([sys.executable, "-P", "-m", "apps.cli", *whole], stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=log, env=_environment(), start_new_session=True)
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie
    job = Job(folder, process.pid, whole, datetime.now(UTC).isoformat(timespec="seconds"))
    with written_whole(folder / _JOB, "w") as file:
        json.dump({"pid": job.pid, "words": job.words, "started": job.started}, file)
    return job


def _environment() -> dict[str, str]:
    """Ours, with the place that this package was loaded from, unless Python looks there anyway."""
    root = str(Path(apps.__file__).resolve().parents[1])
    environment = dict(os.environ)
    if root != sysconfig.get_paths()["purelib"]:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    return environment


def find(folder: Path) -> Job | None:
    """The job whose files are in a folder."""
    try:
        record = json.loads((folder / _JOB).read_text(encoding="utf-8"))
        return Job(folder, int(record["pid"]), tuple(record["words"]), str(record["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Training:
    """A training, whoever started it.

    Attributes
    ----------
    path : of the run
    status : ``starting`` (there is no run yet), ``running``, ``finished``, ``stopped`` (can be resumed) or ``failed``
    started : UTC
    record : what ``run.json`` says; empty before there is one
    job : our process, if it was started here
    """

    path: Path
    app: str
    status: str
    started: str
    record: Mapping[str, Any] = field(default_factory=dict)
    job: Job | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def failure(self) -> str:
        """Why it failed, in words."""
        if self.job is not None and self.job.failure:
            return self.job.failure
        return str(self.record.get("error", ""))

    @property
    def resumable(self) -> bool:
        """Whether `resume` can go on with it; what quantize began goes on by its own command."""
        begun = bool(self.record) and "bits" not in self.record.get("origin", {})
        return begun and self.status in ("stopped", "failed")


def trainings(app: str | None = None) -> list[Training]:
    """The trainings under the root of runs, latest first.

    Parameters
    ----------
    app : name of an app; None for all
    """
    root = places.runs_root()
    found = []
    for run in runs(root):
        with contextlib.suppress(CheckpointError):
            record = RunDirectory.open(run.path).record
            job = find(places.job_folder(run.path))
            status = run.status
            if status in ("stopped", "failed") and job is not None and job.alive:
                status = "starting"  # it is about to go on
            found.append(Training(run.path, run.app, status, run.started, record, job))
    known = {training.name for training in found}
    for folder in sorted((root / ".jobs").glob("*")):
        job = find(folder) if folder.name not in known else None
        if job is not None:
            status = "starting" if job.alive else "failed"
            found.append(Training(root / folder.name, job.words[0], status, job.started, {}, job))
    found.sort(key=lambda training: (training.started, training.name), reverse=True)
    return [training for training in found if app in (None, training.app)]


def train(app: App, config: Any, data: Path, name: str) -> Job:
    """Start a training as the run `name`; raises `ConfigError` for a name that is impossible or taken."""
    path = places.new_run(name)
    folder = places.job_folder(path)
    former = find(folder)
    if former is not None and former.alive:
        raise ConfigError(f"the run {name} is being started already")
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.toml"
    with written_whole(config_file, "w") as file:
        file.write(dump_config(config))
    return start(folder, [app.name, "train", str(data), "--config", str(config_file), "--out", str(path)])


def resume(training: Training) -> Job:
    """Go on with a stopped training."""
    data = [str(item["path"]) for item in training.record["data"]]
    words = [training.app, "train", *data, "--out", str(training.path), "--resume"]
    return start(places.job_folder(training.path), words)


def stop(training: Training) -> bool:
    """Ask a training to stop with a checkpoint; gives whether there was a process to ask."""
    pids = [int(training.record["pid"])] if isinstance(training.record.get("pid"), int) else []
    pids += [training.job.pid] if training.job is not None and training.job.alive else []
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        with os.fdopen(handle):
            # Asked after the handle is taken, so that it is this process and no later one of the same number.
            if _trains(pid, training.path) or (training.job is not None and pid == training.job.pid
                                               and training.job.alive):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
                    return True
    return False


def _trains(pid: int, run: Path) -> bool:
    """Whether a process holds the lock of a run open."""
    lock, folder = str((run / ".lock").resolve()), Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):  # the process has ended, or is another user's
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed in between
                if os.readlink(folder / name) == lock:
                    return True
    return False
