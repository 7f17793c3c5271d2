"""Scalar functions that LLVM inlines and vectorises in plain loops: numba has no vector mathematics library.

Invariant: a float32 function is free of branches, calls and undefined conversions, is within 2 units in the last place
of the exact value over the whole range of float32 (subnormal, infinite and not-a-number arguments and results
included), and has the same bits in every loop. The float64 functions favour accuracy and call the C library where
LLVM has no instruction. The sign of a zero is not kept (kernels are compiled with ``nsz``).

Argument reduction follows W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980; the
polynomials are minimax fits made for this file, lowest power first.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from core.accel.chips import has_exponent_scaling
from core.accel.pointer import intrinsic

inlined = njit(fastmath={"contract", "nsz"}, error_model="numpy", forceinline=True)
"""Decorator of functions that become part of the loop that calls them."""

Float32 = np.float32


def _bitcast(source: types.Type, target: types.Type) -> Any:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), codegen

    return cast


def _instruction(name: str, element: types.Type) -> Any:
    """The LLVM intrinsic `name` of one operand, which is one machine instruction for vectors too."""

    @intrinsic
    def call(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            function = builder.module.declare_intrinsic(f"llvm.{name}", [kind], ir.FunctionType(kind, [kind]))
            return builder.call(function, arguments)

        return element(element), codegen

    return call


bits_of_f32 = _bitcast(types.float32, types.int32)
f32_of_bits = _bitcast(types.int32, types.float32)
bits_of_f64 = _bitcast(types.float64, types.int64)
f64_of_bits = _bitcast(types.int64, types.float64)
sqrt_f32 = _instruction("sqrt", types.float32)
sqrt_f64 = _instruction("sqrt", types.float64)
floor_f32 = _instruction("floor", types.float32)
floor_f64 = _instruction("floor", types.float64)
round_f32 = _instruction("rint", types.float32)
round_f64 = _instruction("rint", types.float64)
_abs_f32 = _instruction("fabs", types.float32)
_abs_f64 = _instruction("fabs", types.float64)

_ZERO, _HALF, _ONE, _TWO = Float32(0), Float32(0.5), Float32(1), Float32(2)
_INFINITY, _NAN = Float32(math.inf), Float32(math.nan)
_LOG2_E = Float32(1 / math.log(2))
# log(2) in two parts; 15 bits in the first, so that its product with an exponent is exact
_LN2_HIGH, _LN2_LOW = Float32(0.693145751953125), Float32(math.log(2) - 0.693145751953125)
# adding 1.5 * 2^23 (1.5 * 2^52) rounds to an integer and leaves it in the low bits of the sum
_ROUND_F32, _ROUND_BITS_F32 = Float32(1.5 * 2**23), np.int32(0x4B400000)
_OVERFLOW = Float32(1.5 * 2**23 + 130)  # 2^130 is infinite, and so is what is larger
_ROUND_F64, _ROUND_BITS_F64 = 1.5 * 2**52, np.int64(0x4338000000000000)

_E2, _E3, _E4, _E5, _E6 = (Float32(c) for c in (
    0.4999999403953552, 0.1666651964187622, 0.04166839271783829, 0.008368780836462975, 0.0013814467238262296))
_L3, _L4, _L5, _L6, _L7, _L8, _L9, _L10, _L11 = (Float32(c) for c in (
    0.3333331346511841, -0.25000008940696716, 0.2000207155942917, -0.16667990386486053, 0.14220362901687622,
    -0.12406207621097565, 0.11883470416069031, -0.11670192331075668, 0.06749556213617325))
_T3, _T5, _T7, _T9, _T11 = (Float32(c) for c in (
    -0.3333328068256378, 0.1333141028881073, -0.05373726785182953, 0.02063172310590744, -0.005697345826774836))


@inlined
def _exp_parts(x: Float32) -> tuple[Float32, Float32]:
    """(m, s) with exp(x) = m * 2^n, for -104 <= x <= 89, where s is n and `_ROUND_F32` in one."""
    shifted = x * _LOG2_E + _ROUND_F32
    return _exp_over_power(x, shifted), shifted


@inlined
def _exp_over_power(x: Float32, shifted: Float32) -> Float32:
    """m of such parts; where x is too large for n, it is a large number or infinite."""
    n = shifted - _ROUND_F32
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    return _ONE + r * (_ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))


@inlined
def _times_power(m: Float32, shifted: Float32) -> Float32:
    """m * 2^n of such parts, where the result is normal: n is added to the exponent, and the rest of s shifted out."""
    power: Float32 = f32_of_bits(np.int32(bits_of_f32(m) + np.int32(bits_of_f32(shifted) << np.int32(23))))
    return power


@intrinsic
def _ldexp(typing_context: Any, m: Any, n: Any) -> Any:
    """m * 2^n, rounded once."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
        return builder.call(builder.module.declare_intrinsic("llvm.ldexp.f32.i32", (), kind), arguments)

    return types.float32(types.float32, types.int32), codegen


