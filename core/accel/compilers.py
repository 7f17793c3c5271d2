"""Compilers: processes that compile kernels side by side, since numba compiles on one core. Also their program.

Invariant: they only add entries to the store. What one fails to compile, or a process that cannot start, is left to
`store.address`, which raises what there is to raise.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.accel import objects, store, threads, walker
from core.engine.trace import uncollected

_WORTH = 8
"""Kernels that one core compiles in about twice the time in which a process starts."""
_log = logging.getLogger("tilework.compilers")


def compile_missing(texts: Iterable[str]) -> None:
    """Compile those kernels of several texts that the store lacks, on as many cores as plans run on.

    With them goes what runs plans, and before them, what they call: no two processes then compile the same.
    """
    missing = deque(store.default().missing([walker.ENTER, threads.WORK, *texts]))
    if len(missing) >= _WORTH:
        _log.info("compiling %d kernels for this machine; they are kept for the next time", len(missing))
    helpers = min(threads.pool().threads - 1, len(missing) // _WORTH)
    if helpers > 0:
        called = itertools.chain(*map(objects.callees_of, missing))
        missing.extendleft(store.default().missing(called))
    feeders = [threading.Thread(target=_feed, args=(missing,), daemon=True) for _ in range(helpers)]
    for feeder in feeders:
        feeder.start()
    try:
        if feeders:
            with uncollected():  # it would walk through all that numba keeps for each kernel
                for text in _each(missing):
                    store.default().compile(text)
    finally:
        missing.clear()
        for feeder in feeders:
            feeder.join()


def _each(missing: deque[str]) -> Iterator[str]:
    """The texts that nobody else takes."""
    with contextlib.suppress(IndexError):
        while True:
            yield missing.popleft()


def _feed(missing: deque[str]) -> None:
    """Have a process compile one text after the other until none is left."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "TILEWORK_CACHE": str(store.default().directory)}
    with (contextlib.suppress(OSError),
          subprocess.Popen([sys.executable, "-P", "-m", __name__], text=True, stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables) as process):
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()  # it has started; until then the texts are for others
        for text in _each(missing):
            print(json.dumps(text), file=process.stdin, flush=True)
            if not process.stdout.readline():
                return


def _serve() -> None:
    """Compile the texts on stdin, one in a line as JSON, and say on stdout when each is done."""
    from numba import njit  # noqa: F401  what takes long to start

    print(flush=True)
    with uncollected():
        for line in sys.stdin:
            store.default().compile(json.loads(line))
            print(flush=True)


if __name__ == "__main__":
    _serve()
