"""The store: entries are found again, never stale, never damaged, never planted by others."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.accel import fingerprint, objects, store
from core.accel.store import Store
from core.engine.errors import DeviceError

SCALE = """from core.accel.pointer import f32

def kernel(p, d, begin, end):
    x = f32(p, 0)
    for i in range(begin, end):
        x[i] = x[i] * {factor}
"""

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from core.accel import store
began = time.perf_counter()
assert store.address({text!r}) > 0
print("numba" in sys.modules, time.perf_counter() - began)
"""

ROOT = str(Path(__file__).parents[2])


def scale(factor: int) -> str:
    return SCALE.format(factor=factor)


def call(address: int, values: np.ndarray) -> None:
    """Run a kernel of one operand over all of it."""
    kernel = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)(address)
    scratch = (ctypes.c_void_p * 2)()
    operands = (ctypes.c_void_p * 1)(values.ctypes.data)
    assert kernel(scratch, scratch, operands, None, 0, values.size) == 0


def entries(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.kernel"))


def in_process(directory: Path, text: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(root=ROOT, text=text)], text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "TILEWORK_CACHE": str(directory)})


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled although an entry was there")

    monkeypatch.setattr(objects, "compile_text", refuse)


def test_compiled_code_runs(tmp_path: Path) -> None:
    values = np.arange(37, dtype=np.float32)
    call(Store(tmp_path / "kernels").address(scale(3)), values)
    assert (values == 3 * np.arange(37)).all()


def test_directory_is_private(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "kernels")
    assert (tmp_path / "a" / "kernels").stat().st_mode & 0o777 == 0o700


def test_second_store_loads(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = Store(tmp_path).address(scale(5))
    request.getfixturevalue("no_compiler")
    second = Store(tmp_path).address(scale(5))
    assert second != first
    values = np.ones(3, np.float32)
    call(second, values)
    assert values.tolist() == [5, 5, 5]


@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[:10],
    lambda content: content[:-1],
    lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    lambda content: content[:60] + b"x" + content[61:],
    lambda content: b"another kind of file\n" + content,
], ids=["empty", "header only", "cut", "one bit of code", "symbol", "magic"])
def test_damaged_entry_is_replaced(tmp_path: Path, damage, request) -> None:  # type: ignore[no-untyped-def]
    Store(tmp_path).address(scale(7))
    path, = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert store._read(path) is None
    values = np.ones(2, np.float32)
    call(Store(tmp_path).address(scale(7)), values)
    assert values.tolist() == [7, 7]
    request.getfixturevalue("no_compiler")
    call(Store(tmp_path).address(scale(7)), values)
    assert values.tolist() == [49, 49]


def test_two_processes_race_on_a_cold_directory(tmp_path: Path) -> None:
    processes = [in_process(tmp_path / "kernels", scale(11)) for _ in range(2)]
    assert [(process.communicate()[0].split()[0], process.returncode) for process in processes] == [("True", 0)] * 2
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    assert store._read(entries(tmp_path / "kernels")[0]) is not None


def test_warm_process_imports_no_numba(tmp_path: Path) -> None:
    Store(tmp_path).address(scale(13))
    imported, _ = in_process(tmp_path, scale(13)).communicate()[0].split()
    assert imported == "False"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_writable_directory_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(DeviceError, match=rf"is not private(.|\n)*mode {mode:04o}(.|\n)*chmod 700"):
        Store(tmp_path)


def test_foreign_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(DeviceError, match=f"owner {owner}, "):
        Store(tmp_path)


def test_unusable_directory_falls_back_to_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = PROGRAM.format(root=ROOT, text=scale(17)) + "print(store.default().directory)"
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True,
                          env={**os.environ, "TILEWORK_CACHE": str(tmp_path / "file")})
    temporary = done.stdout.splitlines()[-1]
    assert temporary in done.stderr
    assert not Path(temporary).exists()


