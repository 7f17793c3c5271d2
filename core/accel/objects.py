"""Object code: made from a text by numba, and loaded into the process by llvmlite.

Invariant: each object is linked into a library of its own, so equal symbols in two objects never meet, and loaded code
stays in place until the process ends, because threads may be running it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import linecache
from collections.abc import Mapping
from typing import Any, NamedTuple

from core.engine.errors import DeviceError, compose

FASTMATH = frozenset({"contract", "nsz"})
"""LLVM's liberties for a text that names no others: none that would break NaN, infinities or masks."""


_numbers = itertools.count()  # names of libraries


class ObjectCode(NamedTuple):
    """An object file and the symbol of its one entry point."""

    symbol: str
    content: bytes


def compile_text(text: str, function: str, name: str) -> ObjectCode:
    """Compile `function` of a text with numba; `name` is what tracebacks call the text."""
    from llvmlite.binding import initialize_native_asmparser
    from numba import njit
    from numba.core import config

    from core.accel.pointer import KERNEL

    if config.DISABLE_JIT:  # type: ignore[attr-defined]  # numba makes its settings when it starts
        raise DeviceError(compose("the cpu backend cannot compile while NUMBA_DISABLE_JIT is set", [
            ("hint", "unset NUMBA_DISABLE_JIT, or use the reference backend")]))
    initialize_native_asmparser()  # kernels may hold inline assembly
    namespace = _execute(text, f"<tilework {name}>")
    signature = namespace.get("SIGNATURE", KERNEL)
    without_wrappers: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiler = njit(signature, error_model="numpy", fastmath=set(namespace.get("FASTMATH", FASTMATH)), nogil=True,
                    **without_wrappers)
    compiled = compiler(namespace[function]).overloads[signature.args]
    _check_symbols(compiled.library, name)
    return ObjectCode(compiled.fndesc.llvm_func_name, compiled.library._get_compiled_object())


def _execute(text: str, filename: str) -> dict[str, Any]:
    """The names that a text defines.

    Executing a text is safe because texts are our own: this package writes them from templates and numbers, or takes
    the source of a module that the process has imported (a driver). No model, data or user input becomes part of one.
    """
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": filename}
    exec(compile(text, filename, "exec"), namespace)
    return namespace


def _check_symbols(library: Any, name: str) -> None:
    """Refuse code that calls into numba's own runtime: a process that loads it later has no numba."""
    process = ctypes.CDLL(None)
    for called in library._final_module.functions:
        if called.is_declaration and not called.name.startswith("llvm.") and not hasattr(process, called.name):
            raise RuntimeError(f"{name} calls {called.name}, which is neither in libc nor in libm")


def link(code: ObjectCode) -> int:
    """Load object code into this process and return the address of its entry point."""
    return _load(_library().add_object_img(code.content), code.symbol)


def link_text(text: str, symbol: str, symbols: Mapping[str, int]) -> int:
    """Compile a text in LLVM's language, load it, and return the address of a symbol.

    Parameters
    ----------
    symbols : addresses of what it calls beside functions of this process
    """
    library = _library().add_ir(text)
    for name, address in symbols.items():
        library.import_symbol(name, address)
    return _load(library, symbol)


def _library() -> Any:
    from llvmlite.binding import JITLibraryBuilder

    return JITLibraryBuilder().add_current_process()


def _load(library: Any, symbol: str) -> int:
    loaded = library.export_symbol(symbol).link(_linker(), f"library {next(_numbers)}")
    _keep_forever(loaded)
    return int(loaded[symbol])


@functools.cache
def _linker() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    linker = binding.create_lljit_compiler()
    _keep_forever(linker)
    return linker


def _keep_forever(owner: object) -> None:
    """Keep an object even while the interpreter shuts down, when threads may still run the code behind it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
