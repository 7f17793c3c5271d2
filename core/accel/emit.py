"""Emit: a loop nest to the Python source that numba compiles, and equations to the expressions in it.

Invariant: the text depends on the structure of the nest alone; extents, strides and offsets are read from ``d``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.accel.loopir import Nest, Operand, stride_class
from core.engine import dtypes
from core.engine.dtypes import DType

SCALAR = "core.accel.kernels.scalar"
ALIAS = "core.accel.alias"
_MATH = {"exp", "log", "log1p", "sqrt", "tanh", "logistic", "erf", "sin", "floor", "round", "pow"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_PLAIN = {"neg": "-{0}", "abs": "abs({0})", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
          "div": "{0} / {1}", "max": "larger({0}, {1})", "min": "smaller({0}, {1})", "and": "{0} & {1}",
          "or": "{0} | {1}", "not": "not {0}", "select": "{1} if {0} else {2}",
          "random_bits": "threefry_u32({0}, {1}, np.uint32({2}), np.uint32({2} >> 32))"}
_IMPORTS = {"max": (SCALAR, "larger"), "min": (SCALAR, "smaller"),
            "random_bits": ("core.accel.kernels.random", "threefry_u32")}
_COMBINE = {"max": "larger({0}, {1})", "min": "smaller({0}, {1})"}
_BLOCK = 4096
"""Float sums keep at most this many terms in one float32 accumulator before they go on in float64."""

Imports = set[tuple[str, str]]


def expression(op: str, names: Sequence[str], dtypes_in: Sequence[DType], dtype: DType, params: Mapping[str, Any],
               imports: Imports) -> str:
    """The Python expression of a loop op on variables; what it needs is added to `imports`."""
    if op == "compare":
        return f"{names[0]} {_COMPARE[params['kind']]} {names[1]}"
    if op == "convert":
        return _conversion(names[0], dtypes_in[0], dtype, imports)
    if op in _MATH and dtype.is_float:
        function = f"{op}_{'f64' if dtype is dtypes.float64 else 'f32'}"
        imports.add(("core.accel.kernels.vectormath", function))
        text = f"{function}({', '.join(names)})"
    elif op == "pow":
        text = " ** ".join(names)
    elif op == "div" and not dtype.is_float:
        text = " // ".join(names)
    else:
        if op in _IMPORTS:
            imports.add(_IMPORTS[op])
        text = _PLAIN[op].format(*names)
    if op in ("select", "random_bits", "and", "or", "not"):
        return text
    return _of_type(text, dtype, imports)


def _of_type(text: str, dtype: DType, imports: Imports) -> str:
    """Bring arithmetic back to its dtype: numba widens integers, and bfloat16 is computed in float32."""
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "round_bf16"))
        return f"round_bf16({text})"
    return text if dtype.is_float or dtype is dtypes.bool_ else f"np.{dtype.name}({text})"


def _conversion(name: str, source: DType, target: DType, imports: Imports) -> str:
    if target is dtypes.bool_:
        return f"{name} != 0"
    if target is dtypes.bfloat16:
        imports.add((SCALAR, "round_bf16"))
        return f"round_bf16(np.float32({name}))"
    if target.is_float or not source.is_float:
        return f"np.{target.name}({name})"
    function = f"{target.short}_from_{'f64' if source is dtypes.float64 else 'f32'}"
    imports.add((SCALAR, function))
    return f"{function}({name})"


def load(pointer: str, index: str, dtype: DType, imports: Imports, number: int = -1) -> str:
    """Read an element; see `alias.load` for the number."""
    imports.add((ALIAS, "load"))
    element = f"load({pointer}, {index}, {number})"
    if dtype is dtypes.bool_:
        return f"{element} != 0"
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "decode_bf16"))
        return f"decode_bf16({element})"
    return element


def stored(name: str, dtype: DType, imports: Imports) -> str:
    """An element as it goes to memory."""
    if dtype is dtypes.bool_:
        return f"np.uint8({name})"
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "encode_bf16"))
        return f"encode_bf16({name})"
    return name


def pointer_type(dtype: DType) -> str:
    return "b8" if dtype is dtypes.bool_ else dtype.short


class _Writer:
    """The lines of one kernel."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        self.imports: Imports = set(nest.imports)
        self.depth = len(nest.loops)
        self.lines: list[str] = []
        self.indent = 1
        self.classes = [stride_class(operand, position, nest) for position, operand in enumerate(nest.operands)]
        written = (position for position, operand in enumerate(nest.operands) if operand.role in ("write", "reduce"))
        self.written = {position: number for number, position in enumerate(written)}
        self.reduces = [(position, operand) for position, operand in enumerate(nest.operands)
                        if operand.role == "reduce"]

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def _store(self, position: int, index: str, value: str) -> str:
        self.imports.add((ALIAS, "store"))
        return f"store(a{position}, {index}, {value}, {self.written[position]})"

    def text(self) -> str:
        self._prologue()
        if self.nest.accumulates_in_memory:
            self._loops_accumulating_in_memory()
        elif self.nest.loops[-1].reduced:
            self._loops_accumulating_in_registers()
        else:
            with_kept = range(self.depth - 1)
            for level in with_kept:
                self._open(level)
            self._innermost(self._element_lines())
        head = ["import numpy as np", ""]
        pointers = sorted({pointer_type(operand.view.dtype) for operand in self.nest.operands
                           if operand.role != "index"})
        head.append(f"from core.accel.pointer import {', '.join(pointers)}")
        modules: dict[str, set[str]] = {}
        for module, name in self.imports:
            modules.setdefault(module, set()).add(name)
        head += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(modules.items())]
        return "\n".join([*head, "", "", "def kernel(p, d, begin, end):", *self.lines, ""])

    def _prologue(self) -> None:
        count = 0
        for level in range(self.depth):
            self.line(f"n{level} = d[{count}]")
            count += 1
        slot = 0
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "index":
                self.line(f"o{position} = d[{count}]")
                count += 1
            else:
                self.line(f"a{position} = {pointer_type(operand.view.dtype)}(p, {slot})")
                slot += 1
            if self.classes[position] == "constant":
                self.line(f"{operand.name} = {load(f'a{position}', '0', operand.view.dtype, self.imports)}")
            else:
                for level in range(self.depth):
                    self.line(f"s{position}_{level} = d[{count + level}]")
            count += self.depth

    # Which loop is shared among threads; see loopir.units.
    def _bounds(self, level: int) -> str:
        first = self.nest.loops[0]
        shared = self.depth - 1 if first.reduced and self.nest.accumulates_in_memory else 0
        if level == shared and not (first.reduced and not self.nest.accumulates_in_memory):
            return "begin, end"
        return f"n{level}"

    def _open(self, level: int) -> None:
        self.line(f"for i{level} in range({self._bounds(level)}):")
        self.indent += 1
        for position, _ in enumerate(self.nest.operands):
            if self.classes[position] != "constant":
                before = f"b{position}_{level - 1} + " if level else ""
                self.line(f"b{position}_{level} = {before}i{level} * s{position}_{level}")

    def _base(self, position: int, level: int) -> str:
        return f"b{position}_{level}" if level >= 0 else "0"

    def _index(self, position: int) -> str:
        """Where the innermost loop finds an operand's element."""
        last = self.depth - 1
        base = self._base(position, last - 1)
        step = f"i{last}" if self.classes[position] == "unit" else f"i{last} * s{position}_{last}"
        if self.classes[position] == "hoisted":
            return base
        return step if base == "0" else f"{base} + {step}"

    def _load(self, position: int) -> str:
        return load(f"a{position}", self._index(position), self.nest.operands[position].view.dtype, self.imports)

    def _hoisted_loads(self) -> None:
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "read" and self.classes[position] == "hoisted":
                self.line(f"{operand.name} = {self._load(position)}")

    def _element_lines(self) -> Iterator[str]:
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "index":
                value = f"o{position} + {self._index(position)}"
                dtype = operand.view.dtype
                yield f"{operand.name} = " + (value if dtype is dtypes.int64 else f"np.{dtype.name}({value})")
            elif operand.role == "read" and self.classes[position] in ("unit", "strided"):
                yield f"{operand.name} = {self._load(position)}"
        for statement in self.nest.statements:
            yield f"{statement.result} = {statement.expression}"
        for position, operand in enumerate(self.nest.operands):
            if operand.role == "write" or (operand.role == "reduce" and not self._is_reduced()):
                value = stored(operand.name, operand.view.dtype, self.imports)
                yield self._store(position, self._index(position), value)

    def _is_reduced(self) -> bool:
        return any(loop.reduced for loop in self.nest.loops)

    def _innermost(self, body: Iterator[str], bounds: str = "") -> None:
        self._hoisted_loads()
        last = self.depth - 1
        self.line(f"for i{last} in range({bounds or self._bounds(last)}):")
        self.indent += 1
        for text in body:
            self.line(text)
        self.indent -= 1

    # --- reductions --------------------------------------------------------------------------------------------------

    def _loops_accumulating_in_registers(self) -> None:
        kept = [level for level, loop in enumerate(self.nest.loops) if not loop.reduced]
        if kept:
            for level in kept:
                self._open(level)
        else:
            self.line("for _ in range(begin, end):")
            self.indent += 1
            # A reduction over everything has one unit; its results lie at their first element.
        for number, (_, operand) in enumerate(self.reduces):
            wide = "np.float64(0)" if self._is_wide(operand) else _identity(operand, self.imports)
            self.line(f"r{number} = {wide}")
        inside = self.indent
        for level in range(len(kept), self.depth - 1):
            self._open(level)
        self._reduce_innermost()
        self.indent = inside
        for number, (position, operand) in enumerate(self.reduces):
            result = f"np.float32(r{number})" if self._is_wide(operand) else f"r{number}"
            place = self._base(position, len(kept) - 1)
            self.line(self._store(position, place, stored(result, operand.view.dtype, self.imports)))

    def _is_wide(self, operand: Operand) -> bool:
        return operand.kind == "sum" and operand.view.dtype is dtypes.float32

    def _reduce_innermost(self) -> None:
        last = self.depth - 1
        wide = [number for number, (_, operand) in enumerate(self.reduces) if self._is_wide(operand)]
        if not wide:
            self._innermost(self._accumulating_lines("r"))
            return
        self._hoisted_loads()
        self.line(f"for block in range(0, n{last}, {_BLOCK}):")
        self.indent += 1
        for number, _ in enumerate(self.reduces):
            self.line(f"q{number} = np.float32(0)" if number in wide else f"q{number} = r{number}")
        self.line(f"for i{last} in range(block, min(block + {_BLOCK}, n{last})):")
        self.indent += 1
        for text in self._accumulating_lines("q"):
            self.line(text)
        self.indent -= 1
        for number, _ in enumerate(self.reduces):
            self.line(f"r{number} = r{number} + q{number}" if number in wide else f"r{number} = q{number}")
        self.indent -= 1

    def _accumulating_lines(self, accumulator: str) -> Iterator[str]:
        yield from self._element_lines()
        for number, (_, operand) in enumerate(self.reduces):
            name = f"{accumulator}{number}"
            yield f"{name} = {_combined(name, operand, self.imports)}"

    def _loops_accumulating_in_memory(self) -> None:
        last = self.depth - 1
        kept = [level for level, loop in enumerate(self.nest.loops[:-1]) if not loop.reduced]
        for level in kept:
            self._open(level)
        for position, operand in self.reduces:
            first = self._identity_in_memory(operand)
            base = self._base(position, len(kept) - 1)
            self.line(f"for i{last} in range({self._bounds(last)}):")
            place = f"i{last} * s{position}_{last}" if self.classes[position] != "unit" else f"i{last}"
            self.line("    " + self._store(position, place if base == "0" else f"{base} + {place}", first))
        for level in range(len(kept), last):
            self._open(level)
        self._innermost(self._memory_lines())

    def _identity_in_memory(self, operand: Operand) -> str:
        identity = _identity(operand, self.imports)
        return f"np.uint8({identity})" if operand.view.dtype is dtypes.bool_ else identity

    def _memory_lines(self) -> Iterator[str]:
        yield from self._element_lines()
        for number, (position, operand) in enumerate(self.reduces):
            place, name, dtype = self._index(position), f"r{number}", operand.view.dtype
            yield f"{name} = {load(f'a{position}', place, dtype, self.imports, self.written[position])}"
            yield self._store(position, place, stored(_combined(name, operand, self.imports), dtype, self.imports))


def _identity(operand: Operand, imports: Imports) -> str:
    from core.engine.ops.reduce import identity

    dtype = operand.view.dtype
    value = identity(operand.kind, dtype)
    if dtype is dtypes.bool_:
        return str(bool(value))
    if dtype.is_float and operand.kind != "sum":
        return f"np.{dtype.name}({'-' if operand.kind == 'max' else ''}np.inf)"
    return f"np.{dtype.name}({int(value)})"


def _combined(total: str, operand: Operand, imports: Imports) -> str:
    dtype = operand.view.dtype
    if operand.kind == "sum":
        if dtype.is_float:
            imports.add((SCALAR, "add_any_order"))
            return f"add_any_order({total}, {operand.name})"
        return f"np.{dtype.name}({total} + {operand.name})"
    if dtype is dtypes.bool_:
        return f"{total} {'|' if operand.kind == 'max' else '&'} {operand.name}"
    imports.add((SCALAR, "larger" if operand.kind == "max" else "smaller"))
    return _COMBINE[operand.kind].format(total, operand.name)


def kernel_text(nest: Nest) -> str:
    """Source of the kernel of a nest, with the operands that have memory numbered in their order."""
    return _Writer(nest).text()
