"""`apps.connectomics.ledger`: what a folder was begun with, who may compute a block, and what a kill leaves behind."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.connectomics.blocks import Grid
from apps.connectomics.ledger import Ledger, Task
from core.engine.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[3]
GRID = Grid((9, 8, 7), (4, 4, 4), (2, 2, 2))
TASK = Task("tests.apps.connectomics.segmenters:components", {"volume": "v.npy", "seconds": 0.5, "size": (1, 2, 3)},
            GRID)
ARRAYS = {"labels": np.arange(24, dtype=np.uint32).reshape(2, 3, 4), "none": np.zeros((0, 3), np.int64)}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger that was begun, of 12 blocks."""
    ledger = Ledger(tmp_path / "deep/work")
    ledger.begin(TASK)
    return ledger


def test_the_task_comes_back(ledger: Ledger) -> None:
    found = Ledger(ledger.folder).task
    assert (found.function, found.grid) == (TASK.function, GRID)
    assert found.arguments == {"volume": "v.npy", "seconds": 0.5, "size": [1, 2, 3]}
    Ledger(ledger.folder).begin(TASK)
    Ledger(ledger.folder).begin(found)


@pytest.mark.parametrize(("task", "says"), [
    (Task(TASK.function, {**TASK.arguments, "seconds": 0.75}, GRID), "0.75 is asked for, the run began with 0.5"),
    (Task(TASK.function, {**TASK.arguments, "core": [4, 4, 4]}, GRID), r"core  \[4, 4, 4\] is asked for"),
    (Task(TASK.function, {"volume": "v.npy", "seconds": 0.5}, GRID), "size  None is asked for"),
    (Task("another:function", TASK.arguments, GRID), "function  another:function is asked for"),
    (Task(TASK.function, TASK.arguments, Grid((9, 8, 8), (4, 4, 4), (2, 2, 2))), r"shape  \[9, 8, 8\] is asked for"),
])
def test_another_task_is_refused(ledger: Ledger, task: Task, says: str) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match=says) as caught:
            Ledger(ledger.folder).begin(task)
        assert str(ledger.folder) in str(caught.value) and "choose a new folder" in str(caught.value)
        assert str(caught.value).count("is asked for") == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty\n  found  notes\.txt"):
        Ledger(tmp_path).begin(TASK)
    with pytest.raises(ConfigError, match="is a file"):
        Ledger(tmp_path / "notes.txt").begin(TASK)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_that_was_half_begun_is_begun(ledger: Ledger) -> None:
    (ledger.folder / "ledger.json").rename(ledger.folder / ".ledger.json.0123.part")
    again = Ledger(ledger.folder)
    with pytest.raises(CheckpointError, match=r"no blocked run in .*\n.*No such file.*\n.*under this path"):
        _ = again.task
    again.begin(TASK)
    assert again.task.grid == GRID


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"function": 1, "arguments": {}, "shape": 3}', "{\"core\": [",
                                     '{"function": "", "arguments": {}, "shape": [1, 2], "core": [1, 1, 1], '
                                     '"overlap": [0, 0, 0]}'])
def test_a_damaged_record_is_told(ledger: Ledger, content: str) -> None:
    (ledger.folder / "ledger.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"ledger\.json is damaged"):
        Ledger(ledger.folder).begin(TASK)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="a file system without locks: No locks available"):
        Ledger(tmp_path).begin(TASK)


# Claims


def test_a_block_has_one_claimant(ledger: Ledger) -> None:
    other = Ledger(ledger.folder)
    with ledger.claim(3, wait=False) as ours, other.claim(3, wait=False) as theirs, other.claim(4, wait=False) as next_:
        assert (ours, theirs, next_) == (True, False, True)
    with other.claim(3, wait=False) as theirs:
        assert theirs
        other.save(3, ARRAYS)
    for wait in (False, True):
        with ledger.claim(3, wait=wait) as ours:
            assert not ours
    assert [len(ledger.claimants(number)) for number in range(6)] == [0, 0, 0, 2, 1, 0]
    assert ledger.claimants(3)[0].startswith(f"process {os.getpid()} on ")
    assert ledger.undone() == [number for number in range(12) if number != 3]


