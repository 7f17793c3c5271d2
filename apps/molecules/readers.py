"""Files of molecules -> a stream of records and refusals: CSV of SMILES or reactions, SDF, extended XYZ.

Invariant: a bad row never stops a stream; rows keep the file's order, numbered from 1; memory does not grow with it.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from apps.molecules.features import check_mapping
from apps.molecules.formats import Layout, Row, csv_rows, csv_start, format_of, printable, structure_rows
from core.engine.errors import DataError

SMILES_NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "reaction_smiles", "rxn_smiles", "reaction",
                "rxn", "mol", "molecule", "structure")
SAMPLE_3D = 1000  # records looked at to learn which columns an SDF or XYZ file has
LARGEST_TARGET = float(np.finfo(np.float32).max)
BOND_ITERATIONS = 1000  # trials of RDKit's bond perception for one XYZ frame


# rdkit's stubs give these settings no type of their own.
_LOOSE, _AS_WRITTEN = Chem.SmilesParserParams(), Chem.SmilesParserParams()  # unreadable CXSMILES tails are passed over
_LOOSE.strictCXSMILES = _AS_WRITTEN.strictCXSMILES = False  # type: ignore[assignment]
_AS_WRITTEN.removeHs = False  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still a molecule; the defaults let all of MoleculeNet pass (up to 492 heavy atoms and 20 parts)."""

    heavy_atoms: int = 500
    fragments: int = 20

    @property
    def characters(self) -> int:
        """Longest SMILES that is handed to the parser: 20 characters an atom leaves room for labels and map numbers."""
        return 20 * self.heavy_atoms


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Record:
    """One usable row.

    row : number of the data row, from 1, refused rows counted
    text : the SMILES or reaction as written, or the title of an SDF or XYZ record
    molecule : the molecule, or the reactants of a reaction (hydrogens as written)
    products : the products of a reaction, else None
    coordinates : f64[atom, 3] in Angstrom, one row for each atom of `molecule`, or None
    targets : f64[target], NaN where the field is blank
    extras : text of the other columns that were asked for
    """

    row: int
    text: str
    molecule: Chem.Mol
    products: Chem.Mol | None
    coordinates: np.ndarray | None
    targets: np.ndarray
    extras: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row that cannot be used, and why, in a chemist's words."""

    row: int
    text: str
    reason: str


# ---------------------------------------------------------------------------------------------- the doors


def read_rows(path: str | Path, *, smiles_column: str | None = None, targets: Sequence[str] = (),
              extras: Sequence[str] = (), limits: Limits = DEFAULT_LIMITS) -> Iterator[Record | Refusal]:
    """Stream a file of molecules.

    Parameters
    ----------
    path : .csv .tsv .txt (delimiter found by itself), .sdf .sd, .xyz .extxyz; each may be gzipped
    smiles_column : CSV only; default: the column with a usual name, else the first whose values are SMILES
    targets : columns of numbers, an empty field is a blank
    extras : columns handed through as text, such as a split column

    Raises
    ------
    DataError
        At once for a file or column that is not there, at the end for a file without a usable row.
    """
    path = Path(path)
    rows = text_rows(path, smiles_column, dict.fromkeys((*targets, *extras)))
    return _records(path, rows, tuple(targets), tuple(extras), limits)


