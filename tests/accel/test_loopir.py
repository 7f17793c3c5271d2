"""Loop nests: merging and ordering keep the set of elements, and views are walked as numpy walks them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.loopir import Nest, Operand, dims, normal_loops, stride_class, units
from core.accel.step import Buffer, View, contiguous, row_major
from core.accel.views import reshaped_strides
from core.engine import dtypes

EXTENTS = st.lists(st.integers(1, 4), min_size=0, max_size=5)


@st.composite
def views(draw, shape=None):
    """A view that slices, transposes, reverses the order of, or repeats axes of a row-major array."""
    shape = tuple(draw(EXTENTS)) if shape is None else shape
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.integers(1, 3)) for _ in shape]
    whole = row_major(tuple(shape[axis] * gaps[axis] for axis in order))
    strides = [0] * len(shape)
    for place, axis in enumerate(order):
        strides[axis] = draw(st.sampled_from((0, whole[place] * gaps[axis], whole[place] * gaps[axis])))
    return View(Buffer(1 << 20), dtypes.float32, shape, tuple(strides), draw(st.integers(0, 5)))


def offsets(extents, strides):
    """Offset of every element, in row-major order."""
    return [sum(i * stride for i, stride in zip(place, strides, strict=True))
            for place in itertools.product(*map(range, extents))]


@st.composite
def nests(draw):
    shape = tuple(draw(EXTENTS))
    operands = [Operand(f"x{number}", draw(views(shape)), "read") for number in range(draw(st.integers(1, 3)))]
    operands.append(Operand("y", contiguous(dtypes.float32, shape), "write"))
    axes = tuple(axis for axis in range(len(shape)) if draw(st.booleans()))
    return shape, axes, operands


@given(nests())
def test_loops_visit_the_elements_of_the_shape(case):
    shape, axes, operands = case
    loops = normal_loops(shape, axes, operands)
    visited = zip(*(offsets([loop.extent for loop in loops], [loop.strides[number] for loop in loops])
                    for number in range(len(operands))), strict=True)
    expected = zip(*(offsets(shape, operand.view.strides) for operand in operands), strict=True)
    assert sorted(visited) == sorted(expected)


@given(nests())
def test_loops_are_normal(case):
    shape, axes, operands = case
    loops = normal_loops(shape, axes, operands)
    assert len(loops) == 1 or all(loop.extent != 1 for loop in loops)
    inner = [loop.reduced for loop in loops[:-1]]
    assert inner == sorted(inner), "kept loops stand outside reduced ones, but for the innermost"
    nest = Nest(loops, tuple(operands), (), frozenset())
    assert len(dims(nest)) == len(loops) * (1 + len(operands))
    extent, grain = units(nest)
    assert extent >= 1 and grain >= 1
    assert nest.reduces_columns == (nest.is_reduction and not loops[-1].reduced)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_what_lies_end_to_end_is_one_loop(shape):
    operand = Operand("x", contiguous(dtypes.float32, tuple(shape)), "read")
    (loop,) = normal_loops(shape, (), [operand])
    assert loop.extent == np.prod(shape)


@pytest.mark.parametrize(("strides", "expected"), [
    ((0, 0), "constant"), ((4, 0), "hoisted"), ((4, 1), "unit"), ((1, 4), "strided")])
def test_stride_classes(strides, expected):
    operand = Operand("x", View(Buffer(64), dtypes.float32, (3, 4), strides), "read")
    other = Operand("y", contiguous(dtypes.float32, (3, 8)), "write")
    padded = Operand("y", View(other.view.buffer, dtypes.float32, (3, 4), (8, 1)), "write")
    nest = Nest(normal_loops((3, 4), (), [operand, padded]), (operand, padded), (), frozenset())
    assert len(nest.loops) == 2 and stride_class(operand, 0, nest) == expected


def test_rows_have_a_class_of_their_own():
    row = Operand("x", View(Buffer(64), dtypes.float32, (3, 4), (1, 0)), "read")
    other = Operand("y", View(Buffer(64), dtypes.float32, (3, 4), (8, 1)), "read")
    nest = Nest(normal_loops((3, 4), (1,), [row, other]), (row, other), (), frozenset())
    assert [stride_class(operand, place, nest) for place, operand in enumerate(nest.operands)] == ["row", "unit"]


@pytest.mark.parametrize(("shape", "axes", "expected"), [
    ((3, 4, 5), (1, 2), 0), ((3, 4, 5, 6), (1, 3), 6), ((3, 4, 5, 6), (1, 2), 0), ((3, 4, 5, 60), (1, 3), 0),
    ((3, 6), (1,), 0)])
def test_only_short_runs_far_apart_are_unrolled(shape, axes, expected):
    operand = Operand("x", contiguous(dtypes.float32, shape), "read")
    assert Nest(normal_loops(shape, axes, [operand]), (operand,), (), frozenset()).unrolled == expected


@st.composite
def reshapes(draw):
    view = draw(views())
    rest, shape = view.size, []
    while rest > 1:
        extent = draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
        shape.append(extent)
        rest //= extent
        if len(shape) > 6:
            shape.append(rest)
            rest = 1
    return view, tuple(draw(st.permutations(shape)))


@given(reshapes())
def test_reshaped_strides_reach_the_same_elements(case):
    view, shape = case
    strides = reshaped_strides(view, shape)
    if strides is not None:
        assert offsets(shape, strides) == offsets(view.shape, view.strides)


@given(st.lists(st.integers(0, 5), max_size=4).map(tuple), st.data())
def test_row_major_arrays_take_any_shape(shape, data):
    view = contiguous(dtypes.float32, shape)
    flat = data.draw(st.permutations([*shape, 1]))
    assert reshaped_strides(view, tuple(flat)) is not None
    assert reshaped_strides(view, (view.size,)) is not None