def test_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    Store(tmp_path).address(scale(19))
    first, = entries(tmp_path)
    Store(tmp_path).address(scale(23))
    second, = set(entries(tmp_path)) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    Store(tmp_path).address(scale(19))  # used again, so the second is now the oldest
    Store(tmp_path, capacity=first.stat().st_size * 5 // 2).address(scale(29))
    assert first.exists()
    assert not second.exists()
    assert len(entries(tmp_path)) == 2


def test_a_look_through_the_directory_serves_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    original = Store._prune
    monkeypatch.setattr(Store, "_prune", lambda self: (looks.append(len(kept)), original(self)))
    kept, few = [], Store(tmp_path, capacity=40_000)
    for number in range(200):
        kept.append(f"{number:03}.plan")
        few.keep(kept[-1], bytes(1000), [])
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert size <= 40_000 + 1100, "more than an entry beyond the capacity"
    present = sorted(path.name for path in tmp_path.iterdir())
    assert present == kept[-len(present):], "those written last stay"
    assert len(looks) < 200


def test_rests_of_killed_writers_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "old.part", tmp_path / "new.part"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    Store(tmp_path).address(scale(31))
    assert (old.exists(), new.exists()) == (False, True)


def test_threads_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = objects.compile_text
    monkeypatch.setattr(objects, "compile_text", lambda *arguments: compiled.append(1) or original(*arguments))
    shared = Store(tmp_path)
    start = threading.Barrier(8)

    def load() -> int:
        start.wait()
        return shared.address(scale(37))

    with ThreadPoolExecutor(8) as executor:
        addresses = [task.result() for task in [executor.submit(load) for _ in range(8)]]
    assert len(set(addresses)) == len(compiled) == 1


def test_code_of_an_edited_source_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STARTED", 0.0)
    assert Store(tmp_path).address(scale(41)) > 0
    assert entries(tmp_path) == []


def test_texts_and_settings_have_their_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(text: str) -> str:
        return fingerprint.key(text, fingerprint.closure(text))

    keys = {key(scale(1)), key(scale(2))}
    monkeypatch.setenv("NUMBA_OPT", "1")
    fingerprint.machine.cache_clear()
    keys.add(key(scale(1)))
    monkeypatch.undo()
    fingerprint.machine.cache_clear()
    assert len(keys) == 3


@pytest.mark.parametrize("line", [
    "from core.accel.native import walk",
    "from core.accel import native",
    "from core.accel import store, native as compiled",
    "from core.accel import (\n    store,\n    native,\n)",
    "from core.accel import store, \\\n    native",
    "import core.accel.native",
    "import os, core.accel.native as compiled",
    "from .native import walk",
    "def late():\n    from core.accel.native import walk",
])
def test_closure_finds_imports(line: str) -> None:
    expected = {f"core.accel.{name}" for name in ("native", "atomics", "layout", "pointer")}
    assert expected <= set(fingerprint.closure(line))


def test_closure_follows_sources() -> None:
    assert fingerprint.closure("x = 1") == ("core.accel.pointer",)
    assert "core.accel.native" not in fingerprint.closure("from core.accel.step import View")


def test_tracebacks_show_the_text(tmp_path: Path) -> None:
    try:
        Store(tmp_path).address("def kernel(p, d, begin, end): pass\nraise LookupError('in the text')")
    except LookupError:
        assert "raise LookupError('in the text')\n" in traceback.format_exc()
    else:
        pytest.fail("the text did not run")


def test_code_that_needs_numba_at_run_time_is_refused(tmp_path: Path) -> None:
    text = "import numpy as np\ndef kernel(p, d, begin, end):\n    d[0] = np.arange(begin, end).sum()"
    with pytest.raises(RuntimeError, match="calls NRT_"):
        Store(tmp_path).address(text)
    assert entries(tmp_path) == []


def test_compiler_keeps_the_order_of_sums_and_nan(tmp_path: Path) -> None:
    text = """from core.accel.pointer import f32
def kernel(p, d, begin, end):
    x = f32(p, 0)
    total = x[begin]
    for i in range(begin + 1, end):
        total += x[i]
    x[begin] = total
    x[end - 1] = 1 if x[end - 1] != x[end - 1] else 0
"""
    values = np.array([1e8, 3, 3, -1e8] * 16, np.float32)
    expected = values[0]
    for value in values[1:]:
        expected += value
    call(Store(tmp_path).address(text), values)
    assert values[0] == expected
    values[-1] = np.nan
    call(Store(tmp_path).address(text), values)
    assert values[-1] == 1
