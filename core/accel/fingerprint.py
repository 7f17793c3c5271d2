"""Keys of the store: digests of everything that shapes the code of a text, and of the sources of whole packages.

Invariant: two processes that compute the same key would compile the same code. A key covers the text, every source file
of this package that the text imports, the versions of Python, numba and llvmlite, numba's settings, and the CPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.engine.errors import DeviceError, compose

_PACKAGE = "core.accel"
_ROOT = Path(__file__).parent
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|(?:\\\n|[^\n])*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([^\n]+)", re.MULTILINE)
_NAME = re.compile(r"[\w.]+")


def key(text: str, modules: Iterable[str]) -> str:
    """The key of a text that builds on `modules` (see `closure`)."""
    parts = [machine(), text, *(f"{name} {_examine(name)[0]}" for name in modules)]
    return _digest("\0".join(parts).encode())


@functools.cache
def closure(text: str) -> tuple[str, ...]:
    """Modules of this package that a text imports, itself or through others, in sorted order."""
    found: set[str] = set()
    waiting = {f"{_PACKAGE}.pointer", *_imports(text, _PACKAGE)}  # the store takes its signature from pointer
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _examine(name)[1] - found
    return tuple(sorted(found))


def source(module: str) -> Path:
    """The file of a module of this package."""
    path = _ROOT.joinpath(*module.split(".")[2:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def sources(package: str) -> list[Path]:
    """All source files of an installed package, in sorted order."""
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations or () if found else ()
    return [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]


def of_files(paths: Iterable[Path]) -> str:
    """Digest of the names and the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


@functools.cache
def machine() -> str:
    """Digest of the compiler, its settings, and the processor."""
    import llvmlite
    from llvmlite import binding

    numba = importlib.util.find_spec("numba")  # finds the package and does not import it
    if numba is None or numba.origin is None:
        raise DeviceError(compose("the cpu backend needs numba, which is not installed", [
            ("hint", "pip install numba, or use the reference backend")]))
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")]
    parts = [sys.version, llvmlite.__version__, Path(numba.origin).with_name("_version.py").read_text(),
             binding.get_default_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    return _digest("\0".join(parts + settings).encode())


@functools.cache
def _examine(module: str) -> tuple[str, frozenset[str]]:
    """Digest of a module's source and the modules of this package that it imports."""
    path = source(module)
    content = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _digest(content), frozenset(_imports(content.decode(), package))


def _imports(text: str, package: str) -> Iterator[str]:
    """Modules of this package that a source imports.

    Patterns take a tenth of the time of a syntax tree. They may find too much, in a docstring say, which costs a
    compilation at worst, and never too little.
    """
    names = [name for line in _IMPORT.findall(text) for name in _NAME.findall(line)]
    for base, members in _FROM.findall(text):
        absolute = importlib.util.resolve_name(base, package)
        names += [absolute, *(f"{absolute}.{member}" for member in _NAME.findall(members))]
    for name in names:
        while name.startswith(f"{_PACKAGE}."):
            if _is_module(name):
                yield name
            name = name.rpartition(".")[0]  # importing a module runs the packages around it


@functools.cache
def _is_module(name: str) -> bool:
    return source(name).exists()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
