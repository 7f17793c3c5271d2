"""Files -> rows of text: delimited tables, the records of an SDF, the frames of an extended XYZ file, gzipped or not.

Invariant: every function that reads holds one row at a time, and a broken row comes out as a `Row` with a reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from pathlib import Path
from typing import TextIO

from core.engine.errors import DataError

FORMATS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".sdf": "sdf", ".sd": "sdf", ".xyz": "xyz", ".extxyz": "xyz"}
LONGEST_LINE = 1 << 20  # characters
LONGEST_ROW = 16  # lines that one quoted row may span
LARGEST_BLOCK = 1 << 24  # characters of one SDF record or XYZ frame
ONE_COLUMN = "\x1f"  # cuts nothing: in a file of one column a comma belongs to the CXSMILES
SAMPLE = 20  # rows looked at to find the delimiter and the SMILES column


@dataclass(frozen=True, slots=True)
class Row:
    """A row as its format gives it.

    text : the SMILES or reaction, the title of an SDF record, the comment of an XYZ frame
    columns : the other columns that were asked for; all data fields of an SDF record or XYZ frame
    lines : the atoms and bonds of an SDF record, the atoms of an XYZ frame
    reason : why the row is broken, else empty
    """

    text: str
    columns: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[str] = ()
    reason: str = ""

    @property
    def characters(self) -> int:
        """Length of all its text."""
        return len(self.text) + sum(map(len, self.lines)) + sum(map(len, self.columns.values()))


def format_of(path: Path) -> str:
    """``csv``, ``sdf`` or ``xyz``, from the suffix before any ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    suffix = name[name.rfind("."):] if "." in name else ""
    if suffix not in FORMATS:
        raise DataError(f"{path.name} is of no known format; molecules come as {', '.join(FORMATS)}, gzipped or not.")
    return FORMATS[suffix]


def open_text(path: Path) -> TextIO:
    """A text stream of a plain or gzipped file; bytes that are not UTF-8 come as surrogates."""
    raw: io.BufferedReader | gzip.GzipFile
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            raw.close()
            raw = gzip.open(path)  # noqa: SIM115 the text stream made of it closes it
        start = raw.peek(4)[:4]
    except (EOFError, OSError, zlib.error) as error:
        raw.close()
        raise DataError(f"{path.name} is damaged and cannot be unpacked: {error}.") from error
    if start == b"PK\x03\x04":
        raw.close()
        raise DataError(f"{path.name} is an Excel workbook or a zip archive; save the table as CSV.")
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "replace")


def _lines(stream: TextIO) -> Iterator[str]:
    """Lines of bounded length; of a longer one come its first `LONGEST_LINE` + 1 characters."""
    number = 0
    try:
        while line := stream.readline(LONGEST_LINE + 1):
            tail = line
            while len(tail) > LONGEST_LINE and not tail.endswith("\n"):
                tail = stream.readline(LONGEST_LINE + 1)
            number += 1
            yield line
    except (EOFError, OSError, zlib.error) as damage:
        raise DataError(f"{stream.name} is damaged after line {number}: {damage}.") from damage


