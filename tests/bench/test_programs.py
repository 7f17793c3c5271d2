"""Every program that the pages of results name can be started, as far as its libraries are installed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PROGRAMS = sorted(".".join(path.relative_to(FOLDER.parents[1]).with_suffix("").parts) for path in FOLDER.rglob("*.py")
                  if not path.name.startswith(("__", "test_")))
PEERS = ("chemprop", "jax", "onnx", "onnxruntime", "openvino", "torch")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in PEERS:
            raise
        pytest.skip(f"needs {error.name}, of the extra bench")
