"""The instructions of a layer, with the weight tiles and scalings that they name.

Invariant: a tile of weights is shifted in once for each block of rows that it multiplies; sums of a strip of columns
take turns with those of the strip before in the two halves of the accumulators, so that one can be activated while the
other is summed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel.tpu.activation import FloatingPoint, Pooling, Scaling
from core.accel.tpu.blocks import Block, Walk, blocks, read, written
from core.accel.tpu.instructions import (
    Activate,
    Convolve,
    Function,
    Instruction,
    MatrixMultiply,
    Memories,
    Pool,
    ReadWeights,
)
from core.accel.tpu.layers import SUM_ROWS, Layer, Store, strips


class Stream:
    """What turns layers into instructions.

    Attributes
    ----------
    tiles : of all layers so far, i8[row, column]; layers of the same weights share them
    scalings : of all layers so far
    """

    def __init__(self, memories: Memories) -> None:
        self._memories = memories
        self._first_tiles: dict[int, int] = {}
        self._weights: list[NDArray[np.int8]] = []
        self._numbers: dict[Any, int] = {}
        self.tiles: list[NDArray[np.int8]] = []
        self.scalings: list[Scaling] = []

    def layer(self, layer: Layer, source: int, targets: Mapping[Store, int]) -> Iterator[Instruction]:
        """The instructions of a layer that reads the unified buffer from row `source` on, and writes its stores."""
        first_tile = self._tiles_of(layer)
        half = self._memories.accumulator_rows // 2
        turn = 0
        for pooled in _groups(targets):
            bordered: set[tuple[Store, int]] = set()
            for block in blocks(layer, pooled[0].window, half):
                for strip in range(strips(layer.columns, self._memories.array)):
                    yield from self._products(layer, block, strip, source, turn * half, first_tile)
                    for store in pooled:
                        at = targets[store] + strip * store.rows
                        if store.is_padded and (store, strip) not in bordered:
                            bordered.add((store, strip))
                            yield from self._border(store, block, at, turn * half)
                        yield from self._activations(store, block, strip, at, turn * half)
                    turn = 1 - turn

    def _products(self, layer: Layer, block: Block, strip: int, source: int, accumulator: int,
                  first_tile: int) -> Iterator[Instruction]:
        """Sums of a strip of columns."""
        memories = self._memories
        deep = strips(layer.weights.shape[1], memories.array)
        each, total = len(layer.taps) * deep, layer.tiles(memories.array)
        signed = layer.source.signed
        for number, (tap, part) in enumerate(itertools.product(range(len(layer.taps)), range(deep))):
            tile = strip * each + number
            if tile % memories.fifo_tiles == 0:
                yield ReadWeights(min(memories.fifo_tiles, total - tile), first_tile + tile)
            place = accumulator
            for walk in read(layer, block, tap):
                first = source + part * layer.source.rows + walk.first
                is_new = place == accumulator
                if walk.lines == walk.stride == 1:
                    yield MatrixMultiply(first, place, walk.length, is_new, number > 0, signed)
                else:
                    yield Convolve(first, place, walk.lines, walk.length, walk.stride, walk.pitch, is_new, number > 0,
                                   signed)
                place += walk.rows

    def _activations(self, store: Store, block: Block, strip: int, at: int, accumulator: int) -> Iterator[Instruction]:
        """Bytes of a strip of columns."""
        scaling = self._scaling(store, block, strip)
        for walk in written(store, block):
            if store.function is Function.SUMS:
                walk = Walk(SUM_ROWS * walk.first, 1, 0, walk.rows, 1)
            gap = walk.pitch - walk.length if walk.lines > 1 else 0
            yield Activate(at + walk.first, accumulator, walk.lines, walk.length, gap, store.function, store.pool,
                           scaling)
            accumulator += block.plane_rows if store.window else walk.rows

    def _border(self, store: Store, block: Block, at: int, accumulator: int) -> Iterator[Instruction]:
        """The border's byte in all rows of a strip, of which the results overwrite their own: sums times 0."""
        nothing = np.zeros(self._memories.array, np.float32)
        scaling = self._number(("border", store.border, store.signed), lambda: Scaling(
            FloatingPoint(nothing.astype(np.int32), nothing, np.float32(1)), store.border, store.signed))
        for begin in range(0, store.rows, block.rows):
            yield Activate(at + begin, accumulator, 1, min(block.rows, store.rows - begin), 0, Function.IDENTITY,
                           Pool.NONE, scaling)

    def _tiles_of(self, layer: Layer) -> int:
        """The number of a layer's first tile."""
        key = id(layer.weights)
        if key not in self._first_tiles:
            self._first_tiles[key] = len(self.tiles)
            self._weights.append(layer.weights)  # so that nobody else gets its id
            self.tiles += _tiles(layer.weights, self._memories.array)
        return self._first_tiles[key]

    def _scaling(self, store: Store, block: Block, strip: int) -> int:
        """The number of what the activation unit does to a strip of a block."""
        pooling: Pooling | None = None
        key: tuple[Any, ...] = store, strip
        if store.window is not None:
            lines = store.layer.dims[-2]
            window = store.window.of(*block.results, lines)
            pooling = Pooling(window, block.lines[1] - block.lines[0], block.columns[1] - block.columns[0],
                              store.pooled_table)
            key = (*key, window.low, window.high, pooling.lines)
        array = self._memories.array
        return self._number(key, lambda: Scaling(store.rule and store.rule.columns(strip * array, array), store.zero,
                                                 store.signed, store.ceiling, store.table, pooling))

    def _number(self, key: Any, make: Any) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.scalings)
            self.scalings.append(make())
        return self._numbers[key]


def _groups(stores: Mapping[Store, int]) -> list[list[Store]]:
    """Stores that can be made of the same blocks: those without windows, and each of the others."""
    plain = [store for store in stores if store.window is None]
    return [*([plain] if plain else []), *([store] for store in stores if store.window is not None)]


def _tiles(weights: NDArray[np.int8], size: int) -> Sequence[NDArray[np.int8]]:
    """Tiles of the matrices of all taps, those of a strip of columns after each other, filled up with zeros."""
    taps, rows, columns = weights.shape
    deep, wide = strips(rows, size), strips(columns, size)
    whole = np.zeros((taps, deep * size, wide * size), np.int8)
    whole[:, :rows, :columns] = weights
    return [whole[tap, row * size:(row + 1) * size, column * size:(column + 1) * size]
            for column in range(wide) for tap in range(taps) for row in range(deep)]
