"""Plans as tables, and calls of them.

Invariant: a table never changes after it is built, and holds in any process. What differs from call to call, the
addresses of inputs and outputs, comes with the call as `bases`, and the table refers to it by number, as it does to
kernels.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel import layout, store
from core.accel.builtin import Builtin
from core.accel.layout import (
    BACK,
    DIMS_START,
    ENDS_SERIAL_RUN,
    EXTENT,
    FUNCTION,
    GRAIN,
    MAXIMUM_OPERANDS,
    OPERAND_WORDS,
    OPERANDS_START,
    OPERANDS_STOP,
    PIECES,
    STEP_WORDS,
    TIMES,
)
from core.accel.step import Buffer, Repeat, Step
from core.engine import dtypes

Bases = ctypes.Array[ctypes.c_size_t]
"""Addresses of the arena, the constants, the inputs and the outputs, in the order that a table's `base_of` numbers."""

_SMALL, _SMALL_BETWEEN = 12e-6, 3e-6
"""Seconds below which a step stays on one thread: to bring another one in takes 3 to 10 microseconds, and about one
where it waits already, between other steps that are shared."""
_PIECE = 40e-6
_MAXIMUM_PIECES = 4
_FLOPS_PER_SECOND = 60e9
_NARROW_FLOPS_PER_SECOND = 400e9
"""Of bfloat16 and of bytes."""
_BYTES_PER_SECOND = 10e9


def bases(count: int) -> Bases:
    """Room for `count` base addresses; set them by index, as integers."""
    return (ctypes.c_size_t * count)()


def estimate(step: Step) -> float:
    """Seconds that a step takes one thread, roughly: the greater of its arithmetic and its memory traffic."""
    traffic = step.nbytes or sum(min(view.size * view.dtype.itemsize, view.buffer.nbytes) for view in step.operands)
    is_narrow = step.operands and step.operands[0].dtype in (dtypes.bfloat16, dtypes.int8, dtypes.uint8)
    rate = _NARROW_FLOPS_PER_SECOND if is_narrow else _FLOPS_PER_SECOND
    return max(step.flops / rate, traffic / _BYTES_PER_SECOND)


def small_steps(steps: Sequence[Step]) -> Callable[[Step], bool]:
    """Whether a step of a plan takes too little to be shared among threads."""
    least = _SMALL if all(estimate(step) < _SMALL for step in steps) else _SMALL_BETWEEN
    return lambda step: estimate(step) < least


@dataclass(frozen=True, eq=False)
class PlanTable:
    """The steps of a plan as the compiled walker reads them.

    Attributes
    ----------
    kernels : source texts
    steps : i64[step, field], the fields that `layout` names; in the place of a function the number of its kernel
    operands : i64[operand, field], the fields that `layout` names; a step has a range of rows
    dims : i64[dim], a step has a range of them
    """

    kernels: tuple[str, ...]
    steps: NDArray[np.int64]
    operands: NDArray[np.int64]
    dims: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.steps, self.operands, self.dims):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def parallel(self) -> bool:
        """Whether any step is shared among threads."""
        return bool((self.steps[:, PIECES] > 0).any())

    @property
    def address(self) -> int:
        """Where the compiled walker finds the three arrays; compiles or loads the kernels."""
        return ctypes.addressof(self._linked[0])

    @functools.cached_property
    def _linked(self) -> tuple[Any, NDArray[np.int64]]:
        """Pointers to the arrays, and the steps with their functions."""
        steps = self.steps.copy()
        steps[:, FUNCTION] = np.array(store.addresses(self.kernels), np.int64)[self.steps[:, FUNCTION]]
        arrays = (steps, self.operands, self.dims)
        return (ctypes.c_void_p * 3)(*(array.ctypes.data for array in arrays)), steps

    @staticmethod
    def build(plan: Sequence[Step | Repeat], base_of: Mapping[Buffer, tuple[int, int]],
              serial: Callable[[Step], bool] | None = None) -> PlanTable:
        """The table of steps and of repeats, each of which becomes its steps.

        Parameters
        ----------
        plan : in the order in which it runs
        base_of : for each buffer the number of its base and its offset from there, in bytes
        serial : whether a step stays on one thread; those that are small by default

        Raises
        ------
        KeyError
            If `base_of` lacks a buffer.
        ValueError
            If a step has more than ``layout.MAXIMUM_OPERANDS`` operands, or a grain below 1.
        """
        steps, repeats = _flat(plan)
        serial = serial or small_steps(steps)
        kernels: dict[str, int] = {}
        rows = np.zeros((len(steps), STEP_WORDS), np.int64)
        operands: list[tuple[int, ...]] = []
        dims: list[int] = []
        for row, step in zip(rows, steps, strict=True):
            _check(step)
            row[FUNCTION] = kernels.setdefault(step.kernel, len(kernels))
            row[OPERANDS_START] = len(operands)
            row[DIMS_START] = len(dims)
            row[EXTENT] = step.extent
            row[GRAIN] = step.grain
            row[PIECES] = 0 if step.extent <= step.grain or serial(step) else _pieces(step)
            for view in step.operands:
                base, offset = base_of[view.buffer]
                itemsize = view.dtype.itemsize
                operands.append((base, offset + view.offset * itemsize, view.advance * itemsize, view.swing * itemsize))
            dims.extend(step.dims)
            row[OPERANDS_STOP] = len(operands)
        alone = rows[:, PIECES] == 0
        rows[:-1, ENDS_SERIAL_RUN] = alone[:-1] & ~alone[1:]
        for last, (length, count) in repeats.items():
            rows[last, TIMES], rows[last, BACK] = count, length - 1
            rows[last, ENDS_SERIAL_RUN] |= alone[last] & ~alone[last + 1 - length]
        return PlanTable(tuple(kernels), rows, np.array(operands, np.int64).reshape(-1, OPERAND_WORDS),
                         np.array(dims, np.int64))


