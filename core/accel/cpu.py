"""The cpu backend: plans of numba kernels, walked by compiled code on the machine's threads.

Invariant: a call gives the same bits at any number of threads, whatever ran before it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, starmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel import compilers, threads
from core.accel import driver as drivers
from core.accel.lower import AnyStep, HostStep
from core.accel.passes.memory import ALIGNMENT
from core.accel.plan import ARENA, FIRST_INPUT, KEPT, Plan, make_plan
from core.accel.step import Repeat, View
from core.accel.walker import ELEMENTS, Call, PlanTable, bases
from core.engine.backends import Options
from core.engine.graph import Graph
from core.engine.ops.table import evaluate

Memory = NDArray[np.uint8]

_LARGE = 1 << 19
"""Bytes of an array from which its place in memory is worth the microseconds that it takes to choose it."""


def _allocate(nbytes: int) -> Memory:
    """Zeroed bytes at an aligned address."""
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    skip = -_address(raw) % ALIGNMENT
    return raw[skip:skip + nbytes]


def _empty(shape: tuple[int, ...], storage: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array; a large one begins with a cache line, so that its rows are not torn over two."""
    nbytes = prod(shape) * storage.itemsize
    if nbytes < _LARGE:
        return np.empty(shape, storage)
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    return np.ndarray(shape, storage, raw.data, -_address(raw) % ALIGNMENT)


def _references(arrays: Sequence[NDArray[Any]], number: int) -> tuple[int, int]:
    """How often an array of a list is known, and the memory that it shares with views of it."""
    return sys.getrefcount(arrays[number]), sys.getrefcount(arrays[number].base)


_UNSHARED = _references([np.empty(2)[1:]], 0)
"""For an array that nothing but the list knows."""


