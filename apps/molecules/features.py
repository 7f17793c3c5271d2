"""A molecule or a reaction -> the arrays of a graph.

Invariant: with the `tilework` scheme two spellings of one molecule give the same arrays, bit for bit; edges are sorted
by the atom they point to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from rdkit import Chem, rdBase

from apps.molecules.schemes import SCHEMES, Scheme, Skeleton
from core.engine.errors import ConfigError, DataError

PAIR_WIDTH = 5  # distance, and single, double, triple, aromatic
_PAIR_TYPES = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}


@dataclass(frozen=True, slots=True)
class MoleculeGraph:
    """A molecule as arrays; every bond is two directed edges.

    atoms : f32[atom, feature]
    edges : f32[edge, feature]
    source, target : i32[edge], the atoms of an edge; sorted by target, then source
    reverse : i32[edge], the edge in the other direction
    positions : f32[atom, 3] in Angstrom, or None
    atomic_numbers : i32[atom]
    origin : i32[atom], index of the atom in the molecule that was given; -1 for one that is not in it
    heavy_atoms : number of atoms that are not hydrogen
    """

    atoms: np.ndarray
    edges: np.ndarray
    source: np.ndarray
    target: np.ndarray
    reverse: np.ndarray
    positions: np.ndarray | None
    atomic_numbers: np.ndarray
    origin: np.ndarray
    heavy_atoms: int


def scheme_named(name: str) -> Scheme:
    """The scheme of that name, or ConfigError."""
    if name not in SCHEMES:
        raise ConfigError(f"There is no feature scheme '{name}'; there are {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def feature_widths(scheme: str = "tilework", *, reaction: bool = False, complete: bool = False) -> tuple[int, int]:
    """Numbers of atom and edge features of what `featurise`, `featurise_reaction` or `complete_graph` returns."""
    found = scheme_named(scheme)
    if reaction:
        return 2 * found.atom_width - found.elements, 2 * found.bond_width
    return found.atom_width, PAIR_WIDTH if complete else found.bond_width


def featurise(molecule: Chem.Mol, coordinates: np.ndarray | None = None, *, scheme: str = "tilework",
              explicit_hydrogens: bool = False) -> MoleculeGraph:
    """The chemical graph of a molecule, its atoms in canonical order.

    Parameters
    ----------
    coordinates : f64[atom, 3] in Angstrom for the atoms of `molecule`
    scheme : ``tilework`` (60 atom and 17 bond features), ``chemprop-v1`` (133, 14) or ``chemprop-v2`` (72, 14)
    explicit_hydrogens : make every hydrogen an atom; otherwise hydrogens are counted on their heavy atom, but for those
        that say more: isotopes, the hydrogen of an imine with E/Z stereo, and hydrogen without a heavy neighbour
    """
    graph = featurise_all([molecule], scheme=scheme, explicit_hydrogens=explicit_hydrogens)[0]
    if coordinates is None:
        return graph
    _check_placed(int(np.count_nonzero(graph.origin < 0)))
    return replace(graph, positions=coordinates[graph.origin].astype(np.float32))


def featurise_all(molecules: Sequence[Chem.Mol], *, scheme: str = "tilework",
                  explicit_hydrogens: bool = False) -> list[MoleculeGraph]:
    """The graph of each molecule, as `featurise` gives it but faster: numpy sees all of them as one graph."""
    if not molecules:
        return []
    features = scheme_named(scheme)
    bare, kept = zip(*(_hydrogens(molecule, explicit_hydrogens, False) for molecule in molecules), strict=True)
    read = [_read(molecule, features) for molecule in bare]
    atom_counts, bond_counts = (np.array([len(one[place]) for one in read], dtype=np.int32) for place in (0, 3))
    atom_rows, ranks, numbers, bond_rows, begin, end = (
        np.fromiter(chain.from_iterable(column), dtype=np.int32) for column in zip(*read, strict=True))
    first_atom = _starts(atom_counts)
    rank, shift = ranks + np.repeat(first_atom, atom_counts), np.repeat(first_atom, bond_counts)
    order = np.argsort(rank)
    source, target, reverse, bond = _directed(rank[begin + shift], rank[end + shift])
    heavy = int(np.count_nonzero(numbers != 1))
    whole = MoleculeGraph(features.atoms.at(atom_rows[order]), features.bonds.at(bond_rows[bond]), source, target,
                          reverse, None, numbers[order], np.concatenate(kept)[order], heavy)
    return _cut(whole, atom_counts, 2 * bond_counts)


def _read(molecule: Chem.Mol, features: Scheme) -> tuple[Sequence[int], ...]:
    """Row in the table of vectors, rank and element of each atom; row and the atoms at both ends of each bond."""
    skeleton = Skeleton.of(molecule)
    atom_rows, bond_rows = features.rows(skeleton)
    ranks = Chem.CanonicalRankAtoms(molecule, includeAtomMaps=False)
    numbers = list(map(Chem.Atom.GetAtomicNum, skeleton.atoms))
    return atom_rows, ranks, numbers, bond_rows, skeleton.begin, skeleton.end


def _cut(whole: MoleculeGraph, atom_counts: np.ndarray, edge_counts: np.ndarray) -> list[MoleculeGraph]:
    """The parts of a graph, which follow each other and have no edges between them, without positions."""
    first_atom, first_edge = _starts(atom_counts), _starts(edge_counts)
    shift = np.repeat(first_atom, edge_counts)
    source, target = whole.source - shift, whole.target - shift
    reverse = whole.reverse - np.repeat(first_edge, edge_counts)
    parts = []
    for atom, edge in zip(_slices(first_atom, atom_counts), _slices(first_edge, edge_counts), strict=True):
        numbers = whole.atomic_numbers[atom]
        parts.append(MoleculeGraph(whole.atoms[atom], whole.edges[edge], source[edge], target[edge], reverse[edge],
                                   None, numbers, whole.origin[atom], int(np.count_nonzero(numbers != 1))))
    return parts


def _starts(counts: np.ndarray) -> np.ndarray:
    """i32, where each part begins when parts of so many items are joined."""
    return np.cumsum(counts, dtype=np.int32) - counts


def _slices(starts: np.ndarray, counts: np.ndarray) -> Iterator[slice]:
    return map(slice, starts.tolist(), (starts + counts).tolist())


def complete_graph(molecule: Chem.Mol, coordinates: np.ndarray, *, scheme: str = "tilework",
                   explicit_hydrogens: bool = True) -> MoleculeGraph:
    """The graph of all ordered pairs of atoms, in the order of the file.

    An edge is its length in Angstrom and the one-hot type of its bond, all zero where there is none (Gilmer et al.,
    arXiv 1704.01212, section 5, raw distance feature). Nothing but `positions` changes when the molecule is moved.
    """
    molecule, kept = _hydrogens(molecule, explicit_hydrogens, True)
    skeleton = Skeleton.of(molecule)
    atoms, _ = scheme_named(scheme).vectors(skeleton)
    positions = np.asarray(coordinates, dtype=np.float64)[kept]
    count = len(atoms)
    pairs = np.zeros((count, count, PAIR_WIDTH))
    pairs[:, :, 0] = np.sqrt(np.square(positions[:, None] - positions[None]).sum(axis=2))
    for bond, begin, end in zip(skeleton.bonds, skeleton.begin, skeleton.end, strict=True):
        if kind := _PAIR_TYPES.get(bond.GetBondType()):
            pairs[begin, end, kind] = pairs[end, begin, kind] = 1
    target, source = np.nonzero(~np.eye(count, dtype=bool))
    reverse = source * (count - 1) + target - (target > source)
    numbers = np.array([atom.GetAtomicNum() for atom in skeleton.atoms], dtype=np.int32)
    return MoleculeGraph(
        atoms, pairs[target, source].astype(np.float32), source.astype(np.int32), target.astype(np.int32),
        reverse.astype(np.int32), positions.astype(np.float32), numbers, kept, int(np.count_nonzero(numbers != 1)))


def _hydrogens(molecule: Chem.Mol, explicit: bool, placed: bool) -> tuple[Chem.Mol, np.ndarray]:
    """The molecule with all hydrogens as atoms or with none, and i32[atom] the index each atom had before, or -1."""
    count = molecule.GetNumAtoms()
    if explicit:
        whole = Chem.AddHs(molecule)
        added = whole.GetNumAtoms() - count
        _check_placed(added if placed else 0)
        return whole, np.array([*range(count), *[-1] * added], dtype=np.int32)
    if molecule.GetNumHeavyAtoms() == count:
        return molecule, np.arange(count, dtype=np.int32)
    tagged = Chem.Mol(molecule)
    for atom in tagged.GetAtoms():
        atom.SetIntProp("_origin", atom.GetIdx())
    with rdBase.BlockLogs():
        bare = Chem.RemoveHs(tagged)
    return bare, np.array([atom.GetIntProp("_origin") for atom in bare.GetAtoms()], dtype=np.int32)


def _check_placed(added: int) -> None:
    if added:
        raise DataError(f"{added} hydrogen atoms have no coordinates; give all, or leave explicit hydrogens off")


def _directed(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both directions of each bond, sorted by target and source: source, target, reverse, and the bond of each edge."""
    count = len(begin)
    source, target = np.concatenate([begin, end]).astype(np.int32), np.concatenate([end, begin]).astype(np.int32)
    order = np.lexsort((source, target))
    place = np.empty(2 * count, dtype=np.int32)
    place[order] = np.arange(2 * count, dtype=np.int32)
    return source[order], target[order], place[order - count], order % max(count, 1)


