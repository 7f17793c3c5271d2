"""The kernel of a Winograd convolution at each point, ``G g``, in panels of the outputs of a register block.

Invariant: columns beyond the last output are zero. Planning needs no compiler.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from core.accel.chips import Block
from core.accel.kernels.text import text_of
from core.accel.kernels.tiles import POINTS, TAPS
from core.accel.step import Step, View, contiguous
from core.engine import dtypes

_INPUTS = 16
"""Inputs that a unit takes: a cache line of them, where they lie beside each other."""


def transformed(w: View, block: Block) -> tuple[View, list[Step]]:
    """The kernel at each point, and the step that fills it in.

    Parameters
    ----------
    w : f32[tap..., in, out], one to three axes with `TAPS` taps among those of taps, any strides

    Returns
    -------
    f32[point, panel, in, column]
    """
    axes = tuple(along for taps, along in zip(w.shape[:-2], w.strides, strict=False) if taps == TAPS)
    inputs, outputs = w.shape[-2:]
    panels = ceil(outputs / block.columns)
    packed = contiguous(dtypes.float32, (POINTS ** len(axes), panels, inputs, block.columns), "transformed")
    text = text_of(transform_kernel, block, len(axes))
    step = Step(text, (w, packed), (1,), (inputs, outputs, panels, *w.strides[-2:], *axes),
                ceil(inputs / _INPUTS) * panels, name="pack", nbytes=w.buffer.nbytes + packed.buffer.nbytes)
    return packed, [step]


def transform_kernel(block: Block, axes: int) -> Any:
    """Kernel of `transformed`; units are (run of inputs, panel), in the order in which w lies; p = w, packed.

    d = inputs, outputs, panels, strides of inputs, of outputs and of the taps along each axis in w.
    """
    from numba import types
    from numba.extending import register_jitable

    from core.accel import pointer, winograd

    f32, at, tile_of_kernel = pointer.f32, pointer.at, winograd.tile_of_kernel(block, axes)
    taps, width, lanes = TAPS ** axes, block.columns, block.lanes
    copy_on_stack = pointer.stack(types.float32, taps * _INPUTS * width)

    @register_jitable
    def copy(w: Any, w_in: int, w_out: int, inputs: int, outputs: int, target: Any) -> None:
        """Copy one tap of some inputs and outputs, the latter filled up with zeros to a panel."""
        if w_out == 1:
            for i in range(inputs):
                source, line = at(w, i * w_in), at(target, i * width)
                for j in range(outputs):
                    line[j] = source[j]
        else:
            for j in range(outputs):
                source = at(w, j * w_out)
                for i in range(inputs):
                    target[i * width + j] = source[i * w_in]
        for i in range(inputs):
            line = at(target, i * width)
            for j in range(outputs, width):
                line[j] = 0

    def kernel(p: Any, d: Any, begin: int, end: int) -> None:
        inputs, outputs, panels, w_in, w_out = d[0], d[1], d[2], d[3], d[4]
        copied, point_stride, runs = copy_on_stack(), panels * inputs * width, (inputs + _INPUTS - 1) // _INPUTS
        for unit in range(begin, end):
            run, panel = (unit // panels, unit % panels) if w_out == 1 else (unit % runs, unit // runs)
            first = run * _INPUTS
            count = min(_INPUTS, inputs - first)
            w = at(f32(p, 0), first * w_in + panel * width * w_out)
            for tap in range(taps):
                left, offset = tap, 0
                for axis in range(axes - 1, -1, -1):
                    offset += left % TAPS * d[5 + axis]
                    left //= TAPS
                copy(at(w, offset), w_in, w_out, count, min(width, outputs - panel * width),
                     at(copied, tap * _INPUTS * width))
            for i in range(count):
                target = at(f32(p, 1), (panel * inputs + first + i) * width)
                for column in range(0, width, lanes):
                    tile_of_kernel(at(copied, i * width + column), _INPUTS * width, at(target, column), point_stride)

    return kernel
