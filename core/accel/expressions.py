"""Expressions: what loop equations, loads, stores and reductions look like in the text of a kernel.

Invariant: an expression reads variables and nothing else, and gives what the numpy rule of its op gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine import dtypes
from core.engine.dtypes import DType
from core.engine.ops.reduce import identity as identity_element

SCALAR = "core.accel.kernels.scalar"
ALIAS = "core.accel.alias"
SLOW = {"exp", "log", "log1p", "tanh", "logistic", "erf", "sin", "pow", "random_bits"}
"""Ops that take longer than to move their operands from and to memory."""
_MATH = {"sqrt", "floor", "round"} | SLOW - {"random_bits"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_PLAIN = {"neg": "-{0}", "abs": "abs({0})", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
          "div": "{0} / {1}", "and": "{0} & {1}", "or": "{0} | {1}", "not": "not {0}",
          "select": "{1} if {0} else {2}",
          "random_bits": "threefry_u32({0}, {1}, np.uint32({2}), np.uint32({2} >> 32))"}
_RANDOM = ("core.accel.kernels.random", "threefry_u32")
WRITABLE = {*_PLAIN, *_MATH, "compare", "convert", "max", "min"}
"""Ops that a loop can hold."""
COSTLY = SLOW | {"sqrt", "div"}
"""Ops that take longer than to keep their result in the first cache and fetch it from there."""

Imports = set[tuple[str, str]]


def expression(op: str, names: Sequence[str], dtypes_in: Sequence[DType], dtype: DType, params: Mapping[str, Any],
               imports: Imports) -> str:
    """The Python expression of a loop op on variables; what it needs is added to `imports`."""
    if op == "compare":
        return f"{names[0]} {_COMPARE[params['kind']]} {names[1]}"
    if op == "convert":
        return _conversion(names[0], dtypes_in[0], dtype, imports)
    if op in _MATH and dtype.is_float:
        function = f"{op}_{'f64' if dtype is dtypes.float64 else 'f32'}"
        imports.add(("core.accel.kernels.vectormath", function))
        text = f"{function}({', '.join(names)})"
    elif op == "pow":
        text = " ** ".join(names)
    elif op == "div" and not dtype.is_float:
        text = " // ".join(names)
    elif op in ("max", "min"):
        text = _extreme(op, names, dtype, imports)
    else:
        if op == "random_bits":
            imports.add(_RANDOM)
        text = _PLAIN[op].format(*names)
    if op in ("select", "random_bits", "and", "or", "not"):
        return text
    return _of_type(text, dtype, imports)


def _of_type(text: str, dtype: DType, imports: Imports) -> str:
    """Bring arithmetic back to its dtype: numba widens integers, and bfloat16 is computed in float32."""
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "round_bf16"))
        return f"round_bf16({text})"
    return text if dtype.is_float or dtype is dtypes.bool_ else f"np.{dtype.name}({text})"


def _conversion(name: str, source: DType, target: DType, imports: Imports) -> str:
    if target is dtypes.bool_:
        return f"{name} != 0"
    if target is dtypes.bfloat16:
        imports.add((SCALAR, "round_bf16"))
        return f"round_bf16(np.float32({name}))"
    if target.is_float or not source.is_float:
        return f"np.{target.name}({name})"
    function = f"{target.short}_from_{'f64' if source is dtypes.float64 else 'f32'}"
    imports.add((SCALAR, function))
    return f"{function}({name})"


def import_lines(imports: Imports) -> list[str]:
    """The import statements of a kernel's text."""
    modules: dict[str, set[str]] = {}
    for module, name in imports:
        modules.setdefault(module, set()).add(name)
    return [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(modules.items())]


def load(pointer: str, index: str, dtype: DType, imports: Imports, number: int = -1) -> str:
    """Read an element; see `alias.load` for the number."""
    imports.add((ALIAS, "load"))
    element = f"load({pointer}, {index}, {number})"
    if dtype is dtypes.bool_:
        return f"{element} != 0"
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "decode_bf16"))
        return f"decode_bf16({element})"
    return element


def stored(name: str, dtype: DType, imports: Imports) -> str:
    """An element as it goes to memory."""
    if dtype is dtypes.bool_:
        return f"np.uint8({name})"
    if dtype is dtypes.bfloat16:
        imports.add((SCALAR, "encode_bf16"))  # sums are not rounded before
        return f"encode_bf16({name})"
    return name


def identity(kind: str, dtype: DType) -> str:
    """What a reduction begins with."""
    value = identity_element(kind, dtype)
    if dtype is dtypes.bool_:
        return str(bool(value))
    if dtype.is_float and kind != "sum":
        return f"np.{dtype.name}({'-' if kind == 'max' else ''}np.inf)"
    return f"np.{dtype.name}({int(value)})"


def combined(total: str, value: str, kind: str, dtype: DType, imports: Imports, any_order: bool) -> str:
    """One more element of a reduction; `any_order` lets the compiler choose the order of a float sum."""
    if kind == "sum":
        if not dtype.is_float:
            return f"np.{dtype.name}({total} + {value})"
        if not any_order:
            return f"{total} + {value}"
        imports.add((SCALAR, "add_any_order"))
        return f"add_any_order({total}, {value})"
    if dtype is dtypes.bool_:
        return f"{total} {'|' if kind == 'max' else '&'} {value}"
    return _extreme(kind, (total, value), dtype, imports)


def _extreme(kind: str, names: Sequence[str], dtype: DType, imports: Imports) -> str:
    """The larger or smaller of two; of floats NaN if either is."""
    function = ("larger" if kind == "max" else "smaller") + ("_or_nan" if dtype.is_float else "")
    imports.add((SCALAR, function))
    return f"{function}({', '.join(names)})"
