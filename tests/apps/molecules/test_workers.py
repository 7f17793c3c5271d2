"""`apps.molecules.workers`: the order of answers, how far questions are read ahead, and all the ways workers end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.molecules.workers import AHEAD, Workers

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, sys, time
from apps.molecules.workers import serve

def answer(line):
    word, rest = [*line.decode().split(), "", ""][:2]
    if word == "sleep":
        time.sleep(float(rest))
    if word == "exit":
        print("this is the reason", flush=True)
        sys.exit(int(rest))
    if word == "kill":
        os.kill(os.getpid(), int(rest))
    return f"{os.getpid()} {os.environ['TILEWORK_THREADS']} {sys.argv[1]} {line.decode()}".encode()

serve(answer)
"""
OWNER = """
import sys, time
from apps.molecules.workers import Workers
with Workers(["program", "word"], 2) as workers:
    print(*[worker.pid for worker in workers._workers], flush=True)
    list(workers.answers([b"sleep 0.1"] * 600))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that start a program which says who it is and repeats what it is told."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return ["program", "word"]


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def ends(pids: list[int]) -> bool:
    """Whether processes end within a time that a busy machine needs."""
    end = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_answers_keep_the_order_of_the_questions_and_few_are_read_ahead(program: list[str]) -> None:
    taken = 0

    def questions() -> Iterator[bytes]:
        nonlocal taken
        generator = random.Random(0)
        for taken in range(1, 61):
            yield f"sleep {generator.choice((0, 0, 0.05))} {taken} {'long ' * generator.choice((0, 50_000))}".encode() \
                if taken % 3 else b""

    expected = list(questions())
    seen = set()
    with Workers(program, 2) as workers:
        for number, (question, answer) in enumerate(zip(expected, workers.answers(questions()), strict=True), 1):
            pid, threads, word, back = answer.split(b" ", 3)
            seen.add(pid)
            assert (threads, word, back) == (b"1", b"word", question)
            assert taken <= number + 2 * AHEAD
    assert len(seen) == 2


@pytest.mark.parametrize(("question", "error", "says"), [
    ("kill 9", MemoryError, "was killed, as systems do when memory runs out"),
    ("kill 11", RuntimeError, "ended with the code -11"),
    ("exit 3", RuntimeError, "ended with the code 3; what it said stands above"),
])
def test_a_worker_that_ends_is_an_error(program: list[str], question: str, error: type, says: str,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    found = []
    with pytest.raises(error, match=says), Workers(program, 2) as workers:
        for answer in workers.answers([b"first", question.encode(), *[b"later"] * 20]):
            found.append(answer)
    assert [answer.split()[-1] for answer in found] == [b"first"]
    assert capfd.readouterr() == ("", "this is the reason\n" if "exit" in question else ""), "what it prints is kept"
    assert ends([worker.pid for worker in workers._workers])


def test_when_all_workers_have_ended_nothing_waits_for_them(program: list[str]) -> None:
    with pytest.raises(MemoryError), Workers(program, 2) as workers:
        list(workers.answers([b"kill 9"] * 30))


def test_leaving_ends_workers_that_are_busy(program: list[str]) -> None:
    begin = time.monotonic()
    with pytest.raises(KeyError), Workers(program, 2) as workers:
        for _ in workers.answers([b"first", *[b"sleep 60"] * 4]):
            raise KeyError
    assert ends([worker.pid for worker in workers._workers]) and time.monotonic() - begin < 50


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_owner(program: list[str], tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=tmp_path, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert all(map(alive, pids))
    owner.send_signal(number)
    owner.communicate()
    assert ends(pids)
