"""Workers: processes that answer lines, each on one thread, so that Python code too runs on every core.

Invariant: answers keep the order of the questions, few questions are read ahead, and no worker outlives its owner.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any, Self

AHEAD = 2
"""Questions that are read for each worker before the first of them is answered."""

Worker = subprocess.Popen[bytes]


class Workers:
    """Processes of one program that calls `serve`. Leaving the context ends them, whatever they are doing.

    Parameters
    ----------
    words : what follows ``python -m``: a module and its arguments
    count : number of processes
    """

    def __init__(self, words: Sequence[str], count: int) -> None:
        self._workers = [_start(words) for _ in range(count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.communicate()  # closes the pipes

    def answers(self, questions: Iterable[bytes]) -> Iterator[bytes]:
        """The answer to each question, a line without its end.

        Raises
        ------
        MemoryError
            If the system killed a worker.
        RuntimeError
            If a worker ended otherwise; what it said is on standard error.
        """
        asked: deque[Future[bytes]] = deque()
        for question in questions:
            asked.append(self._threads.submit(self._ask, question))
            if len(asked) > AHEAD * len(self._workers):
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()

    def _ask(self, question: bytes) -> bytes:
        """The answer of the next worker that is free."""
        worker = self._idle.get()
        try:
            return _exchange(worker, question)
        finally:
            self._idle.put(worker)


def _start(words: Sequence[str]) -> Worker:
    """A process that finds modules where this one does, and that an interrupt from the terminal does not reach."""
    places = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "TILEWORK_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    return subprocess.Popen([sys.executable, "-P", "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env=environment, process_group=0)


def _exchange(worker: Worker, question: bytes) -> bytes:
    questions, answers = _pipes(worker)
    try:
        questions.write(question + b"\n")
        questions.flush()
        answer = answers.readline()
    except BrokenPipeError:
        answer = b""
    if not answer.endswith(b"\n"):
        raise _end(worker.wait())
    return answer[:-1]


def _pipes(worker: Worker) -> tuple[IO[bytes], IO[bytes]]:
    assert worker.stdin is not None and worker.stdout is not None
    return worker.stdin, worker.stdout


def _end(code: int) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryError("a worker process was killed, as systems do when memory runs out; TILEWORK_THREADS=1 takes "
                           "the least")
    return RuntimeError(f"a worker process ended with the code {code}; what it said stands above")


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer each line of standard input with a line on standard output, until the owner ends and with it the input.

    Whatever else is printed goes to standard error.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # an owner that is gone wants no traceback
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for question in sys.stdin.buffer:
            answers.write(answer(question[:-1]) + b"\n")
            answers.flush()
