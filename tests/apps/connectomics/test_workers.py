"""`apps.connectomics.workers`: every block is done once, whoever is killed; errors arrive; all end with their owner."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from apps.cli import main
from apps.connectomics import workers
from apps.connectomics.blocks import Grid
from apps.connectomics.ledger import Ledger
from apps.connectomics.reconcile import assemble, reconcile
from apps.connectomics.workers import run_blocks
from core.accel.threads import pool
from core.engine.errors import ConfigError, DataError
from core.engine.run import Stopped
from tests.apps.connectomics.bright import write_run, write_tubes
from tests.apps.connectomics.segmenters import labelled
from tests.apps.connectomics.test_reconcile import Volume, same_up_to_renaming

ROOT = Path(__file__).parents[3]
FUNCTION = "tests.apps.connectomics.segmenters:components"
GRID = Grid((20, 30, 25), (10, 10, 9), (3, 2, 4))
BLOCKS = 18
OWNER = """
import json, signal, sys
from pathlib import Path
from apps.connectomics.ledger import Ledger
from apps.connectomics.workers import run_blocks
from tests.apps.connectomics.test_workers import FUNCTION, GRID

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
run_blocks(FUNCTION, json.loads(sys.argv[2]), GRID, Ledger(Path(sys.argv[1])), int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreground at about the density at which components begin to run through the whole volume."""
    path = tmp_path_factory.mktemp("data") / "volume.npy"
    np.save(path, np.random.default_rng(0).random(GRID.shape) < 0.33)
    return path


def assembled(ledger: Ledger) -> NDArray[Any]:
    found = Volume(GRID.shape, np.uint32)
    assemble(GRID, ledger, reconcile(GRID, ledger), found)
    return found.labels


def is_whole(ledger: Ledger, volume: Path) -> bool:
    return same_up_to_renaming(assembled(ledger), labelled(np.load(volume), 1))


def begun(ledger: Ledger) -> list[int]:
    """How often each block was begun."""
    return [len(ledger.claimants(number)) for number in range(BLOCKS)]


def at_work(ledger: Ledger) -> list[tuple[int, int]]:
    """Blocks that are being computed, and by which process."""
    found = []
    for number in ledger.undone() if (ledger.folder / "ledger.json").exists() else ():
        with contextlib.suppress(IndexError):
            pid = int(ledger.claimants(number)[-1].split()[1])
            if is_worker(pid):
                found.append((number, pid))
    return found


def is_worker(pid: int) -> bool:
    """Whether a process lives and is a worker, and not another one that got its number."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for one that has ended
        return b"apps.connectomics.workers" in command or b"dask_worker" in command
    return False


def eventually(condition: Callable[[], Any]) -> Any:
    """What a condition gives once it holds, within a time that a busy machine needs."""
    end = time.monotonic() + 60
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def killing(ledger: Ledger, times: int, busy: int) -> Iterator[list[int]]:
    """Kill one of at least so many processes that compute blocks, so many times; gives the blocks that were hit."""
    ended, chance, hit = threading.Event(), random.Random(0), []

    def kill() -> None:
        while len(hit) < times and not ended.wait(0.5):
            if len(found := at_work(ledger)) >= busy:
                number, pid = chance.choice(found)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)  # it may have gone on to another block, which would be the one hit
                    if (number, pid) in at_work(ledger):
                        os.kill(pid, signal.SIGKILL)
                        hit.append(number)
                    else:
                        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield hit
    finally:
        ended.set()
        thread.join()


