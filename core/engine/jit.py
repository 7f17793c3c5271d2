"""jit and bind: trace a function once for each signature, compile it, and call the executable.

Invariant: a jitted function gives what the function gives; inside another trace it becomes a `call` of its graph.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine import tree
from core.engine.array import Array, array, as_array, aval_of_storage
from core.engine.backends import Executable, Options, Report, backend, drive
from core.engine.errors import ShapeError
from core.engine.graph import Aval, Graph
from core.engine.ops.control import call
from core.engine.trace import Traced, is_staging, trace

DEFAULT_DEVICE = "cpu"
_Signature = tuple[tree.Structure, list[Aval]]
"""Arguments as a compiled function knows them."""


@dataclass(frozen=True)
class _Compiled:
    executable: Executable
    structure: tree.Structure
    outputs: tuple[Aval, ...]


def close(traced: Traced) -> Graph:
    """A graph without captures: concrete arrays that the function closed over become constants."""
    graph = traced.graph
    count = len(graph.inputs) - len(traced.captures)
    constants = dict(graph.constants)
    for value, captured in zip(graph.inputs[count:], traced.captures, strict=True):
        constants[value] = captured.storage
    return Graph(graph.inputs[:count], graph.equations, graph.outputs, constants)


class Jitted:
    """A function that is compiled for the avals it is called with; see `jit`."""

    def __init__(self, function: Callable[..., Any], device: str) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.device = device
        self._compiled: dict[Any, _Compiled] = {}
        self._lock = threading.Lock()
        self._latest: tuple[_Signature, _Compiled] | None = None

    def trace(self, *arguments: Any) -> Traced:
        """The graph for arguments like these."""
        leaves, structure = tree.flatten(arguments)
        return trace(self.function, [as_array(leaf).aval for leaf in leaves], structure)

    def __call__(self, *arguments: Any) -> Any:
        if is_staging():
            leaves, structure = tree.flatten(arguments)
            arrays = [as_array(leaf) for leaf in leaves]
            traced = trace(self.function, [array.aval for array in arrays], structure)
            return tree.unflatten(traced.structure, call(*arrays, *traced.captures, graph=traced.graph))
        signature, storages = _described(arguments)
        latest = self._latest
        if latest is None or latest[0] != signature:
            self._latest = latest = signature, self._compiled_for(signature)
        compiled = latest[1]
        return _wrap(compiled.structure, compiled.outputs, compiled.executable(storages))

    def report(self, *arguments: Any) -> Report:
        """What the executable for arguments like these is made of."""
        return self._compiled_for(_described(arguments)[0]).executable.report

    def bind(self, first: Any, update: bool = False) -> Program:
        """A Program that owns the memory of the first argument.

        Parameters
        ----------
        first : tree of arrays, such as the parameters of a model
        update : the function gives ``(new_first, result)`` and each call replaces what is owned
        """
        return Program(self, first, update)

    def _compiled_for(self, signature: _Signature) -> _Compiled:
        structure, avals = signature
        key = structure, tuple(avals)
        with self._lock:
            known = self._compiled.get(key)
            if known is None:
                known = self._compiled[key] = self.compile(signature, Options())
            return known

    def compile(self, signature: _Signature, options: Options) -> _Compiled:
        """A new executable for arguments of this signature."""
        structure, avals = signature
        traced = trace(self.function, avals, structure)
        graph = close(traced)
        return _Compiled(backend(self.device).compile(graph, options), traced.structure,
                         tuple(value.aval for value in graph.outputs))


def _described(arguments: tuple[Any, ...]) -> tuple[_Signature, list[NDArray[Any]]]:
    """Signature and storages of arguments. Most are arrays, which are no trees to look into."""
    avals, storages = [], []
    for argument in arguments:
        if type(argument) is np.ndarray:
            avals.append(aval_of_storage(argument.dtype, argument.shape))
            storages.append(argument)
        elif type(argument) is Array:
            avals.append(argument.aval)
            storages.append(argument.storage)
        else:
            leaves, structure = tree.flatten(arguments)
            arrays = [as_array(leaf) for leaf in leaves]
            return (structure, [array.aval for array in arrays]), [array.storage for array in arrays]
    return (tree.tuple_of_leaves(len(avals)), avals), storages


def _wrap(structure: tree.Structure, avals: Sequence[Aval], results: Sequence[Any]) -> Any:
    if structure is tree.LEAF:
        return Array(avals[0], results[0])
    return tree.unflatten(structure, [Array(aval, result) for aval, result in zip(avals, results, strict=True)])


class Program:
    """A jitted function bound to its first argument, whose memory it owns.

    A call with new shapes compiles (or re-plans) once. What calls update moves along; what stays as it is, is held once
    for each of the shapes. One thread calls at a time. Programs of one function share nothing.
    """

    def __init__(self, jitted: Jitted, first: Any, update: bool) -> None:
        leaves, self._structure = tree.flatten(first)
        self._arrays = [array(leaf) for leaf in leaves]
        self._jitted = jitted
        self._options = Options(held=len(leaves), carried=update)
        self._holder: _Compiled | None = None
        # What is owned keeps its structure and avals, so that the other arguments alone tell what runs.
        self._signature: _Signature | None = None
        self._known: dict[tuple[tree.Structure, tuple[Aval, ...]], _Compiled] = {}

    def __call__(self, *rest: Any) -> Any:
        signature, storages = _described(rest)
        if signature != self._signature:
            self._turn_to(signature)
        compiled = self._holder
        assert compiled is not None
        results = compiled.executable(storages)
        if self._options.carried:
            return _wrap(compiled.structure.children[1], compiled.outputs[self._options.held:], results)
        return _wrap(compiled.structure, compiled.outputs, results)

    def drive(self, driver: Callable[..., None], inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]],
              *arguments: Any) -> None:
        """Run a loop that calls this program itself; see `core.engine.driver`.

        Parameters
        ----------
        driver : takes the program and the arguments
        inputs : storage of the arguments of every call, C-contiguous
        outputs : storage for the results of every call, C-contiguous
        arguments : of the driver: flat arrays and numbers
        """
        self._turn_to(_described(tuple(inputs))[0])
        assert self._holder is not None
        drive(self._holder.executable, driver, inputs, outputs, arguments)

    def _turn_to(self, signature: _Signature) -> None:
        """Let the executable for arguments of this signature hold what is owned."""
        structure, avals = signature
        key = (structure, tuple(avals))
        compiled, former = self._known.get(key), self._holder
        is_new = compiled is None
        if compiled is None:
            compiled = self._compile(signature)
            self._check(compiled)
        if is_new or (self._options.carried and compiled is not former):
            compiled.executable.hold([array.storage for array in tree.leaves(self.value)])
        if self._options.carried and former is not None and compiled is not former:
            former.executable.release()
        self._known[key] = self._holder = compiled
        self._signature = signature

    def _compile(self, signature: _Signature) -> _Compiled:
        structure, avals = signature
        names = ("0", *(str(index + 1) for index in range(len(structure.children))))
        whole = tree.Structure(tuple, None, names, (self._structure, *structure.children))
        return self._jitted.compile((whole, [*(array.aval for array in self._arrays), *avals]), self._options)

    @property
    def value(self) -> Any:
        """The first argument as it is now."""
        if self._holder is not None and self._options.carried:
            storages = self._holder.executable.held()
            self._arrays = [Array(array.aval, storage) for array, storage in zip(self._arrays, storages, strict=True)]
        return tree.unflatten(self._structure, self._arrays)

    @property
    def report(self) -> Report:
        """What the executable of the last call is made of."""
        if self._holder is None:
            raise ShapeError("this program has no shapes yet; call it once")
        return self._holder.executable.report

    def _check(self, compiled: _Compiled) -> None:
        if not self._options.carried:
            return
        given = compiled.structure.children
        if len(given) != 2 or given[0] != self._structure:
            raise ShapeError("a bound function with update=True must give (new_first, result), new_first of the tree "
                             "that was bound")
        for aval, given_array in zip(compiled.outputs, self._arrays, strict=False):
            if aval != given_array.aval:
                raise ShapeError(f"a bound function must keep the avals it updates: {given_array.aval} became {aval}")


def jit(function: Callable[..., Any] | None = None, *, device: str = DEFAULT_DEVICE) -> Any:
    """Compile a pure function of trees of arrays; usable as a decorator.

    Parameters
    ----------
    function : pure; shapes are static, so that a new shape traces and plans again
    device : name of a backend
    """
    if function is None:
        return lambda function: Jitted(function, device)
    return Jitted(function, device)
