"""Vector code for spans, runs of contiguous elements: to fill, copy, combine and choose from them.

Invariant: nothing outside a span is read or written. The last vector of a span overlaps the one before it, so that no
length takes a mask or a loop over single elements.

Each function here makes a function for kernels, whose vectors have so many bytes of its first element type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.accel.pointer import ELEMENTS, intrinsic

_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)

_ARITHMETIC = {"sum": ("fadd", "add"), "difference": ("fsub", "sub")}
_EXTREMES = {"max": ("maximum", "smax"), "min": ("minimum", "smin")}
"""LLVM's names for floats, where not-a-number wins, and for signed integers."""
_BETTER = {"max": ">", "min": "<"}

Operation = Callable[[Any, Sequence[Any], Any], Sequence[Any]]
"""``operation(builder, vectors, scalar)`` emits what to store, given a vector of each span and of the scalar."""


def filling(element: str, nbytes: int) -> Any:
    """``fill(target, number, count)``: every element becomes the number."""
    return _over_spans([element], element, nbytes, lambda builder, vectors, number: [number])


def copying(element: str, nbytes: int) -> Any:
    """``copy(target, source, count)``."""
    return _over_spans([element] * 2, None, nbytes, lambda builder, vectors, _: [vectors[1]])


def combining(kind: str, element: str, nbytes: int, spans: int = 2) -> Any:
    """``combine(target, a, b, count)``: the sum, difference, max or min (`kind`) of two spans, or of more from left to
    right; the target may be one of them.

    Max and min are not-a-number where any is.
    """
    def combined(builder: Any, a: Any, b: Any) -> Any:
        if kind in _ARITHMETIC:
            return getattr(builder, _ARITHMETIC[kind][0 if _is_float(element) else 1])(a, b)
        name = f"llvm.{_EXTREMES[kind][0 if _is_float(element) else 1]}.v{a.type.count}{element}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 2), name)
        return builder.call(function, [a, b])

    def operation(builder: Any, vectors: Sequence[Any], _: Any) -> Sequence[Any]:
        return [functools.reduce(functools.partial(combined, builder), vectors[1:])]

    return _over_spans([element] * (1 + spans), None, nbytes, operation)


def improving(kind: str, element: str, nbytes: int) -> Any:
    """``improve(best, codes, x, code, count)``: where x is more extreme than the best it takes its place, and the i32
    code that of the code; not-a-number is more extreme than any number."""
    def operation(builder: Any, vectors: Sequence[Any], code: Any) -> Sequence[Any]:
        best, codes, x = vectors
        comparison = _BETTER[kind]
        if _is_float(element):
            better = builder.and_(builder.fcmp_unordered(comparison, x, best), builder.fcmp_ordered("ord", best, best))
        else:
            better = builder.icmp_signed(comparison, x, best)
        return [builder.select(better, x, best), builder.select(better, code, codes)]

    return _over_spans([element, "i32", element], "i32", nbytes, operation, outputs=2)


def choosing(element: str, adds: bool, nbytes: int) -> Any:
    """``choose(target, source, codes, code, count)``: where the i32 code is this one, the target takes the element of
    the source, or `adds` it."""
    def operation(builder: Any, vectors: Sequence[Any], code: Any) -> Sequence[Any]:
        target, source, codes = vectors
        chosen = builder.icmp_signed("==", codes, code)
        if not adds:
            return [builder.select(chosen, source, target)]
        term = builder.select(chosen, source, ir.Constant(source.type, None))
        return [(builder.fadd if _is_float(element) else builder.add)(target, term)]

    return _over_spans([element, element, "i32"], "i32", nbytes, operation)


def _is_float(element: str) -> bool:
    return isinstance(ELEMENTS[element], types.Float)


def _over_spans(elements: Sequence[str], scalar: str | None, nbytes: int, operation: Operation,
                outputs: int = 1) -> Any:
    """A function of a pointer to each span, the scalar if there is one, and the count; the outputs are the first."""
    pointers = [types.CPointer(ELEMENTS[element]) for element in elements]
    signature = types.void(*pointers, *([ELEMENTS[scalar]] if scalar else []), types.int64)
    widest = nbytes * 8 // ELEMENTS[elements[0]].bitwidth

    def code(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        spans, number, count = arguments[:len(elements)], arguments[-2] if scalar else None, arguments[-1]

        def at_least(lanes: int) -> None:
            """Code for spans of so many elements or more; shorter ones take half as many at once, empty ones none."""
            with builder.if_else(builder.icmp_signed(">=", count, _INDEX(lanes))) as (enough, short):
                with enough:
                    _emit(builder, spans, number, count, lanes, operation, outputs)
                with short:
                    if lanes > 1:
                        at_least(lanes // 2)

        at_least(widest)
        return context.get_dummy_value()

    # numba wants each argument by its name.
    @intrinsic
    def of_three(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, code

    @intrinsic
    def of_four(typing_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return signature, code

    @intrinsic
    def of_five(typing_context: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return signature, code

    return {3: of_three, 4: of_four, 5: of_five}[len(signature.args)]


def _emit(builder: Any, spans: Sequence[Any], number: Any, count: Any, lanes: int, operation: Operation,
          outputs: int) -> None:
    """The loop over whole vectors, and the last vector, which ends with the span."""
    repeated = None if number is None else _repeated(builder, number, lanes)
    last = builder.sub(count, _INDEX(lanes))

    def places(start: Any) -> list[Any]:
        return [builder.bitcast(builder.gep(span, [start]), ir.VectorType(span.type.pointee, lanes).as_pointer())
                for span in spans]

    def results(start: Any) -> Sequence[Any]:
        # What an operation leaves aside is not loaded: the compiler drops it.
        vectors = [builder.load(place, align=1) for place in places(start)]
        return operation(builder, vectors, repeated)

    def store(values: Sequence[Any], start: Any) -> None:
        for value, place in zip(values, places(start)[:outputs], strict=True):
            builder.store(value, place, align=1)

    final = results(last)  # before the targets, which may be sources, change
    with cgutils.for_range_slice(builder, _INDEX(0), last, _INDEX(lanes), _INDEX) as (start, _):
        store(results(start), start)
    store(final, last)


def _repeated(builder: Any, number: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, _LANE(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LANE, lanes), None))