@inlined
def _ldexp_in_two(m: Float32, n: np.int32) -> Float32:
    """The same by two factors: the result may be subnormal, the factors are not."""
    half = np.int32(n >> np.int32(1))
    return m * _power_of_two(half) * _power_of_two(np.int32(n - half))


_scaled = _ldexp if has_exponent_scaling() else _ldexp_in_two


@inlined
def _power_of_two(n: np.int32) -> Float32:
    """2^n for -126 <= n <= 127."""
    power: Float32 = f32_of_bits(np.int32(np.int32(n + np.int32(127)) << np.int32(23)))
    return power


@inlined
def exp_f32(x: Float32) -> Float32:
    """e^x."""
    x = Float32(-104) if x < Float32(-104) else x
    shifted = x * _LOG2_E + _ROUND_F32
    # limited here, and not x above, since two limits of x would be three instructions
    shifted = _OVERFLOW if shifted > _OVERFLOW else shifted
    return _scaled(_exp_over_power(x, shifted), np.int32(bits_of_f32(shifted) - _ROUND_BITS_F32))


@inlined
def _exponent_and_fraction(x: Float32) -> tuple[Float32, Float32]:
    """(e, f) with x = 2^e * (1 + f) and sqrt(1/2) - 1 <= f < sqrt(2) - 1, for a positive normal x."""
    root_half = np.int32(0x3F3504F3)
    offset = np.int32(bits_of_f32(x) - root_half)
    fraction = f32_of_bits(np.int32(np.int32(offset & np.int32(0x7FFFFF)) + root_half)) - _ONE
    return Float32(np.int32(offset >> np.int32(23))), fraction


@inlined
def _log_of_parts(e: Float32, f: Float32, correction: Float32) -> Float32:
    """log(2^e * (1 + f)) + correction, where the correction is small."""
    series = _L3 + f * (_L4 + f * (_L5 + f * (_L6 + f * (_L7 + f * (_L8 + f * (_L9 + f * (_L10 + f * _L11)))))))
    square = f * f
    return e * _LN2_HIGH + (f + (correction + e * _LN2_LOW - _HALF * square + square * f * series))


@inlined
def _log_at_limits(x: Float32, y: Float32) -> Float32:
    """y, or what the logarithm of x is where no finite y fits."""
    y = y if x > _ZERO else _NAN
    y = -_INFINITY if x == _ZERO else y
    return x if x == _INFINITY else y


@inlined
def log_f32(x: Float32) -> Float32:
    """Natural logarithm."""
    subnormal = x < Float32(2.0**-126)
    e, f = _exponent_and_fraction(x * Float32(2.0**23) if subnormal else x)
    e = e - Float32(23) if subnormal else e
    return _log_at_limits(x, _log_of_parts(e, f, _ZERO))


@inlined
def log1p_f32(x: Float32) -> Float32:
    """log(1 + x)."""
    total = _ONE + x
    part = total - _ONE
    lost = (_ONE - (total - part)) + (x - part)  # Knuth's two-sum: 1 + x = total + lost exactly
    e, f = _exponent_and_fraction(total)
    return _log_at_limits(total, _log_of_parts(e, f, lost / total))


