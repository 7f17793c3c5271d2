"""Run directories: creation, locks, status, resuming, and the files in them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.engine.array import as_array
from core.engine.errors import CheckpointError, ConfigError, DataError
from core.engine.provenance import fingerprint
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory, Stopped, plain, runs

ROOT = Path(__file__).parents[2]


def create(path: Path, data: tuple[Path, ...] = ()) -> RunDirectory:
    return RunDirectory.create(path, app="toy", command=["tilework", "toy"], config={"seed": 3, "file": Path("x")},
                               config_text="seed = 3\n", data=data)


def test_a_new_run_records_where_it_comes_from(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("1,2\n")
    with create(tmp_path / "run", (data,)).training() as run:
        run.finish({"rmse": np.float32(0.5), "auc": float("nan")}, refused=2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"] == {"seed": 3, "file": "x"}
    assert record["data"] == [{"path": str(data), "bytes": 4, "sha256": hashlib.sha256(b"1,2\n").hexdigest()}]
    assert record["status"] == "finished"
    assert record["result"] == {"rmse": 0.5, "auc": None}
    assert record["versions"]["numpy"] == np.__version__
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 3\n"


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty") as caught:
        create(tmp_path)
    assert "thesis.tex" in str(caught.value)
    with pytest.raises(ConfigError, match="is a file"):
        create(tmp_path / "thesis.tex")
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_existing_run_is_not_overwritten(tmp_path):
    create(tmp_path).close()
    with pytest.raises(ConfigError, match="--resume"):
        create(tmp_path)


def test_what_a_killed_creation_left_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / "config.toml").write_text("seed = 1")
    (tmp_path / ".run.json.12ab.part").write_text("{")
    create(tmp_path).close()
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_resuming_needs_a_run(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no run"):
        RunDirectory.resume(tmp_path / "run")


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "run.json").write_text('{"app": ')
    with pytest.raises(CheckpointError, match="damaged"):
        RunDirectory.open(tmp_path)


def test_changed_data_is_told(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("1,2\n")
    create(tmp_path / "run", (data,)).close()
    RunDirectory.resume(tmp_path / "run", (data,)).close()
    data.write_text("1,3\n")
    with pytest.raises(DataError, match=r"not what the run .* began with"):
        RunDirectory.resume(tmp_path / "run", (data,))


def test_folders_have_fingerprints_of_names_and_sizes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("12")
    first = fingerprint(tmp_path)
    assert (first["files"], first["bytes"]) == (1, 2)
    (tmp_path / "a" / "b").rename(tmp_path / "a" / "c")
    assert fingerprint(tmp_path)["sha256"] != first["sha256"]
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(tmp_path / "nothing")


HOLDER = """
import sys, time
from core.engine.run import RunDirectory
run = RunDirectory.resume(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_trains_a_run_and_a_dead_one_gives_it_back(tmp_path):
    create(tmp_path).close()
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"being trained by process {holder.pid}"):
            RunDirectory.resume(tmp_path)
        assert [run.status for run in runs(tmp_path.parent) if run.path == tmp_path] == ["running"]
        holder.kill()
    assert [run.status for run in runs(tmp_path.parent) if run.path == tmp_path] == ["stopped"]
    RunDirectory.resume(tmp_path).close()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    run = create(tmp_path)
    run.append_metrics({"step": 1, "loss": float("inf")})
    run.save_state({"state": np.ones(2)}, {"position": "1"})
    run.append_metrics({"step": 2})
    run.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in RunDirectory.open(tmp_path).metrics()] == [1, 2]
    resumed = RunDirectory.resume(tmp_path)
    assert resumed.metrics() == [{"step": 1, "loss": None}]
    assert resumed.load_state()[1]["position"] == "1"
    resumed.close()


def test_without_a_checkpoint_the_metrics_begin_anew(tmp_path):
    run = create(tmp_path)
    run.append_metrics({"step": 1})
    run.close()
    resumed = RunDirectory.resume(tmp_path)
    assert resumed.metrics() == []
    resumed.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_one_interrupts(tmp_path, number):
    before = signal.getsignal(number)
    run = create(tmp_path)
    with pytest.raises(Stopped, match="interrupted"), run.training():
        os.kill(os.getpid(), number)
        assert run.stop_requested
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)
    assert run.status == "stopped"
    assert signal.getsignal(number) is before


def test_a_failure_is_noted(tmp_path):
    run = create(tmp_path)
    with pytest.raises(ZeroDivisionError), run.training():
        print(1 / 0)
    assert RunDirectory.open(tmp_path).status == "failed"
    assert "ZeroDivisionError" in RunDirectory.open(tmp_path).record["error"]


def test_a_run_that_failed_at_once_gives_way(tmp_path):
    for _ in range(2):
        run = create(tmp_path)
        run.append_metrics({"loss": 1.0})
        with pytest.raises(DataError), run.training():
            raise DataError("there is no column of this name")
    run = create(tmp_path)
    assert run.metrics() == [] and "error" not in run.record
    with pytest.raises(DataError), run.training():
        run.save_state({"x": as_array(np.zeros(1))}, {})
        raise DataError("a later mistake")
    with pytest.raises(ConfigError, match="holds a run already"):
        create(tmp_path)


def test_runs_are_listed_latest_first(tmp_path):
    (tmp_path / "no run").mkdir()
    for number, name in enumerate(("b", "a")):
        run = create(tmp_path / name)
        run.record["started"] = f"2026-01-0{number + 1}T00:00:00+00:00"
        run.finish({})
        run.close()
    assert [(run.path.name, run.app, run.status) for run in runs(tmp_path)] == [("a", "toy", "finished"),
                                                                               ("b", "toy", "finished")]
    assert runs(tmp_path / "nothing") == []


def test_refusals_are_listed_only_if_there_are_any(tmp_path):
    path = tmp_path / "refused.csv"
    with Refusals(path) as refused:
        refused.add(7, "unclosed ring", 'C1CC"')
        refused.add(9, "no carbon", "x" * 1000)
        refused.add(11, "odd bytes", "a\udcffb")
    lines = path.read_text().splitlines()
    assert lines[:2] == ["row,reason,text", '7,unclosed ring,"C1CC"""']
    assert len(lines[2]) < 600
    assert refused.count == 3
    with Refusals(path):
        pass
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), Refusals(path) as refused:
        refused.add(1, "bad")
        print(1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_plain_values_are_json():
    value = {"a": (np.float32(1.5), np.int64(2)), 3: float("-inf"), "p": Path("x"), "t": True, "n": None}
    assert plain(value) == {"a": [1.5, 2], "3": None, "p": "x", "t": True, "n": None}


def test_what_a_kill_left_half_written_in_a_folder_is_removed(tmp_path):
    run = create(tmp_path / "run")
    run.close()
    left = run.path / "members" / ".1.safetensors.12ab.part"
    left.parent.mkdir()
    left.write_text("half")
    RunDirectory.resume(run.path).close()
    assert not left.exists()


def test_a_list_of_refused_items_replaces_only_its_like(tmp_path):
    path = tmp_path / "refused.csv"
    with Refusals(path) as refused:
        refused.add(1, "no molecule", "x")
    with Refusals(path):
        pass
    assert not path.exists()
    path.write_text("smiles\nCCO\n")
    with pytest.raises(ConfigError, match="is not a list of refused items"):
        Refusals(path)
    assert path.read_text() == "smiles\nCCO\n"
