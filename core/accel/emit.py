"""Emit: a loop nest to the Python source that numba compiles.

Invariant: the text depends on the structure of the nest alone; extents, strides and offsets are read from ``d``, but
for the extent of an innermost loop that is to be unrolled.
"""

from __future__ import annotations

from collections.abc import Callable

from core.accel.expressions import ALIAS, Imports, combined, identity, import_lines, load, stored
from core.accel.kernels.text import pointer_type
from core.accel.loopir import Nest, Reduction, Statement, stride_class
from core.accel.stages import ROW_BUFFER, Pass, borrowed, passes, row_statements, row_writes
from core.engine import dtypes
from core.engine.dtypes import DType

_TERMS = 4096
"""Sums of float32 along a row go on in float64 after this many terms, which 64 or more accumulators share."""
_COLUMN_TERMS = 64
"""And sums of columns after this many, each in one accumulator."""
_COLUMNS = 512
"""Columns that are reduced together, their sums in the first cache."""
_STREAMED_TOGETHER = 1 << 10
"""Elements that wait in the first cache to be stored past the caches."""
_FETCHED = 1 << 12
"""Elements of the next row that are fetched while this one is in the first cache."""
_POINTER = "core.accel.pointer"
_STREAMING = "core.accel.streaming"
_WIDTH = ("core.accel.vectorwidth", "widest_vectors")