@pytest.mark.parametrize("finishes", [True, False])
def test_who_waits_gets_what_is_left_undone(ledger: Ledger, finishes: bool) -> None:
    found: list[bool] = []

    def wait() -> None:
        with Ledger(ledger.folder).claim(0, wait=True) as theirs:
            found.append(theirs)

    waiting = threading.Thread(target=wait)
    with ledger.claim(0, wait=False) as ours:
        assert ours
        waiting.start()
        time.sleep(0.1)
        assert not found
        if finishes:
            ledger.save(0, ARRAYS)
    waiting.join(30)
    assert found == [not finishes]


HOLDER = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from apps.connectomics.ledger import Ledger
from core.engine import checkpoint

def die(*_):
    print("now", flush=True)
    time.sleep(600)

ledger, moment = Ledger(Path(sys.argv[1])), sys.argv[2]
with ledger.claim(5, wait=False):
    if moment == "computing":
        die()
    if moment == "flush":
        os.fsync = die
    elif moment == "rename":
        os.replace = die
    else:
        checkpoint.sync_folder = die
    ledger.save(5, {"labels": np.full((2, 2, 2), 7, np.uint32)})
"""


@pytest.mark.parametrize("moment", ["computing", "flush", "rename", "renamed"])
def test_a_killed_claimant_leaves_the_block_done_or_undone(ledger: Ledger, moment: str) -> None:
    command = [sys.executable, "-c", HOLDER, ledger.folder, moment]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None and held.stdout.readline() == b"now\n"
        with ledger.claim(5, wait=False) as ours:
            assert not ours
        held.kill()
    with ledger.claim(5, wait=False) as ours:
        assert ours == (moment != "renamed")
        if ours:
            assert os.listdir(ledger.folder / "blocks") == [], "what was left half written is gone"
            ledger.save(5, {"labels": np.full((2, 2, 2), 7, np.uint32)})
    assert len(ledger.claimants(5)) == 1 + (moment != "renamed")
    assert os.listdir(ledger.folder / "blocks") == ["00005.npz"]
    assert (ledger.load(5, "labels") == 7).all()


def test_a_part_of_a_file_is_not_a_result(ledger: Ledger) -> None:
    (ledger.folder / "blocks/.00002.npz.0123abcd.part").write_bytes(b"PK\3\4")
    assert not ledger.done(2) and 2 in ledger.undone()
    with pytest.raises(CheckpointError, match=r"block 2 of the blocked run in .* is not done"):
        ledger.load(2, "labels")


# Results


def test_results_come_back(ledger: Ledger) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"{kind}{axes}": generator.integers(0, 2, (3, 1, 2, 4)[:axes]).astype(kind)
              for kind in ("bool", "u1", "u4", "u8", "i8", "f4", "f8", "U5") for axes in range(5)}
    arrays["turned"] = arrays["u44"].T[::2]
    arrays["rows"] = np.array([(1, 2.5), (3, 4.5)], [("id", np.int64), ("score", np.float32)])
    ledger.save(0, arrays)
    for name, array in arrays.items():
        found = ledger.load(0, name)
        assert found.dtype == array.dtype and np.array_equal(found, array)
    labels = np.zeros((50, 50, 50), np.uint32)
    labels[10:40] = 5
    ledger.save(1, {"labels": labels})
    assert (ledger.folder / "blocks/00001.npz").stat().st_size < labels.nbytes / 50


def test_objects_are_never_written(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        ledger.save(0, {"labels": np.array([object()])})
    assert not ledger.done(0) and os.listdir(ledger.folder / "blocks") == []


def test_damaged_results_are_told_or_whole(ledger: Ledger) -> None:
    ledger.save(0, ARRAYS)
    path = ledger.folder / "blocks/00000.npz"
    whole, told = path.read_bytes(), 0
    chance = random.Random(0)
    mutants = [whole[:length] for length in range(0, len(whole), 7)]
    for _ in range(1000):
        place = chance.randrange(len(whole))
        mutants.append(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1:])
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            found = {name: ledger.load(0, name) for name in ARRAYS}
        except CheckpointError as error:
            assert "00000.npz is damaged" in str(error) and "remove the file and run again" in str(error)
            told += 1
        else:
            assert all(np.array_equal(array, ARRAYS[name]) for name, array in found.items())
    assert told > len(mutants) / 2
