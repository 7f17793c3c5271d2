"""gather, scatter_add, segment_reduce and sort against numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stepping import Memory, evaluate

from core.accel.kernels.index import gather, merge_axes, scatter_add, segment_reduce, sort

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
]


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


def scattered(x, indices, updates, axis):
    out = np.moveaxis(x.copy(), axis, 0)
    rows = np.moveaxis(updates, range(axis, axis + indices.ndim), range(indices.ndim))
    rows = rows.reshape((indices.size, *out.shape[1:]))
    for index, row in zip(indices.ravel(), rows, strict=True):
        if 0 <= index < x.shape[axis]:
            out[index] += row
    return np.moveaxis(out, 0, axis)


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
        found, = evaluate(lambda *views: scatter_add(*views, axis), [x, indices, updates], [(shape, dtype)])
        same(found, scattered(plain, indices, updates, axis))


def test_scatter_add_takes_broadcast_updates_and_x():
    x = np.broadcast_to(np.float32(2), (4, 5))
    updates = np.broadcast_to(np.float32(0.1), (3, 5))
    indices = np.array([1, 1, 3], np.int64)
    found, = evaluate(lambda *views: scatter_add(*views, 0), [x, indices, updates], [((4, 5), np.float32)])
    same(found, scattered(x, indices, updates, 0))


def test_scatter_add_refuses_indices_without_a_single_stride():
    memory = Memory()
    x, out = (memory.view(np.zeros((4, 2), np.float32)) for _ in range(2))
    indices = memory.view(np.zeros((3, 4), np.int32)[:, :2])
    updates = memory.view(np.zeros((3, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"scatter_add indices: .*copy it first"):
        scatter_add(x, indices, updates, out, 0)


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
        found, = evaluate(lambda *views: segment_reduce(*views, kind), [data, ids],
                          [((segments, *features), dtype)])
        same(found, expected)


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