class _Writer:
    """The lines of one kernel."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        self.passes = passes(nest)
        self.borrowed = borrowed(nest, self.passes[-1])
        self.imports: Imports = {*nest.imports, _WIDTH}
        self.depth = len(nest.loops)
        self.last = self.depth - 1
        self.kept = [level for level, loop in enumerate(nest.loops) if not loop.reduced]
        self.reduced = [level for level, loop in enumerate(nest.loops) if loop.reduced]
        self.totals = {reduction.result for reduction in nest.reductions} if nest.reduces_columns else set()
        self.lines: list[str] = []
        self.arrays: list[str] = []
        self.indent = 1
        self.classes = [stride_class(operand, position, nest) for position, operand in enumerate(nest.operands)]
        written = (position for position, operand in enumerate(nest.operands) if operand.role == "write")
        self.written = {position: number for number, position in enumerate(written)}
        # What is written over an operand is also where it is read: equal addresses that look alike can be vectors.
        places = {nest.operands[position].name: position for position in self.written}
        self.places = [position if self.classes[position] == "constant" else places.get(operand.becomes, position)
                       for position, operand in enumerate(nest.operands)]
        self.waiting: list[int] = []  # operands whose elements wait to be stored past the caches
        self.done: set[int] = set()

    def text(self) -> str:
        self.line("widest_vectors()")
        self._prologue()
        if self.nest.reduces_columns:
            self._columns()
        elif self.nest.is_reduction:
            self._rows()
        else:
            self._elements()
        if (_STREAMING, "stream") in self.imports:
            self.imports.add((_STREAMING, "finish_streams"))
            self.indent = 1
            self.line("finish_streams()")
        assert self.done == self.written.keys(), "an output of the nest is never written"
        pointers = {(_POINTER, pointer_type(operand.view.dtype)) for operand in self.nest.operands
                    if operand.role != "index"}
        head = ["import numpy as np", *(["from numba import types"] if self.arrays else []), ""]
        head += import_lines(self.imports | pointers)
        head += ["", *self.arrays] if self.arrays else []
        return "\n".join([*head, "", "", "def kernel(p, d, begin, end):", *self.lines, ""])

    # --- operands ----------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def _prologue(self) -> None:
        for level in range(self.depth):
            unrolled = self.nest.unrolled if level == self.last else 0
            self.line(f"n{level} = {unrolled or f'd[{level}]'}")
        count, slot = self.depth, 0
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "index":
                self.line(f"o{position} = d[{count}]")
                count += 1
            else:
                self.line(f"a{position} = {pointer_type(operand.view.dtype)}(p, {slot})")
                slot += 1
            if self.classes[position] == "constant":
                self._read(position, "0")
            else:
                for level in range(self.depth):
                    self.line(f"s{position}_{level} = d[{count + level}]")
            count += self.depth

    def _open(self, level: int, bounds: str = "") -> None:
        """Begin a loop other than the innermost: what it adds to each operand's place, and to that in the row."""
        self.line(f"for i{level} in range({bounds or f'n{level}'}):")
        self.indent += 1
        for position, kind in enumerate(self.classes):
            if kind != "constant" and not (kind == "row" and level in self.reduced):
                before = f"b{position}_{level - 1} + " if level else ""
                self.line(f"b{position}_{level} = {before}i{level} * s{position}_{level}")
        if self.nest.kept and level in self.reduced:
            before = f"m{level - 1} + " if level - 1 in self.reduced else ""
            self.line(f"m{level} = ({before}i{level}) * n{level + 1}")

    def _index(self, position: int, place: str = "") -> str:
        """Where the innermost loop finds an operand's element, at a place or where it is, or what follows the reduced
        loops its row's."""
        kind, level = self.classes[position], self.last - 1
        if kind == "row":
            level = len(self.kept) - 1
        elif self.nest.operands[position].name in self.totals:  # a column's, which no reduced loop moves
            level = len(self.kept) - 2
        base = f"b{position}_{level}" if level >= 0 else "0"
        if kind in ("row", "hoisted"):
            return base
        place = place or f"i{self.last}"
        step = place if kind == "unit" else f"{place} * s{position}_{self.last}"
        return step if base == "0" else f"{base} + {step}"

    def _read(self, position: int, index: str) -> None:
        """Read an operand's element into its variable."""
        operand = self.nest.operands[position]
        dtype = operand.view.dtype
        if operand.role == "read":
            place = self.places[position]
            text = load(f"a{place}", index, dtype, self.imports, self.written.get(place, -1))
        else:
            text = f"o{position} + {index}" if dtype is dtypes.int64 else f"np.{dtype.name}(o{position} + {index})"
        self.line(f"{operand.name} = {text}")

    def _read_all(self, positions: tuple[int, ...], *kinds: str) -> None:
        for position in positions:
            if self.classes[position] in kinds and position not in self.written:
                self._read(position, self._index(self.places[position]))

    def _write(self, position: int, value: str) -> None:
        self.done.add(position)
        element = stored(value, self.nest.operands[position].view.dtype, self.imports)
        if position in self.waiting:
            self.line(f"w{position}[i{self.last} - block] = {element}")
        else:
            self.imports.add((ALIAS, "store"))
            self.line(f"store(a{position}, {self._index(position)}, {element}, {self.written[position]})")

    def _state(self, statements: tuple[Statement, ...]) -> None:
        for statement in statements:
            self.line(f"{statement.result} = {statement.expression}")

    def _array(self, name: str, element: str, count: int) -> None:
        """Declare an array on the thread's stack."""
        self.imports.add((_POINTER, "stack"))
        self.arrays.append(f"{name}_array = stack(types.{element}, {count})")
        self.line(f"{name} = {name}_array()")

    # --- loops without reductions ------------------------------------------------------------------------------------

    def _elements(self) -> None:
        (only,) = self.passes
        for level in range(self.last):
            self._open(level, "" if level else "begin, end")
        self._read_all(only.reads, "hoisted")
        outside = self.indent
        bounds = self._begin_blocks(only, *(("0", f"n{self.last}") if self.last else ("begin", "end")))
        self.line(f"for i{self.last} in range({bounds}):")
        self.indent += 1
        self._element(only)
        for number in only.reductions:  # over axes of extent 1
            reduction = self.nest.reductions[number]
            self.line(f"{reduction.result} = {reduction.value}")
        for position in only.row_writes:
            self._write(position, self.nest.operands[position].name)
        self._end_blocks(outside)

    def _begin_blocks(self, part: Pass, first: str, stop: str) -> str:
        """Begin a loop over blocks of the innermost one if a pass streams; gives the bounds of the innermost loop."""
        if not any(statement.slow for statement in part.statements):
            self.waiting = list(filter(self.nest.streams, part.writes))
        if not self.waiting:
            return f"{first}, {stop}"
        for position in self.waiting:
            self._array(f"w{position}", self.nest.operands[position].view.dtype.storage.name, _STREAMED_TOGETHER)
        self.line(f"for block in range({first}, {stop}, {_STREAMED_TOGETHER}):")
        self.indent += 1
        self.line(f"stop = min(block + {_STREAMED_TOGETHER}, {stop})")
        return "block, stop"

    def _end_blocks(self, outside: int) -> None:
        """Store what has waited."""
        if self.waiting:
            self.imports.add((_STREAMING, "stream"))
            self.indent = outside + 1
        for position in self.waiting:
            self.line(f"stream(a{position}, {self._index(position, 'block')}, w{position}, stop - block)")
        self.waiting = []

    def _element(self, part: Pass) -> None:
        """What a pass does for one element, reductions aside."""
        self._read_all(part.reads, "unit", "strided")
        place = f"m{self.last - 1} + i{self.last}" if self.last - 1 in self.reduced else f"i{self.last}"
        for statement in part.recalled:
            found = f"k_{statement.result}[{place}]{' != 0' if statement.dtype is dtypes.bool_ else ''}"
            if (row := self.borrowed.get(statement.result)) is not None:
                index, number = self._index(row), self.written[row]
                found = load(f"a{row}", index, statement.dtype, self.imports, number)
            self.line(f"{statement.result} = {found}")
        self._state(part.statements)
        for statement in part.stored:
            value = f"np.uint8({statement.result})" if statement.dtype is dtypes.bool_ else statement.result
            if statement.result in self.borrowed:
                self._write(self.borrowed[statement.result], value)
            else:
                self.line(f"k_{statement.result}[{place}] = {value}")
        for position in part.writes:
            self._write(position, self.nest.operands[position].name)

    # --- reductions of rows ------------------------------------------------------------------------------------------

    def _rows(self) -> None:
        for statement in self.nest.statements:
            if statement.result in self.nest.kept and statement.result not in self.borrowed:
                self._array(f"k_{statement.result}", _kept_type(statement.dtype), ROW_BUFFER)
        if self.kept:
            for level in self.kept:
                self._open(level, "" if level else "begin, end")
        else:  # one row has one unit
            self.line("for _ in range(begin, end):")
            self.indent += 1
        self._read_all(tuple(range(len(self.classes))), "row")
        self._end_rows(row_statements(self.nest, -1), row_writes(self.nest, -1))
        for part in self.passes:
            if part is self.passes[-1] is not self.passes[0]:
                self._fetch_next_row()
            self._pass(part)
            self._end_rows(part.row_statements, part.row_writes)

    def _fetch_next_row(self) -> None:
        """Let the next row come from memory while the last pass over this one computes: the first pass only reads."""
        if len(self.reduced) > 1 or not self.kept:
            return
        level = self.kept[-1]
        for position in self.passes[0].reads:
            if self.classes[position] == "unit" and self.nest.loops[level].strides[position]:
                self.imports.add((_STREAMING, "fetch"))
                begin = f"b{position}_{level} + s{position}_{level}"
                self.line(f"fetch(a{position}, {begin}, min(n{self.last}, {_FETCHED}))")

    def _end_rows(self, statements: tuple[Statement, ...], writes: tuple[int, ...]) -> None:
        """What happens once a row."""
        self._state(statements)
        for position in writes:
            self._write(position, self.nest.operands[position].name)

    def _pass(self, part: Pass) -> None:
        inside = self.indent
        chosen = {number: self.nest.reductions[number] for number in part.reductions}
        for number, reduction in chosen.items():
            start = "np.float64(0)" if _is_wide(reduction) else identity(reduction.kind, reduction.dtype)
            self.line(f"r{number} = {start}")
        for level in self.reduced[:-1]:
            self._open(level)
        self._read_all(part.reads, "hoisted")
        if any(map(_is_wide, chosen.values())):
            self._blocks(part, chosen)
        elif chosen:
            self._accumulate(part, chosen, "r", f"n{self.last}")
        else:
            self._elements_of_row(part)
        self.indent = inside
        for number, reduction in chosen.items():
            self.line(f"{reduction.result} = " + (f"np.float32(r{number})" if _is_wide(reduction) else f"r{number}"))

    def _accumulate(self, part: Pass, chosen: dict[int, Reduction], name: str, bounds: str) -> None:
        self.line(f"for i{self.last} in range({bounds}):")
        self.indent += 1
        self._element(part)
        for number, reduction in chosen.items():
            total = combined(f"{name}{number}", reduction.value, reduction.kind, reduction.dtype, self.imports, True)
            self.line(f"{name}{number} = {total}")
        self.indent -= 1

    def _elements_of_row(self, part: Pass) -> None:
        outside = self.indent
        self.line(f"for i{self.last} in range({self._begin_blocks(part, '0', f'n{self.last}')}):")
        self.indent += 1
        self._element(part)
        self._end_blocks(outside)

    def _blocks(self, part: Pass, chosen: dict[int, Reduction]) -> None:
        """The innermost loop in blocks, whose float32 sums are added up in float64."""
        self.line(f"for block in range(0, n{self.last}, {_TERMS}):")
        self.indent += 1
        for number, reduction in chosen.items():
            self.line(f"q{number} = {'np.float32(0)' if _is_wide(reduction) else f'r{number}'}")
        self._accumulate(part, chosen, "q", f"block, min(block + {_TERMS}, n{self.last})")
        for number, reduction in chosen.items():
            self.line(f"r{number} = {f'r{number} + ' if _is_wide(reduction) else ''}q{number}")

    # --- reductions of columns ---------------------------------------------------------------------------------------

    def _columns(self) -> None:
        (only,) = self.passes
        for number, reduction in enumerate(self.nest.reductions):
            self._array(f"q{number}", _kept_type(reduction.dtype), _COLUMNS)
            if _is_wide(reduction):
                self._array(f"w{number}", "float64", _COLUMNS)
        outer = [level for level in self.kept if level != self.last]
        for level in outer:
            self._open(level, "" if level else "begin, end")
        first, stop = ("0", f"n{self.last}") if outer else ("begin", "end")
        self.line(f"for first in range({first}, {stop}, {_COLUMNS}):")
        self.indent += 1
        self.line(f"stop = min(first + {_COLUMNS}, {stop})")
        self._each_column(self._begin_column)
        inside = self.indent
        for level in self.reduced[:-1]:
            self._open(level)
        innermost = self.reduced[-1]
        self.line(f"for block in range(0, n{innermost}, {_COLUMN_TERMS}):")
        self.indent += 1
        blocked = self.indent
        self._open(innermost, f"block, min(block + {_COLUMN_TERMS}, n{innermost})")
        self._read_all(only.reads, "hoisted")
        self.line(f"for i{self.last} in range(first, stop):")
        self.indent += 1
        self._element(only)
        for number, reduction in enumerate(self.nest.reductions):
            self._add_to_column(number, reduction)
        self.indent = blocked
        if any(map(_is_wide, self.nest.reductions)):
            self._each_column(self._widen_column)
        self.indent = inside
        self._each_column(self._end_column)

    def _each_column(self, write: Callable[[int, Reduction], None]) -> None:
        """A loop over the columns that calls `write` for each reduction."""
        self.line(f"for i{self.last} in range(first, stop):")
        self.indent += 1
        for number, reduction in enumerate(self.nest.reductions):
            write(number, reduction)
        self.indent -= 1

    def _begin_column(self, number: int, reduction: Reduction) -> None:
        start = identity(reduction.kind, reduction.dtype)
        self._set_column(f"q{number}", start, reduction.dtype)
        if _is_wide(reduction):
            self._set_column(f"w{number}", "np.float64(0)", dtypes.float64)

    def _add_to_column(self, number: int, reduction: Reduction) -> None:
        self.line(f"r{number} = {self._column(f'q{number}', reduction.dtype)}")
        total = combined(f"r{number}", reduction.value, reduction.kind, reduction.dtype, self.imports, False)
        self._set_column(f"q{number}", total, reduction.dtype)

    def _widen_column(self, number: int, reduction: Reduction) -> None:
        if _is_wide(reduction):
            wide, narrow = self._column(f"w{number}", dtypes.float64), self._column(f"q{number}", dtypes.float32)
            self._set_column(f"w{number}", f"{wide} + {narrow}", dtypes.float64)
            self._set_column(f"q{number}", "np.float32(0)", dtypes.float32)

    def _end_column(self, number: int, reduction: Reduction) -> None:
        total = f"np.float32({self._column(f'w{number}', dtypes.float64)})" if _is_wide(reduction) \
            else self._column(f"q{number}", reduction.dtype)
        self.line(f"{reduction.result} = {total}")
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "write" and operand.name == reduction.result:
                self._write(position, reduction.result)

    def _column(self, name: str, dtype: DType) -> str:
        return f"{name}[i{self.last} - first]" + (" != 0" if dtype is dtypes.bool_ else "")

    def _set_column(self, name: str, value: str, dtype: DType) -> None:
        self.line(f"{name}[i{self.last} - first] = {f'np.uint8({value})' if dtype is dtypes.bool_ else value}")


def _kept_type(dtype: DType) -> str:
    """The type in which a kernel keeps values on its stack."""
    return {"bool": "uint8", "bfloat16": "float32"}.get(dtype.name, dtype.name)


def _is_wide(reduction: Reduction) -> bool:
    """Whether a reduction is a float32 sum, whose partial sums are added up in float64."""
    return reduction.kind == "sum" and reduction.dtype is dtypes.float32


def kernel_text(nest: Nest) -> str:
    """Source of the kernel of a nest, with the operands that have memory numbered in their order."""
    return _Writer(nest).text()
