"""Updates in place: which results overwrite what they update, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.accel.cpu import CpuExecutable
from core.engine import ops
from core.engine.array import as_array
from core.engine.jit import Program, jit
from core.engine.optim import SGD, Adam

ROWS, COLUMNS = 37, 24
Step = Callable[[Any, Any], tuple[Any, Any]]


def executable(program: Program) -> CpuExecutable:
    assert program._holder is not None and isinstance(program._holder.executable, CpuExecutable)
    return program._holder.executable


def values(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    generator = np.random.default_rng(3)
    return tuple(as_array(generator.normal(size=shape).astype(np.float32)) for shape in shapes)


CASES: dict[str, tuple[Step, set[int]]] = {
    "elementwise": (lambda p, x: ((p[0] * 0.9 + x, p[1] - x * x), x.sum()), {0, 1}),
    "read earlier": (lambda p, x: ((p[0] - (p[0] @ p[1].T) @ x * 0.01, p[1] * 0.5), p[0].sum()), {1}),
    "read later": (lambda p, x: ((p[0] * 0.9 + x, p[1]), (p[0] @ (p[0] * 0.9 + x).T).sum()), set()),
    "one from the other": (lambda p, x: ((p[0] + p[1], p[1] * x), x.sum()), {0, 1}),
    "swapped": (lambda p, x: ((p[1] * 1.0, p[0] * 1.0), x.sum()), set()),
    "handed on": (lambda p, x: ((p[0], p[1] + 1.0), x.sum()), {1}),
    "upside down": (lambda p, x: ((p[0] + p[0][::1][ops.arange(ROWS)], p[1] * 2.0), x.sum()), {1}),
    "a sum of columns, one of all": (lambda p, x: ((p[0] + p[0].sum(0), p[1] + p[1].mean()), x.sum()), {0}),
    "shown": (lambda p, x: ((p[0] + x, p[1] + x), p[0].T), {1}),
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_reference(case: str) -> None:
    step, expected = CASES[case]
    start, inputs = values((ROWS, COLUMNS), (ROWS, COLUMNS)), values((ROWS, COLUMNS))[0]
    programs = [jit(step, device=device).bind(start, update=True) for device in ("cpu", "reference")]
    for _ in range(4):
        mine, reference = (program(inputs) for program in programs)
        np.testing.assert_allclose(mine.numpy(), reference.numpy(), rtol=2e-4, atol=1e-4)
        for own, other in zip(programs[0].value, programs[1].value, strict=True):
            np.testing.assert_allclose(own.numpy(), other.numpy(), rtol=2e-4, atol=1e-4)
    assert executable(programs[0])._plan.in_place == expected


@pytest.mark.parametrize("optimiser", [Adam(), SGD(momentum=0.9)], ids=["adam", "sgd"])
def test_an_optimiser_needs_one_set_of_its_numbers(optimiser: Any) -> None:
    parameters = dict(zip("ab", values((ROWS, COLUMNS), (COLUMNS,)), strict=True))
    gradients = dict(zip("ab", values((ROWS, COLUMNS), (COLUMNS,)), strict=True))

    def step(held: Any, gradients: Any) -> Any:
        return optimiser.update(gradients, held[1], held[0], 0.01), gradients["b"].sum()

    start = (parameters, optimiser.init(parameters))
    programs = [jit(step, device=device).bind(start, update=True) for device in ("cpu", "reference")]
    for _ in range(3):
        for program in programs:
            program(gradients)
    for name in "ab":
        mine, reference = (program.value[0][name].numpy() for program in programs)
        np.testing.assert_allclose(mine, reference, rtol=1e-5)
    plan = executable(programs[0])._plan
    large = {number for number, view in enumerate(plan.inputs[:-2]) if view.size > 1}
    assert large <= plan.in_place


def test_values_that_were_handed_out_stay_as_they_were() -> None:
    program = jit(lambda p, x: (p + x, x.sum())).bind(as_array(np.zeros(1000, np.float32)), update=True)
    program(np.ones(1000, np.float32))
    before = program.value.numpy()
    program(np.ones(1000, np.float32))
    assert before.tolist() == [1.0] * 1000 and program.value.numpy().tolist() == [2.0] * 1000