def test_blocked_is_whole(volume: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(tmp_path / "work")
    run_blocks(FUNCTION, {"volume": str(volume)}, GRID, ledger, 2)
    assert is_whole(ledger, volume)
    assert begun(ledger) == [1] * BLOCKS
    share = max(1, pool().threads // 2)
    assert {str(ledger.load(number, "threads")) for number in range(BLOCKS)} == {str(share)}
    out, err = capfd.readouterr()
    assert out == "" and err.count("computing") == BLOCKS, "what functions print is not taken for results"


def test_a_finished_run_computes_nothing(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    run_blocks(FUNCTION, {"volume": str(volume)}, GRID, ledger, 1)
    monkeypatch.setattr(workers, "_start", None)
    for scheduler in (None, "tcp://127.0.0.1:1"):
        run_blocks(FUNCTION, {"volume": str(volume)}, GRID, Ledger(tmp_path), 2, scheduler)
    assert begun(ledger) == [1] * BLOCKS
    with pytest.raises(ConfigError, match="began with other settings"):
        run_blocks(FUNCTION, {"volume": "other.npy"}, GRID, Ledger(tmp_path), 2)


def test_killed_workers_are_replaced(volume: Path, tmp_path: Path) -> None:
    whole, ledger = Ledger(tmp_path / "whole"), Ledger(tmp_path / "broken")
    run_blocks(FUNCTION, {"volume": str(volume)}, GRID, whole, 1)
    with killing(ledger, times=6, busy=1) as hit:  # fewer than they have patience for
        run_blocks(FUNCTION, {"volume": str(volume), "seconds": 0.25}, GRID, ledger, 3)
    assert len(hit) > 1
    assert np.array_equal(assembled(ledger), assembled(whole))
    assert all(1 <= times <= 1 + hit.count(number) for number, times in enumerate(begun(ledger)))
    assert sorted(os.listdir(ledger.folder / "blocks")) == [f"{number:05}.npz" for number in range(BLOCKS)]


def test_killed_workers_with_a_network_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tubes(tmp_path / "tubes.h5")
    words = ["connectomics", "segment", f"{tmp_path}/tubes.h5:raw", "--model", str(write_run(tmp_path / "run")),
             "--min-segment-size", "50", "--block", "33,33,33", "--overlap", "12,12,12", "--workers", "2", "--out"]

    def segmented(name: str) -> list[NDArray[Any]]:
        assert main([*words, f"{tmp_path}/{name}.h5"], ("apps.connectomics.app:APP",)) == 0, capsys.readouterr().err
        with h5py.File(tmp_path / f"{name}.h5") as file:
            return [file[part][:] for part in ("segmentation", "origins")]

    whole, ledger = segmented("whole"), Ledger(tmp_path / "broken.blocks")
    with killing(ledger, times=4, busy=1) as hit:
        broken = segmented("broken")
    assert len(hit) > 1 and len(np.unique(whole[0])) == 4
    assert all(np.array_equal(a, b) for a, b in zip(broken, whole, strict=True))
    assert all(1 <= len(ledger.claimants(number)) <= 1 + hit.count(number) for number in range(8))


def test_two_owners_share_the_work(volume: Path, tmp_path: Path) -> None:
    ledgers = [Ledger(tmp_path / "work") for _ in range(2)]
    arguments = {"volume": str(volume), "seconds": 0.1}
    owners = [threading.Thread(target=run_blocks, args=(FUNCTION, arguments, GRID, ledger, 2)) for ledger in ledgers]
    for owner in owners:
        owner.start()
    for owner in owners:
        owner.join(120)
    assert is_whole(ledgers[0], volume)
    assert begun(ledgers[0]) == [1] * BLOCKS
    assert len({line for number in range(BLOCKS) for line in ledgers[0].claimants(number)}) > 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_owner_and_the_next_one_goes_on(volume: Path, tmp_path: Path,
                                                               number: signal.Signals) -> None:
    ledger = Ledger(tmp_path)
    arguments = f'{{"volume": "{volume}", "seconds": 0.3}}'
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path, arguments, "2"], cwd=ROOT, stderr=subprocess.PIPE)
    busy = eventually(lambda: any(ledger.folder.glob("blocks/*.npz")) and at_work(ledger))
    owner.send_signal(number)
    owner.communicate()
    assert busy and eventually(lambda: not at_work(ledger))
    done = {block for block in range(BLOCKS) if ledger.done(block)}
    assert 0 < len(done) < BLOCKS
    run_blocks(FUNCTION, {"volume": str(volume), "seconds": 0.3}, GRID, Ledger(tmp_path), 3)
    assert is_whole(ledger, volume)
    assert all(times == 1 for block, times in enumerate(begun(ledger)) if block in done)
    assert sum(begun(ledger)) <= BLOCKS + 2


@pytest.mark.parametrize(("trouble", "error", "says", "shown"), [
    ("bad data", DataError, "^a chunk is missing at 1, 2, 3$", ""),
    ("memory", MemoryError, "^no room for 3 GB$", ""),
    ("bug", RuntimeError, "ended with the code 1; what it said stands above", "KeyError: 'the bug'"),
    ("wrong shape", RuntimeError, "what it said stands above", "gave labels uint32[1, 2, 3] for the block 1"),
    ("kill", MemoryError, "again and again, as systems do when memory runs out", ""),
])
def test_an_error_ends_the_run_and_is_told(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capfd: pytest.CaptureFixture[str], trouble: str, error: type[Exception],
                                           says: str, shown: str) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 2)
    ledger = Ledger(tmp_path)
    with pytest.raises(error, match=says):
        run_blocks(FUNCTION, {"volume": str(volume), "trouble": trouble}, GRID, ledger, 1)
    assert ledger.undone()[:2] in ([1, 2], [1])
    assert shown in capfd.readouterr().err


