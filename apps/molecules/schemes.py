"""Schemes: which properties of an atom and of a bond become which numbers of its feature vector.

Invariant: a vector is a function of a small tuple of properties, computed once for each distinct tuple, then looked up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdCIPLabeler, rdqueries

CIP_COMPARISONS = 1_000_000  # about a second; drug-like molecules need fewer than ten thousand

_HYBRID = Chem.HybridizationType
_BOND_TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
_CHARGES = (-1, -2, 1, 2, 0)
_ELEMENTS = (1, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 19, 34, 35, 53)
_HYBRIDS = (_HYBRID.S, _HYBRID.SP, _HYBRID.SP2, _HYBRID.SP3, _HYBRID.SP3D, _HYBRID.SP3D2)
_RING_SIZES = (3, 4, 5, 6, 7, 8)
_ATOM_LABELS = ("R", "S", "r", "s")
_BOND_LABELS = ("E", "Z", "e", "z")
_HAS_CHIRAL_TAG = rdqueries.HasChiralTagQueryAtom()


class Vectors(dict[tuple, int]):
    """Row of `matrix` that holds the vector of a key; unseen keys are computed and appended."""

    def __init__(self, vector: Callable[..., list[float]], width: int) -> None:
        super().__init__()
        self.vector = vector
        self.matrix = np.zeros((64, width), dtype=np.float32)
        self._lock = threading.Lock()

    def __missing__(self, key: tuple) -> int:
        with self._lock:
            if (row := self.get(key)) is None:
                row = len(self)
                if row == len(self.matrix):
                    self.matrix = np.concatenate([self.matrix, np.zeros_like(self.matrix)])
                self.matrix[row] = self.vector(*key)
                self[key] = row
        return row

    def at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """f32[row, feature], the vectors that these rows hold."""
        return self.matrix[np.asarray(rows, dtype=np.intp)]


@dataclass(frozen=True)
class Skeleton:
    """The atoms and bonds of one molecule, read from RDKit once.

    kinds : type of each bond
    begin, end : atom of either end of each bond
    """

    molecule: Chem.Mol
    atoms: list[Chem.Atom]
    bonds: list[Chem.Bond]
    kinds: list[Chem.BondType]
    begin: list[int]
    end: list[int]

    @classmethod
    def of(cls, molecule: Chem.Mol) -> Skeleton:
        atoms = [molecule.GetAtomWithIdx(i) for i in range(molecule.GetNumAtoms())]
        bonds = [molecule.GetBondWithIdx(i) for i in range(molecule.GetNumBonds())]
        kinds = map(Chem.Bond.GetBondType, bonds)
        begin, end = map(Chem.Bond.GetBeginAtomIdx, bonds), map(Chem.Bond.GetEndAtomIdx, bonds)
        return cls(molecule, atoms, bonds, list(kinds), list(begin), list(end))


@dataclass(frozen=True)
class Scheme:
    """A named pair of vector tables.

    keys : the property tuples of all atoms and of all bonds of a molecule
    elements : how many leading numbers of an atom vector tell its element
    no_bond : f32[feature], the vector of a pair of atoms that is not bonded
    """

    name: str
    keys: Callable[[Skeleton], tuple[Iterable[tuple], Iterable[tuple]]]
    atoms: Vectors
    bonds: Vectors
    elements: int
    no_bond: np.ndarray

    @property
    def atom_width(self) -> int:
        return self.atoms.matrix.shape[1]

    @property
    def bond_width(self) -> int:
        return self.bonds.matrix.shape[1]

    def rows(self, skeleton: Skeleton) -> tuple[list[int], list[int]]:
        """Where the vectors of all atoms and of all bonds stand in the tables, in the order of the molecule."""
        atom_keys, bond_keys = self.keys(skeleton)
        return [self.atoms[key] for key in atom_keys], [self.bonds[key] for key in bond_keys]

    def vectors(self, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
        """f32[atom, feature] and f32[bond, feature], in the order of the molecule."""
        atom_rows, bond_rows = self.rows(skeleton)
        return self.atoms.at(atom_rows), self.bonds.at(bond_rows)


def _one_hot(value: object, choices: Sequence) -> list[float]:
    """One number for each choice and a last one for every other value."""
    bits = [0.0] * (len(choices) + 1)
    bits[choices.index(value) if value in choices else len(choices)] = 1.0
    return bits


# ------------------------------------------------------------------------------------------------ tilework


def _tilework_keys(skeleton: Skeleton) -> tuple[Iterator[tuple], Iterator[tuple]]:
    atom, bond, atoms, bonds = Chem.Atom, Chem.Bond, skeleton.atoms, skeleton.bonds
    atom_labels, bond_labels = cip_labels(skeleton)
    atom_rings, atom_ring_bonds, bond_rings = _rings(skeleton)
    atom_keys = zip(map(atom.GetAtomicNum, atoms), map(atom.GetTotalDegree, atoms), map(atom.GetFormalCharge, atoms),
                    map(atom.GetTotalNumHs, atoms, repeat(True)), map(atom.GetHybridization, atoms),
                    map(atom.GetIsAromatic, atoms), map(atom.GetMass, atoms), atom_labels, atom_rings, atom_ring_bonds,
                    strict=True)
    bond_keys = zip(skeleton.kinds, map(bond.GetIsConjugated, bonds), bond_labels, bond_rings, strict=True)
    return atom_keys, bond_keys


def _tilework_atom(number: int, degree: int, charge: int, hydrogens: int, hybrid: Chem.HybridizationType,
                   aromatic: bool, mass: float, label: str, ring: int, ring_bonds: int) -> list[float]:
    """Element, neighbours, charge, hydrogens, orbitals, rings, mass / 100, CIP label, donor and acceptor of H bonds."""
    return [
        *_one_hot(number, _ELEMENTS), *_one_hot(degree, range(6)), *_one_hot(charge, _CHARGES),
        *_one_hot(hydrogens, range(5)), *_one_hot(hybrid, _HYBRIDS),
        float(aromatic), *_ring_bits(ring), *(float(ring_bonds == count) for count in (2, 3, 4)), mass / 100,
        *(float(label == one) for one in _ATOM_LABELS),
        float(number in (7, 8, 16) and hydrogens > 0), float(_accepts(number, degree, charge, hybrid, aromatic)),
    ]


def _accepts(number: int, degree: int, charge: int, hybrid: Chem.HybridizationType, aromatic: bool) -> bool:
    """A lone pair of N or O outside the pi system: pyridine's and an amine's count, pyrrole's and an amide's do not."""
    if number == 8:
        return charge <= 0
    if number != 7 or charge > 0:
        return False
    return degree <= 2 if aromatic else hybrid != _HYBRID.SP2 or degree <= 2


def _tilework_bond(kind: Chem.BondType, conjugated: bool, label: str, ring: int) -> list[float]:
    """Type, conjugation, smallest ring, CIP label."""
    labels = (float(label == one) for one in _BOND_LABELS)
    return [*_one_hot(kind, _BOND_TYPES), float(conjugated), *_ring_bits(ring), *labels]


def _ring_bits(size: int) -> list[float]:
    return _one_hot(size, _RING_SIZES) if size else [0.0] * (len(_RING_SIZES) + 1)


def _rings(skeleton: Skeleton) -> tuple[list[int], list[int], list[int]]:
    """Smallest ring through each atom (0: none), ring bonds at each atom, smallest ring through each bond.

    Every minimum cycle basis holds a smallest ring through each of its bonds, so these do not depend on which basis
    RDKit happens to find; the set of all ring sizes of an atom would.
    """
    atoms, counts, bonds = [0] * len(skeleton.atoms), [0] * len(skeleton.atoms), [0] * len(skeleton.bonds)
    for ring in sorted(skeleton.molecule.GetRingInfo().BondRings(), key=len):
        for bond in ring:
            if not bonds[bond]:
                bonds[bond] = len(ring)
                for atom in (skeleton.begin[bond], skeleton.end[bond]):
                    counts[atom] += 1
                    atoms[atom] = atoms[atom] or len(ring)
    return atoms, counts, bonds


def cip_labels(skeleton: Skeleton) -> tuple[list[str], list[str]]:
    """CIP label of each atom (R, S, pseudo-asymmetric r, s, or empty) and of each bond (E, Z, e, z, or empty).

    Labels follow the rules of Hanson et al., J. Chem. Inf. Model. 58:1755, 2018, as RDKit implements them, and do not
    depend on the order of atoms. A molecule too symmetric to be ranked in about a second gets none.
    """
    atoms, bonds = [""] * len(skeleton.atoms), [""] * len(skeleton.bonds)
    centres = [atom.GetIdx() for atom in skeleton.molecule.GetAtomsMatchingQuery(_HAS_CHIRAL_TAG)]
    double_bonds = [i for i, kind in enumerate(skeleton.kinds)
                    if kind == Chem.BondType.DOUBLE and skeleton.bonds[i].GetStereo()]
    if not centres and not double_bonds:
        return atoms, bonds
    labelled = Chem.Mol(skeleton.molecule)  # labelling rewrites how the stereo of a bond is stored
    for i in centres:
        labelled.GetAtomWithIdx(i).ClearProp("_CIPCode")
    try:
        rdCIPLabeler.AssignCIPLabels(labelled, maxRecursiveIterations=CIP_COMPARISONS)
    except RuntimeError:
        return atoms, bonds
    for i in centres:
        if (atom := labelled.GetAtomWithIdx(i)).HasProp("_CIPCode"):
            atoms[i] = atom.GetProp("_CIPCode")
    for i in double_bonds:
        if (bond := labelled.GetBondWithIdx(i)).HasProp("_CIPCode"):
            bonds[i] = bond.GetProp("_CIPCode")
    return atoms, bonds


# ------------------------------------------------------------------------------------------------ chemprop


def _chemprop_keys(skeleton: Skeleton) -> tuple[Iterator[tuple], Iterator[tuple]]:
    atom, bond, atoms, bonds = Chem.Atom, Chem.Bond, skeleton.atoms, skeleton.bonds
    atom_keys = zip(map(atom.GetAtomicNum, atoms), map(atom.GetTotalDegree, atoms), map(atom.GetFormalCharge, atoms),
                    map(atom.GetChiralTag, atoms), map(atom.GetTotalNumHs, atoms), map(atom.GetHybridization, atoms),
                    map(atom.GetIsAromatic, atoms), map(atom.GetMass, atoms), strict=True)
    bond_keys = zip(skeleton.kinds, map(bond.GetIsConjugated, bonds), map(bond.IsInRing, bonds),
                    map(bond.GetStereo, bonds), strict=True)
    return atom_keys, bond_keys


def _chemprop_atom(elements: Sequence[int], hybrids: Sequence[Chem.HybridizationType]) -> Callable[..., list[float]]:
    """Atom vector of chemprop (Yang et al., J. Chem. Inf. Model. 59:3370, 2019, Table 1)."""

    def vector(number: int, degree: int, charge: int, tag: int, hydrogens: int, hybrid: Chem.HybridizationType,
               aromatic: bool, mass: float) -> list[float]:
        return [*_one_hot(number, elements), *_one_hot(degree, range(6)), *_one_hot(charge, _CHARGES),
                *_one_hot(int(tag), range(4)), *_one_hot(hydrogens, range(5)), *_one_hot(hybrid, hybrids),
                float(aromatic), 0.01 * mass]

    return vector


def _chemprop_bond(kind: Chem.BondType, conjugated: bool, ring: bool, stereo: int) -> list[float]:
    """Bond vector of chemprop (Yang et al. 2019, Table 2); its first number marks a missing bond."""
    return [0.0, *_one_hot(kind, _BOND_TYPES)[:-1], float(conjugated), float(ring), *_one_hot(int(stereo), range(6))]


def _scheme(name: str, keys: Callable, atom: Callable, atom_width: int, bond: Callable, bond_width: int, elements: int,
            no_bond_bit: int | None) -> Scheme:
    no_bond = np.zeros(bond_width, dtype=np.float32)
    if no_bond_bit is not None:
        no_bond[no_bond_bit] = 1
    return Scheme(name, keys, Vectors(atom, atom_width), Vectors(bond, bond_width), elements, no_bond)


_V1_ATOM = _chemprop_atom(range(1, 101), (_HYBRID.SP, _HYBRID.SP2, _HYBRID.SP3, _HYBRID.SP3D, _HYBRID.SP3D2))
_V2_ATOM = _chemprop_atom((*range(1, 37), 53), (_HYBRID.S, _HYBRID.SP, _HYBRID.SP2, _HYBRID.SP2D, _HYBRID.SP3,
                                                _HYBRID.SP3D, _HYBRID.SP3D2))

SCHEMES = {scheme.name: scheme for scheme in (
    _scheme("tilework", _tilework_keys, _tilework_atom, 60, _tilework_bond, 17, len(_ELEMENTS) + 1, None),
    _scheme("chemprop-v1", _chemprop_keys, _V1_ATOM, 133, _chemprop_bond, 14, 101, 0),
    _scheme("chemprop-v2", _chemprop_keys, _V2_ATOM, 72, _chemprop_bond, 14, 38, 0),
)}
