"""Epilogue: elementwise work on a product, done to each row of a block as soon as its sums are complete.

Invariant: an element gets the bits that the same statements give it in a loop of their own; only the time differs, so
that it comes from the first cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.accel.expressions import ALIAS, SCALAR, Imports, import_lines, load, stored
from core.accel.kernels.text import pointer_type
from core.accel.loopir import Operand, Statement
from core.accel.loops import NestOfNode, Values, loop_step
from core.accel.passes.fuse import Node, layout, product_columns
from core.accel.step import Step, View, row_major
from core.engine import dtypes
from core.engine.dtypes import DType

_POINTER = "core.accel.pointer"
_HELPERS: Imports = {(ALIAS, "store"), (_POINTER, "at"), ("core.accel.prefetch", "prefetch"),
                     ("core.accel.vectorwidth", "widest_vectors"),
                     ("numba.extending", "register_jitable")}
_PLACES = {"whole": "place", "column": "column", "row": "place // length", "constant": "0"}
"""Where an operand of each layout has what belongs to the first element of a run."""
_ARGUMENTS = "(p, sums, place, column, length, count)"
_LINE = 64
"""Bytes of a cache line."""
_SHORTEST = 16
"""LLVM takes no vectors for loops known to be shorter; those of unknown length it unrolls until most runs are too short
for them."""
_SHORT = 32
"""Columns up to which a loop of unknown length goes element by element; one over all columns stands beside it."""


@dataclass(frozen=True)
class ElementwiseEpilogue:
    """What happens to each element of a product; see `step.Epilogue`.

    Attributes
    ----------
    name : of its ops
    value, dtype : variable of the product's element, and its type
    reads, writes : operands over [row, column] of the product, of a layout that `fuse.layout` names; writes are whole
    statements, imports : as in `loopir.Nest`
    """

    name: str
    value: str
    dtype: DType
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    statements: tuple[Statement, ...]
    imports: frozenset[tuple[str, str]]

    @staticmethod
    def of(values: Values, node: Node) -> ElementwiseEpilogue | None:
        """The epilogue of a product's node, if it has one."""
        product, *rest = node.equations
        if not rest:
            return None
        value, columns = product.outputs[0], product_columns(product)
        nest = NestOfNode(values, node, (value.aval.size // columns, columns))
        nest.names[value] = "v0"
        for number, equation in enumerate(rest, 1):
            nest.add(number, equation)
        reads = tuple(_laid_out(values, operand) for operand in nest.reads.values())
        name = "+".join(equation.op.name for equation in rest)
        return ElementwiseEpilogue(name, "v0", value.aval.dtype, reads, tuple(nest.writes), tuple(nest.statements),
                                   frozenset(nest.imports))

    def alone(self, product: View) -> Step:
        columns = self.writes[0].view.shape[1]
        shape, first = (product.size // columns, columns), product.offset // columns

        def of_rows(operand: Operand) -> Operand:
            view = operand.view
            return replace(operand, view=replace(view, shape=shape, offset=view.offset + first * view.strides[0]))

        sums = Operand(self.value, replace(product, shape=shape, strides=row_major(shape)), "read")
        operands = [sums, *map(of_rows, (*self.reads, *self.writes))]
        return loop_step(self.name, shape, (), operands, self.statements, self.imports)

    def attach(self, step: Step, columns: int, in_place: bool) -> Step:
        out = step.operands[2]
        target = next((write for write in self.writes if not in_place or write.view.dtype is self.dtype), None)
        behind = [*self.reads, *(write for write in self.writes if not in_place or write is not target)]
        own = step.operands if target is None else (*step.operands[:2], _part(target.view, out), *step.operands[3:])
        views = tuple(_part(operand.view, out) for operand in behind)
        written = (place for place, operand in enumerate(behind, len(own)) if operand.role == "write")
        text = self._text(target if in_place else None, behind, columns, in_place)
        return replace(
            step, kernel=text + step.kernel.removesuffix(")\n") + ", epilogue)\n", operands=own + views,
            writes=(*step.writes, *written), name=f"{step.name}+{self.name}",
            flops=step.flops + out.size * len(self.statements),
            nbytes=step.nbytes + sum(min(view.size * view.dtype.itemsize, view.buffer.nbytes) for view in views))

    def _text(self, target: Operand | None, behind: Sequence[Operand], columns: int, in_place: bool) -> str:
        """Source of the functions; `target` is the operand that is written where the sums were."""
        imports = {*self.imports, *_HELPERS}
        begin, reads, writes = ["widest_vectors()"], [f"{self.value} = {self._sum(in_place, imports)}"], []
        if target is not None:
            writes.append(f"store(sums, j, {stored(target.name, target.view.dtype, imports)}, 0)")
        written, fetched = int(in_place), list[str]()
        for number, operand in enumerate(behind):
            kind, dtype = layout(operand.view), operand.view.dtype
            imports.add((_POINTER, pointer_type(dtype)))
            begin.append(f"a{number} = at({pointer_type(dtype)}(p, {number}), {_PLACES[kind or '']})")
            if kind == "whole":
                fetched += [f"    for j in range(0, count, {_LINE // dtype.itemsize}):",
                            f"        prefetch(at({pointer_type(dtype)}(p, {number}), place + j))"]
            if operand.role == "write":
                writes.append(f"store(a{number}, j, {stored(operand.name, dtype, imports)}, {written})")
                written += 1
            elif kind in ("constant", "row"):
                begin.append(f"{operand.name} = {load(f'a{number}', '0', dtype, imports)}")
            else:
                reads.append(f"{operand.name} = {load(f'a{number}', 'j', dtype, imports)}")
        statements = [f"{statement.result} = {statement.expression}" for statement in self.statements]
        body = [*reads, *statements, *writes]
        loop = [f"    for j in range(min(count, {max(columns, _SHORTEST)})):", *("        " + line for line in body)]
        if _SHORTEST <= columns <= _SHORT:
            loop = [f"    if count == {columns}:", f"        for j in range({columns}):",
                    *("            " + line for line in body), "    else:", *("    " + line for line in loop)]
        return "\n".join([
            "import numpy as np", *import_lines(imports), "", "",
            "@register_jitable(forceinline=True)", f"def fetch{_ARGUMENTS}:", *(fetched or ["    pass"]), "", "",
            "@register_jitable(forceinline=True)", f"def finish{_ARGUMENTS}:", *("    " + line for line in begin),
            *loop, "", "",
            "epilogue = fetch, finish", ""])

    def _sum(self, in_place: bool, imports: Imports) -> str:
        """The product's element; sums in place count as the first operand that is written."""
        rounds = self.dtype is dtypes.bfloat16  # its sums are float32
        text = load("sums", "j", dtypes.float32 if rounds else self.dtype, imports, 0 if in_place else -1)
        if rounds:
            imports.add((SCALAR, "round_bf16"))
        return f"round_bf16({text})" if rounds else text


def _laid_out(values: Values, operand: Operand) -> Operand:
    """An operand in memory and of a layout with a name: if need be a copy."""
    if operand.role == "read" and layout(operand.view):
        return operand
    return replace(operand, view=values.copy(operand.view), role="read")


def _part(view: View, out: View) -> View:
    """What of an operand belongs to a part of the product that lies like `out`."""
    kind, columns = layout(view), view.shape[-1]
    if kind == "whole":
        return replace(view, shape=out.shape, strides=out.strides, offset=view.offset + out.offset)
    return replace(view, offset=view.offset + out.offset // columns) if kind == "row" else view
