"""Rows -> training, validation and test parts, by random draw, scaffold, column or fold.

Invariant: no molecule is on two sides, and its side depends only on the molecules, the settings and the seed: not on
the order of rows, the platform or the version of numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from core.engine.errors import ConfigError, DataError

KINDS = ("random", "scaffold", "column")
_SIDES = {"train": 0, "training": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class Split:
    """Parts of a data set, each i64[row], ascending; together they are all rows.

    dropped : rows of a column split whose molecule also stands on a later side
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    dropped: np.ndarray


def molecule_key(molecule: Chem.Mol, products: Chem.Mol | None = None) -> str:
    """The canonical SMILES that tells molecules apart in a split: without stereo, isotopes, map numbers and hydrogens.

    Stereoisomers share most of their properties, so they count as one molecule here and never meet across two sides.
    """
    if products is not None:
        return f"{molecule_key(molecule)}>>{molecule_key(products)}"
    if molecule.GetNumHeavyAtoms() != molecule.GetNumAtoms():
        with rdBase.BlockLogs():
            molecule = Chem.RemoveHs(molecule)
    key = Chem.MolToSmiles(molecule, isomericSmiles=False)
    if ":" not in key:
        return key
    unmapped = Chem.Mol(molecule)
    for atom in unmapped.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(unmapped, isomericSmiles=False)


