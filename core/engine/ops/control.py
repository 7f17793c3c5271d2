"""Structural ops: scan, call, custom_call and all_reduce.

Invariant: a structural op holds graphs or a host function in its parameters and gives a tuple; its arrays keep their
storage form (bfloat16 is not decoded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine import tree
from core.engine.array import Array, as_array
from core.engine.errors import ShapeError, TraceError
from core.engine.graph import Aval, Graph, Value
from core.engine.ops.shape import concatenate, full_like, stack, zeros
from core.engine.ops.table import MultipleOp, Op, Sample, evaluate, register_multiple, require


def run_graph(graph: Graph, arguments: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Walk a graph with the numpy rules: the living definition of what it means."""
    known: dict[Value, NDArray[Any]] = dict(zip(graph.inputs, arguments, strict=True)) | graph.constants
    for equation in graph.equations:
        results = evaluate(equation.op, [known[value] for value in equation.inputs],
                           [value.aval for value in equation.inputs], equation.params,
                           [value.aval for value in equation.outputs])
        known.update(zip(equation.outputs, results, strict=True))
    return [known[value] for value in graph.outputs]


def graph_flops(graph: Graph) -> int:
    """Arithmetic operations of one run."""
    return sum(equation.op.flops([value.aval for value in equation.inputs], [value.aval for value in equation.outputs],
                                 equation.params) for equation in graph.equations)


def _avals(values: Sequence[Value]) -> tuple[Aval, ...]:
    return tuple(value.aval for value in values)


# --- call ------------------------------------------------------------------------------------------------------------

def _call_shape(*arguments: Aval, graph: Graph) -> tuple[Aval, ...]:
    require(arguments == _avals(graph.inputs), "call", "arguments have the avals of the graph's inputs",
            arguments=arguments, inputs=_avals(graph.inputs))
    return _avals(graph.outputs)


def _call_grad(cts: Sequence[Any], outs: Any, *arguments: Array, graph: Graph) -> tuple[Any, ...]:
    from core.engine.grad import vjp_graph

    return tuple(vjp_graph(graph, arguments, cts))


call: MultipleOp = register_multiple(Op(
    "call", "structural", _call_shape, lambda *arguments, graph: tuple(run_graph(graph, arguments)),
    _call_grad, lambda inputs, outputs, params: graph_flops(params["graph"]), multiple=True,
    doc="Apply a graph; backends inline it."))


# --- scan ------------------------------------------------------------------------------------------------------------

def _scan_shape(*arguments: Aval, body: Graph, consts: int, carries: int, length: int,
                reverse: bool) -> tuple[Aval, ...]:
    inputs, outputs = _avals(body.inputs), _avals(body.outputs)
    slices = arguments[consts + carries:]
    require(arguments[:consts + carries] == inputs[:consts + carries]
            and all(x.shape[:1] == (length,) and Aval(x.dtype, x.shape[1:]) == inner
                    for x, inner in zip(slices, inputs[consts + carries:], strict=True)), "scan",
            "arguments are what the body reads, sequences with a leading axis of the length", arguments=arguments,
            body=inputs, length=length)
    require(outputs[:carries] == inputs[consts:consts + carries], "scan", "the body gives the carry the avals it takes",
            taken=inputs[consts:consts + carries], given=outputs[:carries])
    return (*outputs[:carries], *(Aval(y.dtype, (length, *y.shape)) for y in outputs[carries:]))


def _scan_numpy(*arguments: Any, body: Graph, consts: int, carries: int, length: int, reverse: bool) -> tuple[Any, ...]:
    fixed, carry, sequences = arguments[:consts], list(arguments[consts:consts + carries]), arguments[consts + carries:]
    ys = [np.empty((length, *value.aval.shape), value.aval.dtype.storage) for value in body.outputs[carries:]]
    for step in reversed(range(length)) if reverse else range(length):
        out = run_graph(body, [*fixed, *carry, *(x[step] for x in sequences)])
        carry = out[:carries]
        for y, value in zip(ys, out[carries:], strict=True):
            y[step] = value
    return (*carry, *ys)


def _scan_grad(cts: Sequence[Array | None], outs: Sequence[Array], *arguments: Array, body: Graph, consts: int,
               carries: int, length: int, reverse: bool) -> tuple[Any, ...]:
    from core.engine.grad import backward, zero_cotangents
    from core.engine.trace import replay

    fixed = arguments[:consts]
    carry, sequences = list(arguments[consts:consts + carries]), list(arguments[consts + carries:])
    full = zero_cotangents(cts, outs)
    kept, rest = _kept_for_gradient(body, consts, carries)

    def forward(state: list[Array], slices: list[Array]) -> tuple[list[Array], list[Array]]:
        known = replay(body, [*fixed, *state, *slices])
        return [known[value] for value in body.outputs[:carries]], [known[value] for value in kept]

    _, stacks = scan(forward, carry, sequences, length=length, reverse=reverse)

    def back(state: tuple[list[Array], list[Array]], slices: Any) -> Any:
        ct_carry, ct_fixed = state
        stacked, xs, ct_ys = slices
        known = replay(rest, [*fixed, *xs]) | dict(zip(kept, stacked, strict=True))
        inputs = [known[value] for value in body.inputs]
        grads = zero_cotangents(backward(body, known, [*ct_carry, *ct_ys], body.inputs), inputs)
        added = [total + grad for total, grad in zip(ct_fixed, grads[:consts], strict=True)]
        return (grads[consts:consts + carries], added), grads[consts + carries:]

    zeros_fixed = [full_like(value, 0) for value in fixed]
    (ct_carry, ct_fixed), ct_xs = scan(back, (full[:carries], zeros_fixed), (stacks, sequences, full[carries:]),
                                       length=length, reverse=not reverse)
    return (*ct_fixed, *ct_carry, *ct_xs)


