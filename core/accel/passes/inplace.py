"""In place: which results of an update may be written over what they update.

A training step reads parameters and moments and gives new ones. Where an element of a result depends on the same
element of its input and nothing reads the input later, both take one place in memory: half the memory, and lines that
are in the cache already.

Invariant: no step reads an input after the step that overwrites it, and that step reads each element before it writes
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from core.accel.passes.fuse import Node
from core.accel.views import VIEWS
from core.engine.graph import Equation, Graph, Value


def updates_in_place(graph: Graph, nodes: Sequence[Node], carried: int) -> dict[Value, Value]:
    """For results that may overwrite inputs, these inputs.

    Parameters
    ----------
    carried : so many leading outputs replace as many leading inputs
    """
    homes = {equation: node for node in nodes for equation in node.equations}
    position = {node: number for number, node in enumerate(nodes)}
    makers = {value: equation for equation in graph.equations for value in equation.outputs}
    users, outputs = graph.users(), list(graph.outputs)
    found: dict[Value, Value] = {}
    for old, new in zip(graph.inputs[:carried], graph.outputs[:carried], strict=True):
        maker = makers.get(new)
        if maker is None or new.aval != old.aval or outputs.count(new) > 1:
            continue
        home = homes.get(maker)
        if home is not None and home.is_loop and not home.axes and _is_last(old, home, users, outputs, homes, position):
            found[new] = old
    return found


def _is_last(old: Value, home: Node, users: Mapping[Value, Sequence[Equation]], outputs: Sequence[Value],
             homes: Mapping[Equation, Node], position: Mapping[Node, int]) -> bool:
    """Whether a node reads a value last, and as it lies in memory."""
    for value, reader in _readers(old, users):
        if value in outputs or (reader is not None and reader.op.name == "gather"):  # a gather may wait
            return False
        if reader is None:
            continue
        if position[homes[reader]] > position[home] or (homes[reader] is home and value is not old):
            return False
    return True


def _readers(value: Value, users: Mapping[Value, Sequence[Equation]]) -> Iterator[tuple[Value, Equation | None]]:
    """A value and the views of it, each with those who read it; with None once at least."""
    yield value, None
    for user in users.get(value, ()):
        if user.op.name in VIEWS:
            yield from _readers(user.outputs[0], users)
        else:
            yield value, user
