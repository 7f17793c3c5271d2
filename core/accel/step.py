"""What a plan is made of: views of memory, and steps that read and write them.

Invariant: a step names its kernel by source text, and the text holds no shape: sizes, strides and offsets travel as
operands and dims, so that one kernel serves every shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from core.engine.dtypes import DType
from core.engine.graph import Equation


@dataclass(eq=False)
class Buffer:
    """A run of bytes that the memory plan will place: an input, a constant, an output or a part of the arena."""

    nbytes: int
    label: str = ""


@dataclass(frozen=True)
class View:
    """How an array lies in a buffer; offset and strides count elements, a stride of 0 broadcasts.

    In a `Repeat` it may move: by `advance` elements each time, and by `swing` elements there and back, so that the
    array of the n-th time, from 0, begins at ``offset + n * advance + n % 2 * swing``.
    """

    buffer: Buffer
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    advance: int = 0
    swing: int = 0

    @property
    def size(self) -> int:
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def moves(self) -> bool:
        return bool(self.advance or self.swing)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return all(extent == 1 or stride == expected
                   for extent, stride, expected in zip(self.shape, self.strides, row_major(self.shape), strict=True))

    def normal(self) -> View:
        """The same view, with row-major strides if it is contiguous: an extent of 1 may have come with any stride."""
        return replace(self, strides=row_major(self.shape)) if self.is_contiguous else self


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a gapless row-major array of this shape."""
    strides = []
    running = 1
    for extent in reversed(shape):
        strides.append(running)
        running *= extent
    return tuple(reversed(strides))


def contiguous(dtype: DType, shape: tuple[int, ...], label: str = "") -> View:
    """A row-major view of a fresh buffer."""
    view = View(Buffer(0, label), dtype, shape, row_major(shape))
    view.buffer.nbytes = max(view.size, 1) * dtype.itemsize
    return view


@dataclass(frozen=True)
class Step:
    """One call of a kernel over the units ``0 .. extent-1`` of its outermost loop.

    A kernel is ``kernel(p, d, begin, end)``: ``p[i]`` points at the first element of operand i, ``d`` holds `dims`, and
    the units from begin to end are done by this call. Units are independent, so that any split over threads gives the
    same bits.

    Attributes
    ----------
    kernel : source text of the kernel, the key in the store
    operands : views in the order of ``p``; the kernel writes those that `writes` lists and reads the others
    dims : the numbers behind ``d``
    extent : units of work
    grain : threads get multiples of this many units
    """

    kernel: str
    operands: tuple[View, ...]
    writes: tuple[int, ...]
    dims: tuple[int, ...]
    extent: int
    grain: int = 1
    name: str = ""
    flops: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class HostStep:
    """An equation that runs in numpy, between runs of the walker."""

    equation: Equation
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]

    @property
    def operands(self) -> tuple[View, ...]:
        return self.inputs + self.outputs

    @property
    def writes(self) -> tuple[int, ...]:
        return tuple(range(len(self.inputs), len(self.inputs) + len(self.outputs)))


class Epilogue(Protocol):
    """Work on each element of a product, which the product's kernel may do as its sums become complete."""

    def attach(self, step: Step, columns: int, in_place: bool) -> Step:
        """The step of a product, its kernel given this epilogue.

        An epilogue is a pair of functions of (p, sums, place, column, length, count), which the kernel calls for each
        row of a block: the first one before the last of the block's sums, to bring near what the other one reads and
        writes, and that one when they are complete. It does `count` elements from `place` of out on, which lie in
        `column` and after; their sums are in `sums`, a row of out has `length` elements, and ``p[0]`` is the first
        operand behind the kernel's own.

        Parameters
        ----------
        step : its operands are a, packed, out, and whatever else; its text ends with the call of a factory that takes
            an epilogue as its last argument. out may be a part of the product: an offset and strides in whole rows
        columns : the most elements of a row that the kernel completes at once
        in_place : whether `sums` are in out itself, and not in the kernel's scratch
        """

    def alone(self, product: View) -> Step:
        """The step that does it in a loop of its own, for neighbouring rows of a product that lies in memory."""


def followed(steps: list[Step], epilogue: Epilogue | None, out: View) -> list[Step]:
    """Steps whose kernels take no epilogue, and one of its own behind them."""
    return steps if epilogue is None else [*steps, epilogue.alone(out)]


@dataclass(frozen=True)
class Repeat:
    """Steps that run `count` times in order, while their views move.

    Attributes
    ----------
    start : steps that run once before, and set what the first time reads
    steps : at least one
    count : at least 1
    """

    start: tuple[Step, ...]
    steps: tuple[Step, ...]
    count: int

    @property
    def operands(self) -> tuple[View, ...]:
        return tuple(view for step in (*self.start, *self.steps) for view in step.operands)

    @property
    def writes(self) -> tuple[int, ...]:
        places, first = [], 0
        for step in (*self.start, *self.steps):
            places += [first + index for index in step.writes]
            first += len(step.operands)
        return tuple(places)

    def lasting(self) -> set[Buffer]:
        """Buffers whose content lasts from one time to the next, or comes from before."""
        found: set[Buffer] = {view.buffer for view in self.operands if view.moves}
        written: set[Buffer] = set()
        for step in self.steps:
            made = {step.operands[index].buffer for index in step.writes}
            found.update({view.buffer for view in step.operands} - made - written)
            written |= made
        return found


AnyStep = Step | HostStep | Repeat