# ------------------------------------------------------------------------------------------------ reactions


def featurise_reaction(reactants: Chem.Mol, products: Chem.Mol, *, scheme: str = "tilework") -> MoleculeGraph:
    """The condensed graph of a reaction: one atom for each map number, edges wherever either side has a bond.

    A vector is that of the reactants followed by its change in the products (Heid and Green, J. Chem. Inf. Model.
    62:2101, 2022); the element is not repeated. An atom or bond that one side leaves out is taken not to change.

    Raises
    ------
    DataError
        If a map number occurs twice on a side, if no atom is mapped on both sides, or if its element changes.
    """
    features = scheme_named(scheme)
    left, right = Skeleton.of(reactants), Skeleton.of(products)
    left_nodes, right_nodes, count = _nodes(left, right)
    atoms, bonds = zip(features.vectors(left), features.vectors(right), strict=True)
    before, after = np.zeros((2, count, features.atom_width), dtype=np.float32)
    before[right_nodes], after[left_nodes] = atoms[1], atoms[0]
    before[left_nodes], after[right_nodes] = atoms[0], atoms[1]
    numbers = np.zeros(count, dtype=np.int32)
    for skeleton, nodes in ((left, left_nodes), (right, right_nodes)):
        numbers[nodes] = [atom.GetAtomicNum() for atom in skeleton.atoms]
    pairs, bond_before, bond_after = _merged_bonds(
        features.no_bond, (left, left_nodes, bonds[0]), (right, right_nodes, bonds[1]))
    source, target, reverse, bond = _directed(pairs[:, 0], pairs[:, 1])
    origin = np.full(count, -1, dtype=np.int32)
    origin[left_nodes] = np.arange(len(left_nodes))
    change = (after - before)[:, features.elements:]
    return MoleculeGraph(np.concatenate([before, change], axis=1),
                         np.concatenate([bond_before, bond_after - bond_before], axis=1)[bond],
                         source, target, reverse, None, numbers, origin, int(np.count_nonzero(numbers != 1)))


