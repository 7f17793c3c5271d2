"""Graphs of molecules -> batches of fixed shape, padded to geometric buckets.

Invariant: edges are sorted by target atom over the whole batch, padding last; a padded atom belongs to no molecule and
a padded edge to no atom, because their indices point one past the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from apps.molecules.features import MoleculeGraph
from core.engine.array import Array
from core.engine.errors import ConfigError

SMALLEST, GROWTH, MULTIPLE = 32, 1.25, 16
DEGREES = 4
"""Smallest number of edges at an atom, and what its sizes are multiples of."""

Values = np.ndarray | Array
"""Of a batch: numpy's as it is collated, the engine's inside a traced function."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A molecule with all that belongs to it.

    targets : f32[target] or f64[target], NaN where unknown; descriptors : f32[descriptor]; either may have length 0
    row : the row of the file it came from
    """

    graph: MoleculeGraph
    targets: np.ndarray
    descriptors: np.ndarray
    weight: float = 1.0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """B molecules, A atoms and E edges, padding included; every float is f32 and every index i32.

    atoms : f32[A, feature]; edges : f32[E, feature]
    source, target : i32[E] in 0..A, where A means none; target ascends
    reverse : i32[E] in 0..E, where E means none
    arriving : i32[A, D] in 0..E, the edges that end at each atom, where E means none; D holds the largest degree
    molecule : i32[A] in 0..B, where B means none; ascends
    descriptors : f32[B, descriptor]
    targets, mask : f32[B, target]; mask is 1 where a target is known, and the target 0 where it is not
    weights : f32[B], 0 for padding
    rows : i32[B], row of the file, -1 for padding
    """

    atoms: Values
    edges: Values
    source: Values
    target: Values
    reverse: Values
    arriving: Values
    molecule: Values
    descriptors: Values
    targets: Values
    mask: Values
    weights: Values
    rows: Values


@cache
def bucket(count: int, smallest: int = SMALLEST, multiple: int = MULTIPLE) -> int:
    """The smallest size of 32, 48, 64, 80, 96, 128, 160, ... that holds `count`; sizes grow by about a quarter.

    From another smallest size they grow likewise, rounded to multiples of `multiple`.
    """
    size = smallest
    while size < count:
        size = max(size + multiple, round(size * GROWTH / multiple) * multiple)
    return size


def collate(samples: Sequence[Sample], batch_size: int) -> Batch:
    """One batch of at most `batch_size` samples, in their order."""
    graphs = [sample.graph for sample in samples]
    atom_counts = np.array([len(graph.atoms) for graph in graphs])
    edge_counts = np.array([len(graph.source) for graph in graphs])
    atoms, edges = bucket(int(atom_counts.sum())), bucket(int(edge_counts.sum()))
    first_atom = np.repeat(np.cumsum(atom_counts) - atom_counts, edge_counts)
    first_edge = np.repeat(np.cumsum(edge_counts) - edge_counts, edge_counts)
    target = np.concatenate([graph.target for graph in graphs]) + first_atom
    targets = np.stack([sample.targets for sample in samples])
    known = np.isfinite(targets)
    return Batch(
        atoms=_padded(np.concatenate([graph.atoms for graph in graphs]), atoms, np.float32, 0),
        edges=_padded(np.concatenate([graph.edges for graph in graphs]), edges, np.float32, 0),
        source=_padded(np.concatenate([graph.source for graph in graphs]) + first_atom, edges, np.int32, atoms),
        target=_padded(target, edges, np.int32, atoms),
        reverse=_padded(np.concatenate([graph.reverse for graph in graphs]) + first_edge, edges, np.int32, edges),
        arriving=_arriving(target, atoms, edges),
        molecule=_padded(np.repeat(np.arange(len(graphs)), atom_counts), atoms, np.int32, batch_size),
        descriptors=_padded(np.stack([sample.descriptors for sample in samples]), batch_size, np.float32, 0),
        targets=_padded(np.where(known, targets, 0), batch_size, np.float32, 0),
        mask=_padded(known, batch_size, np.float32, 0),
        weights=_padded(np.array([sample.weight for sample in samples]), batch_size, np.float32, 0),
        rows=_padded(np.array([sample.row for sample in samples]), batch_size, np.int32, -1),
    )


def batches(samples: Iterable[Sample], batch_size: int, *, seed: int | None = None, epoch: int = 0) -> Iterator[Batch]:
    """All samples in batches, the last one padded.

    Without a seed they come in their order, and `samples` may be a stream of any length. With one they are held and
    shuffled; the order depends only on `seed`, `epoch` and the number of samples.
    """
    if batch_size < 1:
        raise ConfigError(f"A batch holds at least one molecule; found a batch size of {batch_size}.")
    if seed is not None:
        held = list(samples)
        draws = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(len(held))
        samples = [held[i] for i in np.argsort(draws, kind="stable")]
    stream = iter(samples)
    while chunk := list(islice(stream, batch_size)):
        yield collate(chunk, batch_size)


def _arriving(target: np.ndarray, atoms: int, edges: int) -> np.ndarray:
    """The edges that end at each atom, from their targets in ascending order."""
    degrees = np.bincount(target, minlength=atoms)
    number = np.arange(len(target))
    arriving = np.full((atoms, bucket(int(degrees.max()), DEGREES, DEGREES)), edges, dtype=np.int32)
    arriving[target, number - (np.cumsum(degrees) - degrees)[target]] = number
    return arriving


def _padded(values: np.ndarray, size: int, dtype: type, fill: int) -> np.ndarray:
    padded = np.full((size, *values.shape[1:]), fill, dtype=dtype)
    padded[:len(values)] = values
    return padded
