"""A molecule -> one row of numbers: RDKit descriptors, Morgan fingerprint, and counts of atoms and bonds for baselines.

Invariant: two spellings of one molecule give the same row, and so do hydrogens written as atoms or left implicit.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdFingerprintGenerator

# Left out: Ipc and AvgIpc overflow on large molecules; BCUT2D fails on atoms without Gasteiger parameters; qed, SPS and
# BertzCT cost as much time as the other 204 together.
_LEFT_OUT = ("Ipc", "AvgIpc", "qed", "SPS", "BertzCT")
_DESCRIPTORS = tuple((name, function) for name, function in Descriptors.descList
                     if name not in _LEFT_OUT and not name.startswith("BCUT2D"))
DESCRIPTOR_NAMES = tuple(name for name, _ in _DESCRIPTORS)

_COUNTED = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")
_ORDERS = {Chem.BondType.SINGLE: "-", Chem.BondType.DOUBLE: "=", Chem.BondType.TRIPLE: "#", Chem.BondType.AROMATIC: ":"}
_PAIRS = ("CC", "CN", "CO", "NN", "NO", "OO")
COUNT_NAMES = (
    *_COUNTED, "other element", "C-H", "N-H", "O-H", "other-H", "C-F",
    *(pair[0] + order + pair[1] for pair in _PAIRS for order in _ORDERS.values()),
    *(f"other {order} bond" for order in _ORDERS.values()),
    "C sp", "C sp2", "C sp3", "ring of 3", "ring of 4", "ring of 5", "ring of 6", "larger ring",
)


def descriptors(molecule: Chem.Mol) -> tuple[np.ndarray, tuple[str, ...]]:
    """RDKit's 2-D descriptors f32[descriptor] in the order of `DESCRIPTOR_NAMES`, and the names of those set to zero.

    Set to zero is a descriptor that is not finite or that RDKit cannot compute, such as a partial charge of a metal.
    """
    molecule = _canonical(molecule)
    values, replaced = np.zeros(len(_DESCRIPTORS), dtype=np.float32), []
    with rdBase.BlockLogs(), np.errstate(all="ignore"):
        for index, (name, function) in enumerate(_DESCRIPTORS):
            try:
                value = np.float32(function(molecule))
            except (ValueError, RuntimeError, ZeroDivisionError, OverflowError):
                value = np.float32("nan")
            if np.isfinite(value):
                values[index] = value
            else:
                replaced.append(name)
    return values, tuple(replaced)


def fingerprint(molecule: Chem.Mol, bits: int = 2048) -> np.ndarray:
    """Morgan fingerprint of radius 2 with counts, f32[bit] (Rogers and Hahn, J. Chem. Inf. Model. 50:742, 2010)."""
    if bits not in _GENERATORS:
        _GENERATORS[bits] = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=bits)
    return _GENERATORS[bits].GetCountFingerprintAsNumPy(_without_hydrogens(molecule)).astype(np.float32)


_GENERATORS: dict[int, rdFingerprintGenerator.FingerprintGenerator64] = {}


def counts(molecule: Chem.Mol) -> np.ndarray:
    """How often each atom, bond and ring of `COUNT_NAMES` occurs, hydrogens included, f32[count]."""
    molecule = _without_hydrogens(molecule)
    found: Counter[str] = Counter()
    for atom in molecule.GetAtoms():
        symbol, hydrogens = atom.GetSymbol(), atom.GetTotalNumHs(True)
        found[symbol if symbol in _COUNTED else "other element"] += 1
        found["H"] += atom.GetTotalNumHs()
        found[f"{symbol}-H" if symbol in ("C", "N", "O") else "other-H"] += hydrogens
        if symbol == "C":
            found[f"C {str(atom.GetHybridization()).lower()}"] += 1
    for bond in molecule.GetBonds():
        ends = sorted((bond.GetBeginAtom().GetSymbol(), bond.GetEndAtom().GetSymbol()))
        order = _ORDERS.get(bond.GetBondType(), "-")
        if "H" not in ends:
            name = order.join(ends)
            found[name if name in COUNT_NAMES else f"other {order} bond"] += 1
    for ring in molecule.GetRingInfo().AtomRings():
        found[f"ring of {len(ring)}" if len(ring) < 7 else "larger ring"] += 1
    return np.array([found[name] for name in COUNT_NAMES], dtype=np.float32)


def _without_hydrogens(molecule: Chem.Mol) -> Chem.Mol:
    if molecule.GetNumHeavyAtoms() == molecule.GetNumAtoms():
        return molecule
    with rdBase.BlockLogs():
        return Chem.RemoveHs(molecule)


def _canonical(molecule: Chem.Mol) -> Chem.Mol:
    """The molecule without hydrogen atoms, its atoms in canonical order, so that sums are rounded alike."""
    molecule = _without_hydrogens(molecule)
    order = np.argsort(Chem.CanonicalRankAtoms(molecule, includeAtomMaps=False))
    return Chem.RenumberAtoms(molecule, order.tolist())
