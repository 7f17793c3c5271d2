"""gather, scatter_add, segment_reduce and sort against numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.accel.kernels.index import gather, gathered_pair, merge_axes, sort
from core.accel.kernels.segment import link, scatter_add, segment_reduce
from core.engine import dtypes, ops
from core.engine.array import as_array
from core.engine.jit import jit
from tests.accel.stepping import Memory, evaluate

FLOATS = ("float32", "float64")
NUMBERS = (*FLOATS, "int32", "int64")


def layouts(array):
    """The same values, contiguous and with strides that are reversed, transposed or gapped."""
    gapped = np.zeros([2 * n for n in array.shape], array.dtype)[tuple(slice(None, None, 2) for _ in array.shape)]
    gapped[...] = array
    flipped = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return [np.ascontiguousarray(array), np.asfortranarray(array), gapped, flipped]


def values(rng, shape, dtype):
    """Few different numbers, so that there are equals; floats hold NaN, infinities and both zeros."""
    numbers = rng.integers(-4, 5, shape).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
        numbers = np.where(rng.random(shape) < 0.2, special[rng.integers(0, 5, shape)], numbers + dtype(0.3))
    return numbers.astype(dtype)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def taken(x, indices, axis):
    inside = (indices >= 0) & (indices < x.shape[axis])
    out = np.take(x, np.where(inside, indices, 0), axis=axis)
    mask = inside.reshape((1,) * axis + indices.shape + (1,) * (x.ndim - axis - 1))
    return np.where(mask, out, np.zeros((), x.dtype))


GATHERS = [  # shape of x, shape of indices, axis
    ((5,), (3,), 0), ((5,), (), 0), ((1,), (4, 3), 0), ((7, 3), (11,), 0), ((7, 3), (11,), 1), ((4, 6, 5), (2, 3), 1),
    ((3, 1, 2, 70), (9,), 2), ((2, 3), (2500,), 1), ((3, 2500), (2,), 0), ((4, 6, 5), (2, 3), 2), ((5, 2), (0,), 0),
    ((3, 9, 15), (80,), 1), ((20, 33), (70,), 0), ((2, 7, 3, 16), (5, 9), 1),
]


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_rows_of_any_type_are_gathered_by_a_kernel(dtype):
    table = as_array(np.random.default_rng(0).integers(0, 2, (9, 5)), dtype)
    function = jit(lambda table: ops.gather(table, np.array([3, 0, 8, 3], np.int32), axis=0))
    np.testing.assert_array_equal(function(table).numpy(), table.numpy()[[3, 0, 8, 3]])
    assert not any("host" in step[0] for step in function.report(table).steps)


@pytest.mark.parametrize("shape,index_shape,axis", GATHERS)
@pytest.mark.parametrize("index_type", ["int32", "int64"])
def test_gather_equals_take(shape, index_shape, axis, index_type):
    rng = np.random.default_rng(len(shape) + axis)
    plain = values(rng, shape, np.float32)
    indices = rng.integers(-2, shape[axis] + 2, index_shape).astype(index_type)
    out_shape = shape[:axis] + index_shape + shape[axis + 1:]
    for x in layouts(plain):
        for at in layouts(indices) if index_shape else [indices]:
            found, = evaluate(lambda *views: gather(*views, axis), [x, at], [(out_shape, np.float32)])
            same(found, taken(plain, indices, axis))


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "uint8", "uint16"])
def test_gather_moves_any_type(dtype):
    x = np.arange(12).reshape(4, 3).astype(dtype)
    at = np.array([3, -1, 0, 0, 4, 2**31 - 1, -2**31], np.int32)
    found, = evaluate(lambda *views: gather(*views, 0), [x, at], [((7, 3), dtype)])
    same(found, taken(x, at, 0))


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "uint8", "uint16"])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 17, 64, 129, 300])
def test_gather_copies_rows_of_any_length(dtype, width):
    x = np.random.default_rng(width).integers(0, 2, (6, width)).astype(dtype)
    at = np.array([5, -1, 0, 0, 6, 3], np.int64)
    found, = evaluate(lambda *views: gather(*views, 0), [x, at], [((6, width), dtype)])
    same(found, taken(x, at, 0))


@pytest.mark.parametrize("kind,combine", [("sum", np.add), ("difference", np.subtract)])
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("rows,width", [(0, 3), (1, 1), (9, 5), (40, 16), (33, 70)])
def test_a_gathered_pair_is_two_gathers_and_an_operation(kind, combine, dtype, rows, width):
    rng = np.random.default_rng(rows + width)
    a, b = (values(rng, (extent, width), np.dtype(dtype).type) for extent in (7, 4))
    b = np.repeat(b, 2, axis=0)[::2]  # rows apart
    at_a, at_b = rng.integers(-1, 8, rows).astype(np.int32), rng.integers(-1, 5, rows).astype(np.int32)
    found, = evaluate(lambda a, at_a, b, at_b, out: gathered_pair(kind, (a, at_a), (b, at_b), out),
                      [a, at_a, b, at_b], [((rows, width), dtype)])
    with np.errstate(invalid="ignore"):
        same(found, combine(taken(a, at_a, 0), taken(b, at_b, 0)))


def scattered(x, indices, updates, axis):
    out = np.moveaxis(x.copy(), axis, 0)
    rows = np.moveaxis(updates, range(axis, axis + indices.ndim), range(indices.ndim))
    rows = rows.reshape((indices.size, *out.shape[1:]))
    for index, row in zip(indices.ravel(), rows, strict=True):
        if 0 <= index < x.shape[axis]:
            out[index] += row
    return np.moveaxis(out, 0, axis)


def scatter_steps(x, indices, updates, out, axis):
    links, steps = link(indices, x.shape[axis])
    return [*steps, *scatter_add(x, links, updates, out, axis)]


def reduce_steps(data, ids, out, kind):
    links, steps = link(ids, out.shape[0])
    return [*steps, *segment_reduce(data, links, out, kind)]


SCATTERS = [
    ((5,), (30,), 0), ((1,), (4, 3), 0), ((7, 3), (11,), 0), ((7, 3), (11,), 1), ((4, 6, 5), (2, 3), 1),
    ((3, 2, 70), (9,), 1), ((6, 129), (40,), 0), ((6, 130, 2), (3,), 0), ((4, 5), (), 1), ((4, 5), (0,), 0),
]


@pytest.mark.parametrize("shape,index_shape,axis", SCATTERS)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_scatter_add_adds_duplicates_in_order(shape, index_shape, axis, dtype):
    rng = np.random.default_rng(len(shape) + axis)
    plain = (rng.normal(size=shape) * 100).astype(dtype)
    indices = rng.integers(-1, shape[axis] + 1, index_shape).astype(np.int32)
    update_shape = shape[:axis] + index_shape + shape[axis + 1:]
    updates = (rng.normal(size=update_shape) * 100).astype(dtype)
    for x in layouts(plain):
        found, = evaluate(lambda *views: scatter_steps(*views, axis), [x, indices, updates], [(shape, dtype)])
        same(found, scattered(plain, indices, updates, axis))


def test_scatter_add_takes_broadcast_updates_and_x():
    x = np.broadcast_to(np.float32(2), (4, 5))
    updates = np.broadcast_to(np.float32(0.1), (3, 5))
    indices = np.array([1, 1, 3], np.int64)
    found, = evaluate(lambda *views: scatter_steps(*views, 0), [x, indices, updates], [((4, 5), np.float32)])
    same(found, scattered(x, indices, updates, 0))


def test_scatter_add_refuses_indices_and_updates_without_a_single_stride():
    memory = Memory()
    x, out = (memory.view(np.zeros((4, 2), np.float32)) for _ in range(2))
    with pytest.raises(ValueError, match=r"indices: .*copy it first"):
        link(memory.view(np.zeros((3, 4), np.int32)[:, :2]), 4)
    links, _ = link(memory.view(np.zeros((3, 2), np.int32)), 4)
    with pytest.raises(ValueError, match=r"scatter_add updates: .*copy it first"):
        scatter_add(x, links, memory.view(np.zeros((3, 4, 2), np.float32)[:, :2]), out, 0)


REDUCE = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def reduced(data, ids, segments, kind):
    floats = np.issubdtype(data.dtype, np.floating)
    limits = None if floats else np.iinfo(data.dtype)
    start = {"sum": 0, "max": -np.inf if floats else limits.min, "min": np.inf if floats else limits.max}[kind]
    out = np.full((segments, *data.shape[1:]), start, data.dtype)
    for index, row in zip(ids, data, strict=True):
        if 0 <= index < segments:
            out[index] = REDUCE[kind](out[index], row)
    return out


@pytest.mark.parametrize("kind", REDUCE)
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("rows,features,segments", [
    (1, (), 1), (50, (), 7), (50, (1,), 7), (33, (3, 5), 9), (200, (65,), 4), (64, (300,), 31), (0, (3,), 2)])
def test_segment_reduce_equals_a_loop(kind, dtype, rows, features, segments):
    rng = np.random.default_rng(rows + segments)
    plain = values(rng, (rows, *features), np.dtype(dtype).type)
    ids = rng.integers(-1, segments + 2, rows).astype(np.int32)
    for data in layouts(plain):
        with np.errstate(invalid="ignore"):
            expected = reduced(plain, ids, segments, kind)
        found, = evaluate(lambda *views: reduce_steps(*views, kind), [data, ids],
                          [((segments, *features), dtype)])
        same(found, expected)


def steps_of(function, *arguments):
    program = jit(lambda nothing, *given: function(*given)).bind(())
    found = program(*arguments)
    expected = jit(function, device="reference")(*arguments)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    return [name for name, *_ in program.report.steps]


ROWS = np.random.default_rng(1).integers(-9, 9, (5, 33)).astype(np.float32)
TO, FROM = np.array([4, 0, 0, 7, -1], np.int32), np.array([2, 2, 1, 5, 0, 4, 3], np.int32)


def test_sums_over_the_same_indices_share_their_links():
    names = steps_of(lambda x, to: ops.segment_sum(x, to, 6) + ops.segment_sum(x * x, to, 6), ROWS, TO)
    assert names.count("link") == 1 and names.count("segment_reduce") == 2


def test_a_difference_of_gathers_is_one_step():
    def difference(x, to, other):
        return ops.gather(x, to, axis=0) - ops.gather(x * 2, other, axis=0)

    assert steps_of(difference, ROWS, FROM, FROM[::-1].copy()) == ["mul", "gathered difference"]


def test_a_loop_reads_the_difference_of_gathers():
    """Less memory moves than with two gathers that the loop reads."""
    def scaled(x, to, other):
        return ops.round((ops.gather(x, to, axis=0) - ops.gather(x, other, axis=0)) / np.float32(3))

    assert steps_of(scaled, ROWS, FROM, FROM[::-1].copy()) == ["gathered difference", "div+round"]


@pytest.mark.parametrize("function", [
    lambda x, at: ops.gather(x, at, axis=0) + ops.gather(x, at, axis=0),
    lambda x, at: ops.gather(x, at, axis=0) - x[:1],
    lambda x, at: ops.gather(x.T, at, axis=1).T - ops.gather(x, at + 1, axis=0),
    lambda x, at: (lambda taken: (taken - ops.gather(x, at + 1, axis=0)) * taken)(ops.gather(x, at, axis=0)),
    lambda x, at: ops.gather(x, at, axis=0) - ops.gather(x, at.astype("i64"), axis=0),
])
def test_other_uses_of_gathers_take_a_step_of_their_own(function):
    assert "gather" in steps_of(function, ROWS, FROM)


@pytest.mark.parametrize("dtype", [*NUMBERS, "uint8", "bool"])
@pytest.mark.parametrize("shape,axis", [
    ((1,), 0), ((2,), 0), ((17,), 0), ((5, 100), 1), ((100, 5), 0), ((3, 31, 4), 1), ((3, 0), 1), ((0, 3), 1)])
def test_sort_is_stable_with_nan_last(dtype, shape, axis):
    rng = np.random.default_rng(sum(shape))
    plain = values(rng, shape, np.dtype(dtype).type)
    order = np.argsort(plain, axis=axis, kind="stable").astype(np.int32)
    for x in layouts(plain):
        found, places = evaluate(lambda *views: sort(*views, axis), [x], [(shape, dtype), (shape, np.int32)])
        same(places, order)
        same(found, np.take_along_axis(plain, order, axis))


@pytest.mark.parametrize("shape,strides,expected", [
    ((2, 3, 4), [(12, 4, 1)], ([24], [[1]])),
    ((2, 3, 4), [(12, 4, 1), (0, 0, 1)], ([6, 4], [[4, 1], [0, 1]])),
    ((2, 1, 4), [(8, 77, 1)], ([2, 4], [[8, 1]])),
    ((1, 1), [(5, 5)], ([1], [[0]])),
    ((), [()], ([1], [[0]])),
    ((3, 0), [(0, 1)], ([0], [[1]])),
])
def test_merge_axes(shape, strides, expected):
    assert merge_axes(shape, *strides) == expected


def test_planning_needs_no_numba():
    program = ("import sys, core.accel.kernels.index, core.accel.kernels.window\n"
               "assert 'numba' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
