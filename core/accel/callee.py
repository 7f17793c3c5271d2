"""Callees: functions that are compiled on their own, so that many kernels share their code and the time to compile it.

Invariant: a callee's symbol is a digest of its text, so that equal symbols mean equal code. An object holds the symbol
only; `store` loads the callees of an object before the object itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite.binding import add_symbol
from numba import types
from numba.core import cgutils

from core.accel.objects import callee_symbol
from core.accel.pointer import intrinsic

_TEXT = "callee"
_NOWHERE = 1
"""Where numba believes all callees to be: it loads what it compiles, too, and nobody runs that."""


def calling(text: str, signature: Any) -> Any:
    """A function for kernels that calls the function `kernel` of a text.

    A kernel must have it among its own variables, global or of its closure, where `callees` looks.

    Parameters
    ----------
    text : as of a kernel; defines `kernel` and ``SIGNATURE``
    signature : that signature; its result is void
    """
    @intrinsic
    def call(typing_context: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, typed: Any, values: Any) -> Any:
            convention, given = context.call_conv, cgutils.unpack_tuple(builder, values[0])
            kind = convention.get_function_type(signature.return_type, signature.args)
            function = cgutils.get_or_insert_function(builder.module, kind, callee_symbol(text))
            convention.call_function(builder, function, signature.return_type, signature.args, given)
            return context.get_dummy_value()

        return signature.return_type(types.StarArgTuple(signature.args)), codegen

    add_symbol(callee_symbol(text), _NOWHERE)
    setattr(call, _TEXT, text)
    return call


def callees(kernel: Callable[..., Any]) -> tuple[str, ...]:
    """Texts of what a kernel calls."""
    variables = inspect.getclosurevars(kernel)
    values = [*variables.nonlocals.values(), *variables.globals.values()]
    return tuple(getattr(value, _TEXT) for value in values if hasattr(value, _TEXT))
