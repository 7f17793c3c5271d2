"""The counters of a chip for a sequence of layers: what each cycle was spent on, by cause, as Table 3 has it.

Invariant: array active, weight stall, weight shift and non-matrix add up to all cycles.

Weight tiles go by as in `core.accel.tpu.timeline`, and beyond that (Jouppi et al., arXiv 1704.04760, sections 2 and 4)

* the array works `rows * passes` cycles on a tile;
* rows beyond the accumulators go in pieces, each of which needs all tiles of its layer again;
* a layer begins when the layer before is done: its sums have left the array (R + C cycles), and each of its vector
  operations has gone over the elements that are left in half of the accumulators, one row of 256 a cycle, and has been
  synchronised with (the paper's "delay slot");
* a batch begins when the results of the last one are on the host and its own input is on the chip.

One number is fitted, the machine's ``vector.synchronisation``, to one figure of one application.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.accel.tpu.machine import Machine
from core.accel.tpu.steps import CLASSES, Estimate, Step, name_host
from core.accel.tpu.timeline import Timeline, pieces, waiting


@dataclass(frozen=True)
class MatrixLayer:
    """Matrices of one shape that read the same rows, and what is done to the result.

    Attributes
    ----------
    rows : that pass each tile: the batch, or batch x height x width
    depth, columns : of one matrix
    matrices : such as the gates of a cell
    vectors : vector operations in a chain before the next layer can begin
    """

    name: str
    rows: int
    depth: int
    columns: int
    matrices: int = 1
    vectors: int = 1

    @property
    def weights(self) -> int:
        return self.depth * self.columns * self.matrices

    @property
    def macs(self) -> int:
        return self.rows * self.weights

    def tiles(self, machine: Machine) -> int:
        """Tiles of weights, whole ones: the margins of a matrix are padded."""
        down, across = -(-self.depth // machine.array.rows), -(-self.columns // machine.array.columns)
        return down * across * self.matrices


@dataclass(frozen=True)
class Application:
    """Layers one after the other, for one batch.

    Attributes
    ----------
    activation : type of the operands, a name of ``array.passes``; a chip without it has one of a single pass
    input_bytes, output_bytes : between host and chip, for a batch
    """

    name: str
    batch: int
    layers: Sequence[MatrixLayer]
    activation: str
    input_bytes: int
    output_bytes: int

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


def run(machine: Machine, application: Application, host: bool = True) -> Estimate:
    """Run batches of an application, one after the other, and time the second one.

    Parameters
    ----------
    host : whether the array waits for transfers to and from the host; otherwise they are hidden
    """
    time = Timeline(machine)
    to_cycles = machine.clock / machine.host.bandwidth if host else 0.0
    passes = machine.array.passes.get(application.activation, 1)
    transfers = (application.input_bytes + application.output_bytes) * to_cycles
    load = machine.array.per_core * machine.cores * machine.tile_cycles
    ready, start, steps = application.input_bytes * to_cycles, 0.0, list[Step]()
    for _ in range(2):
        start, steps = time.ended, []
        for layer in application.layers:
            before, began = time.spent, time.ended
            rounds = -(-layer.tiles(machine) // machine.array.per_core)
            parts = pieces(machine, -(-layer.rows // machine.cores))
            for rows in parts:
                time.tiles(rounds, rows * passes, load, ready)
            active, stall, shift, waited = (now - then for now, then in zip(time.spent, before, strict=True))
            ready = time.ended + waiting(machine, -(-layer.rows // machine.cores) * layer.columns, layer.vectors)
            step = Step(f"{layer.matrices} of {layer.depth} x {layer.columns}", layer.name, "", "array",
                        began + waited - start, time.ended - start, layer.macs,
                        layer.vectors * layer.rows * layer.columns,
                        layer.tiles(machine) * len(parts) * machine.tile_bytes * machine.cores,
                        result_bytes=layer.rows * layer.columns * layer.matrices * machine.weight_bytes)
            step.spent.update(zip(CLASSES, (active, stall, shift, 0.0, waited), strict=False))
            steps.append(step)
        ready += transfers
    name_host(steps, transfers)
    return Estimate(machine, steps, application.input_bytes * to_cycles, 0.0, time.ended - start,
                    application.weights * machine.weight_bytes)


def counters(machine: Machine, application: Application) -> dict[str, float]:
    """The rows of Table 3: percentages of all cycles, and TOPS.

    The counters saw the host (row 8); TOPS are from other runs, with the host's time excluded.
    """
    found = run(machine, application)
    cycles = found.cycles()
    passes = machine.array.passes.get(application.activation, 1)
    useful = application.macs * passes / machine.macs_per_cycle
    rows = {"array active": cycles["active"], "useful MACs": useful, "unused MACs": cycles["active"] - useful,
            "weight stall": cycles["weight stall"], "weight shift": cycles["weight shift"],
            "non-matrix": cycles["waiting"] + cycles["host"], "RAW stalls": cycles["waiting"],
            "input stalls": min(found.host_input, cycles["host"])}
    return {**{name: 100 * value / found.total for name, value in rows.items()},
            "TOPS": run(machine, application, host=False).tops}


@dataclass(frozen=True)
class Tiles:
    """A matrix for rows of a batch on one array, weights from memory.

    Attributes
    ----------
    steps : tiles
    seconds : from tile to tile of a steady stream, for all of them
    """

    steps: int
    seconds: float


def stream(machine: Machine, rows: int, depth: int, columns: int) -> Tiles:
    """Tiles and time of one matrix, the example of the paper's section 7 (600 x 600)."""
    count = MatrixLayer("", rows, depth, columns).tiles(machine)
    return Tiles(count, count * max(machine.tile_cycles, machine.array.weight_shift, rows) / machine.clock)
