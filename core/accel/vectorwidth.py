"""The widest vectors of the machine, for loops that LLVM vectorises.

Invariant: this is a preference of one function; it never changes what the function computes per element.
"""

from __future__ import annotations

from typing import Any

from numba import types

from core.accel.pointer import intrinsic


@intrinsic
def widest_vectors(typing_context: Any) -> Any:
    """Let the loops of the calling function use vectors of 512 bits, where LLVM by itself stops at 256.

    Its caution is about processors that slow down at 512 bits; the arithmetic of our loops gains far more.
    """
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite's own `add` takes only attributes without a value.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen
