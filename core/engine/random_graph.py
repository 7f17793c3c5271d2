"""Random graphs: computations with which backends are compared, and the steps that they are made of.

Invariant: the same seed gives the same computation and the same arguments, eagerly and in a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.engine import dtypes, ops, random
from core.engine.array import Array, as_array
from core.engine.grad import grad
from core.engine.jit import jit
from core.engine.random_walk import LARGEST, Entry, Walk, fits

_EXTENTS = (1, 2, 3, 4, 5, 7, 11, 13, 16, 17, 31, 64)
_PALETTES = ((dtypes.float32,), (dtypes.float64,), (dtypes.float32, dtypes.float64), (dtypes.bfloat16, dtypes.float32))
_INTEGERS = (dtypes.int32, dtypes.int64, dtypes.int8, dtypes.uint8)


def random_graph(seed: int, length: int = 10) -> tuple[Callable[..., tuple[Array, ...]], tuple[Array, ...]]:
    """A random pure function of arrays, and arguments for it.

    No NaN or infinity comes up, and no result jumps where two backends round differently: what is discontinuous
    (compare, floor, sort, ...) reads only values that were moved or picked, never computed.

    Parameters
    ----------
    length : about as many ops, or small groups of ops, are applied

    Returns
    -------
    The function, which gives a tuple of arrays, and its arguments. The coarsest float type among the arguments bounds
    the accuracy of all results.
    """
    generator = np.random.default_rng(seed)
    palette = _PALETTES[generator.integers(len(_PALETTES))]
    arguments = [random.key(seed), as_array(generator.integers(-9, 10, _random_shape(generator)).astype(np.int32)),
                 as_array(generator.random(_random_shape(generator)) < 0.5)]
    for dtype in (*palette, *palette, palette[0])[:4]:
        # Multiples of 1/16 are exact in every type and give ties.
        arguments.append(as_array(generator.integers(-32, 33, _random_shape(generator)) / 16, dtype))

    def function(key: Array, *rest: Array) -> tuple[Array, ...]:
        walk = Walk(seed, [Entry(array, True) for array in rest], palette, key)
        walk.run(_STEPS, length)
        made = walk.entries[len(rest):]
        return tuple(entry.array for entry in made[::2] + made[-1:])

    return function, tuple(arguments)


def _random_shape(generator: np.random.Generator) -> tuple[int, ...]:
    shape = tuple(int(extent) for extent in generator.choice(_EXTENTS, generator.integers(1, 4)))
    return shape if math.prod(shape) <= LARGEST else shape[:1]


# --- elementwise steps: floats stay in -4..4, integers in -50..50 ----------------------------------------------------

def _bounded(array: Array, limit: float) -> Array:
    return ops.minimum(ops.maximum(array, -limit if array.dtype.kind != "uint" else 0), limit)


_UNARY: tuple[Callable[[Array], Array], ...] = (
    ops.tanh, ops.sin, ops.erf, ops.logistic, lambda x: ops.exp(ops.tanh(x)), lambda x: ops.log(x * x + 0.5),
    lambda x: ops.log1p(x * x), lambda x: ops.sqrt(x * x + 0.1))
_BINARY: tuple[Callable[[Array, Array], Array], ...] = (
    lambda a, b: (a + b) * 0.5, lambda a, b: (a - b) * 0.5, lambda a, b: a * b * 0.25, lambda a, b: a / (b * b + 1),
    lambda a, b: ops.pow(a * a + 0.5, ops.tanh(b)))


def _unary(walk: Walk) -> None:
    entry = walk.pick()
    assert entry is not None
    walk.add(walk.choice(_UNARY)(entry.array), False)


def _binary(walk: Walk) -> None:
    first = walk.pick()
    assert first is not None
    walk.add(walk.choice(_BINARY)(first.array, walk.partner(first).array), False)


def _picking(walk: Walk) -> None:
    first = walk.kinked()
    if first is None:
        return
    second = walk.partner(first)
    if second.exact or not walk.smooth:
        walk.add(walk.choice((ops.maximum, ops.minimum))(first.array, second.array), first.exact and second.exact)
    walk.add(walk.choice((ops.abs, ops.neg))(first.array), first.exact)


def _rounding(walk: Walk) -> None:
    if (entry := walk.pick(exact=True)) is not None:
        walk.add(walk.choice((ops.floor, ops.round))(entry.array), True)


def _integers(walk: Walk) -> None:
    first = walk.pick("int", "uint")
    assert first is not None
    a, b = first.array, walk.partner(first).array
    results = (a + b, a - b, a * b, ops.maximum(a, b), ops.div(a, ops.maximum(b, 1)))
    walk.add(_bounded(walk.choice(results), 50), True)


def _logic(walk: Walk) -> None:
    first = walk.pick("float", "int", "uint", exact=True)
    if first is None:
        return
    second = walk.partner(first)
    if second.exact:
        walk.add(ops.compare(first.array, second.array, kind=walk.choice(("lt", "le", "gt", "ge", "eq", "ne"))), True)
    flag = walk.pick("bool")
    assert flag is not None
    other = walk.partner(flag)
    walk.add(walk.choice((flag.array & other.array, flag.array | ~other.array)), True)


def _select(walk: Walk) -> None:
    first = walk.pick("float", "int")
    assert first is not None
    second, flag = walk.partner(first), walk.pick("bool")
    assert flag is not None
    if fits(flag.array.shape, np.broadcast_shapes(first.array.shape, second.array.shape)):
        walk.add(ops.select(flag.array, first.array, second.array), first.exact and second.exact)


def _convert(walk: Walk) -> None:
    entry = walk.pick("float", "int", "bool", "uint")
    assert entry is not None
    targets = [*walk.palette, *(_INTEGERS if entry.exact else ())]
    walk.add(entry.array.astype(walk.choice(targets)), entry.exact)


def _random(walk: Walk) -> None:
    assert walk.key is not None
    entry = walk.pick()
    assert entry is not None
    noise = random.uniform(random.fold_in(walk.key, walk.integer(9)), entry.array.shape, -1.0, 1.0)
    walk.add(entry.array * 0.5 + noise.astype(entry.array.dtype), False)


# --- steps that move elements ----------------------------------------------------------------------------------------

def _move(walk: Walk) -> None:
    entry = walk.pick("float", "float", "int", "bool", ndim=1)
    if entry is not None:
        walk.add(walk.choice(_MOVES)(walk, entry.array), entry.exact)


def _moved_twice(walk: Walk) -> None:
    entry = walk.pick(ndim=1)
    if entry is not None:
        once = _transposed(walk, walk.choice(_MOVES)(walk, entry.array))
        walk.add(walk.choice(_MOVES)(walk, once) if once.size and once.ndim else once, entry.exact)


def _transposed(walk: Walk, x: Array) -> Array:
    return x.transpose(tuple(int(axis) for axis in walk.generator.permutation(x.ndim)))


def _repeated(walk: Walk, x: Array) -> Array:
    place = walk.integer(x.ndim + 1)
    shape = (*x.shape[:place], walk.integer(1, 6), *x.shape[place:])
    return ops.broadcast(x, shape=shape, axes=tuple(axis for axis in range(len(shape)) if axis != place))


def _cut(walk: Walk, x: Array) -> Array:
    return x[tuple(np.s_[walk.integer(min(extent, 3)):extent:walk.integer(1, 4)] for extent in x.shape)]


def _reshaped(walk: Walk, x: Array) -> Array:
    divisors = [extent for extent in range(1, x.size + 1) if x.size % extent == 0]
    outer = walk.choice(divisors)
    inner = walk.choice([extent for extent in divisors if x.size // outer % extent == 0])
    return x.reshape(outer, x.size // outer // inner, inner)


def _padded(walk: Walk, x: Array) -> Array:
    low, high, interior = ([walk.integer(begin, end) for _ in x.shape] for begin, end in ((-1, 3), (-1, 3), (0, 3)))
    low = [max(a, 1 - extent) for a, extent in zip(low, x.shape, strict=True)]
    high = [max(b, 1 - extent - min(a, 0)) for b, a, extent in zip(high, low, x.shape, strict=True)]
    value = 1 if x.dtype.kind == "bool" else walk.choice((0, 2))
    return ops.pad(x, value, low=tuple(low), high=tuple(high), interior=tuple(interior))


def _joined(walk: Walk, x: Array) -> Array:
    axis = walk.integer(x.ndim)
    return ops.concatenate([x, ops.take_range(x, axis, 0, walk.integer(x.shape[axis] + 1)), x], axis)


def _taken(walk: Walk, x: Array) -> Array:
    axis = walk.integer(x.ndim)
    places = walk.places(x.shape[axis], walk.choice(((), (3,), (2, 3))))
    return ops.gather(x, places, axis=axis)


def _windowed(walk: Walk, x: Array) -> Array:
    starts = [as_array(walk.integer(-2, 5)) for _ in x.shape]
    small = ops.dynamic_slice(x, *starts, sizes=tuple(walk.integer(1, extent + 1) for extent in x.shape))
    return ops.dynamic_update(x, small, *starts[::-1])


_MOVES = (_transposed, _repeated, _cut, _reshaped, _padded, _joined, _taken, _windowed)


# --- steps that combine elements -------------------------------------------------------------------------------------

def _reduce(walk: Walk) -> None:
    entry = walk.kinked(ndim=1)
    if entry is None:
        return
    x = entry.array
    axes = tuple(axis for axis in range(x.ndim) if walk.integer(2)) or (walk.integer(x.ndim),)
    y = walk.choice(_UNARY)(x)
    walk.add(y, False)
    walk.add(ops.mean(y * x, axes), False)
    walk.add(ops.mean(y, axes, keepdims=True), False)
    walk.add(walk.choice((ops.amax, ops.amin))(x, axes), entry.exact)
    whole = walk.pick("int")
    if whole is not None:
        walk.add(_bounded(ops.sum(whole.array), 50), True)


def _order(walk: Walk) -> None:
    entry = walk.pick("float", "int", exact=True, ndim=1)
    if entry is None:
        return
    axis = walk.integer(entry.array.ndim)
    walk.add(ops.argreduce(entry.array, axis=axis, kind=walk.choice(("max", "min"))), True)
    values, order = ops.sort(entry.array, axis=axis)
    walk.add(values, True)
    walk.add(order, True)
    walk.add(ops.take_along(entry.array, order, axis), True)


def _cumsum(walk: Walk) -> None:
    entry = walk.pick(ndim=1)
    if entry is not None:
        axis = walk.integer(entry.array.ndim)
        total = ops.cumsum(entry.array, axis=axis, reverse=bool(walk.integer(2)))
        walk.add(total * (1 / entry.array.shape[axis]), False)


def _window(walk: Walk) -> None:
    entry = walk.kinked(ndim=1)
    if entry is None or entry.array.ndim > 4:
        return
    x = entry.array
    size = tuple(walk.integer(1, min(extent, 3) + 1) for extent in x.shape)
    params: dict[str, Any] = {"size": size, "stride": tuple(walk.integer(1, 4) for _ in size),
                              "padding": tuple((walk.integer(n), walk.integer(n)) for n in size)}
    total = ops.window(x, kind="sum", **params) * (1 / math.prod(size))
    walk.add(total, False)
    if entry.exact:
        kind = walk.choice(("max", "min"))
        walk.add(ops.window(x, x, kind=kind, **params), True)
        walk.add(ops.tanh(ops.window_grad(x, total, kind=kind, **params)), False)


def _dot_product(walk: Walk) -> None:
    first = walk.pick(ndim=1)
    if first is None:
        return
    a = first.array
    order = [int(axis) for axis in walk.generator.permutation(a.ndim)]
    cut = walk.integer(1, a.ndim + 1)
    summed = tuple(order[:cut])
    shared = tuple(order[cut:cut + walk.integer(2)])
    names = [("c", axis) for axis in summed] + [("b", axis) for axis in shared] + [("f", -1)] * walk.integer(2)
    names = [names[place] for place in walk.generator.permutation(len(names))]
    b = walk.shaped(tuple(walk.integer(1, 9) if axis < 0 else a.shape[axis] for _, axis in names)).array.astype(a.dtype)
    contract = summed, tuple(names.index(("c", axis)) for axis in summed)
    batch = shared, tuple(names.index(("b", axis)) for axis in shared)
    depth = math.prod(a.shape[axis] for axis in summed)
    walk.add(ops.dot(a, b, contract=contract, batch=batch) * (1 / depth), False)


def _convolution(walk: Walk) -> None:
    rank, groups = walk.integer(1, 4), walk.choice((1, 1, 2, 3))
    inner, outer = walk.integer(1, 5), walk.integer(1, 5) * groups
    kernel = tuple(walk.integer(1, 4) for _ in range(rank))
    space = tuple(walk.integer(6, 9) for _ in range(rank))
    x = walk.shaped((walk.integer(1, 3), *space, inner * groups)).array
    w = walk.shaped((*kernel, inner, outer)).array.astype(x.dtype)
    out = ops.conv(x, w, stride=tuple(walk.integer(1, 3) for _ in kernel), groups=groups,
                   padding=tuple((walk.integer(-1, 3), walk.integer(0, 3)) for _ in kernel),
                   dilation=tuple(walk.integer(1, 3) for _ in kernel),
                   input_dilation=tuple(walk.integer(1, 3) for _ in kernel))
    walk.add(out * (1 / (math.prod(kernel) * inner)), False)


def _scatter(walk: Walk) -> None:
    entry = walk.pick(ndim=1)
    if entry is None:
        return
    x = entry.array
    axis = walk.integer(x.ndim)
    places = walk.places(x.shape[axis], (walk.integer(1, 9),))
    updates = walk.shaped((*x.shape[:axis], len(places), *x.shape[axis + 1:])).array.astype(x.dtype)
    walk.add(ops.scatter_add(x, places, updates, axis=axis) * (1 / (1 + len(places))), False)


def _segments(walk: Walk) -> None:
    entry = walk.kinked(ndim=1)
    if entry is None:
        return
    count = walk.integer(1, 6)
    ids = walk.places(count, entry.array.shape[:1])
    walk.add(ops.segment_mean(entry.array, ids, count), False)
    walk.add(ops.segment_softmax(entry.array, ids, count), False)
    kind = walk.choice(("max", "min"))
    walk.add(_bounded(ops.segment_reduce(entry.array, ids, count=count, kind=kind), 4.0), entry.exact)


# --- steps that hold a computation -----------------------------------------------------------------------------------

def _inner(walk: Walk, arguments: Sequence[Entry], length: int) -> Callable[..., Array]:
    """A smooth function of arrays to the last thing it makes."""
    seed = walk.integer(1 << 30)

    def function(*arrays: Array) -> Array:
        entries = [Entry(array, entry.exact) for array, entry in zip(arrays, arguments, strict=True)]
        inner = Walk(seed, entries, walk.palette)
        inner.run(_SMOOTH_STEPS, length)
        return inner.entries[-1].array

    return function


def _called(walk: Walk) -> None:
    entry = walk.pick()
    assert entry is not None
    walk.add(jit(_inner(walk, [entry], 3), device="reference")(entry.array), False)


def _scanned(walk: Walk) -> None:
    entry = walk.pick(ndim=1)
    if entry is None or entry.array.shape[0] > 5:
        return
    carry = walk.shaped((walk.integer(1, 6),)).array
    factor = walk.choice(_BINARY)

    def body(state: Array, x: Array) -> tuple[Array, Array]:
        state = ops.tanh(factor(state, ops.mean(x).astype(state.dtype)))
        return state, ops.sin(x) * 0.5

    state, ys = ops.scan(body, carry, entry.array, reverse=bool(walk.integer(2)))
    walk.add(state, False)
    walk.add(ys, False)


def _differentiated(walk: Walk) -> None:
    entries = [entry for entry in (walk.pick(), walk.pick()) if entry is not None]
    function = _inner(walk, entries, 4)

    def scalar(arrays: list[Array]) -> Array:
        return ops.mean(function(*arrays))

    for gradient in grad(scalar)([entry.array for entry in entries]):
        walk.add(ops.tanh(gradient * gradient.size), False)


_SMOOTH_STEPS: tuple[Callable[[Walk], None], ...] = (
    _unary, _binary, _binary, _picking, _move, _moved_twice, _reduce, _cumsum, _window, _dot_product, _convolution,
    _scatter, _segments)
_STEPS = (*_SMOOTH_STEPS, _rounding, _integers, _logic, _select, _convert, _random, _order, _called, _scanned,
          _differentiated, _differentiated)