def _kept_for_gradient(body: Graph, consts: int, carries: int) -> tuple[list[Value], Graph]:
    """What depends on the carries, which the way back finds again, and the graph of what does not.

    The way back needs only part of it, and a backend drops what it does not need.
    """
    kept = dict.fromkeys(body.inputs[consts:consts + carries])
    rest = Graph([*body.inputs[:consts], *body.inputs[consts + carries:]], constants=body.constants)
    for equation in body.equations:
        if kept.keys().isdisjoint(equation.inputs):
            rest.equations.append(equation)
        else:
            kept.update(dict.fromkeys(equation.outputs))
    return list(kept), rest


_scan: MultipleOp = register_multiple(Op(
    "scan", "structural", _scan_shape, _scan_numpy, _scan_grad,
    lambda inputs, outputs, params: params["length"] * graph_flops(params["body"]), multiple=True,
    doc="Carry a state over a leading axis; the body is a graph."))


def scan(function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None, *, length: int | None = None,
         reverse: bool = False) -> tuple[Any, Any]:
    """Run ``carry, y = function(carry, x)`` over the leading axis of xs.

    Parameters
    ----------
    function : pure; gives a carry of the same tree and avals, and a tree of results for this step
    carry, xs : trees of arrays; every leaf of xs has the same leading axis
    length : number of steps, needed if xs has no leaves
    reverse : from the last step to the first; results keep the order of xs

    Returns
    -------
    The last carry, and the results stacked along a leading axis.
    """
    from core.engine.trace import trace

    carry_leaves, carry_structure = tree.flatten(carry)
    x_leaves, x_structure = tree.flatten(xs)
    carry_leaves, x_leaves = [as_array(leaf) for leaf in carry_leaves], [as_array(leaf) for leaf in x_leaves]
    length = len(x_leaves[0]) if length is None else length
    avals = [leaf.aval for leaf in carry_leaves] + [Aval(leaf.dtype, leaf.shape[1:]) for leaf in x_leaves]
    structure = tree.Structure(tuple, None, ("carry", "x"), (carry_structure, x_structure))
    traced = trace(function, avals, structure)
    left = traced.structure.children
    if len(left) != 2 or left[0] != carry_structure:
        raise ShapeError("ShapeError in scan: the function must give (carry, results), the carry of the tree that it "
                         "was given")
    body, count = traced.graph, len(carry_leaves)
    body.inputs = body.inputs[len(avals):] + body.inputs[:len(avals)]
    outs = _scan(*traced.captures, *carry_leaves, *x_leaves, body=body, consts=len(traced.captures), carries=count,
                 length=length, reverse=reverse)
    out_carry, out_ys = traced.structure.children
    return tree.unflatten(out_carry, outs[:count]), tree.unflatten(out_ys, outs[count:])


# --- custom_call, all_reduce -----------------------------------------------------------------------------------------

def _custom_numpy(*arguments: Any, function: Callable[..., Any], avals: tuple[Aval, ...]) -> tuple[Any, ...]:
    results = function(*arguments)
    return results if isinstance(results, tuple) else (results,)


def _custom_grad(cts: Sequence[Any], outs: Any, *arguments: Array, **params: Any) -> tuple[Any, ...]:
    raise TraceError("custom_call has no gradient; write the function with ops, or keep it out of what is "
                     "differentiated")


custom_call: MultipleOp = register_multiple(Op(
    "custom_call", "structural", lambda *arguments, function, avals: tuple(avals), _custom_numpy, _custom_grad,
    multiple=True, doc="A host function of numpy arrays with declared results; no gradient."))


def _all_reduce_numpy(x: Any, *, group: Callable[[Any], Any] | None) -> tuple[Any, ...]:
    return (x if group is None else group(x),)


all_reduce: MultipleOp = register_multiple(Op(
    "all_reduce", "structural", lambda x, *, group: (x,), _all_reduce_numpy,
    lambda cts, outs, x, *, group: (all_reduce(cts[0], group=group)[0],), multiple=True,
    samples=lambda: [Sample((np.arange(3.0),), {"group": None})],
    doc="Sum over the replicas of a group (the identity where there is one replica)."))


def unroll(arguments: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
    """The equations of a scan one step after the other, in the present context."""
    from core.engine.trace import call_graph

    body, consts, carries = params["body"], params["consts"], params["carries"]
    fixed, carry, sequences = arguments[:consts], list(arguments[consts:consts + carries]), arguments[consts + carries:]
    steps = range(params["length"])
    results: dict[int, list[Array]] = {}
    for step in reversed(steps) if params["reverse"] else steps:
        out = call_graph(body, [*fixed, *carry, *(x[step] for x in sequences)])
        carry, results[step] = out[:carries], out[carries:]
    if not steps:
        return (*carry, *(zeros((0, *value.aval.shape), value.aval.dtype) for value in body.outputs[carries:]))
    columns = [[results[step][index] for step in steps] for index in range(len(body.outputs) - carries)]
    return (*carry, *(stack(column) if column[0].ndim else concatenate([y.reshape(1) for y in column])
                      for column in columns))
