"""Functions that kernels call: rounding to bfloat16, conversions, sums that may be reordered, and the empty epilogue.

Invariant: each gives what the numpy rule of its op gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from core.accel.kernels.vectormath import bits_of_f32, f32_of_bits
from core.accel.objects import FASTMATH
from core.accel.pointer import intrinsic

OPTIONS: dict[str, Any] = {"fastmath": set(FASTMATH), "error_model": "numpy"}
_WORD = ir.IntType(32)


@njit(**OPTIONS)
def decode_bf16(bits: Any) -> Any:
    """float32 of bfloat16 bits."""
    return f32_of_bits(np.uint32(bits) << np.uint32(16))


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
    """``widen(value)``: bfloat16 bits as float32, exactly; any float as it is."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if value != types.uint16:
            return values[0]
        bits = builder.shl(builder.zext(values[0], _WORD), _WORD(16))
        return builder.bitcast(bits, ir.FloatType())

    return (types.float32 if value == types.uint16 else value)(value), codegen


@njit(**OPTIONS)
def encode_bf16(value: Any) -> Any:
    """bfloat16 bits of a float32, to nearest and ties to even; NaN stays a quiet NaN."""
    bits = bits_of_f32(value)
    # numba adds unsigned numbers in 64 bits; only what is cut back at once stays in vectors of 32.
    upper = np.uint32(bits >> np.uint32(16))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16))
    return np.uint16(np.uint32(upper | np.uint32(0x40)) if value != value else rounded)


@njit(**OPTIONS)
def round_bf16(value: Any) -> Any:
    """A float32 rounded to the nearest bfloat16."""
    return decode_bf16(encode_bf16(value))


@njit(fastmath={*FASTMATH, "reassoc"}, error_model="numpy")
def add_any_order(total: Any, value: Any) -> Any:
    """A sum whose order the compiler may choose, so that a reduction uses vectors; the order is fixed in the code."""
    return total + value


@njit(**OPTIONS)
def larger(a: Any, b: Any) -> Any:
    """The larger of two integers."""
    return a if a > b else b


@njit(**OPTIONS)
def smaller(a: Any, b: Any) -> Any:
    """The smaller of two integers."""
    return a if a < b else b


def _extreme(name: str) -> Any:
    """IEEE 754-2019's maximum or minimum of two floats: NaN if either is. LLVM turns a reduction by it into vectors."""
    @intrinsic
    def extreme(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            function = builder.module.declare_intrinsic(f"llvm.{name}", [kind], ir.FunctionType(kind, [kind, kind]))
            return builder.call(function, arguments, fastmath=("nsz",))

        return a(a, b), codegen

    return extreme


larger_or_nan = _extreme("maximum")
smaller_or_nan = _extreme("minimum")


def _if(comparison: str) -> Any:
    """A function of a float and another: the first if they compare so, else the other, in one instruction of x86."""
    @intrinsic
    def choose(typing_context: Any, value: Any, other: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return value(value, value), codegen

    return choose


_if_above, _if_below = _if(">"), _if("<")


def _below(kind: Any, limit: int) -> Any:
    """The largest float that is not above an integer."""
    rounded = kind(limit)
    return rounded if int(rounded) <= limit else np.nextafter(rounded, kind(0))


def _saturating(target: Any, limits: Any) -> Any:
    low, high64 = float(limits.min), _below(np.float64, limits.max)
    low32, high32 = np.float32(low), _below(np.float32, limits.max)
    # Vectors of floats become vectors of as many 32-bit integers in one instruction, and of 64-bit ones in several.
    wide = np.int32 if limits.max <= np.iinfo(np.int32).max else np.int64

    def cut(low: Any, high: Any) -> Any:
        @njit(**OPTIONS)
        def cut_to_limits(value: Any) -> Any:
            return target(wide(_if_below(_if_above(value, low), high)))

        @njit(**OPTIONS)
        def cut_number(value: Any) -> Any:
            return target(0) if value != value else cut_to_limits(value)

        return cut_to_limits if low == 0 else cut_number  # NaN is not above the limit, and so becomes it

    return cut(low32, high32), cut(low, high64)


i8_from_f32, i8_from_f64 = _saturating(np.int8, np.iinfo(np.int8))
i16_from_f32, i16_from_f64 = _saturating(np.int16, np.iinfo(np.int16))
i32_from_f32, i32_from_f64 = _saturating(np.int32, np.iinfo(np.int32))
i64_from_f32, i64_from_f64 = _saturating(np.int64, np.iinfo(np.int64))
u8_from_f32, u8_from_f64 = _saturating(np.uint8, np.iinfo(np.uint8))
u16_from_f32, u16_from_f64 = _saturating(np.uint16, np.iinfo(np.uint16))
u32_from_f32, u32_from_f64 = _saturating(np.uint32, np.iinfo(np.uint32))


@njit(**OPTIONS)
def leave(p: Any, sums: Any, place: int, column: int, length: int, count: int) -> None:
    """What a product without an epilogue does with its sums (see `step.Epilogue`): they are what is wanted."""
