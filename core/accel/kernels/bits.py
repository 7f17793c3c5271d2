"""Products of single bits: how many are set in both of two rows, or in one of them.

Invariant: counts are exact. Sixty-four bits are taken at once; the compiler makes vectors of the counts.
"""

from __future__ import annotations

from typing import Any

from core.accel.kernels.text import text_of
from core.accel.step import Step, View

GRAIN_BYTES = 1 << 14
"""Bytes of B's rows, met with rows of A, that a thread gets at least."""


def bit_dot(a: View, b: View, out: View, kind: str) -> list[Step]:
    """Steps of ``out[m, n] = number of bits of a[m] KIND b[n]``.

    Parameters
    ----------
    a, b : u8[m, byte], u8[n, byte], row-major
    out : i32[m, n], row-major
    kind : ``and`` or ``xor``
    """
    if out.size == 0:
        return []
    grain = max(1, GRAIN_BYTES // max(1, b.size))
    nbytes = sum(view.buffer.nbytes for view in (a, b, out))
    return [Step(text_of(bit_dot_kernel, kind), (a, b, out), (2,), (b.shape[0], b.shape[1]), a.shape[0], grain,
                 f"bit_dot {kind}", 16 * out.size * b.shape[1], nbytes)]


def bit_dot_kernel(kind: str) -> Any:
    """Kernel of `bit_dot`; units are rows of a; p = a, b, out; d = rows of b, bytes."""
    import numpy as np
    from numba.extending import register_jitable

    from core.accel import pointer

    at, count, words = pointer.at, _count(), _words()
    meet: Any = register_jitable(_and if kind == "and" else _xor)

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        columns, size = d[0], d[1]
        whole = size // 8
        for row in range(begin, end):
            left = at(pointer.u8(p, 0), row * size)
            out = at(pointer.i32(p, 2), row * columns)
            for column in range(columns):
                right = at(pointer.u8(p, 1), column * size)
                a, b = words(left), words(right)
                total = np.int64(0)
                for place in range(whole):
                    total += count(meet(a[place], b[place]))
                for place in range(8 * whole, size):
                    total += count(np.uint64(meet(left[place], right[place])))
                out[column] = np.int32(total)

    return kernel


def _and(x: Any, y: Any) -> Any:
    return x & y


def _xor(x: Any, y: Any) -> Any:
    return x ^ y


def _count() -> Any:
    """Function that counts the bits of a u64."""
    from numba import types

    from core.accel.pointer import intrinsic

    @intrinsic
    def count(typing_context: Any, word: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.ctpop(arguments[0])

        return types.int64(types.uint64), codegen

    return count


def _words() -> Any:
    """Function that takes a pointer to bytes for one to u64, wherever it points."""
    from numba import types

    from core.accel.pointer import intrinsic

    @intrinsic
    def words(typing_context: Any, pointer: Any) -> Any:
        target = types.CPointer(types.uint64)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(pointer), codegen

    return words
