"""How the cores treat floats while a plan runs: IEEE 754 rounding to nearest, subnormal numbers kept.

Invariant: every thread of a plan computes in this mode, whatever other libraries have set. Some switch a thread to
flushing subnormals to zero, and results would then depend on the thread.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.pointer import intrinsic

_WORD = ir.IntType(32)
_X86 = platform.machine() in ("x86_64", "AMD64")
_ARM = platform.machine() in ("aarch64", "arm64")
_IEEE = 0x1F80 if _X86 else 0
"""The control register's value at a program's start: on x86 exceptions masked, on ARM nothing set."""


def _declare(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _read(builder: Any) -> Any:
    if _X86:
        place = cgutils.alloca_once(builder, _WORD)
        address = builder.bitcast(place, ir.IntType(8).as_pointer())
        builder.call(_declare(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), address.type), [address])
        return builder.load(place)
    if _ARM:
        return builder.trunc(builder.call(_declare(builder, "llvm.aarch64.get.fpcr", ir.IntType(64)), []), _WORD)
    return _WORD(0)


def _write(builder: Any, mode: Any) -> None:
    if _X86:
        place = cgutils.alloca_once_value(builder, mode)
        address = builder.bitcast(place, ir.IntType(8).as_pointer())
        builder.call(_declare(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), address.type), [address])
    elif _ARM:
        setter = _declare(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), ir.IntType(64))
        builder.call(setter, [builder.zext(mode, ir.IntType(64))])


@intrinsic
def set_ieee(typing_context: Any) -> Any:
    """Put this thread into the mode of plans; the mode before."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        before = _read(builder)
        _write(builder, _WORD(_IEEE))
        return before

    return types.uint32(), codegen


@intrinsic
def restore(typing_context: Any, mode: Any) -> Any:
    """Put this thread back into a mode that `set_ieee` returned."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.uint32), codegen
