"""Exact: products of 16-bit integers, which no kernel takes, as products in float64.

Invariant: results keep their bits. A product of two 16-bit integers has at most 31 bits, and a float64 holds sums of
2^23 of them without rounding, in any order; a product of more terms stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine import dtypes
from core.engine.array import Array
from core.engine.graph import Equation, Graph
from core.engine.ops.table import Op, infer
from core.engine.trace import Staging, apply, restage

_MOST_TERMS = 1 << 23


class _InFloat64(Staging):
    """Stages equations anew, products of 16-bit integers in float64."""

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        if op.name == "scan":
            params = {**params, "body": with_exact_products(params["body"])}
        elif op.family == "contract" and any(array.dtype is dtypes.int16 for array in inputs):
            avals = [array.aval for array in inputs]
            out, = infer(op, avals, params)
            if out.dtype is dtypes.int32 and op.flops(avals, [out], params) <= 2 * _MOST_TERMS * out.size:
                exact = apply(op, [array.astype(dtypes.float64) for array in inputs], params)
                return (exact.astype(dtypes.int64).astype(dtypes.int32),)  # the second conversion wraps around
        return super().apply(op, inputs, params)


def with_exact_products(graph: Graph) -> Graph:
    """The graph with products of 16-bit integers in float64, from one that is simplified; in its scans too."""
    return restage(graph, _InFloat64()) if any(map(_has_short, graph.equations)) else graph


def _has_short(equation: Equation) -> bool:
    inner = equation.params["body"].equations if equation.op.name == "scan" else ()
    return any(value.aval.dtype is dtypes.int16 for value in equation.inputs) or any(map(_has_short, inner))
