"""Plan tables and the walker: the right kernels on the right memory in the right order."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from core.accel import layout, store, walker
from core.accel.step import Buffer, Repeat, Step, View, contiguous
from core.accel.walker import Call, PlanTable
from core.engine import dtypes

AFFINE = """from core.accel.pointer import f32

def kernel(p, d, begin, end):
    x = f32(p, 0)
    y = f32(p, 1)
    for i in range(begin, end):
        y[i] = x[i] * d[0] + d[1]
"""

SUBNORMAL = """from core.accel.pointer import f32

def kernel(p, d, begin, end):
    x = f32(p, 0)
    for i in range(begin, end):
        x[i] = x[i] * 0.5
"""


def affine(source: View, target: View, factor: int, term: int) -> Step:
    return Step(AFFINE, (source, target), (1,), (factor, term), source.size, name="affine")


def chain(length: int, size: int) -> tuple[list[Step], list[View]]:
    """Steps that each read what the one before wrote."""
    views = [contiguous(dtypes.float32, (size,)) for _ in range(length + 1)]
    return [affine(a, b, 1, k) for k, (a, b) in enumerate(pairwise(views))], views


def placed(views: list[View], base: int = 0) -> dict[Buffer, tuple[int, int]]:
    """The buffers of views one after another behind one base."""
    places, offset = {}, 0
    for view in views:
        places[view.buffer] = (base, offset)
        offset += view.buffer.nbytes
    return places


def bases_of(*arrays: np.ndarray) -> walker.Bases:
    bases = walker.bases(len(arrays))
    for k, array in enumerate(arrays):
        bases[k] = array.ctypes.data
    return bases


def test_chain() -> None:
    steps, views = chain(50, 9)
    arena = np.zeros((51, 9), np.float32)
    arena[0] = np.arange(9)
    Call(PlanTable.build(steps, placed(views)), bases_of(arena)).run()
    assert (arena == np.arange(9) + np.cumsum(np.arange(-1, 50).clip(0))[:, None]).all()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (2, 5), (4, 6), (6, 6), (3, None)])
def test_range_of_steps(first: int, last: int | None) -> None:
    views = [contiguous(dtypes.float32, (1,)) for _ in range(6)]
    arena = np.zeros(6, np.float32)
    table = PlanTable.build([affine(view, view, 1, 1) for view in views], placed(views))
    Call(table, bases_of(arena), first=first, last=last).run()
    assert np.flatnonzero(arena).tolist() == list(range(6))[first:last]


def test_bases_change_between_calls() -> None:
    a, b = (contiguous(dtypes.float32, (4,)) for _ in range(2))
    table = PlanTable.build([affine(a, b, 2, 1)], {a.buffer: (1, 0), b.buffer: (0, 0)})
    for value in (3, 8):
        source, target = np.full(4, value, np.float32), np.zeros(4, np.float32)
        Call(table, bases_of(target, source)).run()
        assert target.tolist() == [2 * value + 1] * 4


def test_views_begin_at_their_offset() -> None:
    whole = contiguous(dtypes.float32, (8,))
    late = replace(whole, shape=(3,), offset=5)
    arena = np.zeros(10, np.float32)
    Call(PlanTable.build([affine(late, late, 0, 1)], {whole.buffer: (0, 8)}), bases_of(arena)).run()
    assert np.flatnonzero(arena).tolist() == [7, 8, 9]


def test_empty_plan_and_empty_step() -> None:
    nothing = contiguous(dtypes.float32, (0,))
    guard = np.zeros(4, np.float32)
    Call(PlanTable.build([], {}), walker.bases(0)).run()
    Call(PlanTable.build([affine(nothing, nothing, 0, 1)], {nothing.buffer: (0, 0)}), bases_of(guard)).run()
    assert not guard.any()


def test_repeat_moves_views() -> None:
    """x[t + 1] = 2 x[t] + 1 along an array, and a carry to and fro between two places; what stands beside runs once."""
    row = contiguous(dtypes.float32, (8,))
    even = View(contiguous(dtypes.float32, (2,)).buffer, dtypes.float32, (1,), (1,))
    one = replace(row, shape=(1,))
    along = affine(replace(one, advance=1), replace(one, offset=1, advance=1), 2, 1)
    back = affine(replace(one, offset=7, advance=-1), replace(one, offset=7, advance=-1), 1, 100)
    swinging = affine(replace(even, swing=1), replace(even, offset=1, swing=-1), 1, 1)
    other = contiguous(dtypes.float32, (1,))
    once = affine(other, other, 1, 1)
    arena = np.zeros(11, np.float32)
    plan = [once, Repeat((once,), (along, swinging), 5), once, Repeat((), (back,), 2)]
    Call(PlanTable.build(plan, placed([row, even, other])), bases_of(arena)).run()
    assert arena.tolist() == [0, 1, 3, 7, 15, 31, 100, 100, 4, 5, 3]


def test_parts_of_a_repeat() -> None:
    a, b = (contiguous(dtypes.float32, (1,)) for _ in range(2))
    repeat = Repeat((affine(a, a, 1, 5),), (affine(a, b, 1, 1), affine(b, a, 2, 0)), 3)
    assert repeat.operands == (a, a, a, b, b, a) and repeat.writes == (1, 3, 5)
    assert repeat.lasting() == {a.buffer}
    table = PlanTable.build([repeat], placed([a, b]))
    assert table.steps[:, layout.TIMES].tolist() == [0, 0, 3] and table.steps[2, layout.BACK] == 1


def test_serial_runs_in_repeats_end_where_others_wait() -> None:
    steps, views = chain(4, 100)
    serial = {id(steps[k]) for k in (0, 2, 3)}
    table = PlanTable.build([Repeat((steps[0],), (steps[1], steps[2], steps[3]), 2)], placed(views),
                            lambda step: id(step) in serial)
    assert table.steps[:, layout.ENDS_SERIAL_RUN].tolist() == [1, 0, 0, 1]


def test_serial_runs_end_once() -> None:
    steps, views = chain(7, 100)
    serial = {id(steps[k]) for k in (0, 1, 3, 5, 6)}
    table = PlanTable.build(steps, placed(views), lambda step: id(step) in serial)
    assert (table.steps[:, layout.PIECES] == 0).tolist() == [True, True, False, True, False, True, True]
    assert table.steps[:, layout.ENDS_SERIAL_RUN].tolist() == [0, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("size", "grain", "parallel"), [(64, 1, False), (1 << 20, 1, True), (1 << 20, 1 << 20, False)])
def test_small_and_undividable_steps_stay_on_one_thread(size: int, grain: int, parallel: bool) -> None:
    view = contiguous(dtypes.float32, (size,))
    step = replace(affine(view, view, 1, 1), grain=grain)
    assert PlanTable.build([step], placed([view])).parallel is parallel


def test_estimate_takes_the_greater_of_arithmetic_and_traffic() -> None:
    view = contiguous(dtypes.float32, (1000,))
    step = affine(view, view, 1, 1)
    assert walker.estimate(replace(step, flops=10**9)) > walker.estimate(step) > 0
    assert walker.estimate(replace(step, nbytes=10**9)) > walker.estimate(step)


def test_table_never_changes() -> None:
    steps, views = chain(2, 3)
    table = PlanTable.build(steps, placed(views))
    for array in (table.steps, table.operands, table.dims):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(("change", "message"), [
    ({"operands": (contiguous(dtypes.float32, (1,)),) * 129}, "'affine' has 129 operands; at most 128 fit"),
    ({"grain": 0}, "'affine' has grain 0"),
])
def test_impossible_steps(change: dict[str, object], message: str) -> None:
    view = contiguous(dtypes.float32, (4,))
    with pytest.raises(ValueError, match=message):
        PlanTable.build([replace(affine(view, view, 1, 1), **change)], placed([view]))  # type: ignore[arg-type]


def test_many_operands() -> None:
    text = """from core.accel.pointer import f32
