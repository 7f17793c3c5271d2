"""Units that multiply narrow elements: what each has to bring, and what depends on it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.accel import chips, fingerprint, units
from core.accel.kernels import gemm, narrow, narrow_panels
from tests.accel import tile_emulation
from tests.accel.stepping import Memory

NAMED = {chips.VECTORS, *(unit for chip in chips.CHIPS for _, unit, _ in chip.narrow)}
FUNCTIONS = {"configure", "copy_runs", "multiply", "release", "store_rows"}


def kernel_on(unit, monkeypatch):
    """The text of a product of bytes on a unit."""
    block = replace(chips.narrow_block_for(chips.host(), "i8", columns=4), unit=unit)
    for module in (narrow, narrow_panels):
        monkeypatch.setattr(module, "narrow_block_for", lambda chip, element, columns: block)
    memory = Memory()
    square = memory.view(np.zeros((4, 4), np.int8))
    return gemm.matmul(square, square, memory.view(np.zeros((4, 4), np.int32)))[-1].kernel


def test_a_unit_is_a_file_and_a_row_of_a_chip():
    assert {module.name for module in pkgutil.iter_modules(units.__path__)} == NAMED


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_unit_has_what_kernels_call(name):
    unit = importlib.import_module(f"core.accel.units.{name}")
    assert set(unit.__all__) == FUNCTIONS
    assert all(f"    {function}(" in units.__doc__ or f", {function}(" in units.__doc__ for function in FUNCTIONS)


def units_behind(text):
    return {name for name in fingerprint.closure(text) if name.startswith("core.accel.units.")}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_code_of_a_kernel_depends_on_its_unit_and_on_what_that_imports(name, monkeypatch):
    found = units_behind(kernel_on(name, monkeypatch))
    assert f"core.accel.units.{name}" in found
    assert found == units_behind(f"import core.accel.units.{name}")


TILE_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16",
                 "amx-tile", "amx-int8", "amx-bf16")
TILE_PROGRAM = r"""
import re, sys
from core.accel import chips, objects
from core.accel.plan import make_plan
from core.engine import dtypes, ops, tree
from core.engine.backends import Options
from core.engine.graph import Aval
from core.engine.jit import close
from core.engine.trace import trace

chips._features = lambda: frozenset({features})
assert chips.host().name == "amx"
name, prefix, opcode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3], 16)
kinds = dtypes.BY_NAME[name], dtypes.int8 if name == "uint8" else dtypes.BY_NAME[name]
traced = trace(ops.matmul, [Aval(kind, (96, 96)) for kind in kinds], tree.tuple_of_leaves(2))
texts = make_plan(close(traced), Options(), "cpu").finish().kernels
code = b"".join(objects.compile_text(text, "kernel").content for text in texts)
found = re.findall(rb"\xc4\xe2(.)" + re.escape(bytes([opcode])), code, re.DOTALL)
print(sum(third[0] & 7 == prefix for third in found))
"""


def run(*arguments, **variables):
    """What Python prints, run with these arguments, in the best way that the machine offers."""
    others = {key: value for key, value in os.environ.items() if key != "TILEWORK_CPU"}
    done = subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parents[2], env={**others, **variables},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="tiles are of x86")
@pytest.mark.parametrize(("name", "prefix", "opcode"), [("bfloat16", 2, "5c"), ("int8", 3, "5e"), ("uint8", 1, "5e")],
                         ids=["tdpbf16ps", "tdpbssd", "tdpbusd"])
def test_products_on_tiles_compile_on_any_machine(name, prefix, opcode):
    """The instructions are told by their opcode and prefix, in the three bytes of VEX before it."""
    features = ",".join(f"+{feature}" for feature in TILE_FEATURES)
    found = run("-c", TILE_PROGRAM.format(features=TILE_FEATURES), name, str(prefix), opcode,
                NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=features)
    assert int(found) >= 4


@pytest.mark.skipif(tile_emulation.what_is_missing() is not None, reason=str(tile_emulation.what_is_missing()))
def test_products_on_emulated_tiles_are_right():
    arguments = ("-q", "-p", "no:cacheprovider", "-k", "amx", "tests/accel/test_narrow.py")
    found = run("-m", tile_emulation.__name__, *arguments)
    assert "passed" in found and "skipped" not in found
