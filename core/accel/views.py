"""Views as arithmetic: what an equation that only moves elements does to offset and strides.

Invariant: nothing here touches memory; where no strides describe a result, there is none and the caller copies.
"""

from __future__ import annotations

from dataclasses import replace

from core.accel.step import Buffer, View, row_major
from core.engine.graph import Equation

VIEWS = {"broadcast", "reshape", "transpose", "slice", "iota"}
"""Ops that cost nothing: they change how a value is looked at."""

INDEX = Buffer(0, "index")
"""The buffer of views that are no memory: an element is its position (see `loopir.Operand`)."""


def iota(equation: Equation) -> View:
    """The view in index space that an iota is."""
    aval = equation.outputs[0].aval
    return View(INDEX, aval.dtype, aval.shape, tuple(int(axis == equation.params["axis"]) for axis in range(aval.ndim)))


def look(view: View, equation: Equation) -> View | None:
    """The result of a view equation whose input lies like `view`; None if it takes a copy."""
    name, params, shape = equation.op.name, equation.params, equation.outputs[0].aval.shape
    if name == "transpose":
        return replace(view, shape=shape, strides=tuple(view.strides[axis] for axis in params["axes"]))
    if name == "slice":
        offset = sum(start * stride for start, stride in zip(params["start"], view.strides, strict=True))
        strides = tuple(stride * step for stride, step in zip(view.strides, params["step"], strict=True))
        return replace(view, shape=shape, strides=strides, offset=view.offset + offset)
    if name == "broadcast":
        strides_out = [0] * len(shape)
        for extent, stride, axis in zip(view.shape, view.strides, params["axes"], strict=True):
            strides_out[axis] = stride if extent == shape[axis] else 0
        return replace(view, shape=shape, strides=tuple(strides_out))
    return reshaped(view, shape)


def reshaped(view: View, shape: tuple[int, ...]) -> View | None:
    """A view in another shape, elements in the same row-major order; None if no strides describe it."""
    if view.shape == shape:
        return view
    strides = reshaped_strides(view, shape)
    return None if strides is None else replace(view, shape=shape, strides=strides)


def reshaped_strides(view: View, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of a view in a new shape, or None if no strides describe it.

    Axes of the old and the new shape are matched in groups of equal size; within a group the old axes must lie end to
    end.
    """
    if view.size == 0:
        return row_major(shape)
    old = [(extent, stride) for extent, stride in zip(view.shape, view.strides, strict=True) if extent != 1]
    strides: list[int] = []
    place = 0
    remaining, step = 1, 0
    for extent in reversed(shape):
        if extent == 1:
            strides.append(0)
            continue
        if remaining == 1:
            remaining, step = old[-1 - place]
            place += 1
        while remaining % extent and place < len(old):
            outer, far = old[-1 - place]
            if far != step * remaining:
                return None
            remaining *= outer
            place += 1
        if remaining % extent:
            return None
        strides.append(step)
        remaining //= extent
        step *= extent
    return tuple(reversed(strides))


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the reduced axes."""
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


def spread(view: View, shape: tuple[int, ...], axes: tuple[int, ...]) -> View:
    """A view over the kept axes of `shape`, looked at over all of it."""
    kept = iter(view.strides)
    return replace(view, shape=shape, strides=tuple(0 if axis in axes else next(kept) for axis in range(len(shape))))


def is_whole(view: View, strides: tuple[int, ...]) -> bool:
    """Whether a view begins at the first element and has these strides, wherever they matter."""
    return view.offset == 0 and all(
        extent == 1 or stride == expected
        for extent, stride, expected in zip(view.shape, view.strides, strides, strict=True))
