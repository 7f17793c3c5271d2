"""Loop IR: a fused group as one nest of loops over strided operands.

Invariant: a nest is normal (adjacent loops are merged wherever all operands allow it), so that equal work gives equal
kernel text whatever the ranks and shapes it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.accel.step import View
from core.engine.dtypes import DType


@dataclass(frozen=True)
class Operand:
    """An array that the nest reads or writes.

    Attributes
    ----------
    name : variable of its element in the statements
    view : how it lies in memory, over the iteration shape
    role : ``read``, ``write``, ``reduce`` (written once a reduction is complete), or ``index`` (no memory: the element
        is the offset plus the sum of position times stride)
    kind : of the reduction
    """

    name: str
    view: View
    role: str
    kind: str = ""


@dataclass(frozen=True)
class Statement:
    """``result = expression``; a reduction's statement names the value that is reduced."""

    result: str
    expression: str
    dtype: DType


@dataclass(frozen=True)
class Loop:
    """One loop of the nest: its extent, whether it is reduced over, and each operand's stride in elements."""

    extent: int
    reduced: bool
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Nest:
    """Loops from the outermost to the innermost, operands, and what happens for each element."""

    loops: tuple[Loop, ...]
    operands: tuple[Operand, ...]
    statements: tuple[Statement, ...]
    imports: frozenset[tuple[str, str]]

    @property
    def accumulates_in_memory(self) -> bool:
        """Whether the innermost loop is kept while an outer one is reduced, so that results grow in memory."""
        return not self.loops[-1].reduced and any(loop.reduced for loop in self.loops)


def normal_loops(shape: Sequence[int], axes: Sequence[int], operands: Sequence[Operand]) -> tuple[Loop, ...]:
    """Loops over an iteration shape: without extents of 1, merged, and in an order that suits the reduction.

    Kept loops come first and reduced ones last. Where the innermost loop is a kept one it stays innermost behind the
    reduced ones, so that memory is walked in order.
    """
    loops = [Loop(extent, axis in axes, tuple(operand.view.strides[axis] for operand in operands))
             for axis, extent in enumerate(shape) if extent != 1]
    merged: list[Loop] = []
    for loop in loops:
        if merged and _continues(merged[-1], loop):
            merged[-1] = Loop(merged[-1].extent * loop.extent, loop.reduced, loop.strides)
        else:
            merged.append(loop)
    if not merged:
        return (Loop(1, False, (0,) * len(operands)),)
    inner = [] if merged[-1].reduced else [merged.pop()]
    return (*(loop for loop in merged if not loop.reduced), *(loop for loop in merged if loop.reduced), *inner)


def _continues(outer: Loop, inner: Loop) -> bool:
    return outer.reduced == inner.reduced and all(
        far == near * inner.extent for far, near in zip(outer.strides, inner.strides, strict=True))


def stride_class(operand: Operand, position: int, nest: Nest) -> str:
    """How the text treats an operand in the innermost loop: constant, hoisted, unit or strided."""
    strides = [loop.strides[position] for loop in nest.loops]
    if operand.role == "index":
        return "index"
    if operand.role == "read" and not any(strides):
        return "constant"
    if strides[-1] == 0:
        return "hoisted"
    return "unit" if strides[-1] == 1 else "strided"


def dims(nest: Nest) -> tuple[int, ...]:
    """The numbers a nest's kernel reads from ``d``: extents, then each operand's strides (an index operand's offset
    first)."""
    numbers = [loop.extent for loop in nest.loops]
    for position, operand in enumerate(nest.operands):
        if operand.role == "index":
            numbers.append(operand.view.offset)
        numbers += [loop.strides[position] for loop in nest.loops]
    return tuple(numbers)


def units(nest: Nest) -> tuple[int, int]:
    """Extent and grain of the parallel loop: the first kept one, or a single unit."""
    first = nest.loops[0]
    if first.reduced and not nest.accumulates_in_memory:
        return 1, 1
    if first.reduced or len(nest.loops) == 1:
        return nest.loops[-1].extent, 64
    return first.extent, 1

