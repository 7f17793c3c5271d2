"""Workers: processes that compute the blocks of a ledger, on this machine or, through Dask, on many.

A local worker is ``python -m apps.connectomics.workers FOLDER``: it takes blocks from the ledger until all are done.

Invariant: whenever workers are killed, the others and new ones do what is left, and no worker outlives its owner.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.app import load
from apps.connectomics.blocks import Block, Grid
from apps.connectomics.ledger import Ledger, Task
from apps.progress import LOGGER
from core.engine import errors
from core.engine.errors import ConfigError, TileworkError, compose
from core.engine.run import Stopped

PATIENCE = 10
"""Workers that may be killed, for each that works, while no block gets done."""

_LOOK_SECONDS, _NOTE_SECONDS, _CONNECT_SECONDS = 0.05, 10.0, 20.0

Worker = subprocess.Popen[bytes]


def run_blocks(function: str, arguments: Mapping[str, Any], grid: Grid, ledger: Ledger, workers: int,
               scheduler: str | None = None) -> None:
    """Compute all blocks that are not done yet; the results are in the ledger.

    Parameters
    ----------
    function, arguments, grid : see `Task`
    ledger : of this task, or of a new or empty folder
    workers : processes on this machine, at least 1, which share its threads
    scheduler : address of a Dask scheduler, such as ``tcp://host:8786``, whose workers compute instead, on as many
        threads as they are told; all of them must have Tilework installed and see the folder of the ledger

    Raises
    ------
    ConfigError
        If the ledger is of another task, Dask is not installed or no scheduler answers.
    Stopped
        If the scheduler ended meanwhile.
    TileworkError
        What the function raised.
    MemoryError
        If the function raised it, or workers were killed again and again.
    RuntimeError
        If a worker ended otherwise; what it said is on standard error.
    """
    ledger.begin(Task(function, arguments, grid))
    if workers < 1:
        raise ConfigError(f"blocks cannot be computed by {workers} workers; expected at least 1")
    if not (undone := ledger.undone()):
        return
    if scheduler is None:
        _run_here(ledger, min(workers, len(undone)))
    else:
        _run_on_cluster(ledger, scheduler)


def compute(ledger: Ledger, number: int, *, wait: bool) -> None:
    """Compute a block, unless it is done or another process computes it.

    Parameters
    ----------
    wait : whether to wait for another process that computes it, and to take over if that is killed
    """
    task = ledger.task
    block = task.grid[number]
    with ledger.claim(number, wait=wait) as ours:
        if ours:
            results = load(task.function)(block, task.arguments)
            _check(results, block, task.function)
            ledger.save(number, results)


def _check(results: Mapping[str, NDArray[Any]], block: Block, function: str) -> None:
    labels = results.get("labels")
    if labels is not None and (labels.dtype != np.uint32 or labels.shape != block.shape):
        raise TypeError(f"{function} gave labels {labels.dtype}{list(labels.shape)} for the block {block.number}, "
                        f"expected uint32{list(block.shape)}")


class _Watch:
    """Tells how far the blocks are, and loses patience with workers that are killed again and again.

    Parameters
    ----------
    count : workers
    """

    def __init__(self, ledger: Ledger, count: int) -> None:
        self._ledger = ledger
        self._patience = PATIENCE * count
        self._lost, self._left = 0, len(ledger.undone())
        self._noted = time.monotonic()

    def note(self) -> None:
        """Log how many blocks are done, now and then."""
        if time.monotonic() - self._noted > _NOTE_SECONDS:
            self._noted = time.monotonic()
            total = len(self._ledger.task.grid)
            LOGGER.info("%d of %d blocks are done", total - len(self._ledger.undone()), total)

    def lose(self, reason: Exception) -> None:
        """Note that a worker was killed; raises the reason if that was once too often."""
        left = len(self._ledger.undone())
        self._lost = self._lost + 1 if left == self._left else 1
        self._left = left
        LOGGER.info("a worker was killed; another one takes over")
        if self._lost >= self._patience:
            raise reason


# Workers on this machine


def _run_here(ledger: Ledger, count: int) -> None:
    """Keep `count` workers at work until all blocks are done."""
    watch = _Watch(ledger, count)
    # By name: apps otherwise know nothing of how a model runs.
    threads = max(1, importlib.import_module("core.accel.threads").pool().threads // count)
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(_start(ledger.folder, threads))
        while workers:
            time.sleep(_LOOK_SECONDS)
            watch.note()
            for ended in [worker for worker in workers if worker.poll() is not None]:
                workers.remove(ended)
                said, _ = ended.communicate()
                if ended.returncode < 0:
                    watch.lose(_killed(ended.returncode))
                    workers.append(_start(ledger.folder, threads))
                elif ended.returncode:
                    raise _error(said, ended.returncode)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()  # closes the pipes


def _start(folder: Path, threads: int) -> Worker:
    """A worker that finds modules where this process does, and that an interrupt from the terminal does not reach."""
    places = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "TILEWORK_THREADS": str(threads), "OMP_NUM_THREADS": str(threads),
                   "PYTHONPATH": places}
    return subprocess.Popen([sys.executable, "-P", "-m", __name__, folder], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env=environment, process_group=0)


def _killed(code: int) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryError("worker processes were killed again and again, as systems do when memory runs out; fewer "
                           "workers or smaller blocks take less")
    return RuntimeError(f"worker processes were ended again and again by the signal {-code}")


def _error(said: bytes, code: int) -> Exception:
    """The error that a worker ended with."""
    if not said:
        return RuntimeError(f"a worker process ended with the code {code}; what it said stands above")
    name, message = json.loads(said)
    kind = MemoryError if name == "MemoryError" else getattr(errors, name, TileworkError)
    return kind(message)


def main() -> None:
    """Compute blocks until all are done; an error that is the user's is told to the owner as a line of JSON.

    Whatever else is printed goes to standard error.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as owner:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        threading.Thread(target=_end_with_owner, daemon=True).start()
        try:
            _work(Ledger(Path(sys.argv[1])))
        except (TileworkError, MemoryError) as error:
            json.dump((type(error).__name__, str(error)), owner)
            sys.exit(1)


