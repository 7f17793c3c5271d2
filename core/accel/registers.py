"""Vector registers for kernels: operations on LLVM vectors of floats, and code for several sizes of a block.

Invariant: nothing here knows a shape or a chip; how many lanes a vector has is said by who makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

INDEX = ir.IntType(64)
LANE = ir.IntType(32)
FLOATS: dict[str, Any] = {"f32": types.float32, "f64": types.float64}
_LLVM_FLOATS: dict[str, Any] = {"f32": ir.FloatType(), "f64": ir.DoubleType()}


class Vectors:
    """Emits operations on vectors of `lanes` floats of one type."""

    def __init__(self, builder: Any, element: str, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.type = ir.VectorType(_LLVM_FLOATS[element], lanes)
        self.align = FLOATS[element].bitwidth // 8
        self.suffix = f"v{lanes}{element}"
        self.zero = ir.Constant(self.type, None)
        self.mask_type = ir.VectorType(ir.IntType(1), lanes)

    def _call(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def _pointer(self, pointer: Any) -> Any:
        return self.builder.bitcast(pointer, self.type.as_pointer())

    def slot(self) -> Any:
        """A variable for one vector; the optimiser keeps it in a register."""
        return cgutils.alloca_once(self.builder, self.type)

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, LANE(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(LANE, self.lanes), None))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return self._call(f"llvm.fma.{self.suffix}", self.type, [a, b, c])

    def mask(self, count: Any, first: int) -> Any:
        """Lane i is on where first + i < count."""
        lanes = ir.Constant(ir.VectorType(INDEX, self.lanes), [first + lane for lane in range(self.lanes)])
        return self.builder.icmp_signed("<", lanes, self.broadcast(count))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        if mask is None:
            return self.builder.load(self._pointer(pointer), align=self.align)
        align = LANE(self.align)
        return self._call(f"llvm.masked.load.{self.suffix}.p0", self.type,
                          [self._pointer(pointer), align, mask, self.zero])

    def load_widened(self, pointer: Any, source: str, mask: Any = None) -> Any:
        """Elements of bf16, i8 or u8 as float32, which holds them exactly."""
        narrow = ir.IntType(16 if source == "bf16" else 8)
        kind = ir.VectorType(narrow, self.lanes)
        place = self.builder.bitcast(pointer, kind.as_pointer())
        if mask is None:
            values = self.builder.load(place, align=narrow.width // 8)
        else:
            values = self._call(f"llvm.masked.load.v{self.lanes}i{narrow.width}.p0", kind,
                                [place, LANE(narrow.width // 8), mask, ir.Constant(kind, None)])
        if source != "bf16":
            return (self.builder.sitofp if source == "i8" else self.builder.uitofp)(values, self.type)
        words = ir.VectorType(LANE, self.lanes)
        upper = self.builder.shl(self.builder.zext(values, words), ir.Constant(words, [16] * self.lanes))
        return self.builder.bitcast(upper, self.type)

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        if mask is None:
            self.builder.store(value, self._pointer(pointer), align=self.align)
            return
        align = LANE(self.align)
        self._call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), [value, self._pointer(pointer), align, mask])

    def _halves(self, first: Any, second: Any, bit: int) -> tuple[Any, Any]:
        """Two vectors as a square of their numbers and this bit of their lanes: its columns."""
        def column(half: int) -> Any:
            order = [(lane & ~bit) + half + (self.lanes if lane & bit else 0) for lane in range(self.lanes)]
            return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(LANE, self.lanes), order))

        return column(0), column(bit)

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """As many vectors as there are lanes, rows and lanes exchanged: one bit of their numbers after the other."""
        vectors, bit = list(rows), self.lanes // 2
        while bit:
            for row in (row for row in range(self.lanes) if not row & bit):
                vectors[row], vectors[row | bit] = self._halves(vectors[row], vectors[row | bit], bit)
            bit //= 2
        return vectors

    def totals(self, rows: Sequence[Any]) -> Any:
        """The sums of the lanes of as many vectors as there are lanes."""
        vectors, bit = list(rows), self.lanes // 2
        while bit:
            vectors = [self.builder.fadd(*self._halves(first, second, bit))
                       for first, second in zip(vectors[:bit], vectors[bit:], strict=True)]
            bit //= 2
        return vectors[0]

    def total(self, vector: Any) -> Any:
        """Sum of the lanes: halves are added until one lane is left."""
        distance = self.lanes // 2
        while distance:
            order = [(lane + distance) % self.lanes for lane in range(self.lanes)]
            shifted = self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(LANE, self.lanes), order))
            vector = self.builder.fadd(vector, shifted)
            distance //= 2
        return self.builder.extract_element(vector, LANE(0))


def choose(builder: Any, value: Any, bounds: Sequence[int], emit: Callable[[int], None]) -> None:
    """Emit code that runs ``emit(bound)`` for the smallest bound that value does not exceed, else for the largest."""
    smallest, *larger = sorted(bounds)
    if not larger:
        emit(smallest)
        return
    with builder.if_else(builder.icmp_signed("<=", value, INDEX(smallest))) as (then, otherwise):
        with then:
            emit(smallest)
        with otherwise:
            choose(builder, value, larger, emit)
