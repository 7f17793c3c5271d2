"""Compiling side by side: the same kernels as one process makes, whatever happens to the others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from core.accel import compilers, store, threads, walker
from core.accel.store import Store

KERNEL = "def kernel(p, d, begin, end):\n    d[0] = {number}\n"
TEXTS = [KERNEL.format(number=number) for number in range(17)]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    own = Store(tmp_path)
    monkeypatch.setattr(store, "_default", own)
    monkeypatch.setattr(threads, "_shared", threads.Pool(3))
    return own


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The processes that are started."""
    processes: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
        processes.append(original(*arguments, **options))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(compilers.subprocess, "Popen", start)
    return processes


def test_all_kernels_come_into_the_store(own_store: Store, started: list[subprocess.Popen[str]]) -> None:
    assert own_store.missing(TEXTS) == TEXTS
    compilers.compile_missing([*TEXTS, TEXTS[0]])
    assert own_store.missing(TEXTS) == []
    assert own_store.missing([walker.ENTER, threads.WORK]) == []
    assert len(own_store.entries()) == len(TEXTS) + 2
    assert [process.returncode for process in started] == [0, 0]


def test_few_kernels_are_left_to_this_process(own_store: Store, started: list[subprocess.Popen[str]]) -> None:
    compilers.compile_missing(TEXTS[:compilers._WORTH - 3])  # two texts more run plans
    assert not started
    assert not own_store.entries()


def test_what_takes_long_is_told_once(own_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tilework")
    compilers._log.addHandler(caplog.handler)
    try:
        compilers.compile_missing(TEXTS[:2])
        assert not caplog.messages
        compilers.compile_missing(TEXTS)
        compilers.compile_missing(TEXTS)
    finally:
        compilers._log.removeHandler(caplog.handler)
    assert {message.split(" for")[0] for message in caplog.messages} == {f"compiling {len(TEXTS) + 2} kernels"}


def test_what_is_there_is_not_compiled(own_store: Store, started: list[subprocess.Popen[str]]) -> None:
    compilers.compile_missing(TEXTS)
    started.clear()
    compilers.compile_missing(TEXTS)
    assert not started


@pytest.mark.parametrize("program", ["missing program", "dies at once"])
def test_a_process_that_fails_costs_nothing(own_store: Store, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(compilers.sys, "executable", "/bin/false" if program == "dies at once" else "/no/such/program")
    compilers.compile_missing(TEXTS)
    assert all(address > 0 for address in store.addresses(TEXTS))


def test_a_kernel_that_does_not_compile_is_reported_here() -> None:
    with pytest.raises(ZeroDivisionError):
        compilers.compile_missing(["1 / 0\n", *TEXTS])
        store.address("1 / 0\n")