def _end_with_owner() -> None:
    """Wait for the end of standard input, which is that of the owner."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _work(ledger: Ledger) -> None:
    """Compute what nobody else computes, then wait for the others, in case that one of them is killed."""
    for wait in (False, True):
        for number in ledger.undone():
            compute(ledger, number, wait=wait)


# Workers of a Dask cluster


def _run_on_cluster(ledger: Ledger, scheduler: str) -> None:
    """Have the workers of a cluster compute all blocks."""
    distributed = _distributed()
    watch = _Watch(ledger, 1)
    with _client(distributed, scheduler) as client:
        while undone := ledger.undone():
            futures = client.map(_compute_there, undone, folder=str(ledger.folder.resolve()), pure=False)
            while futures:  # `as_completed` would wait for ever once the scheduler is gone
                time.sleep(_LOOK_SECONDS)
                watch.note()
                for future in [future for future in futures if future.done()]:
                    futures.remove(future)
                    if future.cancelled():
                        raise Stopped(f"the Dask scheduler at {scheduler} is gone; what is done stays, and the same "
                                      "command goes on when there is a scheduler again")
                    failure = future.exception()
                    if isinstance(failure, distributed.KilledWorker):
                        watch.lose(_killed(-signal.SIGKILL))
                    elif failure is not None:
                        raise failure


def _compute_there(number: int, folder: str) -> None:
    """Compute a block in a worker of the cluster."""
    compute(Ledger(Path(folder)), number, wait=True)


def _distributed() -> Any:
    """The package, by name: it is optional."""
    try:
        return importlib.import_module("distributed")
    except ModuleNotFoundError:
        raise ConfigError(compose("Dask distributed is not installed, so that --scheduler cannot be used", [
            ("hint", "install tilework[cluster], or leave --scheduler out to use this machine alone")])) from None


def _client(distributed: Any, scheduler: str) -> Any:
    try:
        return distributed.Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConfigError(compose(f"no Dask scheduler answers at {scheduler}", [
            ("found", str(error)),
            ("expected", "an address such as tcp://host:8786, as `dask scheduler` tells it")])) from error


if __name__ == "__main__":
    main()
