"""The cpu backend: plans of numba kernels, walked by compiled code on the machine's threads.

Invariant: a call gives the same bits at any number of threads, whatever ran before it.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate, starmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel import compilers, planstore, threads
from core.accel import driver as drivers
from core.accel.finished import ARENA, FIRST_INPUT, KEPT, FinishedPlan, Segment
from core.accel.passes.memory import ALIGNMENT, aligned
from core.accel.step import HostStep, View
from core.accel.walker import Call, address, bases
from core.engine.backends import Options
from core.engine.graph import Graph
from core.engine.ops.table import evaluate

Memory = NDArray[np.uint8]

_LARGE = 1 << 19
"""Bytes of an array from which its place in memory is worth the microseconds that it takes to choose it."""


def _allocate(nbytes: int) -> Memory:
    """Bytes at an aligned address, which may hold anything. `numpy.zeros` would not ask for large pages."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -address(raw) % ALIGNMENT
    return raw[skip:skip + nbytes]


def _empty(shape: tuple[int, ...], storage: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array; a large one begins with a cache line, so that its rows are not torn over two."""
    nbytes = prod(shape) * storage.itemsize
    if nbytes < _LARGE:
        return np.empty(shape, storage)
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    return np.ndarray(shape, storage, raw.data, -address(raw) % ALIGNMENT)


def _together(like: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Uninitialised arrays in one piece of memory: many small pieces would not come in large pages."""
    places = list(accumulate((aligned(array.nbytes) for array in like), initial=0))
    memory = _allocate(places[-1])
    return [memory[place:place + array.nbytes].view(array.dtype).reshape(array.shape)
            for place, array in zip(places, like, strict=False)]


def _references(arrays: Sequence[NDArray[Any]], number: int) -> tuple[int, int]:
    """How often an array of a list is known, and the memory that it shares with views of it."""
    return sys.getrefcount(arrays[number]), sys.getrefcount(arrays[number].base)


_UNSHARED = _references([np.empty(2)[1:]], 0)
"""For an array that nothing but the list knows."""


_executables: weakref.WeakSet[CpuExecutable] = weakref.WeakSet()


def _unlock_all() -> None:
    """After a fork: the threads that were in calls are not in the child."""
    for executable in _executables:
        executable._lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_all)


