"""Files to examples: rows are read, checked and featurised one by one, so that memory does not grow with the file.

Invariant: the order of the file is kept; a row becomes an example or a refusal, never nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rdkit import Chem

from apps.molecules.batches import Sample
from apps.molecules.config import MoleculesConfig
from apps.molecules.descriptors import COUNT_NAMES, DESCRIPTOR_NAMES, counts, descriptors
from apps.molecules.features import MoleculeGraph, complete_graph, feature_widths, featurise_all, featurise_reaction
from apps.molecules.readers import Limits, Record, Refusal, read_rows
from apps.molecules.splits import molecule_key
from apps.progress import LOGGER
from core.engine.errors import DataError
from core.engine.refusals import Refusals

ELEMENT_COUNTS = 11
"""The leading counts are those of elements, one for all others among them."""
AT_ONCE = 64
"""Rows that are featurised together."""


@dataclass(frozen=True)
class Features:
    """How a record becomes numbers.

    Attributes
    ----------
    scheme : of `featurise`
    descriptors : whether molecule descriptors are computed
    explicit_hydrogens : whether hydrogens are atoms
    offset : which counts of a molecule a fit may use: ``none``, ``elements`` or ``counts``
    distances : whether the graph is the complete one, with distances
    reaction : whether a record is a reaction
    """

    scheme: str = "tilework"
    descriptors: bool = False
    explicit_hydrogens: bool = False
    offset: str = "none"
    distances: bool = False
    reaction: bool = False

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers of atom, edge and molecule features."""
        atom, edge = feature_widths(self.scheme, reaction=self.reaction, complete=self.distances)
        return atom, edge, len(DESCRIPTOR_NAMES) if self.descriptors else 0

    @property
    def count_width(self) -> int:
        """Numbers that an offset is fitted on."""
        return {"none": 0, "elements": ELEMENT_COUNTS, "counts": len(COUNT_NAMES)}[self.offset]

    def graph(self, record: Record) -> MoleculeGraph:
        """The graph of a record; raises `DataError` if it is of another kind than the model's."""
        if (record.products is not None) != self.reaction:
            raise DataError("the model learned from " + ("reactions, this is a molecule" if self.reaction
                                                         else "molecules, this is a reaction"))
        if record.products is not None:
            return featurise_reaction(record.molecule, record.products, scheme=self.scheme)
        if not self.distances:
            return self._bond_graphs([record])[0]
        if record.coordinates is None:
            raise DataError("there are no coordinates; the model learned from distances between atoms")
        return complete_graph(record.molecule, record.coordinates, scheme=self.scheme)

    def _of_bonds(self, record: Record) -> bool:
        return not self.reaction and not self.distances and record.products is None

    def _bond_graphs(self, records: Sequence[Record]) -> list[MoleculeGraph]:
        return featurise_all([record.molecule for record in records], scheme=self.scheme,
                             explicit_hydrogens=self.explicit_hydrogens)

    def examples(self, rows: Sequence[Record | Refusal], *, keyed: bool = False) -> Iterator[Example | Refusal]:
        """Each record as numbers, or why the model cannot use it; see `example`. Refusals come back as they are."""
        graphs = iter(self._bond_graphs([row for row in rows if isinstance(row, Record) and self._of_bonds(row)]))
        for row in rows:
            if isinstance(row, Refusal):
                yield row
                continue
            try:
                yield self.example(row, keyed, next(graphs) if self._of_bonds(row) else None)
            except DataError as error:
                yield Refusal(row.row, row.text, str(error))

    def example(self, record: Record, keyed: bool, graph: MoleculeGraph | None = None) -> Example:
        """A record as numbers; `keyed` if it is held for a split, with a key instead of the molecule.

        Raises
        ------
        DataError
            If it is of another kind than the model's.
        """
        graph = graph or self.graph(record)
        count = np.zeros(0, np.float32) if self.offset == "none" else counts(record.molecule)[:self.count_width]
        described = descriptors(record.molecule)[0] if self.descriptors else np.zeros(0, np.float32)
        key, molecule = (molecule_key(record.molecule, record.products), None) if keyed else ("", record.molecule)
        return Example(record.row, record.text, graph, described, count, record.targets, key, dict(record.extras),
                       molecule)


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row.

    Attributes
    ----------
    row, text : number of the row, and its SMILES or title as written
    descriptors : f32[descriptor], as RDKit gives them
    counts : f32[count], for the offset
    targets : f64[target] in the file's unit, NaN where blank
    key : canonical name by which splits keep a molecule together; empty if not `keyed`
    extras : other columns that were asked for
    molecule : the molecule, or the reactants of a reaction; None if `keyed`, because it is large
    """

    row: int
    text: str
    graph: MoleculeGraph
    descriptors: np.ndarray
    counts: np.ndarray
    targets: np.ndarray
    key: str
    extras: Mapping[str, str]
    molecule: Chem.Mol | None


def examples(rows: Iterable[Record | Refusal], features: Features, refused: Refusals, *,
             keyed: bool = False) -> Iterator[Example]:
    """The usable rows as examples, the others noted in `refused`; raises `DataError` at the end if there were none."""
    usable, first_reason = False, ""
    stream = iter(rows)
    while chunk := list(islice(stream, AT_ONCE)):
        for row, found in zip(chunk, features.examples(chunk, keyed=keyed), strict=True):
            if isinstance(found, Example):
                usable = True
                yield found
                continue
            refused.add(found.row, found.reason, found.text)
            if isinstance(row, Record):
                first_reason = first_reason or f"row {found.row}: {found.reason}"
    if not usable:
        raise DataError(f"there is no row that the model can use; {first_reason}")


def limits_of(config: MoleculesConfig) -> Limits:
    """What a config accepts as a molecule."""
    return Limits(config.max_atoms, config.max_fragments)


def read_examples(paths: Sequence[Path], features: Features, refused: Refusals, *,
                  column_of: Callable[[Path], str | None], targets: Sequence[str], extras: Sequence[str],
                  limits: Limits) -> list[Example]:
    """The usable rows of some files that have at least one target; says how many have none.

    Parameters
    ----------
    column_of : name of the SMILES column of a file, None to find one by its name

    Raises
    ------
    DataError
        If a file has no usable row, or none of them a target.
    """
    found: list[Example] = []
    for path in paths:
        rows = read_rows(path, smiles_column=column_of(path), targets=targets, extras=extras, limits=limits)
        found += examples(rows, features, refused, keyed=True)
    known = [example for example in found if np.isfinite(example.targets).any()]
    if not known:
        raise DataError(f"no row of {', '.join(map(str, paths))} has a value in {', '.join(targets)}")
    if len(known) < len(found):
        LOGGER.info("rows without a value in %s, left out: %d", ", ".join(targets), len(found) - len(known))
    return known


def first_record(path: Path, *, smiles: str | None, targets: Sequence[str], limits: Limits) -> Record:
    """The first usable row, which tells molecules from reactions and whether there are coordinates."""
    for row in read_rows(path, smiles_column=smiles, targets=targets, limits=limits):
        if isinstance(row, Record):
            return row
    raise DataError(f"{path} has no usable row")


def samples(found: Sequence[Example], targets: np.ndarray) -> list[Sample]:
    """Examples as the batches take them; targets f32[example, target] in the scale of the network, NaN if blank."""
    return [Sample(example.graph, target, example.descriptors, row=example.row)
            for example, target in zip(found, targets, strict=True)]
