"""Typed pointers for kernels: `f32(p, i)` is operand i as a pointer to float32, indexed without bounds or wrap-around.

Invariant: addresses stay pointers from the plan's table to the load instruction; integers are never turned into
pointers (LLVM may miscompile such round trips, numba#10695).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
