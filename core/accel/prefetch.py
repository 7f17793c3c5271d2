"""Prefetches: lines of memory that are asked for before they are needed.

Invariant: a prefetch changes no value and never fails; the address may lie outside of any array.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.pointer import intrinsic

NEAREST, SECOND = 3, 2
"""The first and the second cache, as LLVM counts them."""

_FLAG = ir.IntType(32)


def emit_prefetch(builder: Any, place: Any, for_writing: bool = False, cache: int = NEAREST) -> None:
    """Have the line of memory behind a pointer come nearer."""
    address = builder.bitcast(place, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type, *[_FLAG] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, _FLAG(int(for_writing)), _FLAG(cache), _FLAG(1)])  # 1: data, not instructions


def _prefetching(cache: int) -> Any:
    @intrinsic
    def prefetch(typing_context: Any, pointer: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit_prefetch(builder, values[0], cache=cache)
            return context.get_dummy_value()

        return types.void(pointer), codegen

    return prefetch


prefetch, prefetch_to_second = _prefetching(NEAREST), _prefetching(SECOND)
"""``prefetch(pointer)``: begin to bring a cache line that will be read into the first, or the second, cache."""
