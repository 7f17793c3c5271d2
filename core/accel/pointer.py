"""Pointers for kernels: `f32(p, i)` is operand i as a pointer to float32, indexed without bounds or wrap-around.

Other functions move a pointer on, find a place in a walk over dims, and give arrays on the stack.

Invariant: addresses stay pointers from the plan's table to the load instruction; integers are never turned into
pointers (LLVM may miscompile such round trips, numba#10695).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types

ELEMENTS: dict[str, Any] = {
    "b8": types.uint8, "i8": types.int8, "i16": types.int16, "i32": types.int32, "i64": types.int64,
    "u8": types.uint8, "u16": types.uint16, "u32": types.uint32,
    "bf16": types.uint16, "f32": types.float32, "f64": types.float64}
"""What holds an element, by the name of its dtype; ``b8`` is bool."""
KERNEL = types.void(types.CPointer(types.voidptr), types.CPointer(types.int64), types.int64, types.int64)
"""Signature of every kernel: operands p, numbers d, first and one-past-last unit of work."""


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's decorator, for the type checker: its stubs do not know that callers leave the typing context out."""
    return extending.intrinsic(function)


def _typed(element: types.Type) -> Any:
    pointer = types.CPointer(element)

    @intrinsic
    def cast(typing_context: Any, operands: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            slot = builder.gep(arguments[0], [arguments[1]])
            return builder.bitcast(builder.load(slot), context.get_value_type(pointer))

        return pointer(operands, types.intp), codegen

    return cast


b8, i8, i16, i32, i64, u8, u16, u32, bf16, f32, f64 = map(_typed, ELEMENTS.values())


@intrinsic
def at(typing_context: Any, pointer: Any, offset: Any) -> Any:
    """``at(pointer, offset)``: the pointer moved on by `offset` elements."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.gep(values[0], [values[1]])

    return pointer(pointer, types.int64), codegen


def stack(element: types.Type, count: int) -> Any:
    """A function for kernels, ``stack()``: a pointer to `count` uninitialised elements on the thread's stack."""
    pointer = types.CPointer(element)

    @intrinsic
    def emit(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            with builder.goto_entry_block():
                array = builder.alloca(ir.ArrayType(context.get_value_type(element), count))
                array.align = 64
            return builder.bitcast(array, context.get_value_type(pointer))

        return pointer(), codegen

    return emit


@extending.register_jitable
def strided(dims: Any, rank: int, width: int, operand: int, index: int) -> int:
    """Offset of the index-th element of a row-major walk over dims of `width` numbers each: extent, then strides."""
    offset = 0
    for dim in range(rank - 1, 0, -1):
        extent = dims[width * dim]
        offset += index % extent * dims[width * dim + operand]
        index //= extent
    return offset + index * dims[operand] if rank else offset
