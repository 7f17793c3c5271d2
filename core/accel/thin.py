"""Vector code for thin products: a row or a few of A by some vectors of columns of B, which is read where it lies.

Invariant: an element is one chain of fused multiply-adds in the order of depth, whatever its place, or several chains
that take turns, where a row alone would wait for its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.core import cgutils

from core.accel.chips import Block
from core.accel.pointer import intrinsic
from core.accel.registers import FLOATS, INDEX, Vectors, choose


@dataclass(frozen=True)
class _Operands:
    """Values of one call of `tile`, in the order of its arguments."""

    a: Any
    a_row: Any
    a_depth: Any
    b: Any
    b_depth: Any
    depth: Any
    out: Any
    out_row: Any
    rows: Any
    columns: Any
    accumulate: Any


def _emit(builder: Any, block: Block, height: int, vectors: int, chains: int, is_full: bool, given: _Operands) -> None:
    """The sums of `height` rows by `vectors` vectors; where there are fewer rows, the last one is computed again."""
    lanes = Vectors(builder, block.element, block.lanes)
    starts = [INDEX(vector * block.lanes) for vector in range(vectors)]
    masks = [None if is_full else lanes.mask(given.columns, vector * block.lanes) for vector in range(vectors)]
    last = builder.sub(given.rows, INDEX(1))
    rows = [builder.select(builder.icmp_signed("<", INDEX(row), last), INDEX(row), last) for row in range(height)]
    a_rows = [builder.gep(given.a, [builder.mul(row, given.a_row)]) for row in rows]
    out_rows = [builder.gep(given.out, [builder.mul(row, given.out_row)]) for row in rows]
    places = [[(builder.gep(out_row, [start]), mask) for start, mask in zip(starts, masks, strict=True)]
              for out_row in out_rows]
    slots = [[[lanes.slot() for _ in starts] for _ in rows] for _ in range(chains)]
    for slot in itertools.chain(*itertools.chain(*slots)):
        builder.store(lanes.zero, slot)
    with builder.if_then(builder.icmp_signed("!=", given.accumulate, INDEX(0))):
        for slot, (place, mask) in zip(itertools.chain(*slots[0]), itertools.chain(*places), strict=True):
            builder.store(lanes.load(place, mask), slot)

    def add(k: Any, chain: int) -> None:
        b_row = builder.gep(given.b, [builder.mul(k, given.b_depth)])
        b_vectors = [lanes.load(builder.gep(b_row, [start]), mask) for start, mask in zip(starts, masks, strict=True)]
        for a_row, row_slots in zip(a_rows, slots[chain], strict=True):
            factor = lanes.broadcast(builder.load(builder.gep(a_row, [builder.mul(k, given.a_depth)])))
            for slot, vector in zip(row_slots, b_vectors, strict=True):
                builder.store(lanes.fma(factor, vector, builder.load(slot)), slot)

    whole = builder.sub(given.depth, builder.srem(given.depth, INDEX(chains)))
    with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(chains), INDEX) as (k, _):
        for chain in range(chains):
            add(builder.add(k, INDEX(chain)), chain)
    with builder.if_then(builder.icmp_signed("<", whole, given.depth)):
        add(whole, 0)
    totals = list(itertools.chain(*slots[0]))
    for others in slots[1:]:
        for slot, other in zip(totals, itertools.chain(*others), strict=True):
            builder.store(builder.fadd(builder.load(slot), builder.load(other)), slot)
    for slot, (place, mask) in zip(totals, itertools.chain(*places), strict=True):
        lanes.store(builder.load(slot), place, mask)


def tile(block: Block, chains: int) -> Any:
    """A function for kernels that computes at most `block.rows` x `block.columns` elements:

    ``out[i * out_row + j] (+)= sum over k of a[i * a_row + k * a_depth] * b[k * b_depth + j]``

    It is called ``tile(a, a_row, a_depth, b, b_depth, depth, out, out_row, rows, columns, accumulate)``. Strides count
    elements; j has stride 1 in b and out. Nothing beyond the columns is read or written. `chains` are those
    of a single row.
    """
    pointer, index = types.CPointer(FLOATS[block.element]), types.int64
    arguments = (pointer, index, index, pointer, index, index, pointer, *[index] * 4)

    @intrinsic
    def emit(typing_context: Any, a: Any, a_row: Any, a_depth: Any, b: Any, b_depth: Any, depth: Any, out: Any,
             out_row: Any, rows: Any, columns: Any, accumulate: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = _Operands(*values)

            def emit_height(height: int) -> None:
                own_chains = chains if height == 1 else 1
                is_full = builder.icmp_signed(">=", given.columns, INDEX(block.columns))
                with builder.if_else(is_full) as (full, part):
                    with full:
                        _emit(builder, block, height, block.vectors, own_chains, True, given)
                    with part:
                        sizes = [block.lanes, 2 * block.lanes, block.columns]
                        choose(builder, given.columns, sizes, lambda columns: _emit(
                            builder, block, height, columns // block.lanes, own_chains, False, given))

            choose(builder, given.rows, block.heights, emit_height)
            return context.get_dummy_value()

        return types.void(*arguments), codegen

    return emit
