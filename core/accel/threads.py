"""The threads that run plans: one pool per process, asleep when there is nothing to do.

Invariant: results do not depend on the pool. One thread or many, an idle machine or a busy one, the pool free or taken
by another caller: the same bits.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from core.accel import layout, store
from core.accel.walker import Call
from core.engine.errors import ConfigError, compose

MAXIMUM = 256
WORK = "from core.accel.native import WORK as SIGNATURE, work as kernel\n"
"""The text of what a thread of a pool does."""


class Pool:
    """Threads that run plans together: the caller's and ``threads - 1`` workers.

    Workers start at the first parallel plan. Between plans they spin for about 0.1 ms and then sleep, and those that
    wake too late for a plan are not waited for.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._control: Any = None
        self._workers: list[threading.Thread] = []

    def run(self, call: Call, *arguments: Any, through: Callable[..., object] | None = None) -> None:
        """Run the steps of a call on arrays; alone on the calling thread if another caller has the workers.

        Parameters
        ----------
        through : runs the call instead of ``call.run``, once or more often, and is given the same arguments
        """
        run = through or call.run
        if not (call.parallel and self.threads > 1 and self._lock.acquire(blocking=False)):
            run(*arguments)
            return
        try:
            call.set_control(ctypes.addressof(self._control or self._start()))
            run(*arguments)
        finally:
            call.set_control(0)
            self._lock.release()

    def close(self) -> None:
        """End the workers, once the plan they run is done; later plans run on their callers' threads."""
        with self._lock:
            self.threads = 1
            if self._control is None:
                return
            libc, control = ctypes.CDLL(None), self._control
            mutex, turnstile = (ctypes.byref(control, 8 * word) for word in (layout.MUTEX, layout.TURNSTILE))
            libc.pthread_mutex_lock(mutex)
            control[layout.JOB] = -1
            libc.pthread_cond_broadcast(turnstile)
            libc.pthread_mutex_unlock(mutex)
            for worker in self._workers:
                worker.join()
            self._control, self._workers = None, []

    def abandon(self) -> None:
        """In a forked child: begin anew, since the parent's workers are not here and its lock may never be freed."""
        self._lock = threading.Lock()
        self._control, self._workers = None, []

    def _start(self) -> Any:
        libc = ctypes.CDLL(None)
        control = (ctypes.c_int64 * (layout.CLAIMS + self.threads * layout.LINE))()
        control[layout.THREADS] = self.threads
        libc.pthread_mutex_init(ctypes.byref(control, 8 * layout.MUTEX), None)
        libc.pthread_cond_init(ctypes.byref(control, 8 * layout.TURNSTILE), None)
        self._workers = [threading.Thread(target=_work(), args=(_scratch, _scratch, control, number), daemon=True,
                                          name=f"tilework-{number}") for number in range(1, self.threads)]
        for worker in self._workers:
            worker.start()
        self._control = control
        return control


_scratch = (ctypes.c_void_p * 2)()


@functools.cache
def _work() -> Callable[..., int]:
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, ctypes.c_int64)
    return kind(store.address(WORK))


_shared: Pool | None = None
_shared_lock = threading.Lock()


def pool() -> Pool:
    """The pool of this process, with `TILEWORK_THREADS` threads unless `set_threads` said otherwise."""
    global _shared
    if _shared is None:
        with _shared_lock:
            _shared = _shared or Pool(_configured())
    return _shared


def set_threads(count: int) -> None:
    """Run plans on `count` threads from now on, the caller's included.

    Raises
    ------
    ConfigError
        If `count` is not in 1..256.
    """
    global _shared
    fresh = Pool(_checked(count, "set_threads"))
    with _shared_lock:
        former, _shared = _shared, fresh
    if former is not None:
        former.close()


def run(call: Call, *arrays: NDArray[Any]) -> None:
    """Run the steps of a call, given arrays, on the threads of this process.

    The GIL is free meanwhile. Any number of Python threads may call at once: one of them gets the workers, the others
    run their plans alone. An interrupt from the keyboard waits for the end of the plan.
    """
    pool().run(call, *arrays)


def usable_cores() -> int:
    """Cores that the system lets this process use."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _configured() -> int:
    chosen = os.environ.get("TILEWORK_THREADS", "auto")
    if chosen == "auto":
        return min(usable_cores(), MAXIMUM)
    return _checked(chosen, "TILEWORK_THREADS")


def _checked(count: int | str, origin: str) -> int:
    try:
        number = int(count)
    except ValueError:
        number = 0
    if not 1 <= number <= MAXIMUM:
        raise ConfigError(compose(f"{origin} cannot be {count!r}", [
            ("expected", f"a number of threads in 1..{MAXIMUM}, or auto in TILEWORK_THREADS"),
            ("hint", f"this process may use {usable_cores()} cores"),
        ]))
    return number


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    if _shared is not None:
        _shared.abandon()


def _close() -> None:
    """At the end of the interpreter, before the memory that workers look at goes away."""
    if _shared is not None:
        _shared.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close)
