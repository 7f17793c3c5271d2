"""The numbers that workers compute with.

Invariant: an array depends on its shape and label alone, so that every worker draws the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


def normal(label: str, shape: Sequence[int], scale: float = 1.0) -> Any:
    """f32 of a shape, normal."""
    generator = np.random.default_rng([zlib.crc32(label.encode()), *shape])
    return generator.standard_normal(tuple(shape), np.float32) * np.float32(scale)


def integers(label: str, shape: Sequence[int]) -> Any:
    """i8 of a shape in -4..4."""
    generator = np.random.default_rng([zlib.crc32(label.encode()), *shape])
    return generator.integers(-4, 5, tuple(shape), np.int8)


RATE, MOMENTUM = 1e-4, 0.9
"""Of the training steps."""
FEATURES = 72
"""Numbers that describe an atom."""
ATOMS, BONDS = 24, 52
"""Atoms and directed bonds of a molecule of the batches."""


def perceptron(layers: int, width: int) -> list[tuple[Any, Any]]:
    """Weight f32[in, out] and bias of each layer."""
    return [(normal(f"perceptron {number}", (width, width), 0.2), normal(f"bias {number}", (width,), 0.2))
            for number in range(layers)]


def lstm(work: Mapping[str, Any]) -> list[tuple[Any, Any, Any]]:
    """Input weights f32[in, gate], hidden weights f32[hidden, gate] and bias of each layer; gates i, f, g, o."""
    hidden, found = work["hidden"], []
    for layer in range(work["layers"]):
        shapes = (hidden if layer else work["inputs"], 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
        first, second, bias = (normal(f"lstm {layer} {number}", shape, 0.05) for number, shape in enumerate(shapes))
        found.append((first, second, bias))
    return found


def message_weights(width: int) -> list[Any]:
    """Weights of the message-passing network: from atoms, of the update, of the output, of the read-out."""
    shapes = (FEATURES, width), (width, width), (FEATURES + width, width), (width, 1)
    return [normal(f"message {number}", shape, shape[0] ** -0.5) for number, shape in enumerate(shapes)]


class Molecules(NamedTuple):
    """A batch of molecules as one graph: chains with two rings, each bond in both directions.

    atoms : f32[atom, feature]; source, target, reverse : i32[bond]; molecule : i32[atom]
    """

    atoms: Any
    source: Any
    target: Any
    reverse: Any
    molecule: Any


def molecules(count: int) -> Molecules:
    """`count` molecules; bond 2 i + 1 is the reverse of bond 2 i."""
    generator = np.random.default_rng(count)
    chain = [(atom, atom + 1) for atom in range(ATOMS - 1)]
    bonds = []
    for number in range(count):
        order = generator.permutation(ATOMS) + number * ATOMS
        rings = [(start, start + 5) for start in generator.choice(ATOMS - 5, BONDS // 2 - len(chain), replace=False)]
        bonds += [pair for first, second in chain + rings
                  for pair in ((order[first], order[second]), (order[second], order[first]))]
    ends = np.array(bonds, np.int32)
    reverse = np.arange(len(ends), dtype=np.int32) ^ 1
    atoms = normal("atoms", (count * ATOMS, FEATURES))
    return Molecules(atoms, np.ascontiguousarray(ends[:, 0]), np.ascontiguousarray(ends[:, 1]), reverse,
                     np.repeat(np.arange(count, dtype=np.int32), ATOMS))
