"""Text: the source of a kernel that a factory makes.

Invariant: a text imports the factory and the types of its arguments, so that its key in the store covers their files;
its last line is the call, to which an epilogue adds an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.engine.dtypes import DType, bool_


def text_of(factory: Callable[..., Any], *arguments: Any) -> str:
    """The text that calls a function of this package, at the top of its module, with arguments that `repr` spells."""
    things: list[Any] = [factory, *map(type, arguments)]
    needed = {(thing.__module__, thing.__name__) for thing in things}
    imports = [f"from {module} import {name}\n" for module, name in sorted(needed) if module != "builtins"]
    return f"{''.join(imports)}kernel = {factory.__name__}({', '.join(map(repr, arguments))})\n"


def pointer_type(dtype: DType) -> str:
    """The name in `core.accel.pointer` of the type that holds an element."""
    return "b8" if dtype is bool_ else dtype.short
