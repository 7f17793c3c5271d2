"""Units that multiply narrow elements: what each has to bring, and what depends on it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

import numpy as np
import pytest

from core.accel import chips, fingerprint, units
from core.accel.kernels import gemm, narrow, narrow_panels
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
