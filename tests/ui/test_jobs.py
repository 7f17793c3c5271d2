"""Jobs: processes that are found again through their files, stopped, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apps.molecules.app import APP
from apps.molecules.config import MoleculesConfig
from core.engine.errors import ConfigError
from tests.ui.conftest import found, wait
from ui import jobs

SMALL = {"hidden": 8, "head_hidden": 8, "depth": 2, "descriptors": False}


def config(epochs: int) -> MoleculesConfig:
    return MoleculesConfig(targets=("tpsa",), epochs=epochs, **SMALL)


def test_a_training_runs_stops_and_goes_on(ready: Path) -> None:
    data = ready / "data" / "nci_tpsa.csv"
    job = jobs.train(APP, config(400), data, "long")
    assert found("long").status == "starting" and job.alive
    with pytest.raises(ConfigError, match="is being started already"):
        jobs.train(APP, config(400), data, "long")
    wait(lambda: (ready / "runs/long/metrics.jsonl").exists())
    running = found("long")
    assert running.status == "running" and running.record["pid"] == job.pid
    assert jobs.stop(running)
    wait(lambda: not found("long").active)
    stopped = found("long")
    assert stopped.status == "stopped" and stopped.resumable and not jobs.stop(stopped)
    jobs.resume(stopped)
    assert found("long").active
    wait(lambda: found("long").record.get("resumed") == 1 and found("long").status == "running")
    assert jobs.stop(found("long"))


def test_a_training_that_was_killed_can_be_resumed(ready: Path) -> None:
    job = jobs.train(APP, config(400), ready / "data" / "nci_tpsa.csv", "killed")
    wait(lambda: (ready / "runs/killed/metrics.jsonl").exists())
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: not found("killed").active)
    assert found("killed").status == "stopped" and found("killed").resumable


def test_bad_input_fails_with_its_reason(ready: Path) -> None:
    bad = ready / "bad.csv"
    bad.write_text("smiles,tpsa\nnonsense,1\n")
    jobs.train(APP, config(2), bad, "bad")
    wait(lambda: not found("bad").active)
    assert found("bad").status == "failed" and "no usable row" in found("bad").failure


def test_a_run_of_the_terminal_is_found_too(ready: Path) -> None:
    training = found("ready")
    assert (training.status, training.app, training.job, training.failure) == ("finished", "molecules", None, "")


def test_another_process_of_the_same_number_is_left_alone(ready: Path) -> None:
    """A record may name a number that the system gave to someone else since."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = json.loads((ready / "runs/ready/run.json").read_text())
        (ready / "runs/ready/run.json").write_text(json.dumps(record | {"status": "running", "pid": other.pid}))
        folder = ready / "runs" / ".jobs" / "ready"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"pid": other.pid, "words": ["molecules", "train"], "started": ""}))
        assert found("ready").status == "stopped" and not jobs.find(folder).alive
        assert not jobs.stop(found("ready"))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "words": [], "started": ""}', "null"])
def test_a_damaged_record_is_no_job(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert jobs.find(tmp_path) is None


def test_words_are_no_shell(folders: Path) -> None:
    odd = f"{folders}/a; touch {folders}/b $(touch {folders}/c)"
    job = jobs.start(folders / "job", ["molecules", "sample", "--out", odd])
    wait(lambda: not job.alive)
    assert not (folders / "b").exists() and not (folders / "c").exists()
