"""Layer lists of SCALE-Sim: CSV files of convolutions or matrix products, and their cycles.

Invariant: a row becomes one layer or is refused with its line and column; columns are found by the header.

SCALE-Sim's files have a header, spaces, blank lines and a comma at the end of each line. What follows the strides of a
convolution is a second stride where it is a whole number. Ratios of sparsity are not applied, remarks not read. Rows
that the files call depthwise are plain convolutions with the channels and filters that they name.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.accel.tpu.machine import Machine, changed, machine
from core.accel.tpu.systolic import DATAFLOWS, MODES, Product, convolution, cycles, full_cycles, utilisation
from core.engine.errors import ConfigError, DataError, compose

CONVOLUTION = ("IFMAP height", "IFMAP width", "filter height", "filter width", "channels", "num filter", "strides")
GEMM = ("M", "N", "K")


@dataclass(frozen=True)
class Layer:
    """One row of a file."""

    name: str
    product: Product


@dataclass(frozen=True)
class LayerCycles:
    """What a layer takes."""

    name: str
    cycles: int
    utilisation: float


def read(path: Path) -> list[Layer]:
    """The layers of a CSV file.

    Raises
    ------
    DataError
        If it cannot be read, has no header or no layer, or a row is not a layer.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the topology {path} cannot be read: {error}") from error
    lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1)]
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        raise DataError(f"the topology {path} is empty")
    reader = _Reader(path, *lines[0])
    layers = [reader.layer(number, row) for number, row in lines[1:]]
    if not layers:
        raise DataError(f"the topology {path} has a header and no layers")
    return layers


class _Reader:
    """Turns the rows of one file into layers."""

    def __init__(self, path: Path, line: int, header: Sequence[str]) -> None:
        self.path = path
        words = [cell.lower() for cell in header]
        if all(_is_whole(cell) for cell in header[1:] if cell):
            raise self._error(line, "the first line has no names of columns", self._forms())
        self.gemm = {"m", "n", "k"} <= set(words)
        if self.gemm:
            self.columns = [words.index(name.lower()) for name in GEMM]
        elif len(words) > len(CONVOLUTION) and "filter" in " ".join(words):
            self.columns = list(range(1, 1 + len(CONVOLUTION)))  # their names differ among files, their order does not
        else:
            raise self._error(line, f"the header {', '.join(cell for cell in header if cell)} is of no known form",
                              self._forms())
        behind = 1 + len(CONVOLUTION)
        self.has_second_stride = not self.gemm and (len(words) <= behind or words[behind] == ""
                                                    or "stride" in words[behind])

    def layer(self, line: int, row: Sequence[str]) -> Layer:
        names = GEMM if self.gemm else CONVOLUTION
        numbers = [self._number(line, row, column, name) for column, name in zip(self.columns, names, strict=True)]
        if self.gemm:
            m, n, k = numbers
            return Layer(row[0], Product(m, k, n))
        height, width, tall, wide, channels, filters, down = numbers
        across, behind = down, 1 + len(CONVOLUTION)
        if self.has_second_stride and len(row) > behind and _is_whole(row[behind]):
            across = self._number(line, row, behind, "second stride")
        for axis, size, extent, step, column in (("height", tall, height, down, 3), ("width", wide, width, across, 4)):
            if size >= extent + step:  # SCALE-Sim counts an output that a stride reaches beyond the input
                raise self._error(line, f"filter {axis} {size} is larger than IFMAP {axis} {extent}",
                                  "sizes are those of the padded input", column)
        return Layer(row[0], convolution(height, width, (tall, wide), channels, filters, (down, across)))

    def _number(self, line: int, row: Sequence[str], column: int, name: str) -> int:
        cell = row[column] if column < len(row) else ""
        if not cell:
            raise self._error(line, f"{name} is missing", "give a whole number above 0", column)
        if not _is_whole(cell) or int(cell) < 1:
            raise self._error(line, f"{name} is {cell!r}", "give a whole number above 0", column)
        return int(cell)

    def _error(self, line: int, found: str, hint: str, column: int | None = None) -> DataError:
        place = f"line {line}" + (f", column {column + 1}" if column is not None else "")
        return DataError(compose(f"{self.path}, {place}: {found}", [("hint", hint)]))

    @staticmethod
    def _forms() -> str:
        return f"begin with 'Layer name, {', '.join(CONVOLUTION)}' or 'Layer, {', '.join(GEMM)}'"


def _is_whole(cell: str) -> bool:
    return cell.removeprefix("-").isdecimal() and cell.isascii()


def count(layers: Sequence[Layer], rows: int, columns: int, dataflow: str, mode: str,
          chip: Machine | None = None) -> list[LayerCycles]:
    """Cycles and utilisation of each layer on an array of `rows` x `columns`; `full` is that of a chip."""
    products = [layer.product for layer in layers]
    if mode == "full":
        assert chip is not None
        found = [full_cycles(product, chip, dataflow) for product in products]
    else:
        m, k, n = ([getattr(product, side) for product in products] for side in "mkn")
        found = list(cycles(m, k, n, rows, columns, dataflow, mode))
    return [LayerCycles(layer.name, taken, utilisation(layer.product.macs, rows, columns, taken))
            for layer, taken in zip(layers, found, strict=True)]


def array_size(text: str) -> tuple[int, int]:
    """Rows and columns from text such as ``128`` or ``128x64``."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and side.isascii() and int(side) > 0 for side in sides):
        raise ConfigError(f"--array cannot be {text!r}; give one number above 0, such as 128, or two, such as 128x64")
    return int(sides[0]), int(sides[-1])


def topology(path: Path, array: str, dataflow: str, mode: str, chip: str) -> dict[str, Any]:
    """What ``tilework accel topology`` prints: ``total_cycles`` and ``layers`` of name, cycles and utilisation."""
    rows, columns = array_size(array)
    for option, value, allowed in (("--dataflow", dataflow, DATAFLOWS), ("--mode", mode, MODES)):
        if value not in allowed:
            raise ConfigError(f"{option} cannot be {value!r}; give {', '.join(allowed)}")
    layers = read(path)
    fitted = None
    if mode == "full":
        fitted = changed(machine(chip), {"array.rows": rows, "array.columns": columns, "array.weight_shift": rows})
    found = count(layers, rows, columns, dataflow, mode, fitted)
    return {"total_cycles": sum(layer.cycles for layer in found), "layers": [vars(layer) for layer in found]}
