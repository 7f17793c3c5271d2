"""What one fused node asks of a chip: matrix products, vector operations, and the record of what it took.

Invariant: counts come from avals alone, and are those of the whole chip.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from core.accel.passes.fuse import Node
from core.accel.tpu.machine import Machine
from core.engine.graph import Equation, Value

PRODUCTS = {"dot", "conv", "conv_dw"}
CLASSES = ("active", "weight stall", "weight shift", "memory stall", "waiting", "host")
"""What the cycles of an array go to: its work; weights that memory has not delivered; their way into the array;
activations that memory has not delivered; results of the vector unit; the host."""
_BOUNDS = {"active": "array", "weight stall": "weights", "weight shift": "weights", "memory stall": "memory",
           "waiting": "vector unit", "host": "host"}


@dataclass
class Step:
    """One fused node; one in a loop has the sums of all its turns.

    Attributes
    ----------
    name : its ops
    layer, source : where the user wrote it
    unit : ``array`` or ``vector``
    begin, end : cycles from the begin of the batch, of the unit's work
    macs : multiply-accumulates
    operations : of the vector unit, on one element each
    weight_bytes, spilled_bytes : through memory: weights, and values that the chip has no room for
    result_bytes : of what a product makes
    spent : cycles of an array, of each class; an array works on one step after the other
    vector : cycles of the vector unit
    memory : cycles that a vector step needs of memory or of the buffer
    """

    name: str
    layer: str
    source: str
    unit: str
    begin: float = math.inf
    end: float = 0.0
    macs: int = 0
    operations: int = 0
    weight_bytes: int = 0
    spilled_bytes: int = 0
    result_bytes: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.0))
    vector: float = 0.0
    memory: float = 0.0

    @staticmethod
    def of(node: Node) -> Step:
        """The empty record of a node."""
        first = node.equations[0]
        return Step(" ".join(equation.op.name for equation in node.equations), first.where.layer, first.where.source,
                    "array" if first.op.name in PRODUCTS else "vector")

    @property
    def cycles(self) -> float:
        """Of the step's unit."""
        return sum(self.spent.values()) if self.unit == "array" else max(self.vector, self.memory)

    @property
    def nbytes(self) -> int:
        return self.weight_bytes + self.spilled_bytes

    @property
    def bound_by(self) -> str:
        """What the step would have to have more of to be faster."""
        if self.unit == "vector":
            if self.vector >= self.memory:
                return "vector unit"
            return "memory" if self.spilled_bytes else "buffer"
        shares: dict[str, float] = {}
        for kind, spent in self.spent.items():
            shares[_BOUNDS[kind]] = shares.get(_BOUNDS[kind], 0.0) + spent
        return max(shares, key=shares.__getitem__)

    def utilisation(self, machine: Machine) -> float:
        """Multiply-accumulates over those that the chip could do in the step's cycles, 0..1."""
        return self.macs / (machine.macs_per_cycle * self.cycles) if self.cycles else 0.0


@dataclass(frozen=True)
class Estimate:
    """What a batch takes on one chip.

    Attributes
    ----------
    steps : in the order in which they begin
    host_input, host_output : cycles of the transfers
    total : cycles, transfers included
    weight_bytes : of the weights in memory
    """

    machine: Machine
    steps: Sequence[Step]
    host_input: float
    host_output: float
    total: float
    weight_bytes: int

    @property
    def seconds(self) -> float:
        return self.total / self.machine.clock

    @property
    def macs(self) -> int:
        return sum(step.macs for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Through memory."""
        return sum(step.nbytes for step in self.steps)

    @property
    def tops(self) -> float:
        """10^12 operations of the arrays a second; a multiply-accumulate is two."""
        return 2 * self.macs / self.seconds / 1e12

    @property
    def utilisation(self) -> float:
        """Multiply-accumulates over those that the chip could do, 0..1."""
        return self.macs / (self.machine.macs_per_cycle * self.total)

    def cycles(self) -> dict[str, float]:
        """Cycles of each class; they add up to the total."""
        sums = {kind: sum(step.spent[kind] for step in self.steps) for kind in CLASSES}
        sums["host"] += self.host_output
        sums["waiting"] += self.total - sum(sums.values())  # for what comes after the last product
        return sums


def name_host(steps: Sequence[Step], cycles: float) -> None:
    """Call so many cycles of waiting, from the first step on, by their cause: the host."""
    for step in steps:
        moved = min(step.spent["waiting"], cycles)
        step.spent["waiting"] -= moved
        step.spent["host"] += moved
        cycles -= moved


@dataclass(frozen=True)
class Product:
    """Matrices ``[m, k] @ [k, n]``, weight-stationary.

    Attributes
    ----------
    instances : matrices, each with its own tiles
    grouped : the instances read the same rows, so that several may share a tile as diagonal blocks
    stationary, moving : operands; the stationary one has the tiles
    """

    m: int
    k: int
    n: int
    instances: int
    grouped: bool
    stationary: Value
    moving: Value

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n * self.instances

    def tiles(self, machine: Machine, instances: int) -> int:
        """Tiles of so many of the instances."""
        rows, columns = machine.array.rows, machine.array.columns
        if self.grouped and self.k <= rows and self.n <= columns:
            return -(-instances // min(rows // self.k, columns // self.n))
        return instances * -(-self.k // rows) * -(-self.n // columns)


def product(equation: Equation, static: Container[Value]) -> Product:
    """The matrices of a dot, conv or conv_dw; weights are the stationary operand where there are any.

    Parameters
    ----------
    static : values that are weights
    """
    first, second = equation.inputs
    if equation.op.name == "dot":
        return _dot(equation, static)
    out, groups = equation.outputs[0].aval, equation.params["groups"]
    if equation.op.name == "conv":
        taps = math.prod(second.aval.shape[:-1])  # in-channels of a group among them
        columns = out.shape[-1]
        return Product(out.size // columns, taps, columns // groups, groups, groups > 1, second, first)
    pixels, columns = second.aval.size // second.aval.shape[-1], second.aval.shape[-1]
    return Product(math.prod(out.shape[:-1]), pixels, columns // groups, groups, False, second, first)


def _dot(equation: Equation, static: Container[Value]) -> Product:
    a, b = equation.inputs
    contract, batch = equation.params["contract"], equation.params["batch"]
    depth = math.prod(a.aval.shape[axis] for axis in contract[0])
    instances = math.prod(a.aval.shape[axis] for axis in batch[0])
    m, n = (value.aval.size // max(depth * instances, 1) for value in (a, b))
    if a in static and b not in static:
        return Product(n, depth, m, instances, False, a, b)
    return Product(m, depth, n, instances, False, b, a)


def vector_operations(equations: Sequence[Equation]) -> int:
    """Elements that the vector unit works on, once an equation; a window counts its taps."""
    return sum(_elements(equation) for equation in equations)


def _elements(equation: Equation) -> int:
    taps = math.prod(equation.params["size"]) if equation.op.name in ("window", "window_grad") else 1
    sizes = [value.aval.size for value in equation.outputs]
    if equation.op.family in ("reduce", "index") and taps == 1:
        sizes += [value.aval.size for value in equation.inputs]
    return taps * max(sizes)
