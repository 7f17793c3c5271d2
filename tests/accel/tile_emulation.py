"""AMX tiles on machines that lack them: each instruction that the processor refuses is done by a signal's handler.

Invariant: what `core.accel.units.tiles` emits is done as the processor does it, to the rounding; any other illegal
instruction ends the process, as it does without the handler. Only the speed is another.

``python -m tests.accel.tile_emulation ARGUMENTS`` runs pytest in a process that has tiles.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2, section 2.3
and instructions LDTILECFG, TDPBF16PS, TDPBSSD, TILELOADD, TILERELEASE, TILESTORED and TILEZERO. A signal's context is
that of Linux on x86-64, <sys/ucontext.h>.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import cfunc, njit, types

from core.accel import chips
from core.accel.pointer import intrinsic

FEATURES = ("amx-tile", "amx-bf16", "amx-int8")
NEEDED = ("avx512f", "avx512bw")
"""What the machine must have itself."""

ROW_BYTES = 64
TILE_BYTES = 16 * ROW_BYTES
CONFIGURATION = 8 * TILE_BYTES
"""Where the 64 bytes of a thread's configuration lie, behind its tiles."""
WIDTHS, HEIGHTS = CONFIGURATION + 16, CONFIGURATION + 48
"""Where in it the bytes of each tile's rows lie, in 16 bits, and the number of its rows, in 8."""
STATE_BYTES = CONFIGURATION + 64
THREADS = 1 << 12
"""Threads that run at once have other last digits of their numbers."""
_states = np.zeros(THREADS * STATE_BYTES, np.uint8)
_FIRST_STATE = _states.ctypes.data

_NONE, _66, _F3, _F2 = range(4)
"""Prefixes of instructions, as VEX has them."""
_REGISTERS = 40
"""Where the general registers lie in a signal's context."""
_ORDER = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)
"""Which of them has each number of an instruction."""
_HERE = 16
"""Which of them is the address of the instruction."""

_thread_number = types.ExternalFunction("gettid", types.int32())
_set_handler = types.ExternalFunction("signal", types.intp(types.int32, types.intp))
_SMALLEST = np.float32(2.0**-126)


def _memory(element):
    """A function of an address: a pointer to elements there."""
    @intrinsic
    def at(typing_context, address):
        def codegen(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), codegen

    return at


_u8, _i8, _u16, _i32, _i64, _f32 = map(_memory, (types.uint8, types.int8, types.uint16, types.int32, types.int64,
                                                 types.float32))


@njit(error_model="numpy")
def _copy(target, target_step, source, source_step, rows, width):
    for row in range(rows):
        to, of = _u8(target + row * target_step), _u8(source + row * source_step)
        for column in range(width):
            to[column] = of[column]


@njit(error_model="numpy")
def _clear(place, count):
    cleared = _u8(place)
    for index in range(count):
        cleared[index] = 0


@njit(error_model="numpy")
def _multiply_bytes(total, left, right, rows, depth, columns, signed):
    """``total[m, n] += left[m, 4 k + i] * right[k, 4 n + i]``, over all k and i, modulo 2^32."""
    for row in range(rows):
        sums, bytes_of_left = _i32(total + row * ROW_BYTES), _u8(left + row * ROW_BYTES)
        for k in range(depth):
            factors = _i8(right + k * ROW_BYTES)
            for index in range(4 * columns):
                byte = bytes_of_left[4 * k + index % 4]
                factor = np.int32(np.int8(byte)) if signed else np.int32(byte)
                sums[index // 4] = np.int32(sums[index // 4] + factor * np.int32(factors[index]))


@njit(error_model="numpy")
def _flushed(value):
    """Zero for a number without a normal exponent."""
    return np.float32(0) if abs(value) < _SMALLEST else np.float32(value)


@njit(error_model="numpy")
def _widened(half):
    """A bfloat16 as float32."""
    return _flushed(np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32))


@njit(error_model="numpy")
def _multiply_bfloat16(total, left, right, rows, depth, columns):
    """``total[m, n] += left[m, 2 k + i] * right[k, 2 n + i]``: over all k for each i, then both to the total."""
    for row in range(rows):
        sums, numbers = _f32(total + row * ROW_BYTES), _u16(left + row * ROW_BYTES)
        for n in range(columns):
            even = odd = np.float32(0)
            for k in range(depth):
                factors = _u16(right + k * ROW_BYTES)
                even = _flushed(even + _widened(numbers[2 * k]) * _widened(factors[2 * n]))
                odd = _flushed(odd + _widened(numbers[2 * k + 1]) * _widened(factors[2 * n + 1]))
            sums[n] = _flushed(_flushed(sums[n]) + _flushed(even + odd))


