"""Widened: products of bfloat16 numbers that were widened to float32 read these numbers where they lie.

A program that wants bfloat16 operands and float32 sums says so with ops of the table: ``dot(convert(a, f32),
convert(b, f32))`` of bfloat16 a and b. The kernels of narrow numbers do just that, and nobody stores the wide copies.

Invariant: results are the same up to the order of sums, since a product of two bfloat16 numbers is exact in float32;
only AMX and AVX-512 take numbers below the smallest normal one for zero. The product keeps its float32 result, which
its shape rule would not give it: no pass that stages equations anew may follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from core.accel.kernels.grouped import needs_loop
from core.accel.passes.simplify import needed
from core.accel.views import VIEWS
from core.engine import dtypes
from core.engine.graph import Aval, Equation, Graph, Value


@dataclass
class _Narrowing:
    """The equations of a graph with narrow products, as they grow."""

    makers: dict[Value, Equation] = field(default_factory=dict)
    equations: list[Equation] = field(default_factory=list)
    narrow: dict[Value, Value | None] = field(default_factory=dict)

    def add(self, equation: Equation) -> None:
        if equation.op.name == "scan":
            equation = replace(equation, params={**equation.params, "body": read_narrow(equation.params["body"])})
        elif _is_product(equation) and _takes_narrow(equation):
            first, second = map(self.source, equation.inputs)
            if first is not None and second is not None:
                equation = replace(equation, inputs=(first, second))
        self.equations.append(equation)
        self.makers.update((value, equation) for value in equation.outputs)

    def source(self, value: Value) -> Value | None:
        """The bfloat16 value that was widened to `value`, straight or before it was looked at in another way."""
        if value not in self.narrow:
            self.narrow[value] = self._source(value)
        return self.narrow[value]

    def _source(self, value: Value) -> Value | None:
        maker = self.makers.get(value)
        if maker is None or value.aval.dtype is not dtypes.float32 or not maker.inputs:
            return None
        given = maker.inputs[0]
        if maker.op.name == "convert" and given.aval.dtype is dtypes.bfloat16:
            return given
        before = self.source(given) if maker.op.name in VIEWS else None
        if before is None:
            return None
        looked = Value(Aval(dtypes.bfloat16, value.aval.shape))
        self.equations.append(replace(maker, inputs=(before,), outputs=(looked,)))
        return looked


def _is_product(equation: Equation) -> bool:
    """Whether an equation multiplies and sums float32 numbers."""
    return equation.op.family == "contract" and equation.outputs[0].aval.dtype is dtypes.float32


def _takes_narrow(product: Equation) -> bool:
    """Whether the kernel of a float32 product has a narrow form; that of depthwise convolutions has none."""
    if product.op.name == "dot":
        return True
    of_kernel = product.inputs[1] if product.op.name == "conv" else product.outputs[0]
    return not needs_loop(of_kernel.aval.shape[-1], product.params["groups"])


def read_narrow(graph: Graph) -> Graph:
    """The graph with narrow products, from one that is simplified; in the bodies of its scans too."""
    narrowing = _Narrowing()
    for equation in graph.equations:
        narrowing.add(equation)
    return needed(replace(graph, equations=narrowing.equations))
