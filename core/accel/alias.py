"""Loads and stores of loop kernels, which tell LLVM that what a kernel writes overlaps nothing else it touches.

Invariant: the plan places operands apart, so this is true; without it LLVM compares addresses at run time and takes a
scalar loop where they are close, which adds up in another order, so that bits would depend on where arrays lie. What is
overwritten where it is read has the number of what is written.
"""

from __future__ import annotations

from typing import Any

from numba import types

from core.accel.pointer import intrinsic

MAXIMUM_WRITTEN = 64
"""Operands of one kernel that can be told apart."""


def _tag(builder: Any, access: Any, number: int) -> None:
    """Give an access the scope of its operand, written operand `number` or, if -1, any of those that are only read."""
    module = builder.module
    domain = module.add_metadata(["tilework kernel"])
    scopes = {place: module.add_metadata([f"operand {place}", domain]) for place in range(-1, MAXIMUM_WRITTEN)}
    access.set_metadata("alias.scope", module.add_metadata([scopes.pop(number)]))
    access.set_metadata("noalias", module.add_metadata(list(scopes.values())))


@intrinsic
def load(typing_context: Any, pointer: Any, index: Any, number: Any) -> Any:
    """An element of written operand `number`, or, if that is -1, of one that is only read."""
    if not isinstance(number, types.IntegerLiteral):
        return None  # numba tries again with the literal

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        access = builder.load(builder.gep(arguments[0], [arguments[1]]))
        _tag(builder, access, number.literal_value)
        return access

    return pointer.dtype(pointer, types.intp, number), codegen


@intrinsic
def store(typing_context: Any, pointer: Any, index: Any, value: Any, number: Any) -> Any:
    """Write an element of written operand `number`."""
    if not isinstance(number, types.IntegerLiteral):
        return None  # numba tries again with the literal

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        access = builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        _tag(builder, access, number.literal_value)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, pointer.dtype, number), codegen
