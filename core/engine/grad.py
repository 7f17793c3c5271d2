"""Reverse mode: a graph to the graph of its gradient.

Invariant: rules are written with the ops themselves, so a gradient can be traced, compiled and differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.engine import tree
from core.engine.array import Array, as_array
from core.engine.errors import ShapeError
from core.engine.graph import Graph, Value
from core.engine.ops.shape import full_like
from core.engine.trace import at, here, replay, trace


def vjp_graph(graph: Graph, arguments: Sequence[Array], cotangents: Sequence[Array | None]) -> list[Array | None]:
    """Cotangents of a graph's inputs, given those of its outputs; the forward equations are applied once more."""
    return backward(graph, replay(graph, arguments), cotangents, graph.inputs)


def backward(graph: Graph, known: dict[Value, Array], cotangents: Sequence[Array | None],
             inputs: Sequence[Value]) -> list[Array | None]:
    """Walk the equations of a replayed graph in reverse.

    Parameters
    ----------
    known : the array of every value, from `replay`
    cotangents : one an output, None for zero
    inputs : those of the graph's inputs whose cotangents are asked for

    Returns
    -------
    One cotangent for each of them; None where the output does not depend on it, or where it is not of a float type.
    """
    active = _active(graph, inputs)
    pending: dict[Value, Array] = {}

    def accumulate(value: Value, ct: Array | None) -> None:
        if ct is not None and value in active:
            pending[value] = pending[value] + ct if value in pending else ct

    for value, ct in zip(graph.outputs, cotangents, strict=True):
        accumulate(value, ct)
    with at(here()) as move_to:
        for equation in reversed(graph.equations):
            cts = [pending.pop(value, None) for value in equation.outputs]
            if equation.op.grad is None or all(ct is None for ct in cts):
                continue
            outs = [known[value] for value in equation.outputs]
            move_to(equation.where)
            if equation.op.multiple:
                cts_in = equation.op.grad(zero_cotangents(cts, outs), outs, *(known[v] for v in equation.inputs),
                                          **equation.params)
            else:
                cts_in = equation.op.grad(cts[0], outs[0], *(known[v] for v in equation.inputs), **equation.params)
            for value, ct in zip(equation.inputs, cts_in, strict=True):
                accumulate(value, ct)
    return [pending.get(value) for value in inputs]


def _active(graph: Graph, inputs: Sequence[Value]) -> set[Value]:
    """Float values that depend on these inputs."""
    active = {value for value in inputs if value.aval.dtype.is_float}
    for equation in graph.equations:
        if any(value in active for value in equation.inputs):
            active.update(value for value in equation.outputs if value.aval.dtype.is_float)
    return active


def zero_cotangents(cotangents: Sequence[Array | None], like: Sequence[Array]) -> list[Array]:
    """Cotangents with None replaced by zeros."""
    return [full_like(value, 0) if ct is None else ct for ct, value in zip(cotangents, like, strict=True)]


@dataclass(frozen=True)
class _Linearised:
    outputs: Any
    auxiliary: Any
    pull_back: Callable[[Sequence[Array | None]], Any]


def _linearise(function: Callable[..., Any], arguments: tuple[Any, ...], has_aux: bool) -> _Linearised:
    """Trace the function in its first argument, and apply it."""
    leaves, structure = tree.flatten(arguments[0])
    leaves = [as_array(leaf) for leaf in leaves]
    split: list[int] = []

    def first(argument: Any) -> Any:
        result = function(argument, *arguments[1:])
        main, auxiliary = result if has_aux else (result, None)
        split.append(len(tree.leaves(main)))
        return main, auxiliary

    one = tree.Structure(tuple, None, ("0",), (structure,))
    traced = trace(first, [leaf.aval for leaf in leaves], one)
    known = replay(traced.graph, [*leaves, *traced.captures])
    main, auxiliary = tree.unflatten(traced.structure, [known[value] for value in traced.graph.outputs])

    def pull_back(cotangents: Sequence[Array | None]) -> Any:
        padded = [*cotangents, *([None] * (len(traced.graph.outputs) - split[0]))]
        grads = backward(traced.graph, known, padded, traced.graph.inputs[:len(leaves)])
        return tree.unflatten(structure, zero_cotangents(grads, leaves))

    return _Linearised(main, auxiliary, pull_back)


def value_and_grad(function: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives the value of `function` and its gradient with respect to the first argument.

    Parameters
    ----------
    function : gives a float scalar; with `has_aux` a pair of it and a tree of anything else
    has_aux : whether the value is such a pair

    Returns
    -------
    ``value, gradient``, the gradient a tree as the first argument (zeros at leaves that are not of a float type).
    """

    def differentiated(*arguments: Any) -> Any:
        linearised = _linearise(function, arguments, has_aux)
        loss = as_array(linearised.outputs)
        if loss.shape != () or not loss.dtype.is_float:
            raise ShapeError(f"ShapeError in grad: the function must give a float scalar, it gave {loss.aval}; "
                             f"take the mean or the sum")
        gradient = linearised.pull_back([full_like(loss, 1.0)])
        return ((loss, linearised.auxiliary) if has_aux else loss), gradient

    return differentiated


def grad(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives the gradient of `function`, a float scalar, with respect to the first argument."""
    both = value_and_grad(function)
    return lambda *arguments: both(*arguments)[1]


def vjp(function: Callable[..., Any], argument: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The value of a function of one argument, and the map from its cotangent to the argument's."""
    linearised = _linearise(function, (argument,), False)

    def pull_back(cotangent: Any) -> Any:
        return linearised.pull_back([as_array(leaf) for leaf in tree.leaves(cotangent)])

    return linearised.outputs, pull_back
