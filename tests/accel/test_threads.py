"""The pool: the same bits for any number of threads, callers and processes, and no work when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from core.accel import layout, threads, walker
from core.accel.step import Repeat, Step, View, contiguous
from core.accel.walker import Call, PlanTable
from core.engine import dtypes
from core.engine.errors import ConfigError

LOGISTIC = """from core.accel.pointer import f32

def kernel(p, d, begin, end):
    x = f32(p, 0)
    y = f32(p, 1)
    for i in range(begin, end):
        y[i] = (x[i] + 0.1 * x[d[0] - 1 - i]) * (1 - x[i])
"""

COUNT = """from core.accel.pointer import i64

def kernel(p, d, begin, end):
    counts = i64(p, 0)
    for i in range(begin, end):
        counts[i] += 1
    counts[d[0] + begin] += 1
"""


def run(call: Call, pool: threads.Pool | None) -> None:
    """Run a call on a pool, or on this thread alone."""
    if pool is None:
        call.run()
    else:
        pool.run(call)


class Chain:
    """A plan whose every step reads elements that other threads wrote in the step before.

    Parameters
    ----------
    length, size : steps, and elements of each array
    serial : the steps that stay on one thread; all if None
    """

    def __init__(self, length: int, size: int, serial: frozenset[int] | None = frozenset()) -> None:
        views = [contiguous(dtypes.float32, (size,)) for _ in range(length + 1)]
        steps = [Step(LOGISTIC, (a, b), (1,), (size,), size) for a, b in pairwise(views)]
        alone = {id(steps[k]) for k in (range(length) if serial is None else serial)}
        places = {view.buffer: (0, k * size * 4) for k, view in enumerate(views)}
        self.table = PlanTable.build(steps, places, lambda step: id(step) in alone)

    def result(self, pool: threads.Pool | None) -> bytes:
        """Bits of all arrays after a run on a pool, or on this thread alone."""
        count = len(self.table) + 1
        size = int(self.table.steps[0, layout.EXTENT])
        arena = np.zeros((count, size), np.float32)
        arena[0] = np.random.default_rng(size).random(size)
        bases = walker.bases(1)
        bases[0] = arena.ctypes.data
        run(Call(self.table, bases), pool)
        return arena.tobytes()


@pytest.fixture
def pool() -> Iterator[threads.Pool]:
    pool = threads.Pool(3)
    yield pool
    pool.close()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = threads.pool().threads
    threads.set_threads(2)
    yield
    threads.set_threads(before)


@pytest.mark.parametrize("serial", [frozenset(), frozenset({0}), frozenset({19}), frozenset({3, 4, 5, 9}),
                                    frozenset(range(0, 20, 2))], ids=["none", "first", "last", "some", "every other"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(count: int, serial: frozenset[int]) -> None:
    pool = threads.Pool(count)
    try:
        for size in (2, 3, 17, 1000, 40_001):
            chain = Chain(20, size, serial)
            expected = chain.result(None)
            assert all(chain.result(pool) == expected for _ in range(5))
    finally:
        pool.close()


@pytest.mark.parametrize("serial", [(), (0,), (2,), (0, 2), (1,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_repeats_give_the_same_bits_on_any_number_of_threads(count: int, serial: tuple[int, ...]) -> None:
    size, times = 1000, 50
    slots = contiguous(dtypes.float32, (times + 1, size))
    between = [contiguous(dtypes.float32, (size,)) for _ in range(2)]
    before = replace(slots, shape=(size,), strides=(1,), advance=size)
    views = [before, *between, replace(before, offset=size)]
    steps = [Step(LOGISTIC, (a, b), (1,), (size,), size) for a, b in pairwise(views)]
    places = {slots.buffer: (0, 0)} | {view.buffer: (0, (times + 1 + k) * size * 4) for k, view in enumerate(between)}
    table = PlanTable.build([Repeat((), tuple(steps), times)], places, lambda step: step in [steps[k] for k in serial])

    def result(pool: threads.Pool | None) -> bytes:
        arena = np.zeros((times + 3, size), np.float32)
        arena[0] = np.random.default_rng(0).random(size)
        bases = walker.bases(1)
        bases[0] = arena.ctypes.data
        run(Call(table, bases), pool)
        return arena.tobytes()

    pool = threads.Pool(count)
    try:
        assert all(result(pool) == result(None) for _ in range(5))
    finally:
        pool.close()


@pytest.mark.parametrize(("extent", "grain"), [(2, 1), (5, 3), (7, 2), (100, 7), (1000, 999), (4096, 1), (12345, 64)])
@pytest.mark.parametrize("flops", [0, 10**8], ids=["one piece", "four pieces"])
def test_every_unit_is_done_once_and_pieces_begin_on_grains(
        pool: threads.Pool, extent: int, grain: int, flops: int) -> None:
    counts = np.zeros(2 * extent, np.int64)
    view = contiguous(dtypes.int64, (2 * extent,))
    step = Step(COUNT, (view,), (0,), (extent,), extent, grain, flops=flops)
    table = PlanTable.build([step], {view.buffer: (0, 0)}, lambda step: False)
    bases = walker.bases(1)
    bases[0] = counts.ctypes.data
    for _ in range(20):
        pool.run(Call(table, bases))
    assert (counts[:extent] == 20).all()
    assert (np.flatnonzero(counts[extent:]) % grain == 0).all()


def test_ranges_of_steps_compose(pool: threads.Pool) -> None:
    chain = Chain(6, 1000, frozenset({2, 3, 5}))
    arena = np.zeros((7, 1000), np.float32)
    arena[0] = np.random.default_rng(1000).random(1000)
    bases = walker.bases(1)
    bases[0] = arena.ctypes.data
    for first, last in ((0, 3), (3, 4), (4, None)):
        pool.run(Call(chain.table, bases, first=first, last=last))
    assert arena.tobytes() == chain.result(None)


@pytest.mark.usefixtures("two_threads")
def test_python_threads_may_call_at_once() -> None:
    chains = [Chain(10, 1000 + k, frozenset({4})) for k in range(8)]
    expected = [chain.result(None) for chain in chains]

    def check(k: int) -> bool:
        return all(chains[k].result(threads.pool()) == expected[k] for _ in range(200))

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(check, range(8)))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forks beside threads
def test_forked_child_has_threads_of_its_own() -> None:
    chain = Chain(10, 5000)
    expected = chain.result(threads.pool())
    with threads.pool()._lock:  # as if another thread were running a plan
        child = os.fork()
        if child == 0:
            good = all(chain.result(threads.pool()) == expected for _ in range(50))
            os._exit(0 if good and len(threads.pool()._workers) == 1 else 1)
    deadline = time.monotonic() + 30
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert done[1] == 0
    assert chain.result(threads.pool()) == expected


def test_idle_workers_use_no_time(pool: threads.Pool) -> None:
    Chain(5, 1000).result(pool)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    assert any(worker.is_alive() for worker in pool._workers)


def test_sleeping_workers_wake(pool: threads.Pool) -> None:
    """A long plan gets help from workers that slept: it is done by more than one thread."""
    text = """from core.accel.pointer import f32
