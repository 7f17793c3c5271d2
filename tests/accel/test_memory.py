"""Placing buffers: none that live together overlap, and the arena is as large as it must be and not much larger."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.finished import ARENA, KEPT
from core.accel.passes.memory import ALIGNMENT, Lifetime, aligned, lifetimes, place
from core.accel.plan import make_plan
from core.accel.step import Buffer
from core.engine.backends import Options
from core.engine.jit import close, jit
from core.engine.testing import random_graph


@st.composite
def spans(draw):
    made = []
    for _ in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 12))
        made.append(Lifetime(Buffer(draw(st.integers(0, 5000))), first, first + draw(st.integers(0, 6))))
    return made


def largest_live(made):
    steps = range(max((span.last for span in made), default=0) + 1)
    return max(sum(span.buffer.nbytes for span in made if span.first <= step <= span.last) for step in steps)


def overlapping(made, offsets):
    """Pairs that are alive at one step and share a byte."""
    for number, one in enumerate(made):
        for other in made[:number]:
            begin, start = offsets[one.buffer], offsets[other.buffer]
            if (one.first <= other.last and other.first <= one.last
                    and begin < start + other.buffer.nbytes and start < begin + one.buffer.nbytes):
                yield one, other


@given(spans())
def test_buffers_that_live_together_do_not_overlap(made):
    offsets, size = place(made)
    assert not list(overlapping(made, offsets))
    assert offsets.keys() == {span.buffer for span in made}
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    assert all(offsets[span.buffer] + span.buffer.nbytes <= size for span in made)
    assert size >= largest_live(made)


@given(spans())
def test_the_arena_is_no_larger_than_without_reuse(made):
    assert place(made)[1] <= sum(aligned(span.buffer.nbytes) for span in made)


@given(st.integers(1, 5000), st.integers(2, 20))
def test_a_chain_needs_two_buffers(nbytes, count):
    made = [Lifetime(Buffer(nbytes), step, step + 1) for step in range(count)]
    assert place(made)[1] == aligned(aligned(nbytes) + nbytes)


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=10))
def test_lifetimes_span_the_steps_that_touch(touched):
    buffers = [Buffer(1) for _ in range(6)]
    spans = lifetimes([[buffers[number] for number in step] for step in touched])
    made = {span.buffer: (span.first, span.last) for span in spans}
    for number, buffer in enumerate(buffers):
        steps = [step for step, indices in enumerate(touched) if number in indices]
        assert made.get(buffer) == ((min(steps), max(steps)) if steps else None)


@pytest.mark.parametrize("seed", range(0, 100, 5))
def test_plans_keep_live_buffers_apart(seed):
    """From the plan's own steps: nothing writes where something that is read later lies."""
    function, arguments = random_graph(seed)
    plan = make_plan(close(jit(function).trace(*arguments)), Options(), "null")
    made = lifetimes([[view.buffer for view in step.operands if plan.base_of[view.buffer][0] == ARENA]
                      for step in plan.body])
    offsets = {span.buffer: plan.base_of[span.buffer][1] for span in made}
    assert not list(overlapping(made, offsets))
    assert largest_live(made) <= plan.arena
    kept = sorted((offset, buffer.nbytes) for buffer, (base, offset) in plan.base_of.items() if base == KEPT)
    assert all(begin + nbytes <= after for (begin, nbytes), (after, _) in itertools.pairwise(kept))
