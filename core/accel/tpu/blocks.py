"""Blocks of a layer that fit into half of the accumulators, and the rows that instructions walk for them.

Invariant: the blocks of a layer hold each row of its result once; only lines of sums that two windows share are
computed twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.accel.tpu.activation import Window
from core.accel.tpu.layers import Layer, Store
from core.engine.errors import DeviceError, compose

LONGEST = (1 << 13) - 1
"""Of a line, in rows; and the most lines; and the largest pitch."""
LARGEST_STRIDE = LARGEST_GAP = (1 << 6) - 1
_WHOLE = Window((1, 1), (1, 1))


@dataclass(frozen=True)
class Block:
    """Sums of whole planes, or of lines of one plane, or of a part of a line; ranges without their end.

    Attributes
    ----------
    results : lines of the result, which are those of the sums if there are no windows
    """

    planes: tuple[int, int]
    lines: tuple[int, int]
    columns: tuple[int, int]
    results: tuple[int, int]

    @property
    def plane_rows(self) -> int:
        """Rows of sums of one plane."""
        return (self.lines[1] - self.lines[0]) * (self.columns[1] - self.columns[0])

    @property
    def rows(self) -> int:
        return (self.planes[1] - self.planes[0]) * self.plane_rows


@dataclass(frozen=True)
class Walk:
    """Rows in lines: rows `stride` apart, lines `pitch` apart."""

    first: int
    lines: int
    pitch: int
    length: int
    stride: int

    @property
    def rows(self) -> int:
        return self.lines * self.length


def blocks(layer: Layer, window: Window | None, room: int) -> Iterator[Block]:
    """The blocks of a layer.

    Raises
    ------
    DeviceError
        If the lines of a window have no room.
    """
    lines, length = layer.dims[-2:]
    shape = window or _WHOLE
    results = shape.extents(lines, length)[0]
    if lines * length <= room:
        for planes in _ranges(layer.planes, room // max(lines * length, 1)):
            yield Block(planes, (0, lines), (0, length), (0, results))
        return
    most = (room // length - shape.size[0]) // shape.stride[0] + 1
    if most < 1 and window is not None:
        raise DeviceError(compose("tpu-v1 cannot pool what a layer gives", [
            ("layer", f"{layer.name}  {layer.where}".rstrip()),
            ("found", f"windows of {window.size[0]} lines of {length} rows each"),
            ("rule", f"half of the accumulators hold {room} rows"), ("hint", "pool smaller images")]))
    for plane in range(layer.planes):
        if most < 1:
            for line, columns in itertools.product(range(lines), _ranges(length, room)):
                yield Block((plane, plane + 1), (line, line + 1), columns, (line, line + 1))
        else:
            for begin, end in _ranges(results, most):
                yield Block((plane, plane + 1), shape.taken(begin, end, lines), (0, length), (begin, end))


def _ranges(count: int, most: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + most, count)) for begin in range(0, count, most))


def read(layer: Layer, block: Block, tap: int) -> Iterator[Walk]:
    """Rows of the source that a tap meets in a block."""
    *outer, lines, length = layer.steps
    first = layer.taps[tap] + block.lines[0] * lines + block.columns[0] * length
    yield from _walks(_bases(layer.dims[:-2], outer, block.planes, first), block.lines[1] - block.lines[0], lines,
                      block.columns[1] - block.columns[0], length)


def written(store: Store, block: Block) -> Iterator[Walk]:
    """Rows of a store that a block fills, a walk a plane if there are windows."""
    extents, low = store.extents, store.low or (0,) * len(store.dims)
    steps = [int(np.prod(extents[axis + 1:], dtype=np.int64)) for axis in range(len(extents))]
    first = sum(begin * step for begin, step in zip(low, steps, strict=True))
    first += block.results[0] * steps[-2] + block.columns[0]
    length = store.dims[-1] if store.window else block.columns[1] - block.columns[0]
    bases = _bases(store.dims[:-2], steps[:-2], block.planes, first)
    lines = block.results[1] - block.results[0]
    for group in [[base] for base in bases] if store.window else [bases]:
        yield from _walks(group, lines, steps[-2], length, 1)


def _bases(dims: Sequence[int], steps: Sequence[int], planes: tuple[int, int], first: int) -> list[int]:
    """The first row of each plane."""
    if not dims:
        return [first]
    places = np.stack(np.unravel_index(np.arange(*planes), dims))
    rows: list[int] = (first + np.asarray(steps) @ places).tolist()
    return rows


def _walks(bases: list[int], lines: int, pitch: int, length: int, stride: int) -> Iterator[Walk]:
    """The rows of equal planes in as few walks as instructions can say."""
    apart = {other - one for one, other in itertools.pairwise(bases)}
    # What goes on evenly is joined: planes of one line to lines, planes whose lines go on to lines, lines to a line.
    if len(apart) == 1 and (lines == 1 or apart == {lines * pitch}):
        pitch = apart.pop() if lines == 1 else pitch
        bases, lines = bases[:1], len(bases) * lines
    if pitch == length * stride:
        lines, length = 1, lines * length
    # What has no room in an instruction is taken apart: lines that are far apart, rows that are far apart.
    if lines > 1 and (pitch > LONGEST or stride > LARGEST_STRIDE):
        bases, lines = [base + line * pitch for base in bases for line in range(lines)], 1
    if lines == 1 and stride > LONGEST:
        bases, length = [base + row * stride for base in bases for row in range(length)], 1
    if lines == 1 and length == 1:
        stride = 1
    if lines == 1 and stride > LARGEST_STRIDE:  # lines of one row
        lines, pitch, length, stride = length, stride, 1, 1
    for base in bases:
        yield Walk(base, lines, pitch if lines > 1 else 0, length, stride)