def kernel(p, d, begin, end):
    x = f32(p, 0)
    for i in range(begin, end):
        for _ in range(d[0]):
            x[i] = x[i] * 0.999 + 0.5 / (1 + x[i])
"""
    values = np.zeros(64, np.float32)
    view: View = contiguous(dtypes.float32, (64,))
    table = PlanTable.build([Step(text, (view,), (0,), (300_000,), 64)], {view.buffer: (0, 0)}, lambda step: False)
    bases = walker.bases(1)
    bases[0] = values.ctypes.data
    Chain(2, 100).result(pool)
    time.sleep(0.05)
    own, total = time.thread_time(), time.process_time()
    pool.run(Call(table, bases))
    own, total = time.thread_time() - own, time.process_time() - total
    assert total > 1.1 * own


def test_closed_pool_runs_alone(pool: threads.Pool) -> None:
    chain = Chain(4, 300)
    expected = chain.result(pool)
    workers = pool._workers
    pool.close()
    pool.close()
    assert not any(worker.is_alive() for worker in workers)
    assert chain.result(pool) == expected


def test_plan_without_parallel_steps_starts_no_threads() -> None:
    pool = threads.Pool(4)
    Chain(3, 50, None).result(pool)
    assert pool._workers == []


def test_set_threads_while_plans_run() -> None:
    chain = Chain(10, 3000)
    expected = chain.result(None)
    before = threads.pool().threads
    stop = threading.Event()
    wrong: list[int] = []

    def keep_running() -> None:
        while not stop.is_set():
            if chain.result(threads.pool()) != expected:
                wrong.append(1)

    runner = threading.Thread(target=keep_running)
    runner.start()
    for count in (1, 4, 2, 3, 1, 2):
        threads.set_threads(count)
        time.sleep(0.02)
    stop.set()
    runner.join()
    threads.set_threads(before)
    assert wrong == []


@pytest.mark.parametrize("count", [0, -1, 257])
def test_impossible_number_of_threads(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"set_threads cannot be {count}(.|\n)*1\.\.256"):
        threads.set_threads(count)


@pytest.mark.parametrize(("setting", "printed"), [
    ("auto", str(threads.usable_cores())), ("3", "3"), ("many", "TILEWORK_THREADS cannot be 'many'")])
def test_setting(setting: str, printed: str) -> None:
    program = "from core.accel import threads\nprint(threads.pool().threads)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2], env={**os.environ, "TILEWORK_THREADS": setting})
    assert printed in (done.stdout if done.returncode == 0 else done.stderr)
    assert (done.returncode == 0) == (setting != "many")


def test_interpreter_ends_cleanly_while_a_plan_runs() -> None:
    program = """
import threading, time
from tests.accel.test_threads import Chain, threads
chain = Chain(10, 100_000)
threads.set_threads(3)
chain.result(threads.pool())
def forever():
    while True:
        chain.result(threads.pool())
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
    assert (done.returncode, done.stderr) == (0, "")
