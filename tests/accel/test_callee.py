"""Callees: compiled once for all kernels that call them, found again without the compiler, never missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.accel import compilers, objects, store, threads
from core.accel.store import Store
from tests.accel.test_store import ROOT, call

HALVE = """from numba import types
from core.accel.pointer import f32
SIGNATURE = types.void(types.CPointer(types.float32), types.int64)
def kernel(values, count):
    for i in range(count):
        values[i] *= 0.5
"""

KERNEL = """
from core.accel.callee import calling
from core.accel.pointer import at, f32
from numba import types
HALVE = {callee!r}
halve = calling(HALVE, types.void(types.CPointer(types.float32), types.int64))
def kernel(p, d, begin, end):
    halve(at(f32(p, 0), begin), end - begin - {spared})
"""

ORIGINAL = np.arange(1, 20, dtype=np.float32)


def text(spared: int) -> str:
    """A kernel that halves all values but some last ones by a callee."""
    return KERNEL.format(callee=HALVE, spared=spared)


def check(address: int, spared: int) -> None:
    values, expected = ORIGINAL.copy(), ORIGINAL.copy()
    expected[:-spared] /= 2
    call(address, values)
    assert (values == expected).all()


def test_kernels_share_a_callee(tmp_path: Path) -> None:
    own = Store(tmp_path)
    for spared in (1, 2, 3):
        check(own.address(text(spared)), spared)
    assert len(own.entries()) == 4


def test_a_callee_is_found_without_the_compiler(tmp_path: Path) -> None:
    Store(tmp_path).address(text(1))
    program = (f"import sys; sys.path.insert(0, {ROOT!r}); from core.accel import store\n"
               f"assert store.address({text(1)!r}) > 0; print('numba' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "TILEWORK_CACHE": str(tmp_path)})
    assert done.stdout == "False\n"


def test_a_lost_callee_is_compiled_again(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.address(text(1))
    for name in first.entries() - {first._path(text(1)).name}:
        (tmp_path / name).unlink()
    second = Store(tmp_path)
    check(second.address(text(1)), 1)
    assert second.missing([HALVE]) == []


def test_helpers_compile_a_callee_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, compiled = Store(tmp_path), list[str]()
    original = objects.compile_text
    monkeypatch.setattr(store, "_default", own)
    monkeypatch.setattr(threads, "_shared", threads.Pool(2))
    monkeypatch.setattr(objects, "compile_text", lambda text, name: compiled.append(text) or original(text, name))
    texts = [text(spared) for spared in range(1, 12)]
    compilers.compile_missing(texts)
    assert own.missing([*texts, HALVE]) == []
    assert compiled.count(HALVE) == 1
    for spared, one in enumerate(texts, 1):
        check(own.address(one), spared)


def test_a_callee_out_of_sight_is_refused(tmp_path: Path) -> None:
    inner = text(1).replace("\ndef kernel", "\n@register_jitable\ndef inner")
    outer = "def kernel(p, d, begin, end):\n    inner(p, d, begin, end)\n"
    hidden = f"from numba.extending import register_jitable\n{inner}{outer}"
    with pytest.raises(RuntimeError, match=r"calls tilework_.*, nor a callee among its variables"):
        Store(tmp_path).address(hidden)
