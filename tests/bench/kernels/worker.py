"""A worker: a process that builds work in one framework, and measures calls of it when it is asked to.

Invariant: requests and answers are one JSON object a line; the process computes only between a request and its answer,
so that workers that take turns do not disturb each other. This file and those of the peers need numpy and their
framework, and nothing of Tilework.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import numpy as np

Call = Callable[[], Any]
Work = Mapping[str, Any]
WAKING = 0.03
"""Seconds of calls before those that count."""


class Unsupported(Exception):
    """The framework has no such computation; the message says why."""


class Framework(Protocol):
    """What a worker needs of a framework."""

    def versions(self) -> dict[str, str]:
        """Versions of what the results depend on."""

    def build(self, work: Work) -> dict[str, Call]:
        """Calls by the name of the variant; a call computes once and comes back when the result is there."""

    def values(self, result: Any) -> list[Any]:
        """Numpy arrays of what a call gave."""


class _Worker:
    def __init__(self, framework: Framework) -> None:
        self._framework = framework
        self._calls: dict[str, Call] = {}

    def build(self, work: Work) -> dict[str, Any]:
        """Build the calls, and give the root mean square of what each first gives, and the seconds that took."""
        self._calls = self._framework.build(work)
        norms, seconds = {}, {}
        for name, call in self._calls.items():
            begin = time.perf_counter()
            result = call()
            seconds[name] = time.perf_counter() - begin
            norms[name] = _root_mean_square(self._framework.values(result))
        return {"norms": norms, "seconds": seconds}

    def measure(self, variant: str, seconds: float) -> dict[str, Any]:
        """Median and least seconds of a call, over the calls of so many seconds; of the first one, if that took longer.

        Calls before them wake the threads, which the system lets run beside each other only after a while.
        """
        call = self._calls[variant]
        clock = time.perf_counter
        begin = clock()
        call()
        first = clock() - begin
        if first > seconds:
            return {"seconds": first, "fastest": first}
        while clock() < begin + WAKING:
            call()
        times = []
        end = clock() + seconds
        while not times or clock() < end:
            begin = clock()
            call()
            times.append(clock() - begin)
        return {"seconds": statistics.median(times), "fastest": min(times)}

    def memory(self) -> dict[str, Any]:
        """The greatest resident memory of the process so far."""
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def about(self) -> dict[str, Any]:
        return {"versions": self._framework.versions()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = getattr(self, request.pop("operation"))
        try:
            answer: dict[str, Any] = operation(**request)
            return answer
        except Unsupported as error:
            return {"unsupported": str(error)}
        except Exception as error:  # a peer's failure is a result, too
            traceback.print_exc()
            return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _root_mean_square(arrays: list[Any]) -> float | None:
    if not arrays:
        return None
    total = sum(float(np.sum(np.square(array.astype(np.float64)))) for array in arrays)
    return float(np.sqrt(total / sum(array.size for array in arrays)))


def serve(make: Callable[[], Framework]) -> None:
    """Answer requests from stdin on stdout until it ends."""
    requests, answers = sys.stdin, _private_stdout()
    worker = _Worker(make())
    for line in requests:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


def _private_stdout() -> TextIO:
    """The real stdout; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def threads() -> int:
    """Threads that a worker may use."""
    return int(os.environ["BENCH_THREADS"])
