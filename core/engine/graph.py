"""The graph: a computation in single-assignment form, with static shapes.

Invariant: equations stand in an order in which an input is defined before it is used, and a value is defined once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.engine.dtypes import DType

if TYPE_CHECKING:
    from core.engine.ops.table import Op


@dataclass(frozen=True)
class Aval:
    """Abstract value: an element type and a static shape, written ``f32[8, 256]``."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.short}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Where:
    """Where an equation comes from: the path of modules and the user's source line."""

    layer: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.layer}  ({self.source})" if self.layer else self.source


NOWHERE = Where()


class Value:
    """One value of a graph; two values are the same only if they are the same object."""

    __slots__ = ("aval",)

    def __init__(self, aval: Aval) -> None:
        self.aval = aval


@dataclass(eq=False)
class Equation:
    """``outputs = op(inputs, params)``."""

    op: Op
    inputs: tuple[Value, ...]
    params: Mapping[str, Any]
    outputs: tuple[Value, ...]
    where: Where = NOWHERE


@dataclass(eq=False)
class Graph:
    """A function of arrays: `inputs` to `outputs` through `equations`; `constants` are values known beforehand."""

    inputs: list[Value] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    constants: dict[Value, NDArray[Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Assert the invariant of this file."""
        defined = {*self.inputs, *self.constants}
        assert len(defined) == len(self.inputs) + len(self.constants), "an input is listed twice or is a constant"
        for equation in self.equations:
            for value in equation.inputs:
                assert value in defined, f"{equation.op.name} uses a value before it is defined"
            for value in equation.outputs:
                assert value not in defined, f"{equation.op.name} defines a value twice"
                defined.add(value)
        assert all(value in defined for value in self.outputs), "an output is never defined"

    def users(self) -> dict[Value, list[Equation]]:
        """The equations that read each value."""
        users: dict[Value, list[Equation]] = {}
        for equation in self.equations:
            for value in dict.fromkeys(equation.inputs):
                users.setdefault(value, []).append(equation)
        return users

    def __str__(self) -> str:
        names = _names()
        labels: dict[Value, str] = {}

        def label(value: Value) -> str:
            if value not in labels:
                labels[value] = f"{next(names)}:{value.aval}"
                return labels[value]
            return labels[value].split(":")[0]

        lines = ["{ inputs " + "  ".join(map(label, self.inputs))]
        for value, array in self.constants.items():
            text = np.array2string(array, threshold=4, precision=4) if array.size <= 4 else "..."
            lines.append(f"  const {label(value)} = {text}")
        for equation in self.equations:
            read = " ".join(label(value) for value in equation.inputs)
            made = " ".join(label(value) for value in equation.outputs)
            params = " ".join(f"{key}={_brief(value)}" for key, value in equation.params.items())
            where = f"   # {equation.where}" if str(equation.where) else ""
            lines.append(f"  {made} = {equation.op.name}[{params}] {read}{where}")
        lines.append("  outputs " + " ".join(map(label, self.outputs)) + " }")
        return "\n".join(lines)


def _brief(value: Any) -> str:
    return f"<graph of {len(value.equations)}>" if isinstance(value, Graph) else str(value).replace(" ", "")


def _names() -> Iterator[str]:
    """a, b, ..., z, ba, bb, ..."""
    number = 0
    while True:
        name, rest = "", number
        while True:
            name = chr(ord("a") + rest % 26) + name
            rest //= 26
            if not rest:
                break
        yield name
        number += 1