def split(keys: Sequence[str], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), *, kind: str = "random",
          seed: int = 0, column: Sequence[str] | None = None) -> Split:
    """Divide rows into three parts.

    Parameters
    ----------
    keys : `molecule_key` of each row; rows of one key stay together
    fractions : of rows for training, validation and test; ignored by ``column``
    kind : ``random``; ``scaffold``: molecules of one Murcko scaffold stay together, frequent scaffolds go to training
        (Wu et al., Chem. Sci. 9:513, 2018, section 3.2), without chance; ``column``: as `column` says
    column : the side of each row, ``train``, ``valid`` or ``test``

    Raises
    ------
    ConfigError
        For an unknown kind or impossible fractions.
    DataError
        For a part that would be empty, or a column with other words in it.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no split '{kind}'; there are {', '.join(KINDS)}.")
    if kind == "column":
        return _by_column(keys, column)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise ConfigError(f"Split fractions must be three numbers, the first above 0, with sum 1; found {fractions}.")
    if kind == "scaffold":
        groups = _groups(_scaffolds(keys))
        frequent_first = sorted(groups.values(), key=lambda rows: (-len(rows), min(keys[row] for row in rows)))
        parts = _packed(frequent_first, fractions)
    else:
        groups = _groups(keys)
        parts = _filled([groups[name] for name in _shuffled(groups, seed)], fractions)
    for name, part, fraction in zip(("training", "validation", "test"), parts, fractions, strict=True):
        if fraction > 0 and not len(part):
            raise DataError(f"The {kind} split of {len(keys)} rows leaves none for {name}: they form only "
                            f"{len(groups)} groups; give more rows or larger fractions.")
    train, valid, test = parts
    return Split(train, valid, test, dropped=_rows([]))


def k_folds(keys: Sequence[str], k: int, seed: int = 0, *, kind: str = "random",
            valid_fraction: float = 0.1) -> list[Split]:
    """`k` splits whose test parts are disjoint and cover all rows; validation is drawn from the rest of each.

    Parameters
    ----------
    keys : `molecule_key` of each row; rows of one key stay together
    kind : ``random``; ``scaffold``: molecules of one Murcko scaffold stay together

    Raises
    ------
    ConfigError
        For fewer than two folds, an impossible fraction or another kind.
    DataError
        For fewer molecules, or scaffolds, than folds.
    """
    if kind not in ("random", "scaffold"):
        raise ConfigError(f"Folds are drawn at random or by scaffolds, not by '{kind}'.")
    if k < 2 or not 0 <= valid_fraction < 1:
        raise ConfigError("Cross-validation takes at least 2 folds and a validation fraction below 1; "
                          f"found {k} and {valid_fraction}.")
    groups = _groups(_scaffolds(keys) if kind == "scaffold" else keys)
    if len(groups) < k + (valid_fraction > 0):
        raise DataError(f"{k} folds need more than {len(groups)} different "
                        f"{'scaffolds' if kind == 'scaffold' else 'molecules'}.")
    order = _shuffled(groups, seed)
    folds = _filled([groups[name] for name in order], (1 / k,) * k)
    result = []
    for fold, test in enumerate(folds):
        held = set(test.tolist())
        rest = [groups[name] for name in order[fold * len(order) // k:] + order[:fold * len(order) // k]
                if groups[name][0] not in held]
        valid, train = _filled(rest, (valid_fraction, 1 - valid_fraction))
        result.append(Split(train, valid, test, dropped=_rows([])))
    return result


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    return groups


def _shuffled(groups: dict[str, list[int]], seed: int) -> list[str]:
    """Names in random order: sorted, then ordered by the raw stream of Philox, which numpy promises never to change."""
    names = sorted(groups)
    draws = np.random.Philox(key=seed).random_raw(len(names))
    return [names[i] for i in np.argsort(draws, kind="stable")]


def _filled(groups: list[list[int]], fractions: Sequence[float]) -> list[np.ndarray]:
    """Hand groups out in order, each to the part whose share of rows its middle falls into."""
    bounds = np.cumsum(fractions) * sum(map(len, groups))
    parts: list[list[int]] = [[] for _ in fractions]
    taken = 0
    for group in groups:
        place = int(np.searchsorted(bounds, taken + len(group) / 2))
        parts[min(place, len(parts) - 1)].extend(group)
        taken += len(group)
    return [_rows(part) for part in parts]


def _packed(groups: list[list[int]], fractions: Sequence[float]) -> list[np.ndarray]:
    """Hand groups out in order, each to the first part that it does not burst, else to the last."""
    shares = [fraction * sum(map(len, groups)) + 1e-9 for fraction in fractions]
    parts: list[list[int]] = [[] for _ in fractions]
    for group in groups:
        fitting = (part for part, share in zip(parts, shares, strict=True) if len(part) + len(group) <= share)
        next(fitting, parts[-1]).extend(group)
    return [_rows(part) for part in parts]


def _rows(rows: Iterable[int]) -> np.ndarray:
    return np.array(sorted(rows), dtype=np.int64)


def _scaffolds(keys: Sequence[str]) -> list[str]:
    """The scaffold of each key, empty where there is no ring (Bemis and Murcko, J. Med. Chem. 39:2887, 1996)."""
    found: dict[str, str] = {}
    for key in keys:
        if key not in found:
            if ">>" in key:
                raise DataError("Reactions have no Murcko scaffold; split them at random or by a column.")
            with rdBase.BlockLogs():
                molecule = Chem.MolFromSmiles(key)
                found[key] = MurckoScaffold.MurckoScaffoldSmiles(mol=molecule) if molecule is not None else key
    return [found[key] for key in keys]


def _by_column(keys: Sequence[str], column: Sequence[str] | None) -> Split:
    """Sides as the column has them; a molecule on two sides stays on the later one, its earlier rows are dropped."""
    if column is None or len(column) != len(keys):
        raise ConfigError("A split by column needs the column with the side of each row.")
    sides = []
    for row, word in enumerate(column):
        side = _SIDES.get(word.strip().lower())
        if side is None:
            raise DataError(f"The split column says '{word}' in usable row {row + 1}, not train, valid or test.")
        sides.append(side)
    latest: dict[str, int] = {}
    for key, side in zip(keys, sides, strict=True):
        latest[key] = max(side, latest.get(key, 0))
    parts: list[list[int]] = [[], [], [], []]
    for row, (key, side) in enumerate(zip(keys, sides, strict=True)):
        parts[side if side == latest[key] else 3].append(row)
    if not parts[0]:
        raise DataError("The split column leaves no row for training.")
    return Split(*map(_rows, parts))
