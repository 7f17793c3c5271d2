"""The compiler of TPU v1: a quantised graph and its weights to the chip's program and the steps of the host.

Bytes and sums are the chip's, everything else is the host's: making bytes of the inputs, and floats of the last sums.
What the chip has no instruction for between two of its layers is refused, or is a step of the host that the stream
waits for.

Invariant: the results are those of the graph on the backend that runs the steps of the host. On the reference they have
its bits; the cpu backend rounds a product of floats and its sum once if they meet in one kernel, which may depend on
where the graph is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from core.accel.cpu import BACKEND as CPU
from core.accel.passes.simplify import simplify
from core.accel.tpu import simulator
from core.accel.tpu.backend import V1 as CHIP
from core.accel.tpu.instructions import Memories
from core.accel.tpu.loops import unrolled
from core.accel.tpu.programs import V1, Program, assemble
from core.accel.tpu.reading import Reading
from core.accel.tpu.schedule import Schedule
from core.engine.backends import Backend, Options
from core.engine.errors import DeviceError
from core.engine.graph import Graph, Value


@dataclass(frozen=True)
class Compiled:
    """A program, and the steps of the host around and between its parts.

    Attributes
    ----------
    inputs : of the graph, without weights
    steps : one before each part of the program, and one behind the last
    given, wanted : by part, the values that the chip takes and gives
    known : outputs that depend on weights alone
    """

    program: Program
    inputs: Sequence[Value]
    steps: Sequence[Graph]
    given: Sequence[Sequence[Value]]
    wanted: Sequence[Sequence[Value]]
    outputs: Sequence[Value]
    known: Mapping[Value, NDArray[Any]]

    def __call__(self, arrays: Sequence[NDArray[Any]], on_host: Backend = CPU) -> list[NDArray[Any]]:
        """Run it on the simulated chip.

        Parameters
        ----------
        arrays : the inputs without weights
        on_host : what runs the steps of the host

        Returns
        -------
        The graph's outputs.
        """
        values = {**self.known, **dict(zip(self.inputs, arrays, strict=True))}

        def take(part: int, found: list[NDArray[Any]]) -> None:
            values.update((value, array.reshape(value.aval.shape))
                          for value, array in zip(self.wanted[part], found, strict=True))

        def host(part: int, found: list[NDArray[Any]]) -> list[NDArray[Any]]:
            if part:
                take(part - 1, found)
            _run(self.steps[part], values, on_host)
            return [values[value].reshape(-1, place.columns)
                    for value, place in zip(self.given[part], self.program.parts[part].given, strict=True)]

        take(-1, simulator.run(self.program, host))
        _run(self.steps[-1], values, on_host)
        return [values[value] for value in self.outputs]


def _run(graph: Graph, values: dict[Value, NDArray[Any]], on_host: Backend) -> None:
    """Run a step of the host."""
    if graph.outputs:
        found = on_host.compile(graph, Options())([values[value] for value in graph.inputs])
        values.update(zip(graph.outputs, found, strict=True))


def compile_graph(graph: Graph, held: Sequence[NDArray[Any]], memories: Memories = V1, *,
                  with_host: bool = False) -> Compiled:
    """The program of a graph.

    Parameters
    ----------
    held : storage of the leading inputs, which are the weights and scales
    with_host : whether the host may compute between two layers of the chip

    Raises
    ------
    DeviceError
        If the chip cannot run the graph: by op, layer and line.
    """
    CHIP.check(graph)
    simple = simplify(unrolled(graph))
    reading = Reading(simple, held)
    if not reading.layers:
        raise DeviceError("there is no product of bytes for tpu-v1 to compute; quantise the run first: tilework APP "
                          "quantize RUN --bits 8 --out RUN8")
    schedule = Schedule(simple, reading)
    if schedule.count > 1 and not with_host:
        raise schedule.refusal()
    parts = range(schedule.count)
    steps = [schedule.step(number) for number in range(schedule.count + 1)]
    program = assemble([schedule.stage(part) for part in parts], memories, [_described(step) for step in steps[1:-1]])
    return Compiled(program, simple.inputs[len(held):], steps, [schedule.given_in(part) for part in parts],
                    [schedule.wanted_in(part) for part in parts], simple.outputs,
                    {value: reading.known[value] for value in simple.outputs if value in reading.known})


def _described(step: Graph) -> list[str]:
    """The ops of a step of the host, a line a place in the source."""
    found: dict[str, dict[str, None]] = {}
    for equation in step.equations:
        found.setdefault(str(equation.where), {})[equation.op.name] = None
    return [f"{' '.join(names)} at {where}" for where, names in found.items()]
