"""Backends by name: what turns a graph into something that runs.

Invariant: this is the one file of the engine that reaches `core.accel`, by name and only when a backend is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from core.engine.errors import DeviceError
from core.engine.graph import Graph

MODULES = {
    "reference": "core.accel.reference:BACKEND", "null": "core.accel.null:BACKEND", "cpu": "core.accel.cpu:BACKEND",
    "tpu-v1": "core.accel.tpu.backend:V1",
    "tpu-v2": "core.accel.tpu.backend:V2", "tpu-v2:3": "core.accel.tpu.backend:V2_IN_3_PASSES",
    "tpu-v2:6": "core.accel.tpu.backend:V2_IN_6_PASSES",
    "tpu-v3": "core.accel.tpu.backend:V3", "tpu-v3:3": "core.accel.tpu.backend:V3_IN_3_PASSES",
    "tpu-v3:6": "core.accel.tpu.backend:V3_IN_6_PASSES",
}
"""Where the backend of each name is: the module, and the object in it. What follows a colon in a name is the number of
passes in which the matrix unit multiplies float32 numbers."""


@dataclass(frozen=True)
class Options:
    """How a graph is compiled.

    Attributes
    ----------
    held : this many leading inputs are held by the executable between calls
    carried : whether the leading outputs, as many, replace what is held at each call
    """

    held: int = 0
    carried: bool = False


@dataclass
class Report:
    """What an executable is made of; times and sizes are estimates of the plan, not measurements.

    Attributes
    ----------
    steps : one ``(name, layer, flops, bytes)`` a step
    sources : text of the generated kernels by name
    arena : bytes of working memory
    """

    backend: str
    steps: list[tuple[str, str, int, int]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    arena: int = 0

    @property
    def flops(self) -> int:
        return sum(step[2] for step in self.steps)

    @property
    def nbytes(self) -> int:
        return sum(step[3] for step in self.steps)


class Executable(Protocol):
    """A compiled graph."""

    report: Report

    def hold(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take copies of the held inputs."""

    def held(self) -> list[NDArray[Any]]:
        """Copies of the held inputs as they are now."""

    def release(self) -> None:
        """Give up what is held, until `hold` comes again."""

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run on storage arrays, the held ones left out; gives fresh arrays, carried ones left out."""


@runtime_checkable
class Driven(Protocol):
    """An executable that compiles the loop around it."""

    def drive(self, driver: Callable[..., None], given: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]],
              arguments: Sequence[Any]) -> None:
        """Run a driver (see `core.engine.driver`) whose calls read `given` and write `results`."""


def drive(executable: Executable, driver: Callable[..., None], given: Sequence[NDArray[Any]],
          results: Sequence[NDArray[Any]], arguments: Sequence[Any]) -> None:
    """Run a driver around any executable."""
    def network() -> None:
        for own, result in zip(results, executable(given), strict=True):
            own[...] = result

    if isinstance(executable, Driven):
        executable.drive(driver, given, results, arguments)
    else:
        driver(network, *arguments)


class Backend(Protocol):
    """One small protocol over whole graphs."""

    def compile(self, graph: Graph, options: Options) -> Executable: ...


def backend(name: str) -> Backend:
    """The backend of this name.

    Raises
    ------
    DeviceError
        If there is none.
    """
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1, cutoff=0.7)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DeviceError(f"no device {name!r}{hint}; this installation has {', '.join(MODULES)}")
    module, attribute = MODULES[name].split(":")
    found: Backend = getattr(importlib.import_module(module), attribute)
    return found