class CpuExecutable:
    """A plan with its memory. Calls take turns."""

    def __init__(self, graph: Graph, options: Options, backend: str = "cpu") -> None:
        self._plan: FinishedPlan = planstore.plan_of(graph, options, backend)
        self.report = self._plan.report
        self._options = options
        self._lock = threading.Lock()
        _executables.add(self)
        self._arena, self._kept = _allocate(self._plan.arena), _allocate(self._plan.kept)
        for offset, array in self._plan.constants:
            self._kept[offset:offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        compilers.compile_missing(self._plan.kernels)
        self._bases = bases(FIRST_INPUT + len(self._plan.inputs) + len(self._plan.outputs))
        self._bases[ARENA], self._bases[KEPT] = address(self._arena), address(self._kept)
        self._first_given = FIRST_INPUT + options.held
        self._first_output = FIRST_INPUT + len(self._plan.inputs)
        self._first_fresh = self._first_output + (options.held if options.carried else 0)
        self._prologue = self._segments(self._plan.prologue)
        self._body = self._segments(self._plan.body)
        self._alone = _alone(self._body)
        self._results = [(aval.shape, aval.dtype.storage) for aval in
                         self._plan.outputs[self._first_fresh - self._first_output:]]
        self._latest: list[NDArray[Any]] = list(starmap(_empty, self._results))
        self._has_large = any(array.nbytes >= _LARGE for array in self._latest)
        self._held: list[NDArray[Any]] = []
        # Carried inputs that no step overwrites in place have a second array: a call reads one and writes the other,
        # then they change places.
        self._spare: list[NDArray[Any]] = []
        if not options.held:
            self._prepare()

    def _segments(self, segments: Sequence[Segment]) -> list[Call | HostStep]:
        """Calls in the place of tables; each is given the arguments and the results."""
        given = (*range(self._first_given, self._first_output), *range(self._first_fresh, len(self._bases)))
        return [segment if isinstance(segment, HostStep) else Call(segment, self._bases, given) for segment in segments]

    def hold(self, arrays: Sequence[NDArray[Any]]) -> None:
        with self._lock:
            held = _together(arrays)
            for own, array in zip(held, arrays, strict=True):
                own[...] = array
            carried, in_place = held if self._options.carried else [], self._plan.in_place
            second = iter(_together([array for number, array in enumerate(carried) if number not in in_place]))
            self._own(held, [array if number in in_place else next(second) for number, array in enumerate(carried)])
            self._prepare()

    def held(self) -> list[NDArray[Any]]:
        with self._lock:
            return [array.copy() for array in self._held]

    def release(self) -> None:
        with self._lock:
            self._held, self._spare = [], []

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        for array in arrays:
            if not array.flags.c_contiguous:
                arrays = [*map(np.ascontiguousarray, arrays)]
                break
        self._lock.acquire()  # half the time of a with statement
        try:
            fresh = self._fresh()
            if self._alone is not None:
                self._alone(*arrays, *fresh)
            else:
                self._run(self._body, arrays, fresh)
            if self._options.carried:
                self._own(self._spare, self._held)
            return fresh
        finally:
            self._lock.release()

    def drive(self, driver: Callable[..., None], given: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]],
              arguments: Sequence[Any]) -> None:
        """See `core.engine.backends.Driven`; the calls of the driver are not for executables that carry."""
        with self._lock:
            (call,) = self._body
            assert isinstance(call, Call) and not self._options.carried
            call.point([*given, *results])
            drivers.run(driver, call, arguments)

    def _fresh(self) -> list[NDArray[Any]]:
        """Arrays for results; a large one that nobody has any more is used again, since new pages cost time."""
        if not self._has_large:
            fresh = []
            for shape, storage in self._results:  # a comprehension would be a call more
                fresh.append(np.empty(shape, storage))
            return fresh
        for number, result in enumerate(self._results):
            if self._latest[number].nbytes < _LARGE or _references(self._latest, number) != _UNSHARED:
                self._latest[number] = _empty(*result)
        return self._latest.copy()

    def _own(self, held: list[NDArray[Any]], spare: list[NDArray[Any]]) -> None:
        self._held, self._spare = held, spare
        self._bases[FIRST_INPUT:self._first_given] = list(map(address, held))
        self._bases[self._first_output:self._first_fresh] = list(map(address, spare))

    def _prepare(self) -> None:
        """Run what depends on constants and held inputs alone."""
        if self._prologue:
            given = [np.empty(aval.shape, aval.dtype.storage) for aval in self._plan.inputs[self._options.held:]]
            self._run(self._prologue, given, [np.empty(shape, storage) for shape, storage in self._results])

    def _run(self, segments: Sequence[Call | HostStep], given: Sequence[NDArray[Any]],
             fresh: Sequence[NDArray[Any]]) -> None:
        for segment in segments:
            if isinstance(segment, HostStep):
                self._run_on_host(segment, [self._arena, self._kept, *self._held, *given, *self._spare, *fresh])
            else:
                threads.run(segment, *given, *fresh)

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


def _alone(segments: Sequence[Call | HostStep]) -> Callable[..., bool] | None:
    """What runs segments that are but one call and take one thread."""
    if len(segments) == 1 and isinstance(segments[0], Call) and not segments[0].parallel:
        return segments[0].run
    return None


class CpuBackend:
    """See the module."""

    def compile(self, graph: Graph, options: Options) -> CpuExecutable:
        return CpuExecutable(graph, options)


BACKEND = CpuBackend()
