"""What the machine can do at most: arithmetic that never leaves the registers, and plain copying.

Invariant: a call does a given number of operations, spread evenly over the threads; results are stored, so that nothing
can be left out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from core.accel import chips
from tests.bench.kernels.worker import Call, threads

AMX = {"bf16": ("amx-bf16", "tdpbf16ps", 2 * 16 * 16 * 32), "int8": ("amx-int8", "tdpbssd", 2 * 16 * 16 * 64)}
"""Feature, instruction, and operations of one product of two full tiles."""
ACCUMULATORS = {16: 24, 8: 12, 4: 12}
"""Vectors that are summed at a time, by lanes: enough to hide the latency, few enough for the registers."""
TILES = 6

_Function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)
_kept: list[Any] = []


def peak(element: str, operations: int) -> Call | None:
    """A call that does about so many operations in registers; None if the processor has no instruction for it."""
    if element == "f32":
        lanes = chips.host().lanes
        each = 2 * lanes * ACCUMULATORS[lanes]
        function = _compiled(_vector_text(lanes, ACCUMULATORS[lanes]))
        memory = np.ones(64 * 32, np.uint8)
    else:
        feature, instruction, one = AMX[element]
        if not llvm.get_host_cpu_features().get(feature):
            return None
        each = TILES * one
        _allow_tiles()
        function = _compiled(_tile_text(instruction))
        memory = _tile_settings()
    iterations = operations // (each * threads())
    return _on_all_threads(lambda number: function(iterations, memory.ctypes.data))


def copying(source: Any, target: Any) -> Call:
    """A call that copies an array, each thread its part."""
    sources, targets = (np.array_split(array, threads()) for array in (source, target))
    return _on_all_threads(lambda number: np.copyto(targets[number], sources[number]))


def _on_all_threads(work: Callable[[int], None]) -> Call:
    pool = ThreadPoolExecutor(threads())
    return lambda: [None for _ in pool.map(work, range(threads()))]


def _compiled(text: str) -> Callable[[int, int], None]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), features=features,
                                                                      opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _kept.append(engine)
    function: Callable[[int, int], None] = _Function(engine.get_function_address("peak"))
    return function


def _loop(before: str, phis: str, body: str, after: str) -> str:
    return f"""
define void @peak(i64 %count, ptr %memory) {{
entry:
{before}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
{body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
{after}
  ret void
}}
"""


def _vector_text(lanes: int, accumulators: int) -> str:
    kind, numbers = f"<{lanes} x float>", range(accumulators)
    before = f"  %x = load {kind}, ptr %memory, align 4"
    phis = "\n".join(f"  %a{n} = phi {kind} [ %x, %entry ], [ %b{n}, %loop ]" for n in numbers)
    body = "\n".join(f"  %b{n} = call {kind} @llvm.fma.v{lanes}f32({kind} %a{n}, {kind} %x, {kind} %x)"
                     for n in numbers)
    after = "\n".join(f"  %p{n} = getelementptr {kind}, ptr %memory, i64 {n % 16}\n"
                      f"  store volatile {kind} %b{n}, ptr %p{n}, align 4" for n in numbers)
    return f"declare {kind} @llvm.fma.v{lanes}f32({kind}, {kind}, {kind})\n" + _loop(before, phis, body, after)


def _tile_text(instruction: str) -> str:
    """Products of the tiles 6 and 7, both of zeros, into each of the tiles 0 to 5."""
    before = "\n".join(["  call void @llvm.x86.ldtilecfg(ptr %memory)",
                        *(f"  call void @llvm.x86.tilezero(i8 {tile})" for tile in range(TILES + 2))])
    body = "\n".join(f"  call void @llvm.x86.{instruction}(i8 {tile}, i8 6, i8 7)" for tile in range(TILES))
    return (f"declare void @llvm.x86.ldtilecfg(ptr)\ndeclare void @llvm.x86.tilezero(i8)\n"
            f"declare void @llvm.x86.tilerelease()\ndeclare void @llvm.x86.{instruction}(i8, i8, i8)\n"
            + _loop(before, "", body, "  call void @llvm.x86.tilerelease()"))


def _tile_settings() -> Any:
    """Palette 1: eight tiles of 16 rows of 64 bytes (Intel's manual, volume 1, chapter 18)."""
    settings = np.zeros(64, np.uint8)
    settings[0] = 1
    settings[16:32].view(np.uint16)[:] = 64
    settings[48:56] = 16
    return settings


def _allow_tiles() -> None:
    """Ask Linux for the state of the tiles (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)."""
    if ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0:
        raise OSError("the system does not let this process use AMX tiles")
