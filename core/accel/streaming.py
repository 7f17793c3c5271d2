"""Lines of the cache: stores past the caches, and rows that are fetched ahead.

A plain store first fetches the line it will overwrite, so that a written byte moves twice, and puts out of the caches
what may be of use. Results too large to be still there when somebody reads them are stored past them.

Invariant: every element is stored once; lines that belong to an array only in part are stored plainly.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from core.accel.pointer import at, intrinsic
from core.accel.prefetch import prefetch_to_second

LINE = 64
"""Bytes of a line of the cache."""


@intrinsic
def _elements_of_line(typing_context: Any, pointer: Any) -> Any:
    """How many elements a line holds."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.IntType(64)(8 * LINE // pointer.dtype.bitwidth)

    return types.int64(pointer), codegen


@intrinsic
def _bytes_into_line(typing_context: Any, pointer: Any, index: Any) -> Any:
    """How far element `index` lies behind the beginning of its line."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.and_(builder.ptrtoint(builder.gep(arguments[0], [arguments[1]]), word), word(LINE - 1))

    return types.int64(pointer, types.intp), codegen


@intrinsic
def _stream_line(typing_context: Any, pointer: Any, index: Any, source: Any, place: Any) -> Any:
    """Copy a line from element `place` of the source to element `index`, where a line begins, past the caches."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, index, source, place = arguments
        bits = pointer.dtype.bitwidth
        line = ir.VectorType(context.get_value_type(pointer.dtype), 8 * LINE // bits).as_pointer()
        value = builder.load(builder.bitcast(builder.gep(source, [place]), line), align=bits // 8)
        access = builder.store(value, builder.bitcast(builder.gep(target, [index]), line), align=LINE)
        access.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, pointer, types.intp), codegen


@njit(error_model="numpy", forceinline=True)
def fetch(pointer: Any, index: int, count: int) -> None:
    """Ask for elements that are soon to be read. They come to the second cache: so many requests at once would keep
    the first one from what is read and written meanwhile."""
    for place in range(0, count, _elements_of_line(pointer)):
        prefetch_to_second(at(pointer, index + place))


@intrinsic
def finish_streams(typing_context: Any) -> Any:
    """Let all that this thread has stored be seen before what it stores next."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(error_model="numpy", forceinline=True)
def stream(pointer: Any, index: int, source: Any, count: int) -> None:
    """Store `count` elements, which lie in the first cache, from element `index` of an array on."""
    line = _elements_of_line(pointer)
    into = _bytes_into_line(pointer, index) * line // LINE
    place = 0
    first = min((line - into) % line, count)
    while place < first:
        pointer[index + place] = source[place]
        place += 1
    while place + line <= count:
        _stream_line(pointer, index + place, source, place)
        place += line
    while place < count:
        pointer[index + place] = source[place]
        place += 1
