"""Words that threads share, and how compiled code waits: atomic operations, a hint to the core, libc's threads.

Invariant: all atomic operations are sequentially consistent, so that the order in which one thread performs them is the
order in which every thread sees them.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.pointer import intrinsic

WORDS = types.CPointer(types.int64)
"""Type of a block of shared words."""

_ORDER = "seq_cst"
_BYTES = 8


@intrinsic
def load(typing_context: Any, words: Any, index: Any) -> Any:
    """``words[index]``"""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), _ORDER, _BYTES)

    return types.int64(WORDS, types.int64), codegen


@intrinsic
def store(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """``words[index] = value``"""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], builder.gep(arguments[0], [arguments[1]]), _ORDER, _BYTES)
        return context.get_dummy_value()

    return types.void(WORDS, types.int64, types.int64), codegen


@intrinsic
def add(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """``words[index] += value``; the value before."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), arguments[2], _ORDER)

    return types.int64(WORDS, types.int64, types.int64), codegen


@intrinsic
def exchange_if(typing_context: Any, words: Any, index: Any, expected: Any, value: Any) -> Any:
    """``words[index] = value`` if it is `expected`; whether it was."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.gep(arguments[0], [arguments[1]])
        return builder.extract_value(builder.cmpxchg(address, arguments[2], arguments[3], _ORDER), 1)

    return types.boolean(WORDS, types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the core that this thread spins, so that it saves power and lets its neighbour run."""
    assembly = {"x86_64": "pause", "AMD64": "pause", "aarch64": "yield", "arm64": "yield"}.get(platform.machine(), "")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), assembly, "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


def _call_libc(builder: Any, name: str, addresses: list[Any]) -> None:
    """Call ``int name(void *, ...)``."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.IntType(32), [pointer] * len(addresses))
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(address, pointer) for address in addresses])


@intrinsic
def yield_core(typing_context: Any) -> Any:
    """Let another thread have this core."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call_libc(builder, "sched_yield", [])
        return context.get_dummy_value()

    return types.void(), codegen


def _on_word(name: str) -> Any:
    """An intrinsic for a function of libc on the object that begins at ``words[index]``."""
    @intrinsic
    def on_word(typing_context: Any, words: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _call_libc(builder, name, [builder.gep(arguments[0], [arguments[1]])])
            return context.get_dummy_value()

        return types.void(WORDS, types.int64), codegen

    return on_word


lock = _on_word("pthread_mutex_lock")
unlock = _on_word("pthread_mutex_unlock")
wake_all = _on_word("pthread_cond_broadcast")


@intrinsic
def sleep(typing_context: Any, words: Any, condition: Any, mutex: Any) -> Any:
    """Sleep on the condition variable at ``words[condition]``, giving up the locked mutex at ``words[mutex]``."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = arguments[0]
        _call_libc(builder, "pthread_cond_wait", [builder.gep(words, [index]) for index in arguments[1:]])
        return context.get_dummy_value()

    return types.void(WORDS, types.int64, types.int64), codegen
