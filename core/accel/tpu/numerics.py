"""Numerics of the matrix units of TPU v2 and v3: a graph to one whose products are what the chips compute.

The unit multiplies bfloat16 by bfloat16 and sums in float32; operands in float32 are rounded to nearest, ties to even,
which reproduces the output of the chip bit for bit (jax-ml/jax issue 9973, a TPU v3-8 in issue 16349). Everything else
is float32. A product that shall be more precise is split into parts, of which each pass multiplies two:

=======  =======================  ==============================================
passes   XLA's precision          parts that meet, smallest first
=======  =======================  ==============================================
1        DEFAULT, bfloat16        hh
3        HIGH, bfloat16_3x        (mh + hm) + hh
6        HIGHEST, bfloat16_6x     ((((mm + hl) + lh) + hm) + mh) + hh
=======  =======================  ==============================================

with h = bf16(x), m = bf16(x - h), l = bf16(x - h - m). The order of the sums, and that a NaN which the small parts of
an infinite operand bring up counts as zero, are XLA's (dot_algorithm_rewriter.cc); XLA does not say in public how it
orders them on a TPU.

Invariant: the graph has the ops of the table alone, so that every backend gives it the same meaning; products of other
types than float32 stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine import dtypes, ops
from core.engine.array import Array
from core.engine.graph import Equation, Graph, Value
from core.engine.ops.table import Op
from core.engine.trace import Staging, apply, call_graph, restage

PASSES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((0, 0),), 3: ((1, 0), (0, 1), (0, 0)), 6: ((1, 1), (0, 2), (2, 0), (0, 1), (1, 0), (0, 0))}
"""Parts of the two operands that meet in each pass, in the order of the sum; part 0 is the largest."""
_LOOKING = {"transpose", "reshape", "broadcast"}
"""Ops behind which nothing need be rounded that is rounded before them, once for all who look."""


class _Rounding(Staging):
    """Stages equations anew, products in passes."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self._passes = passes
        self._makers: dict[Value, Equation] = {}
        self._parts: dict[Value, list[Array]] = {}

    def apply(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        if op.name == "call":
            return tuple(call_graph(params["graph"], inputs))
        if op.name == "scan":
            params = {**params, "body": round_products(params["body"], self._passes)}
            return self._scan(op, inputs, params)
        if op.family == "contract" and inputs[0].dtype is dtypes.float32:
            return (self._product(op, inputs, params),)
        outputs = super().apply(op, inputs, params)
        self._makers.update((self.value(output), self.graph.equations[-1]) for output in outputs)
        return outputs

    def _scan(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
        """A scan whose body has no constants: they enter it as it has its own arguments that stay the same."""
        body, consts = params["body"], params["consts"]
        found = [Array(value.aval, constant) for value, constant in body.constants.items()]
        body.inputs[consts:consts] = body.constants
        body.constants = {}
        params = {**params, "consts": consts + len(found)}
        return super().apply(op, [*inputs[:consts], *found, *inputs[consts:]], params)

    def _product(self, op: Op, inputs: Sequence[Array], params: Mapping[str, Any]) -> Array:
        count = 1 + max(max(pair) for pair in PASSES[self._passes])
        left, right = (self._split(array, count) for array in inputs)
        *small, (first, second) = PASSES[self._passes]
        total: Array | None = None
        for one, other in small:
            (part,) = super().apply(op, [left[one], right[other]], params)
            total = part if total is None else total + part
        (largest,) = super().apply(op, [left[first], right[second]], params)
        if total is None:
            return largest
        return ops.select(total == total, total, ops.full_like(total, 0)) + largest

    def _split(self, array: Array, count: int) -> list[Array]:
        """The largest parts of an array, each a float32 array of bfloat16 numbers."""
        value = self.value(array)
        if value not in self._parts:
            self._parts[value] = self._split_anew(array, count)
        return self._parts[value]

    def _split_anew(self, array: Array, count: int) -> list[Array]:
        maker = self._makers.get(self.value(array))
        if maker is not None and maker.op.name in _LOOKING:
            given = Array(maker.inputs[0].aval, maker.inputs[0], self)
            return [apply(maker.op, [part], maker.params) for part in self._split(given, count)]
        parts: list[Array] = []
        rest = array
        for number in range(count):
            parts.append(rest.astype(dtypes.bfloat16).astype(dtypes.float32))
            if number + 1 < count:
                rest = rest - parts[-1]
        return parts


def round_products(graph: Graph, passes: int = 1) -> Graph:
    """The graph in which every product of float32 numbers is one of the chip's; in its scans and calls too.

    Parameters
    ----------
    passes : 1, 3 or 6
    """
    return restage(graph, _Rounding(passes))
