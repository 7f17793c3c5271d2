"""Backends of the emulated TPUs: the chips' numbers on the kernels of the cpu backend.

Invariant: a chip computes the graph that `numerics` makes of the given one; how that graph runs, and in what order its
sums add up, is up to the cpu backend.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

from core.accel.cpu import CpuExecutable
from core.accel.tpu.cycles import estimate
from core.accel.tpu.machine import machine
from core.accel.tpu.numerics import round_products
from core.accel.tpu.refusal import refused
from core.accel.tpu.steps import Estimate
from core.engine import dtypes
from core.engine.backends import Options, Report
from core.engine.graph import Equation, Graph


@dataclass(kw_only=True)
class ChipReport(Report):
    """The report of an executable, and the time that the chip itself would take, worked out when somebody asks.

    Attributes
    ----------
    graph : as it was given
    held : this many leading inputs are weights
    chip : name of the machine
    precision : of its products, a name of ``array.passes``
    """

    graph: Graph
    held: int
    chip: str
    precision: str

    @functools.cached_property
    def estimate(self) -> Estimate:
        """Cycles of each step and what they were spent on; raises as `cycles.estimate` does."""
        return estimate(self.graph, machine(self.chip), self.held, self.precision)


def _executable(graph: Graph, given: Graph, options: Options, name: str, chip: str, precision: str) -> CpuExecutable:
    """A graph on the cpu backend, with the report of a chip that was given another one."""
    made = CpuExecutable(graph, options, name)
    own = {item.name: getattr(made.report, item.name) for item in fields(made.report)}
    made.report = ChipReport(**own, graph=given, held=options.held, chip=chip, precision=precision)
    return made


@dataclass(frozen=True)
class FloatTpu:
    """TPU v2 or v3: products of bfloat16 numbers, in so many passes, summed in float32."""

    chip: str
    passes: int = 1

    def compile(self, graph: Graph, options: Options) -> CpuExecutable:
        name, precision = self.chip, "bfloat16"
        if self.passes > 1:
            name, precision = f"{name}:{self.passes}", f"{precision}_{self.passes}x"
        return _executable(round_products(graph, self.passes), graph, options, name, self.chip, precision)


@dataclass(frozen=True)
class IntegerTpu:
    """TPU v1: products of integers of 8 bits, and of 16 bits at half of the speed (one operand) or a quarter (both).

    Sums have 32 bits and wrap around; the rest is as the graph says.
    """

    name: str

    def compile(self, graph: Graph, options: Options) -> CpuExecutable:
        self.check(graph)
        return _executable(graph, graph, options, self.name, self.name, "int8")

    def check(self, graph: Graph) -> None:
        """Refuse products that the matrix unit cannot do.

        Raises
        ------
        DeviceError
            If there is one, here, in a scan or in a call.
        """
        for equation in graph.equations:
            for inner in equation.params.values():
                if isinstance(inner, Graph):
                    self.check(inner)
            if equation.op.family == "contract" and not _is_of_short_integers(equation):
                first, second = (str(value.aval) for value in equation.inputs)
                raise refused(equation, f"{first} times {second}",
                              "the chip multiplies u8, i8 or i16 by i8 or i16, and sums in i32",
                              "quantise the run first: tilework APP quantize RUN --bits 8 --out RUN8")


def _is_of_short_integers(product: Equation) -> bool:
    second, out = product.inputs[1].aval.dtype, product.outputs[0].aval.dtype
    return second in (dtypes.int8, dtypes.int16) and out is dtypes.int32


V1 = IntegerTpu("tpu-v1")
V2, V2_IN_3_PASSES, V2_IN_6_PASSES = (FloatTpu("tpu-v2", passes) for passes in (1, 3, 6))
V3, V3_IN_3_PASSES, V3_IN_6_PASSES = (FloatTpu("tpu-v3", passes) for passes in (1, 3, 6))
