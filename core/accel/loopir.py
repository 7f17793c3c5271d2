"""Loop IR: a fused group as one nest of loops over strided operands.

Invariant: a nest is normal (adjacent loops are merged wherever all operands allow it), so that equal work gives equal
kernel text whatever the ranks and shapes it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.accel.step import View
from core.engine.dtypes import DType

_UNROLLED = 32
_STREAMED_RUN = 256
"""Elements of an innermost loop from which on what it writes is mostly whole lines of the cache."""


@dataclass(frozen=True)
class Operand:
    """An array that the nest reads or writes.

    Attributes
    ----------
    name : variable of its element in the statements
    view : how it lies in memory, over the iteration shape
    role : ``read``, ``write``, or ``index`` (no memory: the element is the offset plus the sum of position times
        stride)
    streamed : it is best written past the caches, see `Nest.streams`
    becomes : variable of the operand that is written over this one, if it has no memory of its own
    """

    name: str
    view: View
    role: str
    streamed: bool = False
    becomes: str = ""


@dataclass(frozen=True)
class Statement:
    """``result = expression``.

    Attributes
    ----------
    arguments : the variables that the expression reads
    stage : the pass over a row in which it happens
    per_row : it happens once a row, at the end of its pass, or before the first one in stage -1
    costly : its result is better kept than computed again
    slow : it takes longer than memory does, which then has time for plain stores
    """

    result: str
    expression: str
    dtype: DType
    arguments: tuple[str, ...] = ()
    stage: int = 0
    per_row: bool = False
    costly: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Reduction:
    """``result`` is the sum, max or min (`kind`) of ``value`` over the reduced loops, complete after pass `stage`."""

    result: str
    value: str
    kind: str
    dtype: DType
    stage: int = 0


@dataclass(frozen=True)
class Loop:
    """One loop of the nest: its extent, whether it is reduced over, and each operand's stride in elements."""

    extent: int
    reduced: bool
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Nest:
    """Loops from the outermost to the innermost, operands, and what happens for each element and each row.

    A row is what the reduced loops run over. Where one stage needs what an earlier one reduced, the kernel walks each
    row once a stage, so that the row comes from the cache all but the first time. Elements that a later pass needs are
    computed again, but for those in `kept`, which the row leaves in a buffer on the thread's stack.
    """

    loops: tuple[Loop, ...]
    operands: tuple[Operand, ...]
    statements: tuple[Statement, ...]
    imports: frozenset[tuple[str, str]]
    reductions: tuple[Reduction, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def is_reduction(self) -> bool:
        return any(loop.reduced for loop in self.loops)

    @property
    def unrolled(self) -> int:
        """Extent of an innermost loop that is too short for vectors unless the text names it, or 0."""
        extent = self.loops[-1].extent
        return extent if extent <= _UNROLLED and [loop.reduced for loop in self.loops][-2:] == [True, True] else 0

    def streams(self, position: int) -> bool:
        """Whether an operand is written past the caches: the innermost loop writes many neighbours."""
        operand = self.operands[position]
        return (operand.streamed and self.loops[-1].extent >= _STREAMED_RUN
                and stride_class(operand, position, self) == "unit")

    @property
    def reduces_columns(self) -> bool:
        """Whether the innermost loop is kept while an outer one is reduced, so that whole columns grow at once."""
        return self.is_reduction and not self.loops[-1].reduced


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
    """Where an operand's element changes.

    ``constant``: never; ``row``: from row to row; ``hoisted``: not in the innermost loop; ``unit`` and ``strided``: in
    the innermost loop, by one element or by more.
    """
    strides = [loop.strides[position] for loop in nest.loops]
    if operand.role != "write" and not any(strides):
        return "constant"
    if nest.loops[-1].reduced and not any(
            stride for stride, loop in zip(strides, nest.loops, strict=True) if loop.reduced):
        return "row"
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
    if first.reduced and not nest.reduces_columns:
        return 1, 1
    if first.reduced or len(nest.loops) == 1:
        return nest.loops[-1].extent, 64
    return first.extent, 1