def _fields(text: str, delimiter: str) -> list[str] | None:
    """Fields of one row, or None where a quoted field is still open at its end."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        return text.rstrip("\n").split(delimiter)  # quotation marks in odd places are taken as they stand


def _csv_fields(stream: TextIO, delimiter: str) -> Iterator[list[str] | str]:
    """Fields of each row, or the reason why a row has none; blank lines count as rows except at the end of the file."""
    lines = _lines(stream)
    waiting: list[str] = []  # lines given back after a quotation mark that was never closed
    blank = 0
    while (line := waiting.pop(0) if waiting else next(lines, "")):
        if not line.strip():
            blank += 1
            continue
        yield from ["empty line"] * blank
        blank = 0
        if len(line) > LONGEST_LINE:
            yield f"a line of more than {LONGEST_LINE} characters"
            continue
        held, fields = [line], _fields(line, delimiter)
        while fields is None and len(held) < LONGEST_ROW and sum(map(len, held)) < LONGEST_LINE:
            if not (line := waiting.pop(0) if waiting else next(lines, "")):
                break
            held.append(line)
            fields = _fields("".join(held), delimiter)
        if fields is None:
            waiting[:0] = held[1:]
            yield "a quotation mark is opened and never closed"
        else:
            yield fields


@dataclass(frozen=True, slots=True)
class Layout:
    """How a CSV is cut: its delimiter, its column names, and which column holds the SMILES."""

    delimiter: str
    header: tuple[str, ...]
    smiles: int = 0


def csv_start(path: Path) -> tuple[Layout, list[list[str]]]:
    """The layout of a CSV and its first rows.

    The delimiter is the one that cuts the header into the most fields, and at least half of the rows alike.
    """
    with open_text(path) as stream:
        start = "".join(islice((line for line in _lines(stream) if line.strip()), SAMPLE + 1))
    if not start:
        raise DataError(f"{path.name} is empty.")
    best, best_rows = None, []
    for delimiter in (ONE_COLUMN, *",\t;|"):
        header, *rows = list(_csv_fields(io.StringIO(start), delimiter))
        whole = [row for row in rows if isinstance(row, list)]
        alike = sum(len(row) >= len(header) and not any(map(str.strip, row[len(header):])) for row in whole)
        if isinstance(header, list) and 2 * alike >= len(rows) and (best is None or len(header) > len(best.header)):
            best, best_rows = Layout(delimiter, tuple(name.strip() for name in header)), whole
    if best is None:
        raise DataError(f"The first line of {path.name} cannot be cut into column names: '{printable(start)[:80]}'.")
    return best, best_rows


def csv_rows(path: Path, layout: Layout, wanted: Iterable[str]) -> Iterator[Row]:
    """The data rows of a CSV with the columns that are wanted."""
    places = {name: layout.header.index(name) for name in wanted}
    with open_text(path) as stream:
        rows = dropwhile(lambda fields: isinstance(fields, str), _csv_fields(stream, layout.delimiter))
        for fields in islice(rows, 1, None):
            if isinstance(fields, str):
                yield Row("", reason=fields)
                continue
            surplus = fields[len(layout.header):]
            text = fields[layout.smiles].strip() if layout.smiles < len(fields) else ""
            if len(fields) < len(layout.header) or any(value.strip() for value in surplus):
                yield Row(text, reason=f"{len(fields)} fields, the header has {len(layout.header)}")
            else:
                yield Row(text, {name: fields[place] for name, place in places.items()})


def printable(text: str) -> str:
    """The text with a question mark for each byte that was not UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def structure_rows(path: Path) -> Iterator[Row]:
    """The records of an SDF or the frames of an XYZ file."""
    with open_text(path) as stream:
        yield from (_sdf_rows if format_of(path) == "sdf" else _xyz_rows)(_lines(stream))


def _sdf_rows(lines: Iterator[str]) -> Iterator[Row]:
    """Records of an SDF, cut at ``$$$$``."""
    block: list[str] = []
    characters = 0
    for line in lines:
        if line.startswith("$$$$"):
            yield _sdf_row(block, characters)
            block, characters = [], 0
            continue
        characters += len(line)
        if characters <= LARGEST_BLOCK:
            block.append(line.rstrip("\n"))
    if any(line.strip() for line in block):
        yield _sdf_row(block, characters)


def _sdf_row(block: list[str], characters: int) -> Row:
    title = block[0].strip() if block else ""
    if characters > LARGEST_BLOCK:
        return Row(title, reason=f"a record of {characters} characters, the limit is {LARGEST_BLOCK}")
    end = next((i + 1 for i, line in enumerate(block) if line.startswith("M  END")), None)
    if end is None:
        return Row(title, reason="no 'M  END' line closes the atoms and bonds")
    fields: dict[str, str] = {}
    name = None
    for line in block[end:]:
        if line.startswith(">") and (found := re.search(r"<(.+)>", line)):
            name = found[1]
            fields[name] = ""
        elif not line.strip():
            name = None
        elif name is not None:
            fields[name] += ("\n" if fields[name] else "") + line
    return Row(title, fields, block[:end])


def _xyz_rows(lines: Iterator[str]) -> Iterator[Row]:
    """Frames of an XYZ file: a count, a comment, that many atoms; after a broken frame the next count is looked for."""
    line = next(lines, "")
    while line:
        if not line.strip():
            line = next(lines, "")
            continue
        if not _is_count(line):
            yield Row(line.strip(), reason="an XYZ frame must start with its number of atoms")
            while line and not _is_count(line):
                line = next(lines, "")
            continue
        count, comment = int(line), next(lines, "").strip()
        atoms: list[str] = []
        seen = characters = 0
        while (line := next(lines, "")) and seen < count and not _is_count(line):
            seen += 1
            characters += len(line)
            if characters <= LARGEST_BLOCK:
                atoms.append(line)
        if count == 0 or seen < count:
            yield Row(comment, reason=f"{seen} atoms, the first line says {count}")
        elif characters > LARGEST_BLOCK:
            yield Row(comment, reason=f"a frame of {characters} characters, the limit is {LARGEST_BLOCK}")
        else:
            yield Row(comment, _xyz_columns(comment), atoms)


def _is_count(line: str) -> bool:
    return line.strip().isdecimal() and len(line.strip()) < 10


def _xyz_columns(comment: str) -> dict[str, str]:
    """The ``key=value`` pairs of an extended XYZ comment; values with spaces are quoted."""
    return {key: quoted or plain for key, quoted, plain in re.findall(r'([^\s="]+)=(?:"([^"]*)"|(\S*))', comment)}


