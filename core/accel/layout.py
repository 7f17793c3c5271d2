"""Where `walker` and `threads` put things for their compiled halves in `native`, counted in 64-bit words.

Invariant: words that different threads write lie two cache lines apart, because cores fetch lines in pairs.
"""

from __future__ import annotations

# A row of a plan, one step.
FUNCTION = 0
OPERANDS_START = 1
OPERANDS_STOP = 2
DIMS_START = 3
EXTENT = 4
GRAIN = 5
PIECES = 6
"""Pieces per thread of a parallel step; 0 means that thread 0 does the step alone."""
ENDS_SERIAL_RUN = 7
"""1 in the last of consecutive serial steps: the other threads wait for this one only."""
TIMES = 8
"""How often the steps up to this one run, in the last step of a repeat; 0 in any other."""
BACK = 9
"""Steps from the last of a repeat back to its first."""
STEP_WORDS = 10

# A row of the operands.
BASE = 0
OFFSET = 1
ADVANCE = 2
"""Bytes from one time of a repeat to the next."""
SWING = 3
"""Bytes between the even times and the odd ones."""
OPERAND_WORDS = 4

MAXIMUM_OPERANDS = 128

# The control block of a pool.
LINE = 16
JOB = 0 * LINE
"""Odd while a job runs, raised by one at its begin and at its end; negative when the pool closes."""
ACTIVE = 1 * LINE
"""Workers inside the job."""
DONE = 2 * LINE
"""Pieces of the job that are done."""
SLEEPERS = 3 * LINE
"""Workers asleep, or about to be."""
PLAN = 4 * LINE
BASES = PLAN + 1
FIRST = PLAN + 2
LAST = PLAN + 3
THREADS = PLAN + 4
MUTEX = 5 * LINE
TURNSTILE = 6 * LINE
"""The condition variable that workers sleep on."""
CLAIMS = 7 * LINE
"""Pieces claimed of each thread's share, a line each."""

# A call of a plan.
CALL_CONTROL = 0
"""The control block of a pool, or 0: the plan runs on the caller's thread."""
CALL_PLAN = 1
CALL_BASES = 2
CALL_FIRST = 3
CALL_LAST = 4
CALL_COUNT = 5
"""Arrays that are given with the call."""
CALL_GIVEN = 6
"""The numbers of their bases."""

# An array object.
ELEMENTS = object.__basicsize__ // 8
"""The address of its elements (numpy's C interface, PyArrayObject_fields)."""
