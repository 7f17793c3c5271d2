"""Fixtures of the web app's tests: folders of their own, a trained run, and a server on a free port.

Invariant: nothing is written outside temporary folders, and every process that a test started is ended by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps import cli
from tests.conftest import ROOT
from ui import jobs

MAIN = ROOT / "ui" / "main.py"
SMALL = ("--hidden", "8", "--depth", "2", "--head-hidden", "8")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, in which runs and data lie; trainings left over in it are stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILEWORK_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("TILEWORK_DATA", raising=False)
    yield tmp_path
    for training in jobs.trainings():
        if training.active:
            jobs.stop(training)
            wait(lambda name=training.name: not found(name).active)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample data set and a small finished run ``ready``."""
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["molecules", "sample", "--out", str(folder / "data")]) == 0
    assert cli.main(["molecules", "train", str(folder / "data" / "nci_tpsa.csv"), "--target", "tpsa", "--units",
                     "tpsa=A^2", "--epochs", "2", *SMALL, "--out", str(folder / "runs" / "ready")]) == 0
    return folder


@pytest.fixture
def ready(folders: Path, trained: Path) -> Path:
    """The working folder with a copy of the trained run."""
    shutil.copytree(trained, folders, dirs_exist_ok=True)
    return folders


def wait(condition: Callable[[], object], seconds: float = 120) -> None:
    """Until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def found(name: str) -> jobs.Training:
    """The training of a name."""
    return next(training for training in jobs.trainings() if training.name == name)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The web app's address while it serves the runs and data of a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ, TILEWORK_RUNS=str(folder / "runs"), PYTHONPATH=str(ROOT))
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.headless", "true",
                                   "--server.port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait(lambda: _answers(f"http://127.0.0.1:{port}/_stcore/health", server), 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the server ended"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=1) as answer:
        return bool(answer.status == 200)
    return False