def test_no_workers_are_no_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be computed by 0 workers"):
        run_blocks(FUNCTION, {}, GRID, Ledger(tmp_path), 0)


# Dask


def test_dask_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"not installed.*\n.*install tilework\[cluster\]"):
        run_blocks(FUNCTION, {}, GRID, Ledger(tmp_path), 1, "tcp://127.0.0.1:1")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Dask scheduler and two workers, each a process; gives the scheduler's address and process."""
    pytest.importorskip("distributed", reason="Dask distributed, the extra `cluster`, is not installed")
    file = folder / "scheduler.json"
    worker = ["dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", folder]
    processes = [subprocess.Popen([sys.executable, "-m", f"distributed.cli.{program}", *options, "--no-dashboard",
                                   "--scheduler-file", file], cwd=ROOT, stderr=subprocess.DEVNULL)
                 for program, *options in (["dask_scheduler", "--host", "127.0.0.1", "--port", "0"], worker, worker)]
    try:
        assert eventually(lambda: file.exists() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_does_what_its_killed_worker_leaves(volume: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work")
    with cluster(tmp_path) as (address, _), killing(ledger, times=1, busy=2) as hit:
        run_blocks(FUNCTION, {"volume": str(volume), "seconds": 0.3}, GRID, ledger, 1, address)
    assert is_whole(ledger, volume)
    assert len(hit) == 1
    assert begun(ledger) == [1 + (number in hit) for number in range(BLOCKS)]


def test_errors_of_a_cluster_are_told(volume: Path, tmp_path: Path) -> None:
    with cluster(tmp_path) as (address, scheduler):
        arguments = {"volume": str(volume), "trouble": "bad data"}
        with pytest.raises(DataError, match=r"^a chunk is missing at 1, 2, 3$"):
            run_blocks(FUNCTION, arguments, GRID, Ledger(tmp_path / "a"), 1, address)
        ledger = Ledger(tmp_path / "b")
        killer = threading.Thread(target=lambda: eventually(lambda: at_work(ledger)) and scheduler.kill())
        killer.start()
        with pytest.raises(Stopped, match=f"the Dask scheduler at {address} is gone"):
            run_blocks(FUNCTION, {"volume": str(volume), "seconds": 0.5}, GRID, ledger, 1, address)
        killer.join()


LONELY = """
import sys
from pathlib import Path
from apps.connectomics import workers
from apps.connectomics.ledger import Ledger
from tests.apps.connectomics.test_workers import FUNCTION, GRID

workers._CONNECT_SECONDS = 0.5
workers.run_blocks(FUNCTION, {}, GRID, Ledger(Path(sys.argv[1])), 1, sys.argv[2])
"""


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nothing://here", "tcp://127.0.0.1"])
def test_a_scheduler_that_does_not_answer_is_told(tmp_path: Path, address: str) -> None:
    """In a process of its own: a client that did not connect can block those that are made after it."""
    pytest.importorskip("distributed", reason="Dask distributed, the extra `cluster`, is not installed")
    ended = subprocess.run([sys.executable, "-c", LONELY, tmp_path, address], cwd=ROOT, capture_output=True, text=True)
    assert f"ConfigError: no Dask scheduler answers at {address}\n  found     " in ended.stderr
