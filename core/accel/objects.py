"""Object code: made from a text by numba, and loaded into the process by llvmlite.

Invariant: each object is linked into a library of its own, so equal symbols in two objects never meet, and loaded code
stays in place until the process ends, because threads may be running it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import linecache
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from core.engine.errors import DeviceError, compose

FASTMATH = frozenset({"contract", "nsz"})
"""LLVM's liberties for a text that names no others: none that would break NaN, infinities or masks."""


_numbers = itertools.count()  # names of libraries


class ObjectCode(NamedTuple):
    """An object file, the symbol of its one entry point, and the texts of what it calls (see `callee`)."""

    symbol: str
    callees: tuple[str, ...]
    content: bytes


def compile_text(text: str, name: str) -> ObjectCode:
    """Compile the function `kernel` of a text with numba; `name` is what tracebacks call the text."""
    from llvmlite.binding import initialize_native_asmparser
    from numba import njit
    from numba.core import config

    from core.accel.callee import callees
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
    called = callees(namespace["kernel"])
    compiled = compiler(namespace["kernel"]).overloads[signature.args]
    _check_symbols(compiled.library, name, set(map(callee_symbol, called)))
    return ObjectCode(compiled.fndesc.llvm_func_name, called, compiled.library._get_compiled_object())


def _execute(text: str, filename: str) -> dict[str, Any]:
    """The names that a text defines.

    Executing a text is safe because texts are our own: this package writes them from templates and numbers, or takes
    the source of a module that the process has imported (a driver). No model, data or user input becomes part of one.
    """
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": filename}
    exec(compile(text, filename, "exec"), namespace)
    return namespace


def _check_symbols(library: Any, name: str, callees: Set[str]) -> None:
    """Refuse code that calls into numba's own runtime: a process that loads it later has no numba."""
    process = ctypes.CDLL(None)
    for called in library._final_module.functions:
        known = called.name in callees or called.name.startswith("llvm.") or hasattr(process, called.name)
        if called.is_declaration and not known:
            raise RuntimeError(f"{name} calls {called.name}, which is neither in libc nor in libm, nor a callee among "
                               "its variables")


def callee_symbol(text: str) -> str:
    """The symbol by which kernels call that of a text."""
    return f"tilework_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def callees_of(text: str) -> tuple[str, ...]:
    """Texts of what the kernel of a text will call (see `callee`)."""
    from core.accel.callee import callees

    return callees(_execute(text, "<tilework>")["kernel"])


def link(code: ObjectCode, address_of: Callable[[str], int]) -> int:
    """Load object code into this process, given the addresses of the texts that it calls; where its entry point is."""
    library = _library().add_object_img(code.content)
    for text in code.callees:
        library.import_symbol(callee_symbol(text), address_of(text))
    return _load(library, code.symbol)


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