def text_rows(path: Path, smiles_column: str | None = None, wanted: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file as its text says them, with the columns that are wanted; see `read_rows`."""
    if format_of(path) == "csv":
        layout = _csv_layout(path, smiles_column)
        _require(path, wanted, layout.header)
        return csv_rows(path, layout, wanted)
    _require(path, wanted, columns(path))
    return structure_rows(path)


def read_row(number: int, row: Row, limits: Limits, targets: Sequence[str] = (),
             extras: Sequence[str] = ()) -> Record | Refusal:
    """What a row of text says, or why it cannot be used."""
    try:
        return _record(number, row, targets, extras, limits)
    except DataError as error:
        return Refusal(number, printable(row.text[:200]), str(error))


def columns(path: str | Path) -> tuple[str, ...]:
    """Names of the columns of a CSV, of the data fields of an SDF, of the ``key=value`` pairs of an XYZ file."""
    path = Path(path)
    if format_of(path) == "csv":
        return csv_start(path)[0].header
    return tuple(dict.fromkeys(name for row in islice(structure_rows(path), SAMPLE_3D) for name in row.columns))


def text_column(path: str | Path, smiles_column: str | None = None) -> str:
    """Name of the column of a CSV that holds the SMILES or reactions; ``name`` for the titles of SDF and XYZ files."""
    path = Path(path)
    if format_of(path) != "csv":
        return "name"
    layout = _csv_layout(path, smiles_column)
    return layout.header[layout.smiles]


def check_units(given: Mapping[str, str], model: Mapping[str, str], targets: Sequence[str]) -> None:
    """Raise DataError if a unit given by the user is not the unit that the model was trained on for a target."""
    for name, unit in given.items():
        if name not in targets:
            raise DataError(f"A unit is given for '{name}', which the model does not predict; it predicts "
                            f"{_listed(targets)}.")
        if name not in model:
            raise DataError(f"A unit is given for '{name}', but the training was told none; leave it out.")
        if " ".join(unit.split()) != " ".join(model[name].split()):
            raise DataError(f"The unit of '{name}' is given as '{unit}', but the model was trained on '{model[name]}'; "
                            "convert the values to the model's unit first.")


def _records(path: Path, rows: Iterator[Row], targets: tuple[str, ...], extras: tuple[str, ...],
             limits: Limits) -> Iterator[Record | Refusal]:
    usable, number, first_reason = False, 0, "it holds none at all"
    for number, row in enumerate(rows, start=1):
        found = read_row(number, row, limits, targets, extras)
        if isinstance(found, Record):
            usable = True
        elif number == 1:
            first_reason = f"row 1: {found.reason}"
        yield found
    if not usable:
        raise no_usable_row(path, number, first_reason)


def no_usable_row(path: Path, rows: int, first_reason: str) -> DataError:
    """What to raise at the end of a file of so many rows."""
    return DataError(f"{path.name} has no usable row among its {rows} rows; {first_reason}.")


def _record(number: int, row: Row, targets: Sequence[str], extras: Sequence[str], limits: Limits) -> Record:
    if row.reason:
        raise DataError(row.reason)
    values = np.array([_number(name, row.columns.get(name, "")) for name in targets], dtype=np.float64)
    products, coordinates = None, None
    if row.lines and row.lines[-1].startswith("M  END"):
        molecule, coordinates = _sdf_molecule(row, limits)
    elif row.lines:
        molecule, coordinates = _xyz_molecule(row, limits)
    elif ">" in row.text.replace("->", ""):  # an arrow is a dative bond
        molecule, products = parse_reaction(row.text, limits)
    else:
        molecule = parse_smiles(row.text, limits)
    kept = {name: printable(row.columns.get(name, "")) for name in extras}
    return Record(number, printable(row.text), molecule, products, coordinates, values, kept)


def _number(name: str, text: str) -> float:
    text = text.strip()
    if not text:
        return math.nan
    try:
        value = float(text) if "_" not in text else None
    except ValueError:
        value = None
    if value is None:
        raise DataError(f"target '{name}' is '{printable(text)[:40]}', not a number")
    if not abs(value) <= LARGEST_TARGET:
        raise DataError(f"target '{name}' is '{text[:40]}', not a finite number")
    return value


# ---------------------------------------------------------------------------------------------- molecules


def parse_smiles(text: str, limits: Limits = DEFAULT_LIMITS, *, remove_hydrogens: bool = True) -> Chem.Mol:
    """A SMILES, with or without a CXSMILES tail or a name behind it; DataError for one that cannot be used."""
    text = text.strip()
    if not text:
        raise DataError("empty SMILES")
    if len(text) > limits.characters:
        raise DataError(f"{len(text)} characters long, the limit is {limits.characters}")
    if not text.isascii():
        raise DataError("the SMILES has characters that are not ASCII")
    options = _LOOSE if remove_hydrogens else _AS_WRITTEN
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text, options)
    if molecule is None:
        raise DataError("RDKit cannot parse it: " + _reason(lambda: Chem.MolFromSmiles(text, options)))
    _check_size(molecule, limits, fragmented="." in text)
    return molecule


def parse_reaction(text: str, limits: Limits = DEFAULT_LIMITS) -> tuple[Chem.Mol, Chem.Mol]:
    """The sides of ``reactants>>products``, hydrogens and map numbers as written; DataError if they cannot be used."""
    sides = text.strip().partition(" ")[0].split(">>")
    if len(sides) != 2 or any(">" in side.replace("->", "") for side in sides):
        raise DataError("a reaction must be written as reactants>>products")
    molecules = []
    for name, side in zip(("reactants", "products"), sides, strict=True):
        try:
            molecules.append(parse_smiles(side, limits, remove_hydrogens=False))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    check_mapping(*molecules)
    return molecules[0], molecules[1]


def _check_size(molecule: Chem.Mol, limits: Limits, *, fragmented: bool) -> None:
    heavy = molecule.GetNumHeavyAtoms()
    if molecule.GetNumAtoms() == 0:
        raise DataError("a molecule without atoms")
    if heavy > limits.heavy_atoms:
        raise DataError(f"{heavy} heavy atoms, the limit is {limits.heavy_atoms}")
    if fragmented and (count := len(Chem.GetMolFrags(molecule))) > limits.fragments:
        raise DataError(f"{count} unconnected parts, the limit is {limits.fragments}")


_RDKIT_LOG = threading.Lock()
"""RDKit has one log, so that only one thread at a time may listen to it."""


class _Lines(logging.Handler):
    """Keeps the lines that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(record.getMessage().splitlines())


def _reason(attempt: Callable[[], object]) -> str:
    """What RDKit logs while `attempt` fails, cut to its first sentence."""
    handler = _Lines()
    logger = logging.getLogger("rdkit")
    with _RDKIT_LOG:
        before = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [handler], False
        rdBase.LogToPythonLogger()
        try:
            attempt()
        finally:
            rdBase.LogToCppStreams()
            logger.handlers, logger.propagate = before
    lines = [re.sub(r"^(\[[\d:]+\]\s*)?(SMILES Parse Error:\s*)?", "", line).strip() for line in handler.lines]
    lines = [" ".join(line.split()) for line in lines if not set(line) <= set("~^-* ")]
    return re.split(r" (?:for input|while parsing)|:$", lines[0])[0][:120] if lines else "no reason given"


# ---------------------------------------------------------------------------------------------- columns


def _csv_layout(path: Path, smiles_column: str | None) -> Layout:
    layout, rows = csv_start(path)
    if smiles_column is not None:
        _require(path, (smiles_column,), layout.header)
        return replace(layout, smiles=layout.header.index(smiles_column))
    plain = [re.sub(r"[ -]", "_", name.lower()) for name in layout.header]
    for name in SMILES_NAMES:
        if name in plain:
            return replace(layout, smiles=plain.index(name))
    for index, name in enumerate(plain):
        if "smiles" in name:
            return replace(layout, smiles=index)
    for index, name in enumerate(layout.header):
        values = [row[index] for row in rows if index < len(row) and row[index].strip()]
        if sum(map(_is_molecule, values)) > len(values) / 2:
            if _is_molecule(name):
                raise DataError(f"{path.name} seems to have no header: its first line holds the molecule '{name}'; "
                                "put column names above it.")
            return replace(layout, smiles=index)
    raise DataError(f"{path.name} has no column of SMILES; its columns are {_listed(layout.header)}.")


def _is_molecule(text: str) -> bool:
    """Whether a field of a nameless column is a SMILES: not a number, and more than an element or two."""
    if len(text) > DEFAULT_LIMITS.characters:
        return False
    with rdBase.BlockLogs():
        sides = [Chem.MolFromSmiles(side) for side in text.strip().split(">>")]
    return all(sides) and sum(side.GetNumAtoms() for side in sides) > 2


def _require(path: Path, names: Iterable[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise DataError(f"{path.name} has no column '{name}'; its columns are {_listed(found)}{hint}")
        if list(found).count(name) > 1:
            raise DataError(f"{path.name} has {list(found).count(name)} columns named '{name}'; rename all but one.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f"'{printable(name)}'" for name in names[:12])
    return (shown or "none") + (f" and {len(names) - 12} more" if len(names) > 12 else "")


# ---------------------------------------------------------------------------------------------- 3-D structures


def _sdf_molecule(row: Row, limits: Limits) -> tuple[Chem.Mol, np.ndarray | None]:
    block = "\n".join(row.lines)
    with rdBase.BlockLogs():
        molecule = Chem.MolFromMolBlock(block, removeHs=False)
    if molecule is None:
        raise DataError("RDKit cannot parse it: " + _reason(lambda: Chem.MolFromMolBlock(block, removeHs=False)))
    _check_size(molecule, limits, fragmented=True)
    conformer = molecule.GetConformer()
    return molecule, conformer.GetPositions() if conformer.Is3D() else None


def _xyz_atoms(row: Row) -> tuple[list[int], np.ndarray]:
    """Atomic numbers, and coordinates f64[atom, 3]; ``Properties`` says in which fields they stand."""
    start = {"species": 0, "pos": 1}
    at = 0
    for name, _, width in re.findall(r"(\w+):([SRIL]):(\d+)", row.columns.get("Properties", "")):
        start[name], at = at, at + int(width)
    table = Chem.GetPeriodicTable()
    numbers, positions = [], []
    for line in row.lines:
        fields = line.split()
        try:
            symbol = fields[start["species"]]
            with rdBase.BlockLogs():
                numbers.append(int(symbol) if symbol.isdecimal() else table.GetAtomicNumber(symbol.capitalize()))
                table.GetElementSymbol(numbers[-1])
            positions.append([float(value) for value in fields[start["pos"]:start["pos"] + 3]])
        except (IndexError, ValueError, OverflowError, RuntimeError):
            raise DataError(f"'{printable(line.strip())}' is not an element and three coordinates") from None
        if len(positions[-1]) != 3 or not np.isfinite(positions[-1]).all():
            raise DataError(f"'{printable(line.strip())}' is not an element and three coordinates")
    return numbers, np.array(positions)


def _charge(row: Row) -> int:
    """The charge of a frame, 0 where it names none."""
    text = row.columns.get("charge", "0")
    try:
        return int(np.int32(round(float(text))))
    except (ValueError, OverflowError):
        raise DataError(f"its charge is '{printable(text)}', which no molecule has") from None


def _xyz_molecule(row: Row, limits: Limits) -> tuple[Chem.Mol, np.ndarray]:
    """The molecule with bonds perceived from its geometry, or with no bonds where RDKit finds no sound set of them."""
    numbers, positions = _xyz_atoms(row)
    atoms = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        atoms.AddAtom(atom)
    _check_size(atoms, limits, fragmented=False)
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(positions)
    atoms.AddConformer(conformer)
    charge = _charge(row)
    bonded = Chem.Mol(atoms)
    with rdBase.BlockLogs():
        try:
            rdDetermineBonds.DetermineBonds(bonded, charge=charge, maxIterations=BOND_ITERATIONS)
            Chem.SanitizeMol(bonded)
        except (ValueError, RuntimeError):
            bonded = atoms.GetMol()
            bonded.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(bonded)
    return bonded, positions
