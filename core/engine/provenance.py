"""What a result was made from: digests of the input, versions of the libraries, the machine.

Invariant: nothing here changes anything, and all of it can be written as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.engine.errors import DataError

VERSIONED = ("tilework", "numpy", "numba", "llvmlite", "safetensors", "scipy", "scikit-image", "rdkit", "h5py")
"""Distributions whose versions a run records, where they are installed."""


def fingerprint(path: Path | str) -> dict[str, Any]:
    """Path, SHA-256 and bytes of a file; of a folder, the digest of the names and sizes of its files.

    Raises
    ------
    DataError
        If there is no such file or folder, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = [item for item in sorted(path.rglob("*")) if item.is_file()]
        sizes = [(str(item.relative_to(path)), item.stat().st_size) for item in files]
        return {"path": str(path), "sha256": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
                "bytes": sum(size for _, size in sizes), "files": len(sizes)}
    try:
        with path.open("rb") as file:
            return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                    "bytes": os.fstat(file.fileno()).st_size}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def describe(item: Mapping[str, Any]) -> str:
    """A fingerprint in a message."""
    return f"{item['path']} ({item['bytes']} bytes, sha256 {item['sha256'][:12]}…)"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Name, system, processor and cores of this machine."""
    return {"name": platform.node(), "system": platform.platform(), "processor": processor(),
            "cores": os.cpu_count() or 1}


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
