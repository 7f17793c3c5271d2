"""Scans: the repeat of steps that a scan becomes, and where its carries and results lie.

Invariant: what one time of the loop hands to the next lies elsewhere than what it got from the time before. A carry has
two places that take turns; one whose values are also results lies among these, so that nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from core.accel.loops import copy_step
from core.accel.passes.fuse import Node
from core.accel.step import Buffer, Repeat, Step, View, contiguous
from core.engine.graph import Aval, Graph, Value


class Body(Protocol):
    """What the lowering of a scan's body offers; see `lower.Lowering`."""

    views: dict[Value, View]
    homes: dict[Value, View]
    steps: list[Any]

    def lower(self, node: Node) -> None: ...

    def view(self, value: Value) -> View: ...

    def copy(self, view: View, into: View | None = None) -> View: ...


@dataclass(frozen=True)
class _Carry:
    """Where a carry lies.

    Attributes
    ----------
    first, last : before the loop, and after it
    before, after : what each time of the loop reads and writes
    """

    first: View
    last: View
    before: View
    after: View


def scan_steps(inner: Body, nodes: Sequence[Node], given: Sequence[View], *, body: Graph, consts: int, carries: int,
               length: int, reverse: bool) -> tuple[list[View], list[Step], Repeat]:
    """Lower a scan.

    Parameters
    ----------
    inner, nodes : the lowering of the body, which has lowered nothing yet, and the body's nodes
    given : views of the scan's inputs

    Returns
    -------
    Views of the scan's outputs, steps that run once before, and the repeat.
    """
    results = body.outputs[carries:]
    kept: list[_Carry] = []
    lying: dict[Value, View] = {}
    for entering, leaving in zip(body.inputs[consts:consts + carries], body.outputs[:carries], strict=True):
        if entering in results or leaving in results:
            carry, entered, left = _recorded(entering.aval, length, reverse)
            lying.setdefault(entering, entered)
            lying.setdefault(leaving, left)
        else:
            carry = _alternating(entering.aval, length)
        kept.append(carry)
    targets = [(leaving, carry.after) for leaving, carry in zip(body.outputs[:carries], kept, strict=True)]
    for value in results:
        if value not in lying:
            lying[value] = contiguous(value.aval.dtype, (length, *value.aval.shape))
            targets.append((value, _moving(lying[value], reverse)))
    slices = [_moving(view, reverse) for view in given[consts + carries:]]
    inner.views.update(zip(body.inputs, (*given[:consts], *(carry.before for carry in kept), *slices), strict=True))
    _lower(inner, nodes, targets)
    before, repeated = _separate(inner.steps, {view.buffer for view in given[:consts]})
    start = [copy_step(view, carry.first) for view, carry in zip(given[consts:consts + carries], kept, strict=True)]
    views = [*(carry.last for carry in kept), *(lying[value] for value in results)]
    return views, before, Repeat(tuple(start), tuple(repeated), length)


def _recorded(aval: Aval, length: int, reverse: bool) -> tuple[_Carry, View, View]:
    """A carry whose values all stay, and the sequences of what it was before and after each time."""
    slots = contiguous(aval.dtype, (length + 1, *aval.shape))
    lower, upper = (replace(slots, shape=(length, *aval.shape), offset=slot * aval.size) for slot in (0, 1))
    ends = [replace(slots, shape=aval.shape, strides=slots.strides[1:], offset=slot * aval.size)
            for slot in (0, length)]
    entered, left = (upper, lower) if reverse else (lower, upper)
    first, last = reversed(ends) if reverse else ends
    return _Carry(first, last, _moving(entered, reverse), _moving(left, reverse)), entered, left


def _alternating(aval: Aval, length: int) -> _Carry:
    """A carry with two places."""
    both = contiguous(aval.dtype, (2, *aval.shape))
    even, odd = (replace(both, shape=aval.shape, strides=both.strides[1:], offset=place * aval.size)
                 for place in (0, 1))
    return _Carry(even, odd if length % 2 else even, replace(even, swing=aval.size), replace(odd, swing=-aval.size))


def _moving(view: View, reverse: bool) -> View:
    """The slice of a sequence, along its leading axis, that each time of the loop looks at."""
    stride = view.strides[0]
    return replace(view, shape=view.shape[1:], strides=view.strides[1:],
                   offset=view.offset + (view.shape[0] - 1) * stride * reverse, advance=-stride if reverse else stride)


def _lower(inner: Body, nodes: Sequence[Node], targets: Sequence[tuple[Value, View]]) -> None:
    """Lower the body so that each target's value lies in its place; what is made by a kernel is made there."""
    made = {value for node in nodes for equation in node.equations for value in equation.outputs}
    for value, place in targets:
        if value in made:
            inner.homes.setdefault(value, place)
    for node in nodes:
        inner.lower(node)
    for value, place in targets:
        if inner.view(value) != place:
            inner.copy(inner.view(value), place)


def _separate(steps: Sequence[Step], fixed: set[Buffer]) -> tuple[list[Step], list[Step]]:
    """Steps that do the same each time, and the others; `fixed` are the buffers that do not change."""
    writers: dict[Buffer, int] = {}
    for step in steps:
        for buffer in {step.operands[index].buffer for index in step.writes}:
            writers[buffer] = writers.get(buffer, 0) + 1
    fixed = set(fixed)
    before, repeated = [], []
    for step in steps:
        written = {step.operands[index].buffer for index in step.writes}
        read = {view.buffer for view in step.operands} - written
        still = not any(view.moves for view in step.operands)
        if still and read <= fixed and all(writers[buffer] == 1 for buffer in written):
            before.append(step)
            fixed |= written
        else:
            repeated.append(step)
    return before, repeated
