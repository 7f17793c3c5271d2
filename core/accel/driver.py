"""Drivers compiled: the loop around a plan, which walks the plan without returning to Python.

Invariant: the text that is compiled is the driver's own file and nothing else of the program that brings it, so that
the store's key covers all that shapes the code.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.accel import store, threads
from core.accel.walker import Call

_TYPES: Mapping[str, tuple[str, Any]] = {
    "Network": ("WORDS", ctypes.c_void_p),
    "F32": ("types.CPointer(types.float32)", np.float32),
    "I32": ("types.CPointer(types.int32)", np.int32),
    "I64": ("types.CPointer(types.int64)", np.int64),
    "int": ("types.int64", ctypes.c_int64),
    "float": ("types.float64", ctypes.c_double),
}
"""For each annotation numba's type and what is passed: a kind of number, or the elements of an array."""

_ENDING = """

# What makes a driver of this file.
from numba import njit, types
from core.accel.atomics import WORDS
from core.accel.native import call
SIGNATURE = types.void({types})
kernel = {function}
FASTMATH = set()
for name in {helpers}:
    globals()[name] = njit(globals()[name], error_model="numpy")
"""

_scratch = (ctypes.c_void_p * 2)()


def run(function: Callable[..., None], call: Call, arguments: Sequence[Any]) -> None:
    """Run a driver around a call of a plan, on the threads of this process.

    Raises
    ------
    TypeError
        If an argument is not what the driver's annotation says.
    """
    kinds, native = _native(function)
    if len(arguments) != len(kinds):
        raise TypeError(f"{function.__name__} takes {len(kinds)} arguments behind the network, found {len(arguments)}")
    words = [_word(function, kind, argument) for kind, argument in zip(kinds, arguments, strict=True)]

    threads.pool().run(call, _scratch, _scratch, call.words.ctypes.data, *words, through=native)


def _word(function: Callable[..., None], kind: Any, argument: Any) -> Any:
    """An argument as it is passed."""
    if not issubclass(kind, np.generic):
        return argument
    if not _is_flat(argument, kind):
        is_array = isinstance(argument, np.ndarray)
        found = f"{argument.dtype}{list(argument.shape)}" if is_array else type(argument).__name__
        raise TypeError(f"{function.__name__} takes a flat array of {kind.__name__}, C-contiguous; found {found}")
    return argument.ctypes.data


def _is_flat(argument: NDArray[Any] | Any, kind: type[np.generic]) -> bool:
    return (isinstance(argument, np.ndarray) and argument.dtype == kind and argument.ndim == 1
            and argument.flags.c_contiguous)


@functools.cache
def _native(function: Callable[..., None]) -> tuple[list[Any], Callable[..., int]]:
    """What a driver's arguments are passed as, and its compiled code."""
    names = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
    passed = [_TYPES[name][1] for name in names[1:]]
    words = [ctypes.c_void_p if issubclass(kind, np.generic) else kind for kind in passed]
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, *words)
    return passed, call(store.address(_text(function, names)))


def _text(function: Callable[..., None], names: Sequence[str]) -> str:
    module = inspect.getmodule(function)
    assert module is not None
    helpers = [name for name in _functions(module) if name != function.__name__]
    return inspect.getsource(module) + _ENDING.format(types=", ".join(_TYPES[name][0] for name in names),
                                                      function=function.__name__, helpers=helpers)


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__]