class CpuExecutable:
    """A plan with its memory. Calls take turns."""

    def __init__(self, graph: Graph, options: Options, backend: str = "cpu") -> None:
        self._plan: Plan = make_plan(graph, options, backend)
        self.report = self._plan.report
        self._options = options
        self._lock = threading.Lock()
        self._arena, self._kept = _allocate(self._plan.arena), _allocate(self._plan.kept)
        for offset, image in self._plan.constants:
            self._kept[offset:offset + image.size] = image
        compilers.compile_missing(_kernels((*self._plan.prologue, *self._plan.body)))
        self._bases = bases(FIRST_INPUT + len(self._plan.inputs) + len(self._plan.outputs))
        self._bases[ARENA], self._bases[KEPT] = _address(self._arena), _address(self._kept)
        self._first_given = FIRST_INPUT + options.held
        self._first_output = FIRST_INPUT + len(self._plan.inputs)
        self._first_fresh = self._first_output + (options.held if options.carried else 0)
        self._prologue = self._segments(self._plan.prologue)
        self._body = self._segments(self._plan.body)
        self._results = [(view.shape, view.dtype.storage) for view in
                         self._plan.outputs[self._first_fresh - self._first_output:]]
        self._latest: list[NDArray[Any]] = list(starmap(_empty, self._results))
        self._has_large = any(array.nbytes >= _LARGE for array in self._latest)
        self._held: list[NDArray[Any]] = []
        # Carried inputs that no step overwrites in place have a second array: a call reads one and writes the other,
        # then they change places.
        self._spare: list[NDArray[Any]] = []
        if not options.held:
            self._prepare()

    def _segments(self, steps: Sequence[AnyStep]) -> list[Call | HostStep]:
        """Calls of the steps between those that run on the host; each is given the arguments and the results."""
        given = (*range(self._first_given, self._first_output), *range(self._first_fresh, len(self._bases)))
        segments: list[Call | HostStep] = []
        for on_host, group in groupby(steps, lambda step: isinstance(step, HostStep)):
            if on_host:
                segments += [step for step in group if isinstance(step, HostStep)]
            else:
                compiled = [step for step in group if not isinstance(step, HostStep)]
                segments.append(Call(PlanTable.build(compiled, self._plan.base_of), self._bases, given))
        return segments

    def hold(self, arrays: Sequence[NDArray[Any]]) -> None:
        with self._lock:
            held = [_empty(array.shape, array.dtype) for array in arrays]
            for own, array in zip(held, arrays, strict=True):
                own[...] = array
            carried = held if self._options.carried else []
            self._own(held, [array if number in self._plan.in_place else _empty(array.shape, array.dtype)
                             for number, array in enumerate(carried)])
            self._prepare()

    def held(self) -> list[NDArray[Any]]:
        with self._lock:
            return [array.copy() for array in self._held]

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        with self._lock:
            fresh = self._fresh()
            self._run(self._body, [array if array.flags.c_contiguous else np.ascontiguousarray(array)
                                   for array in arrays], fresh)
            if self._options.carried:
                self._own(self._spare, self._held)
            return fresh

    def drive(self, driver: Callable[..., None], given: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]],
              arguments: Sequence[Any]) -> None:
        """See `core.engine.backends.Driven`; the calls of the driver are not for executables that carry."""
        with self._lock:
            (call,) = self._body
            assert isinstance(call, Call) and not self._options.carried
            call.give([*given, *results])
            drivers.run(driver, call, arguments)

    def _fresh(self) -> list[NDArray[Any]]:
        """Arrays for results; a large one that nobody has any more is used again, since new pages cost time."""
        if not self._has_large:
            return [np.empty(shape, storage) for shape, storage in self._results]
        for number, result in enumerate(self._results):
            if self._latest[number].nbytes < _LARGE or _references(self._latest, number) != _UNSHARED:
                self._latest[number] = _empty(*result)
        return self._latest.copy()

    def _own(self, held: list[NDArray[Any]], spare: list[NDArray[Any]]) -> None:
        self._held, self._spare = held, spare
        self._bases[FIRST_INPUT:self._first_given] = list(map(_address, held))
        self._bases[self._first_output:self._first_fresh] = list(map(_address, spare))

    def _prepare(self) -> None:
        """Run what depends on constants and held inputs alone."""
        if self._prologue:
            given = [np.empty(view.shape, view.dtype.storage) for view in self._plan.inputs[self._options.held:]]
            self._run(self._prologue, given, [np.empty(shape, storage) for shape, storage in self._results])

    def _run(self, segments: Sequence[Call | HostStep], given: Sequence[NDArray[Any]],
             fresh: Sequence[NDArray[Any]]) -> None:
        for segment in segments:
            if isinstance(segment, Call):
                segment.give([*given, *fresh])
                threads.run(segment)
            else:
                self._run_on_host(segment, [self._arena, self._kept, *self._held, *given, *self._spare, *fresh])

    def _run_on_host(self, step: HostStep, memories: Sequence[NDArray[Any]]) -> None:
        inputs = [self._array(view, memories) for view in step.inputs]
        avals = [value.aval for value in step.equation.inputs]
        outputs = [value.aval for value in step.equation.outputs]
        results = evaluate(step.equation.op, inputs, avals, step.equation.params, outputs)
        for view, result in zip(step.outputs, results, strict=True):
            self._array(view, memories)[...] = result

    def _array(self, view: View, memories: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """A numpy array of a view."""
        base, offset = self._plan.base_of[view.buffer]
        itemsize = view.dtype.itemsize
        return np.ndarray(view.shape, view.dtype.storage, memories[base].reshape(-1).view(np.uint8).data,
                          offset + view.offset * itemsize, tuple(stride * itemsize for stride in view.strides))


_word_at = ctypes.c_size_t.from_address


def _kernels(steps: Sequence[AnyStep]) -> Iterator[str]:
    """Texts of the kernels of some steps."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from _kernels((*step.start, *step.steps))
        elif not isinstance(step, HostStep):
            yield step.kernel


def _address(array: NDArray[Any]) -> int:
    """Address of the elements: what ``array.ctypes.data`` gives, in a fifth of its time."""
    return _word_at(id(array) + ELEMENTS).value


class CpuBackend:
    """See the module."""

    def compile(self, graph: Graph, options: Options) -> CpuExecutable:
        return CpuExecutable(graph, options)


BACKEND = CpuBackend()