@intrinsic
def _with_sign(typing_context: Any, size: Any, sign: Any) -> Any:
    """The size of one number with the sign of another."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.copysign", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32), codegen


@inlined
def tanh_f32(x: Float32) -> Float32:
    """Hyperbolic tangent: an odd polynomial near zero, 1 - 2 / (exp(2|x|) + 1) elsewhere."""
    square = x * x
    near = x + x * square * (_T3 + square * (_T5 + square * (_T7 + square * (_T9 + square * _T11))))
    size = _abs_f32(x)
    m, shifted = _exp_parts(_TWO * (Float32(10) if size > Float32(10) else size))
    far = _ONE - _TWO / (_times_power(m, shifted) + _ONE)
    return _with_sign(far, x) if size >= Float32(0.625) else near  # NaN is near: its bits would not survive as a power


@inlined
def logistic_f32(x: Float32) -> Float32:
    """1 / (1 + exp(-x))."""
    decay = exp_f32(-_abs_f32(x))
    total = _ONE + decay
    lost = decay - (total - _ONE)
    y = (decay if x < _ZERO else _ONE) / total
    inverse = _ONE - y if x < _ZERO else y
    return y - y * inverse * lost  # y * total / (total + lost), to first order


_F1, _F3, _F5, _F7, _F9, _F11 = (Float32(c) for c in (
    0.12837915122509003, -0.3761249780654907, 0.11281845718622208, -0.026767713949084282, 0.004994821734726429,
    -0.0005999364075250924))
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (Float32(c) for c in (
    -0.0002822762471623719, -1.62689208984375, -0.9192594885826111, -0.14994174242019653, 0.03206673637032509,
    -0.004390452057123184, 0.0002826794807333499))
_Q1, _Q2, _Q3, _Q4, _Q5 = (Float32(c) for c in (
    0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149))


@inlined
def erf_f32(x: Float32) -> Float32:
    """Error function: an odd polynomial near zero, 1 - 2^polynomial elsewhere, where the power is below 1/4."""
    u = x * x
    near = x + x * (_F1 + u * (_F3 + u * (_F5 + u * (_F7 + u * (_F9 + u * _F11)))))
    size = _abs_f32(x)
    t = Float32(3.93) if size > Float32(3.93) else size  # erf rounds to 1 from here on
    y = _C0 + t * (_C1 + t * (_C2 + t * (_C3 + t * (_C4 + t * (_C5 + t * _C6)))))
    shifted = y + _ROUND_F32
    r = y - (shifted - _ROUND_F32)
    far = _ONE - _times_power(_ONE + r * (_Q1 + r * (_Q2 + r * (_Q3 + r * (_Q4 + r * _Q5)))), shifted)
    return _with_sign(far, x) if size >= Float32(0.92) else near


def _inverse_pi(bits: int) -> Fraction:
    """1/pi to about `bits` bits, by J. Machin's formula of 1706: pi/4 = 4 arctan(1/5) - arctan(1/239)."""

    def arctangent_of_inverse(k: int) -> int:
        total, power, n = 0, (1 << bits) // k, 1
        while power:
            total += power // n if n % 4 == 1 else -(power // n)
            power //= k * k
            n += 2
        return total

    return Fraction(1 << bits, 4 * (4 * arctangent_of_inverse(5) - arctangent_of_inverse(239)))


def _turns_by_exponent() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """2^k / pi modulo 2 for the unit 2^k of every float32 exponent, as a sum of 29 and of 53 bits."""
    inverse_pi = _inverse_pi(400)
    high, low = np.full(256, math.nan), np.zeros(256)
    for exponent in range(255):
        turns = inverse_pi * Fraction(2) ** (max(exponent, 1) - 150) % 2
        unit = Fraction(2) ** (math.frexp(float(turns))[1] - 29)
        leading = turns // unit * unit
        high[exponent], low[exponent] = float(leading), float(turns - leading)
    return high, low


_TURNS_HIGH, _TURNS_LOW = _turns_by_exponent()
_S1, _S3, _S5, _S7, _S9, _S11 = (
    3.1415926535048526, -5.167712758076836, 2.5501631001617024, -0.5992496405509907, 0.08203822326704321,
    -0.007008132432089269)