@njit(error_model="numpy")
def _operand(registers, code):
    """Address and step of an operand in memory, and the bytes of its instruction."""
    extension, mode, base = ~np.int64(code[1]), np.int64(code[4]) >> 6, np.int64(code[4]) & 7
    length, step = 5, np.int64(0)
    if base == 4:
        scaled = np.int64(code[5])
        base, length = scaled & 7, 6
        index = scaled >> 3 & 7 | (extension >> 6 & 1) << 3
        if index != 4:
            step = registers[_ORDER[index]] << (scaled >> 6)
    start = registers[_ORDER[base | (extension >> 5 & 1) << 3]]
    if mode == 1:
        return start + np.int64(np.int8(code[length])), step, length + 1
    if mode == 2:
        return start + np.int64(_i32(registers[_HERE] + length)[0]), step, length + 4
    return start, step, length


@njit(error_model="numpy")
def _perform(registers):
    """Do the instruction where a thread stands and move the thread on; whether it is one of the tiles'."""
    code = _u8(registers[_HERE])
    if code[0] != 0xC4 or code[1] & 0x1F != 2:
        return False
    prefix, operation, operands = np.int64(code[2]) & 3, np.int64(code[3]), np.int64(code[4])
    first, second, third = operands >> 3 & 7, operands & 7, ~np.int64(code[2]) >> 3 & 7
    between_registers = operands >= 0xC0
    state = _FIRST_STATE + STATE_BYTES * (np.int64(_thread_number()) & (THREADS - 1))
    widths, heights = _u16(state + WIDTHS), _u8(state + HEIGHTS)
    tile, rows, width = state + TILE_BYTES * first, np.int64(heights[first]), np.int64(widths[first])
    start, step, length = (0, 0, 5) if between_registers else _operand(registers, code)
    if operation == 0x49 and prefix == _NONE:
        _clear(state, STATE_BYTES)
        if not between_registers:
            _copy(state + CONFIGURATION, 0, start, 0, 1, 64)
    elif operation == 0x49 and prefix == _F2 and between_registers:
        _clear(tile, TILE_BYTES)
    elif operation == 0x4B and prefix == _F2:
        _clear(tile, TILE_BYTES)
        _copy(tile, ROW_BYTES, start, step, rows, width)
    elif operation == 0x4B and prefix == _F3:
        _copy(start, step, tile, ROW_BYTES, rows, width)
    elif operation in (0x5C, 0x5E):
        depth, left, right = np.int64(heights[third]), state + TILE_BYTES * second, state + TILE_BYTES * third
        if heights[second] != rows or widths[second] != 4 * depth or widths[third] != width:
            return False
        if operation == 0x5C and prefix == _F3:
            _multiply_bfloat16(tile, left, right, rows, depth, width // 4)
        elif operation == 0x5E and prefix in (_F2, _66):
            _multiply_bytes(tile, left, right, rows, depth, width // 4, prefix == _F2)
        else:
            return False
    else:
        return False
    registers[_HERE] += length
    return True


@cfunc(types.void(types.int32, types.int64, types.int64))
def _handle(number, information, context):
    if not _perform(_i64(context + _REGISTERS)):
        _set_handler(number, 0)  # the instruction runs again, and ends the process


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc."""

    _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p))


def what_is_missing():
    """Why tiles cannot be emulated here, if so."""
    features = llvm.get_host_cpu_features()
    if sys.platform != "linux" or not all(features.get(name) for name in NEEDED):
        return "tiles are emulated on Linux with AVX-512"
    return "this machine has tiles" if features.get("amx-tile") else None


def main():
    """Run pytest in a process whose compiler is told of tiles when it starts."""
    if "+amx-tile" not in os.environ.get("NUMBA_CPU_FEATURES", ""):
        features = ",".join([llvm.get_host_cpu_features().flatten(), *(f"+{name}" for name in FEATURES)])
        os.execve(sys.executable, [sys.executable, "-m", "tests.accel.tile_emulation", *sys.argv[1:]],
                  {**os.environ, "NUMBA_CPU_NAME": llvm.get_host_cpu_name(), "NUMBA_CPU_FEATURES": features})
    own, with_context = chips._features(), 4  # SA_SIGINFO
    chips._features = lambda: own | frozenset(FEATURES)
    action = _Action(handler=_handle.address, flags=with_context)
    if ctypes.CDLL(None).sigaction(int(signal.SIGILL), ctypes.byref(action), None):
        raise OSError("the handler of illegal instructions could not be set")
    sys.exit(pytest.main(["-p", "no:faulthandler", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
