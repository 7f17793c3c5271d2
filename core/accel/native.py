"""The compiled halves of `walker` and `threads`: `enter` runs a plan, alone or with workers that `work` in the pool.

Invariant: a step begins only when all pieces of the steps before it are done, and every piece is done exactly once, by
whichever thread claims it. Pieces are independent, so who does them and when never shows in the result.

How threads share a plan: each parallel step is cut into `threads` shares of `pieces` pieces. A thread claims pieces of
its own share first, which keeps its part of the arrays in its cache, and then pieces of the others', so that nobody
waits for a thread that the system has put aside or not yet woken. Claims and finished pieces are counted upwards
through the whole plan and never reset: a thread that comes late finds each count beyond the step it looks at, and
passes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils

from core.accel.atomics import WORDS, add, exchange_if, load, lock, pause, sleep, store, unlock, wake_all, yield_core
from core.accel.floatmode import restore, set_ieee
from core.accel.layout import (
    ACTIVE,
    ADVANCE,
    BACK,
    BASE,
    CALL_BASES,
    CALL_CONTROL,
    CALL_COUNT,
    CALL_FIRST,
    CALL_GIVEN,
    CALL_LAST,
    CALL_PLAN,
    CLAIMS,
    DIMS_START,
    DONE,
    ELEMENTS,
    ENDS_SERIAL_RUN,
    EXTENT,
    FIRST,
    GRAIN,
    JOB,
    LAST,
    LINE,
    MAXIMUM_OPERANDS,
    MUTEX,
    OFFSET,
    OPERAND_WORDS,
    OPERANDS_START,
    OPERANDS_STOP,
    PIECES,
    SLEEPERS,
    STEP_WORDS,
    SWING,
    THREADS,
    TIMES,
    TURNSTILE,
)
from core.accel.layout import BASES as BASES_WORD
from core.accel.layout import PLAN as PLAN_WORD
from core.accel.pointer import KERNEL, i64, intrinsic

POINTERS = types.CPointer(types.voidptr)
OBJECTS = types.CPointer(WORDS)
ENTER = types.int64(WORDS, OBJECTS, types.int64)
WORK = types.void(WORDS, types.int64)

SPINS_FOR_PIECE = 400
"""Pauses, of about 50 ns, before a thread that waits for another's piece offers its core."""

SPINS_FOR_JOB = 2000
"""Pauses before a worker without a job goes to sleep: about the time between two calls of a Python loop."""


def _compiled(function: Callable[..., Any]) -> Any:
    """A function that compiled functions call."""
    return njit(function)


@intrinsic
def _slots(typing_context: Any) -> Any:
    """Room on the stack for the operands of a step."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return cgutils.alloca_once(builder, context.get_value_type(types.voidptr), size=MAXIMUM_OPERANDS)

    return POINTERS(), codegen


@intrinsic
def _point(typing_context: Any, slots: Any, slot: Any, bases: Any, base: Any, offset: Any) -> Any:
    """``slots[slot] = bases[base] + offset``, a pointer all the way."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slots, slot, bases, base, offset = arguments
        start = builder.load(builder.gep(bases, [base]))
        builder.store(builder.gep(start, [offset]), builder.gep(slots, [slot]))
        return context.get_dummy_value()

    return types.void(POINTERS, types.int64, POINTERS, types.int64, types.int64), codegen


@intrinsic
def _call(typing_context: Any, row: Any, operands: Any, dims: Any, begin: Any, end: Any) -> Any:
    """Call the kernel whose address is the first word of a row of the plan."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        convention = context.call_conv
        kind = convention.get_function_type(KERNEL.return_type, KERNEL.args)
        function = builder.load(builder.bitcast(arguments[0], kind.as_pointer().as_pointer()))
        convention.call_function(builder, function, KERNEL.return_type, KERNEL.args, arguments[1:])
        return context.get_dummy_value()

    return types.void(WORDS, POINTERS, WORDS, types.int64, types.int64), codegen


@intrinsic
def _offset(typing_context: Any, words: Any, count: Any) -> Any:
    """The words from `count` on."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return WORDS(WORDS, types.int64), codegen