def kernel(p, d, begin, end):
    for i in range(begin, end):
        f32(p, i)[0] = i
"""
    views = [contiguous(dtypes.float32, (1,)) for _ in range(layout.MAXIMUM_OPERANDS)]
    arena = np.zeros(len(views), np.float32)
    step = Step(text, tuple(views), tuple(range(len(views))), (), len(views))
    Call(PlanTable.build([step], placed(views)), bases_of(arena)).run()
    assert (arena == np.arange(len(views))).all()


def test_kernels_run_in_ieee_mode_whatever_the_thread_was_set_to() -> None:
    """Subnormals survive a plan on a thread that flushes them, and the thread keeps its own mode."""
    text = """from numba import types
from core.accel.floatmode import _WORD, _write
from core.accel.pointer import intrinsic
SIGNATURE = types.void(types.int64)

@intrinsic
def mode(typing_context, value):
    def codegen(context, builder, signature, arguments):
        _write(builder, builder.trunc(arguments[0], _WORD))
        return context.get_dummy_value()
    return types.void(types.int64), codegen

def kernel(value):
    mode(value)
"""
    address = store.address(text)
    set_mode = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, ctypes.c_int64)(address)
    ieee, flush = (0x1F80, 0x9FC0) if platform.machine() in ("x86_64", "AMD64") else (0, 1 << 24)
    scratch = (ctypes.c_void_p * 2)()
    view = contiguous(dtypes.float32, (1,))
    table = PlanTable.build([Step(SUBNORMAL, (view,), (0,), (), 1)], placed([view]))
    smallest = np.finfo(np.float32).smallest_subnormal
    value, after = np.array([smallest * 4]), np.array([smallest * 4])
    bases = bases_of(value)
    set_mode(scratch, scratch, flush)
    try:
        Call(table, bases).run()
        np.multiply(after, np.float32(0.5), out=after)
    finally:
        set_mode(scratch, scratch, ieee)
    assert value[0] == smallest * 2
    assert after[0] == 0


def test_a_call_takes_the_elements_of_arrays_that_it_is_given() -> None:
    views = [contiguous(dtypes.float32, (3,)) for _ in range(2)]
    table = PlanTable.build([affine(*views, 2, 1)], {views[0].buffer: (0, 0), views[1].buffer: (2, 0)})
    call = Call(table, walker.bases(3), given=(2, 0))
    for k in range(3):
        target, source = np.zeros(3, np.float32), np.full((2, 3), k, np.float32)[1]
        call.run(target, source)
        assert target.tolist() == [2 * k + 1] * 3
    for arrays in ((), (target,), (target, source, source)):
        with pytest.raises(TypeError, match="a call takes as many arrays as its plan is given"):
            call.run(*arrays)