@inlined
def sin_f32(x: Float32) -> Float32:
    """Sine of x radians.

    M. H. Payne and R. N. Hanek, SIGNUM Newsletter 18(1), 1983, in short: x is a 24-bit integer times a power of two,
    and that power over pi, modulo 2, is tabulated; the product with its leading 29 bits is exact in float64.
    """
    bits = bits_of_f32(x)
    exponent = np.uint32(np.uint32(bits) >> np.uint32(23)) & np.uint32(0xFF)
    mantissa = np.int32(bits & np.int32(0x7FFFFF))
    integer = float(mantissa if exponent == np.uint32(0) else np.int32(mantissa | np.int32(0x800000)))
    half_turns = integer * _TURNS_HIGH[exponent]
    shifted = half_turns + _ROUND_F64
    r = (half_turns - (shifted - _ROUND_F64)) + integer * _TURNS_LOW[exponent]
    u = r * r
    sine = Float32(r * (_S1 + u * (_S3 + u * (_S5 + u * (_S7 + u * (_S9 + u * _S11))))))
    odd = np.int32(np.int32(bits_of_f64(shifted)) << np.int32(31))
    sign = np.int32(bits & np.int32(-0x80000000))
    signed: Float32 = f32_of_bits(np.int32(bits_of_f32(sine) ^ np.int32(odd ^ sign)))
    return signed


_G1, _G3, _G5, _G7, _G9 = (
    2.885390081790046, 0.9617966733896193, 0.5770835773834987, 0.4116730894546236, 0.3407245953173602)
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = (
    0.9999999999616822, 0.6931471807284528, 0.2402265119815679, 0.05550410353427742, 0.00961802725376417,
    0.0013333922579712807, 0.00015469291115807342, 1.5201917879099818e-05)


@inlined
def _log2_of_size(x: Float32) -> float:
    """log2(|x|) to 40 bits, infinite at 0 and infinity."""
    size = _abs_f32(x)
    subnormal = size < Float32(2.0**-126)
    e, f = _exponent_and_fraction(size * Float32(2.0**23) if subnormal else size)
    e = e - Float32(23) if subnormal else e
    s = float(f) / (float(f) + 2.0)
    u = s * s
    y = float(e) + s * (_G1 + u * (_G3 + u * (_G5 + u * (_G7 + u * _G9))))
    y = -math.inf if size == _ZERO else y
    return y if size < _INFINITY else float(size)


@inlined
def pow_f32(x: Float32, y: Float32) -> Float32:
    """x^y in the sense of C's ``pow``: a negative base takes whole exponents only, and 1^y = x^0 = 1 for all."""
    z = float(y) * _log2_of_size(x)
    z = 200.0 if z > 200.0 else z
    z = -200.0 if z < -200.0 else z
    shifted = z + _ROUND_F64
    r = z - (shifted - _ROUND_F64)
    m = _P0 + r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * (_P6 + r * _P7))))))
    scale = f64_of_bits((bits_of_f64(shifted) - _ROUND_BITS_F64 + np.int64(1023)) << np.int64(52))
    size = Float32(m * scale)
    size = (_ONE if y == y else y) if _abs_f32(x) == _ONE else size
    size = _ONE if y == _ZERO else size
    part = y - floor_f32(y)
    odd = _HALF * y - floor_f32(_HALF * y)
    size = (_NAN if part > _ZERO and x > -_INFINITY else size) if x < _ZERO else size
    size = -size if odd == _HALF and bits_of_f32(x) < np.int32(0) else size
    return _ONE if x == _ONE else size


@inlined
def exp_f64(x: float) -> float:
    """e^x."""
    return math.exp(x)


@inlined
def log_f64(x: float) -> float:
    """Natural logarithm."""
    return math.log(x)


@inlined
def log1p_f64(x: float) -> float:
    """log(1 + x)."""
    return math.log1p(x)


@inlined
def tanh_f64(x: float) -> float:
    """Hyperbolic tangent."""
    return math.tanh(x)


@inlined
def logistic_f64(x: float) -> float:
    """1 / (1 + exp(-x))."""
    decay = math.exp(-_abs_f64(x))
    return (decay if x < 0.0 else 1.0) / (1.0 + decay)


@inlined
def erf_f64(x: float) -> float:
    """Error function."""
    return math.erf(x)


@inlined
def sin_f64(x: float) -> float:
    """Sine of x radians."""
    return math.sin(x)


@inlined
def pow_f64(x: float, y: float) -> float:
    """x^y in the sense of C's ``pow``."""
    return math.pow(x, y)