def _flat(plan: Sequence[Step | Repeat]) -> tuple[list[Step], dict[int, tuple[int, int]]]:
    """The steps in a row; for the last one of each repeat its steps and how often they run."""
    steps: list[Step] = []
    repeats: dict[int, tuple[int, int]] = {}
    for entry in plan:
        if isinstance(entry, Step):
            steps.append(entry)
        else:
            steps += (*entry.start, *entry.steps)
            repeats[len(steps) - 1] = len(entry.steps), entry.count
    return steps, repeats


def _check(step: Step) -> None:
    if len(step.operands) > MAXIMUM_OPERANDS:
        raise ValueError(f"step {step.name!r} has {len(step.operands)} operands; at most {MAXIMUM_OPERANDS} fit")
    if step.grain < 1:
        raise ValueError(f"step {step.name!r} has grain {step.grain}; the least is 1")


def _pieces(step: Step) -> int:
    """Pieces per thread: several for long steps, so that others can take over from a thread that is put aside."""
    return min(max(int(estimate(step) / _PIECE), 1), _MAXIMUM_PIECES)


class Call:
    """Steps of a plan with their bases, as compiled code reads them.

    Where `last` lies inside a repeat, its steps up to there run once.

    Parameters
    ----------
    bases : addresses; they stay the caller's
    given : numbers of those bases that are the elements of the arrays which come with each run
    first, last : from this step to before that one; by default all

    Attributes
    ----------
    run : ``run(*arrays)`` runs the steps without the GIL, on arrays, C-contiguous, in the order of `given`
    """

    def __init__(self, table: PlanTable, bases: Bases, given: Sequence[int] = (), first: int = 0,
                 last: int | None = None) -> None:
        self.parallel = table.parallel
        self.words = np.zeros(layout.CALL_GIVEN + len(given), np.uintp)
        self.words[layout.CALL_PLAN], self.words[layout.CALL_BASES] = table.address, ctypes.addressof(bases)
        self.words[layout.CALL_FIRST], self.words[layout.CALL_LAST] = first, len(table) if last is None else last
        self.words[layout.CALL_COUNT], self.words[layout.CALL_GIVEN:] = len(given), given
        self.run = _enter().of(self.words, needed=(table, bases))
        self._given = given
        self._bases = bases

    def point(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Let the bases be what `run` would take of these arrays, for a driver; they must live while it runs."""
        for base, array in zip(self._given, arrays, strict=True):
            self._bases[base] = address(array)

    def set_control(self, address: int) -> None:
        """Run on the calling thread and those of the pool at this address; alone if it is 0."""
        self.words[layout.CALL_CONTROL] = address


_word_at = ctypes.c_size_t.from_address


def address(array: NDArray[Any]) -> int:
    """Address of the elements: what ``array.ctypes.data`` gives, in a fifth of its time."""
    return _word_at(id(array) + 8 * layout.ELEMENTS).value


@functools.cache
def _enter() -> Builtin:
    return Builtin("run", store.address(ENTER), "a call takes as many arrays as its plan is given")


ENTER = "from core.accel.native import ENTER as SIGNATURE, enter as kernel\n"
"""The text of what runs a plan."""
