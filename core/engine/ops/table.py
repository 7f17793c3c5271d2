"""The op table: one record an op.

Invariant: an op means what its `numpy` rule computes; every backend is tested against it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from core.engine import dtypes
from core.engine.array import Array
from core.engine.errors import ShapeError, compose
from core.engine.graph import Aval

ShapeRule = Callable[..., "Aval | tuple[Aval, ...]"]
NumpyRule = Callable[..., Any]
GradRule = Callable[..., "tuple[Any, ...]"]


@dataclass(frozen=True)
class Sample:
    """Arguments with which the tests try an op: arrays and parameters."""

    inputs: tuple[NDArray[Any], ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Op:
    """One record of the table.

    Attributes
    ----------
    name, family : as in the table of docs/design/0001
    shape : avals and parameters to the output's aval (a tuple of avals where `multiple`); raises `ShapeError`
    numpy : storage arrays and parameters to the output array; bfloat16 arrives and leaves as float32
    grad : ``grad(ct, out, *inputs, **params)`` gives one cotangent (or None) an input, written with the same ops;
        None where the derivative is zero everywhere it exists
    flops : ``flops(inputs, outputs, params)``, arithmetic operations from avals
    samples : arguments for the tests, all orders and corners of the op
    prepare : turns what a user passes into arrays of equal dtype and shape before the op is applied
    multiple : whether the op gives a tuple
    """

    name: str
    family: str
    shape: ShapeRule
    numpy: NumpyRule
    grad: GradRule | None = None
    flops: Callable[[Sequence[Aval], Sequence[Aval], Mapping[str, Any]], int] = lambda inputs, outputs, params: 0
    samples: Callable[[], list[Sample]] = list
    prepare: Callable[..., tuple[Any, ...]] | None = None
    multiple: bool = False
    doc: str = ""

    def __call__(self, *inputs: Any, **params: Any) -> Array:
        from core.engine.trace import apply

        try:
            output: Array = apply(self, self.prepare(*inputs) if self.prepare else inputs, params)
        except TypeError:
            if mistake := self._mistake(inputs, params):
                raise TypeError(mistake) from None
            raise
        return output

    def _mistake(self, inputs: Sequence[Any], params: Mapping[str, Any]) -> str | None:
        """What is wrong with the number or the names of arguments, if anything is."""
        rules: list[tuple[Callable[..., Any], Mapping[str, Any]]] = [(self.shape, params)]
        if self.prepare is not None:
            rules.append((self.prepare, {}))
        for rule, named in rules:
            signature = inspect.signature(rule)
            try:
                signature.bind(*inputs, **named)
            except TypeError as error:
                plain = [given.replace(annotation=given.empty) for given in signature.parameters.values()]
                return f"{self.name}{signature.replace(parameters=plain, return_annotation=signature.empty)}: {error}"
        return None

    def __repr__(self) -> str:
        return f"<op {self.name}>"


MultipleOp = Callable[..., tuple[Array, ...]]
"""An op of several outputs, as its callers see it."""
TABLE: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Put an op into the table; names are unique."""
    assert op.name not in TABLE, f"op {op.name} exists"
    TABLE[op.name] = op
    return op


def register_multiple(op: Op) -> MultipleOp:
    """Put an op that is `multiple` into the table: as `register`, but typed by what a call of it gives."""
    return cast(MultipleOp, register(op))


def infer(op: Op, avals: Sequence[Aval], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    """Avals of the outputs."""
    out = op.shape(*avals, **params)
    return out if isinstance(out, tuple) else (out,)


def evaluate(op: Op, values: Sequence[NDArray[Any]], avals: Sequence[Aval], params: Mapping[str, Any],
             outputs: Sequence[Aval]) -> tuple[NDArray[Any], ...]:
    """Run the numpy rule on storage arrays; bfloat16 is computed in float32 and rounded once."""
    decode = op.family != "structural"
    operands = [dtypes.decode_bfloat16(value) if decode and aval.dtype is dtypes.bfloat16 else value
                for value, aval in zip(values, avals, strict=True)]
    with np.errstate(all="ignore"):
        result = op.numpy(*operands, **params)
    results = result if op.multiple else (result,)
    return tuple(_store(array, aval) for array, aval in zip(results, outputs, strict=True))


def _store(array: Any, aval: Aval) -> NDArray[Any]:
    array = np.asarray(array)
    if aval.dtype is dtypes.bfloat16 and array.dtype != np.uint16:
        array = dtypes.encode_bfloat16(array.astype(np.float32))
    if array.dtype != aval.dtype.storage:
        array = array.astype(aval.dtype.storage)
    stored: NDArray[Any] = array.reshape(aval.shape)
    return stored


def require(condition: bool, op: str, rule: str, hint: str = "", /, **operands: Any) -> None:
    """Raise the `ShapeError` of op `op` unless the condition holds; `operands` are shown by name."""
    if condition:
        return
    from core.engine.trace import here

    where = str(here())
    rows = [(name, str(value)) for name, value in operands.items()] + [("rule", rule)]
    if hint:
        rows.append(("hint", hint))
    raise ShapeError(compose(f"ShapeError in {op}" + (f" at {where}" if where else ""), rows))


def elements(inputs: Sequence[Aval], outputs: Sequence[Aval], params: Mapping[str, Any]) -> int:
    """Cost of one operation an output element."""
    return outputs[0].size
