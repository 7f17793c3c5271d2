"""Vector code for depthwise convolutions: each channel meets its own kernel, so vectors run along the channels.

Invariant: as in `registers`, nothing here knows a shape or a chip. Channels beyond the last are not read and
not written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from core.accel.chips import Block
from core.accel.pointer import intrinsic
from core.accel.registers import FLOATS, INDEX, Vectors, choose


@dataclass(frozen=True)
class _Columns:
    """Neighbouring vectors of channels, of which a mask, if there is one, says which are valid."""

    vectors: Vectors
    masks: Sequence[Any]

    def slots(self) -> list[Any]:
        """Sums that begin with zero."""
        slots = [self.vectors.slot() for _ in self.masks]
        for slot in slots:
            self.vectors.builder.store(self.vectors.zero, slot)
        return slots

    def load(self, pointer: Any) -> list[Any]:
        return [self.vectors.load(place, mask) for place, mask in self._places(pointer)]

    def store(self, values: Sequence[Any], pointer: Any) -> None:
        for value, (place, mask) in zip(values, self._places(pointer), strict=True):
            self.vectors.store(value, place, mask)

    def add_products(self, slots: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> None:
        """Add a * b to the sums."""
        builder = self.vectors.builder
        for slot, first, second in zip(slots, a, b, strict=True):
            builder.store(self.vectors.fma(first, second, builder.load(slot)), slot)

    def _places(self, pointer: Any) -> list[tuple[Any, Any]]:
        return [(self.vectors.builder.gep(pointer, [INDEX(number * self.vectors.lanes)]), mask)
                for number, mask in enumerate(self.masks)]


def _by_columns(builder: Any, block: Block, channels: Any, emit: Callable[[_Columns], None]) -> None:
    """Emit code for the numbers of channels that `width` gives: several whole vectors, or a part of one."""
    vectors = Vectors(builder, block.element, block.lanes)
    masks = {block.lanes: [vectors.mask(channels, 0)]} | {
        count * block.lanes: [None] * count for count in _counts(block)}
    choose(builder, channels, list(masks), lambda bound: emit(_Columns(vectors, masks[bound])))


def _counts(block: Block) -> list[int]:
    """Numbers of whole vectors that are done at once: 2, 4 ..."""
    return [1 << power for power in range(1, block.vectors.bit_length())]


def width(block: Block) -> Any:
    """A function for kernels, ``width(channels)``: how many of the channels that are left are done at once."""
    lanes, most = block.lanes, max(_counts(block), default=1)

    @register_jitable
    def chosen(channels: int) -> int:
        count = most
        while count > 1 and count * lanes > channels:
            count >>= 1
        return min(count * lanes, channels)

    return chosen


def pixels(block: Block) -> Any:
    """A function for kernels that convolves neighbouring pixels, as many as one of `heights`:

    ``out[p * out_step + c] = sum over s, t, u of x[p * x_step + (s, t, u) . x_taps + c] * w[(s, t, u) . w_taps + c]``

    It is called ``pixels(x, x_step, x0, x1, x2, w, w0, w1, w2, taps0, taps1, taps2, out, out_step, count, channels)``;
    x0 and w0 are the steps from one tap to the next along the first axis, and so on. `channels` is what `width` gives.
    Sums run in the order of s, t, u, one fused multiply-add each.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64
    arguments = (pointer, *[index] * 4, pointer, *[index] * 6, pointer, *[index] * 3)

    @intrinsic
    def emit(typing_context: Any, x: Any, x_step: Any, x0: Any, x1: Any, x2: Any, w: Any, w0: Any, w1: Any, w2: Any,
             taps0: Any, taps1: Any, taps2: Any, out: Any, out_step: Any, count: Any, channels: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x, x_step, x0, x1, x2, w, w0, w1, w2, taps0, taps1, taps2, out, out_step, count, channels = values

            def moved(pointer: Any, number: Any, step: Any) -> Any:
                return builder.gep(pointer, [builder.mul(number, step)])

            def emit_block(height: int, columns: _Columns) -> None:
                sums = [columns.slots() for _ in range(height)]
                with cgutils.for_range(builder, taps0) as s:
                    x_s, w_s = moved(x, s.index, x0), moved(w, s.index, w0)
                    with cgutils.for_range(builder, taps1) as t:
                        x_t, w_t = moved(x_s, t.index, x1), moved(w_s, t.index, w1)
                        with cgutils.for_range(builder, taps2) as u:
                            weights = columns.load(moved(w_t, u.index, w2))
                            x_p = moved(x_t, u.index, x2)
                            for pixel in sums:
                                columns.add_products(pixel, columns.load(x_p), weights)
                                x_p = builder.gep(x_p, [x_step])
                for number, pixel in enumerate(sums):
                    columns.store([builder.load(slot) for slot in pixel], moved(out, INDEX(number), out_step))

            _by_columns(builder, block, channels, lambda columns: choose(
                builder, count, heights(block, len(columns.masks)), lambda height: emit_block(height, columns)))
            return context.get_dummy_value()

        return types.void(*arguments), codegen

    return emit


def heights(block: Block, vectors: int) -> tuple[int, ...]:
    """Pixels that are done at once with so many vectors of channels: where those are few, there is room for more."""
    return block.heights if vectors == block.vectors else (2 * block.rows, *block.heights)


def taps(block: Block) -> Any:
    """A function for kernels that adds to the gradients of neighbouring taps, as many as one of ``block.heights``:

    ``w[t * w_tap + c] += sum over p of x[p * x_step + t * x_tap + c] * ct[p * ct_step + c]``

    It is called ``taps(x, x_step, x_tap, ct, ct_step, pixels, w, w_tap, count, channels)``. `channels` is what
    `width` gives. Sums run in the order of p, one fused multiply-add each, and are added to w at the end.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64
    arguments = (pointer, index, index, pointer, index, index, pointer, *[index] * 3)

    @intrinsic
    def emit(typing_context: Any, x: Any, x_step: Any, x_tap: Any, ct: Any, ct_step: Any, pixels: Any, w: Any,
             w_tap: Any, count: Any, channels: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x, x_step, x_tap, ct, ct_step, pixels, w, w_tap, count, channels = values

            def emit_block(height: int, columns: _Columns) -> None:
                sums = [columns.slots() for _ in range(height)]
                steps = [builder.mul(INDEX(tap), x_tap) for tap in range(height)]
                with cgutils.for_range(builder, pixels) as p:
                    factors = columns.load(builder.gep(ct, [builder.mul(p.index, ct_step)]))
                    x_p = builder.gep(x, [builder.mul(p.index, x_step)])
                    for tap, step in zip(sums, steps, strict=True):
                        columns.add_products(tap, columns.load(builder.gep(x_p, [step])), factors)
                for number, tap in enumerate(sums):
                    place = builder.gep(w, [builder.mul(INDEX(number), w_tap)])
                    totals = [builder.fadd(before, builder.load(slot))
                              for before, slot in zip(columns.load(place), tap, strict=True)]
                    columns.store(totals, place)

            _by_columns(builder, block, channels, lambda columns: choose(
                builder, count, block.heights, lambda height: emit_block(height, columns)))
            return context.get_dummy_value()

        return types.void(*arguments), codegen

    return emit