@intrinsic
def _put(typing_context: Any, words: Any, index: Any, pointer: Any) -> Any:
    """Keep a pointer in a word."""
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, index, pointer = arguments
        builder.store(pointer, builder.bitcast(builder.gep(words, [index]), pointer.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(WORDS, types.int64, POINTERS), codegen


def _pointer_in_word(pointer: Any) -> Any:
    """A function, ``get(words, index)``: the pointer of this type that is kept in a word."""
    @intrinsic
    def get(typing_context: Any, words: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = context.get_value_type(pointer)
            return builder.load(builder.bitcast(builder.gep(arguments[0], [arguments[1]]), kind.as_pointer()))

        return pointer(WORDS, types.int64), codegen

    return get


_get, _words, _pointer = _pointer_in_word(POINTERS), _pointer_in_word(WORDS), _pointer_in_word(types.voidptr)


@_compiled
def _point_operands(row: Any, plan: Any, bases: Any, slots: Any, time: int) -> None:
    first = row[OPERANDS_START]
    for k in range(row[OPERANDS_STOP] - first):
        operand = _offset(i64(plan, 1), OPERAND_WORDS * (first + k))
        offset = operand[OFFSET] + time * operand[ADVANCE] + time % 2 * operand[SWING]
        _point(slots, k, bases, operand[BASE], offset)


@_compiled
def _run_whole(row: Any, plan: Any, bases: Any, slots: Any, time: int) -> None:
    if row[EXTENT] > 0:
        _point_operands(row, plan, bases, slots, time)
        _call(row, slots, _offset(i64(plan, 2), row[DIMS_START]), 0, row[EXTENT])


@_compiled
def _next(row: Any, step: int, time: int) -> tuple[int, int]:
    """The step behind one, and the how-manieth time of its repeat comes then, counted from 0."""
    if row[TIMES] == 0:
        return step + 1, time
    if time + 1 < row[TIMES]:
        return step - row[BACK], time + 1
    return step + 1, 0


@_compiled
def _walk(plan: Any, bases: Any, first: int, last: int) -> None:
    """Run the steps from `first` to before `last` on this thread."""
    mode = set_ieee()
    slots = _slots()
    step, time = first, 0
    while step < last:
        row = _offset(i64(plan, 0), step * STEP_WORDS)
        _run_whole(row, plan, bases, slots, time)
        step, time = _next(row, step, time)
    restore(mode)


@_compiled
def _spin(spins: int) -> int:
    """Wait a moment, the longer the more politely; how often this thread has waited."""
    if spins < SPINS_FOR_PIECE:
        pause()
    else:
        yield_core()
    return spins + 1


@_compiled
def _wait(control: Any, due: int) -> None:
    """Wait until `due` pieces are done."""
    spins = 0
    while load(control, DONE) < due:
        spins = _spin(spins)


@_compiled
def _claim(control: Any, owner: int, limit: int) -> int:
    """Take the next piece of a share: its count, or -1 if all pieces below the limit are taken."""
    word = CLAIMS + owner * LINE
    count: int = load(control, word)
    while count < limit:
        if exchange_if(control, word, count, count + 1):
            return count
        count = load(control, word)
    return -1


@_compiled
def _run_piece(row: Any, plan: Any, slots: Any, threads: int, owner: int, piece: int) -> None:
    grain = row[GRAIN]
    grains = (row[EXTENT] + grain - 1) // grain
    start = grains * owner // threads
    length = grains * (owner + 1) // threads - start
    begin = (start + length * piece // row[PIECES]) * grain
    end = min((start + length * (piece + 1) // row[PIECES]) * grain, row[EXTENT])
    if begin < end:
        _call(row, slots, _offset(i64(plan, 2), row[DIMS_START]), begin, end)


@_compiled
def _run_pieces(control: Any, row: Any, plan: Any, bases: Any, slots: Any, time: int, thread: int,
                before: int) -> None:
    """Do pieces of a parallel step until all are claimed; `before` pieces of each share belong to earlier steps."""
    threads = control[THREADS]
    finished = 0
    for distance in range(threads):
        owner = (thread + distance) % threads
        count = _claim(control, owner, before + row[PIECES])
        while count >= 0:
            if finished == 0:
                _point_operands(row, plan, bases, slots, time)
            _run_piece(row, plan, slots, threads, owner, count - before)
            finished += 1
            count = _claim(control, owner, before + row[PIECES])
    if finished > 0:
        add(control, DONE, finished)


@_compiled
def _share(control: Any, thread: int) -> None:
    """Do this thread's part of the job; thread 0 also does the serial steps and stays until all is done."""
    plan = _get(control, PLAN_WORD)
    bases = _get(control, BASES_WORD)
    slots = _slots()
    before = 0
    due = 0
    step, time = control[FIRST], 0
    while step < control[LAST]:
        row = _offset(i64(plan, 0), step * STEP_WORDS)
        if row[PIECES] > 0:
            _wait(control, due)
            _run_pieces(control, row, plan, bases, slots, time, thread, before)
            before += row[PIECES]
            due += row[PIECES] * control[THREADS]
        elif thread == 0:
            _wait(control, due)
            _run_whole(row, plan, bases, slots, time)
        if row[ENDS_SERIAL_RUN] > 0:
            due += 1
            if thread == 0:
                add(control, DONE, 1)
        step, time = _next(row, step, time)
    if thread == 0:
        _wait(control, due)


@_compiled
def _lead(control: Any, plan: Any, bases: Any, first: int, last: int) -> None:
    """Run steps as thread 0, with those workers that come while it lasts; none is inside when this returns."""
    _put(control, PLAN_WORD, plan)
    _put(control, BASES_WORD, bases)
    control[FIRST] = first
    control[LAST] = last
    for thread in range(control[THREADS]):
        control[CLAIMS + thread * LINE] = 0
    control[DONE] = 0
    job = load(control, JOB) + 1
    store(control, JOB, job)
    if load(control, SLEEPERS) > 0:
        lock(control, MUTEX)
        wake_all(control, TURNSTILE)
        unlock(control, MUTEX)
    mode = set_ieee()
    _share(control, 0)
    restore(mode)
    store(control, JOB, job + 1)
    spins = 0
    while load(control, ACTIVE) > 0:
        spins = _spin(spins)


@_compiled
def call(network: Any) -> None:
    """Run the plan that the words of a call name, on its bases as they are."""
    plan = _get(network, CALL_PLAN)
    bases = _get(network, CALL_BASES)
    if network[CALL_CONTROL] == 0:
        _walk(plan, bases, network[CALL_FIRST], network[CALL_LAST])
    else:
        _lead(_words(network, CALL_CONTROL), plan, bases, network[CALL_FIRST], network[CALL_LAST])


def enter(owner: Any, arrays: Any, count: int) -> int:
    """Run the call whose words are the elements of `owner` on the elements of arrays, for Python (see `builtin`)."""
    network = _words(owner, ELEMENTS)
    if count != network[CALL_COUNT]:
        return 0
    bases = _get(network, CALL_BASES)
    for k in range(count):
        bases[network[CALL_GIVEN + k]] = _pointer(arrays[k], ELEMENTS)
    call(network)
    return 1


@_compiled
def _is_new(job: int, seen: int) -> bool:
    """Whether a worker that did job `seen` has something to do: jobs under way are odd, the end of work negative."""
    return job < 0 or (job % 2 == 1 and job != seen)


@_compiled
def _await_job(control: Any, seen: int) -> int:
    for _ in range(SPINS_FOR_JOB):
        job: int = load(control, JOB)
        if _is_new(job, seen):
            return job
        pause()
    lock(control, MUTEX)
    add(control, SLEEPERS, 1)
    job = load(control, JOB)
    while not _is_new(job, seen):
        sleep(control, TURNSTILE, MUTEX)
        job = load(control, JOB)
    add(control, SLEEPERS, -1)
    unlock(control, MUTEX)
    return job


def work(control: Any, thread: int) -> None:
    """The life of a worker: wait for a job, do a share of it, until the pool closes."""
    set_ieee()
    job = _await_job(control, 0)
    while job > 0:
        add(control, ACTIVE, 1)
        # The leader lets nobody in after the job's end: it changes JOB first and looks at ACTIVE then.
        if load(control, JOB) == job:
            _share(control, thread)
        add(control, ACTIVE, -1)
        job = _await_job(control, job)
