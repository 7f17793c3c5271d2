"""What a plan is made of: views of memory, and steps that read and write them.

Invariant: a step names its kernel by source text, and the text holds no shape: sizes, strides and offsets travel as
operands and dims, so that one kernel serves every shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.engine.dtypes import DType


@dataclass(eq=False)
class Buffer:
    """A run of bytes that the memory plan will place: an input, a constant, an output or a part of the arena."""

    nbytes: int
    label: str = ""


@dataclass(frozen=True)
class View:
    """How an array lies in a buffer; offset and strides count elements, a stride of 0 broadcasts."""

    buffer: Buffer
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return all(extent == 1 or stride == expected
                   for extent, stride, expected in zip(self.shape, self.strides, row_major(self.shape), strict=True))


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
