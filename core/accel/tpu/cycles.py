"""The cycle model of a graph: every fused node is a step on the arrays or the vector unit of a chip.

Invariant: the classes of cycles of all steps, with the tail and the host's, add up to the total; nothing is simulated
per cycle, so that a step costs microseconds.

* Products run on the arrays as `core.accel.tpu.timeline` has it, weight-stationary. A convolution has its in-channels
  and taps down the rows, its out-channels across the columns, and a row an output pixel. Everything else, epilogues of
  products among them, runs on the vector unit, an element an operation.
* The cores of a chip share the rows of each product, or its instances, and the elements of each loop; they share the
  bandwidth of memory. The arrays of a core share tiles.
* A value stays on the chip if it fits in half of the buffers, so that the next one can be made in the other half.
  Otherwise it goes through memory where the chip can write to it; where it cannot (TPU v1), all that is alive must fit
  in the buffer.
* Weights, which are held inputs, constants and what is made of them alone, are read from memory for each step.
* Inputs come over the host link before the first step, outputs leave over it after the last one.
* Reshaping, transposing, broadcasting and slicing cost nothing. Vector steps do not slow the loading of tiles down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.accel.passes.fuse import Node, fuse
from core.accel.passes.recurrence import lighten
from core.accel.passes.simplify import simplify
from core.accel.tpu.machine import Machine
from core.accel.tpu.steps import CLASSES, Estimate, Product, Step, name_host, product, vector_operations
from core.accel.tpu.timeline import Timeline, pieces, waiting
from core.accel.views import VIEWS
from core.engine import dtypes
from core.engine.errors import DeviceError, compose
from core.engine.graph import Equation, Graph, Value

_WIDE = ("int8", "int8_int16", "int16")
"""Names of ``array.passes`` by the number of operands that are integers of 16 bits."""


def estimate(graph: Graph, machine: Machine, held: int = 0, precision: str = "") -> Estimate:
    """Time a graph on one chip.

    Parameters
    ----------
    held : this many leading inputs are weights
    precision : a name of ``array.passes``; by default that of a single pass

    Raises
    ------
    DeviceError
        If the chip cannot run an op, or has no room for the weights or the activations.
    """
    passes = machine.array.passes
    if precision and precision not in passes:
        raise DeviceError(f"{machine.name} has no precision {precision!r}; it has {', '.join(passes)}")
    return _Walk(machine, passes.get(precision, min(passes.values()))).run(lighten(simplify(graph)), held)


class _Walk:
    """One walk over the nodes of a graph."""

    def __init__(self, machine: Machine, passes: int) -> None:
        self.machine, self.passes = machine, passes
        self.per_cycle = machine.memory.streaming / machine.cores / machine.clock
        """Bytes of memory a cycle of one core."""
        self.time = Timeline(machine)
        self.vector_free = 0.0
        self.ready: dict[Value, float] = {}
        self.static: set[Value] = set()
        self.behind: dict[Value, Value] = {}
        """What views, and the constants of a loop, look at."""
        self.leaving: set[Value] = set()
        """Values that another node than their own reads, and outputs."""
        self.steps: dict[Equation, Step] = {}

    def run(self, graph: Graph, held: int) -> Estimate:
        weights = [*graph.inputs[:held], *graph.constants]
        self.static.update(weights)
        given = graph.inputs[held:]
        host = self.machine.clock / self.machine.host.bandwidth
        host_input = host * self.total_bytes(given)
        self.ready.update(dict.fromkeys(given, host_input))
        nodes = self.nodes(graph)
        if self.total_bytes(weights) > self.machine.memory.capacity:
            raise self.too_large("memory", self.machine.memory.capacity, weights, "take a chip with more memory")
        if self.machine.memory.read_only:
            self.check_buffer(graph, nodes)
        for node in nodes:
            self.node(node)
        steps = sorted(self.steps.values(), key=lambda step: step.begin)
        name_host(steps, host_input)
        host_output = host * self.total_bytes(graph.outputs)
        end = max([self.time.ended, host_input, *self.ready.values()])
        return Estimate(self.machine, steps, host_input, host_output, end + host_output, self.total_bytes(weights))

    def nodes(self, graph: Graph) -> list[Node]:
        """Nodes that run for each batch; what is made of weights alone is made once, before."""
        for equation in graph.equations:
            if equation.op.name in VIEWS and equation.inputs:
                self.behind[equation.outputs[0]] = equation.inputs[0]
            if equation.op.family != "structural" and self.static.issuperset(equation.inputs):
                self.static.update(equation.outputs)
        nodes = [node for node in fuse(graph)
                 if any(value not in self.static for equation in node.equations for value in equation.outputs)]
        self.leaving.update(map(self.source, graph.outputs), *(self.reads(node) - makes(node) for node in nodes))
        return nodes

    def node(self, node: Node) -> None:
        """Time a node."""
        first = node.equations[0]
        if first.op.name == "scan":
            self.loop(first)
            return
        if first.op.family == "structural":
            raise DeviceError(compose(f"{self.machine.name} cannot run {first.op.name}", [
                ("where", str(first.where)), ("hint", "trace a function without calls of the host or of other chips")]))
        step = self.steps.setdefault(first, Step.of(node))
        read, made = self.outside(node)
        ready = max((self.ready.get(value, 0.0) for value in read), default=0.0)
        spilled = self.total_bytes(value for value in (*read, *made) if self.is_spilled(value))
        step.spilled_bytes += spilled
        if step.unit == "array":
            end = self.array(step, node, ready, spilled)
        else:
            end = self.vector(step, node, ready, self.total_bytes((*read, *made)), spilled)
        self.ready.update(dict.fromkeys(made, end))

    def array(self, step: Step, node: Node, ready: float, spilled: int) -> float:
        """Time a product and its epilogue; gives when the result can be read."""
        machine, time = self.machine, self.time
        work = product(node.equations[0], self.static)
        rows, tiles = self.share(work)
        rounds = -(-tiles // machine.array.per_core)
        parts = pieces(machine, rows)
        load = machine.array.per_core * self.tile_load(step, work, tiles * len(parts))
        extra = spilled / machine.cores / self.per_cycle / (rounds * len(parts))
        before, began = time.spent, time.ended
        for part in parts:
            time.tiles(rounds, part * self.passes_of(node.equations[0]), load + extra, ready)
        active, stall, shift, waited = (now - then for now, then in zip(time.spent, before, strict=True))
        lacking = stall * extra / (load + extra) if extra else 0.0
        for kind, spent in zip(CLASSES, (active, stall - lacking, shift, lacking, waited), strict=False):
            step.spent[kind] += spent
        step.begin, step.end = min(step.begin, began + waited), time.ended
        step.macs += work.macs
        step.result_bytes += self.total_bytes(node.equations[0].outputs)
        operations = vector_operations(node.equations[1:])
        busy = self.vector_cycles(operations)
        step.operations += operations
        step.vector += busy
        self.vector_free = max(self.vector_free, began + waited) + busy
        elements = -(-node.equations[0].outputs[0].aval.size // machine.cores)
        return max(self.vector_free, time.ended + waiting(machine, elements, 1))

    def passes_of(self, product: Equation) -> int:
        """Times that a row goes through the array; integers of 16 bits may take more than the precision says."""
        wide = sum(value.aval.dtype is dtypes.int16 for value in product.inputs)
        return self.machine.array.passes.get(_WIDE[wide], self.passes) if wide else self.passes

    def share(self, work: Product) -> tuple[int, int]:
        """Rows and tiles of one core."""
        cores = self.machine.cores
        if work.grouped or work.instances < cores:
            return -(-work.m // cores), work.tiles(self.machine, work.instances)
        return work.m, work.tiles(self.machine, -(-work.instances // cores))

    def tile_load(self, step: Step, work: Product, tiles: int) -> float:
        """Cycles until a tile of one core is there: from memory, or from the buffer if it is no weight."""
        value = self.source(work.stationary)
        nbytes = self.machine.array.rows * self.machine.array.columns * self.width(value)
        if work.stationary in self.static:
            step.weight_bytes += nbytes * tiles * self.machine.cores
        elif not self.is_spilled(value):
            return nbytes / self.machine.buffer.bandwidth * self.machine.clock
        return nbytes / self.per_cycle

    def vector(self, step: Step, node: Node, ready: float, nbytes: int, spilled: int) -> float:
        """Time a node without a product; gives when the result can be read."""
        machine = self.machine
        operations = vector_operations(node.equations)
        busy = self.vector_cycles(operations)
        memory = max(spilled / self.per_cycle, nbytes / machine.buffer.bandwidth * machine.clock) / machine.cores
        begin = max(self.vector_free, ready)
        self.vector_free = begin + max(busy, memory)
        step.operations += operations
        step.vector += busy
        step.memory += memory
        step.begin, step.end = min(step.begin, begin), self.vector_free
        return self.vector_free + machine.vector.synchronisation * machine.clock

    def vector_cycles(self, operations: int) -> float:
        vector = self.machine.vector
        return operations / (self.machine.cores * vector.lanes * vector.slots)

    def loop(self, equation: Equation) -> None:
        """Time a scan: its body as often as it runs."""
        params, body = equation.params, equation.params["body"]
        consts, carries = params["consts"], params["carries"]
        for inner, outer in zip(body.inputs, equation.inputs, strict=True):
            if outer in self.static and inner in body.inputs[:consts]:
                self.static.add(inner)
            self.ready[inner] = self.ready.get(self.source(outer), 0.0)
        self.static.update(body.constants)
        nodes = self.nodes(body)
        for _ in range(params["length"]):
            for node in nodes:
                self.node(node)
            carried = [self.ready.get(self.source(value), 0.0) for value in body.outputs[:carries]]
            self.ready.update(zip(body.inputs[consts:consts + carries], carried, strict=True))
        for inner, outer in zip(body.outputs, equation.outputs, strict=True):
            self.ready[outer] = self.ready.get(self.source(inner), 0.0)

    # --- values ------------------------------------------------------------------------------------------------------

    def source(self, value: Value) -> Value:
        """The value that a view looks at."""
        while value in self.behind:
            value = self.behind[value]
        return value

    def reads(self, node: Node) -> set[Value]:
        """Values that a node reads, its own and weights among them."""
        return {self.source(value) for equation in node.equations for value in equation.inputs}

    def outside(self, node: Node) -> tuple[set[Value], set[Value]]:
        """Values that a node reads, other than its own and weights, and values of its that leave it."""
        made = makes(node)
        return self.reads(node) - made - self.static, made & self.leaving

    def total_bytes(self, values: Iterable[Value]) -> int:
        return sum(value.aval.size * self.width(value) for value in values)

    def width(self, value: Value) -> int:
        """Bytes of an element."""
        own = value.aval.dtype.itemsize
        return own if value.aval.dtype is dtypes.int16 else self.machine.memory.element_bytes or own

    def is_spilled(self, value: Value) -> bool:
        """Whether a value goes through memory."""
        return (not self.machine.memory.read_only
                and self.total_bytes([value]) > self.machine.cores * self.machine.buffer.capacity // 2)

    def check_buffer(self, graph: Graph, nodes: Sequence[Node]) -> None:
        """Refuse a graph of whose values more are alive at one time than the buffers hold."""
        capacity = self.machine.cores * self.machine.buffer.capacity
        touched = [[value for values in self.outside(node) for value in values] for node in nodes]
        last = {value: number for number, values in enumerate(touched) for value in values}
        last.update((self.source(value), len(nodes)) for value in graph.outputs)
        alive: set[Value] = set(graph.inputs) - self.static
        for number, (node, values) in enumerate(zip(nodes, touched, strict=True)):
            alive.update(values)
            if self.total_bytes(alive) > capacity:
                where = f"the step is {node.equations[0].op.name} at {node.equations[0].where}"
                raise self.too_large("buffer", capacity, list(alive), f"take a smaller batch; {where}")
            alive = {value for value in alive if last.get(value, -1) > number}

    def too_large(self, room: str, capacity: int, values: Sequence[Value], hint: str) -> DeviceError:
        needed = self.total_bytes(values)
        largest = sorted(values, key=lambda value: -self.total_bytes([value]))[:3]
        return DeviceError(compose(
            f"{self.machine.name} has {_mebibytes(capacity)} of {room}, {_mebibytes(needed - capacity)} too little", [
                ("needed", _mebibytes(needed)),
                ("largest", ", ".join(f"{value.aval} with {_mebibytes(self.total_bytes([value]))}"
                                      for value in largest)), ("hint", hint)]))


def makes(node: Node) -> set[Value]:
    """Values that a node makes."""
    return {value for equation in node.equations for value in equation.outputs}


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