def check_mapping(reactants: Chem.Mol, products: Chem.Mol) -> None:
    """Raise the DataError that `featurise_reaction` would raise."""
    _nodes(Skeleton.of(reactants), Skeleton.of(products))


def _nodes(left: Skeleton, right: Skeleton) -> tuple[np.ndarray, np.ndarray, int]:
    """The node of each atom of either side, and how many nodes there are; atoms of one map number share a node."""
    maps = [_map_numbers(left, "reactants"), _map_numbers(right, "products")]
    if not (shared := maps[0].keys() & maps[1].keys()):
        raise DataError("no atom of the reaction is mapped on both sides")
    for number in shared:
        one, other = left.atoms[maps[0][number]], right.atoms[maps[1][number]]
        if one.GetAtomicNum() != other.GetAtomicNum():
            raise DataError(f"map number {number} is {one.GetSymbol()} in the reactants "
                            f"and {other.GetSymbol()} in the products")
    right_nodes = np.full(len(right.atoms), -1, dtype=np.int32)
    for number in shared:
        right_nodes[maps[1][number]] = maps[0][number]
    new = right_nodes < 0
    right_nodes[new] = len(left.atoms) + np.arange(np.count_nonzero(new))
    return np.arange(len(left.atoms), dtype=np.int32), right_nodes, len(left.atoms) + int(np.count_nonzero(new))


def _map_numbers(skeleton: Skeleton, side: str) -> dict[int, int]:
    atoms: dict[int, int] = {}
    for index, number in enumerate(map(Chem.Atom.GetAtomMapNum, skeleton.atoms)):
        if number and number in atoms:
            raise DataError(f"map number {number} occurs twice in the {side}")
        if number:
            atoms[number] = index
    return atoms


def _merged_bonds(no_bond: np.ndarray,
                  *sides: tuple[Skeleton, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of nodes bonded on either side i64[bond, 2], and their vectors before and after the reaction.

    A bond between two atoms that both exist on the other side is broken or made; any other is taken not to change.
    """
    found: dict[tuple[int, int], list[np.ndarray | None]] = {}
    for place, (skeleton, nodes, vectors) in enumerate(sides):
        for begin, end, vector in zip(skeleton.begin, skeleton.end, vectors, strict=True):
            pair = (min(nodes[begin], nodes[end]), max(nodes[begin], nodes[end]))
            found.setdefault(pair, [None, None])[place] = vector
    present = [set(nodes.tolist()) for _, nodes, _ in sides]
    for pair, states in found.items():
        for place in (0, 1):
            if states[place] is None:
                states[place] = no_bond if present[place].issuperset(pair) else states[1 - place]
    pairs = np.array(list(found), dtype=np.int64).reshape(-1, 2)
    before, after = (np.array([states[place] for states in found.values()], dtype=np.float32) for place in (0, 1))
    return pairs, before.reshape(-1, len(no_bond)), after.reshape(-1, len(no_bond))
