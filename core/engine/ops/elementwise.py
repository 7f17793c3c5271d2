"""Elementwise ops: arithmetic, logic, select and convert.

Invariant: operands have one dtype and one shape when an op is applied; `prepare` promotes and broadcasts before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array, promote
from core.engine.dtypes import as_dtype
from core.engine.graph import Aval
from core.engine.ops.shape import broadcast_together, full_like
from core.engine.ops.table import Op, Sample, elements, register, require


def _random(*shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0) -> list[Sample]:
    generator = np.random.default_rng(0)
    samples = []
    for shape in shapes or ((3, 4), (1,), (), (2, 1, 17)):
        samples.append(Sample((generator.uniform(low, high, shape),)))
    return samples


def _pairs(low: float = -2.0, high: float = 2.0) -> list[Sample]:
    generator = np.random.default_rng(1)
    return [Sample((generator.uniform(low, high, shape), generator.uniform(low, high, shape)))
            for shape in ((3, 4), (1,), (), (2, 1, 17))]


def _same(name: str) -> Callable[..., Aval]:
    def shape(*operands: Aval) -> Aval:
        if operands.count(operands[0]) != len(operands):
            require(False, name, "operands have one dtype and one shape",
                    **{f"operand {index}": aval for index, aval in enumerate(operands)})
        return operands[0]

    return shape


def _floats(name: str) -> Callable[..., Aval]:
    def shape(x: Aval) -> Aval:
        require(x.dtype.is_float, name, "the operand is of a float type", "convert it first", x=x)
        return x

    return shape


def _unary(name: str, numpy: Callable[..., Any], grad: Callable[..., Any] | None, flops: int = 1, *,
           any_kind: bool = False, samples: Callable[[], list[Sample]] = _random, doc: str = "") -> Op:
    def rule(ct: Array, out: Array, x: Array) -> tuple[Array]:
        assert grad is not None
        return (grad(ct, out, x),)

    return register(Op(name, "unary", _same(name) if any_kind else _floats(name), numpy, rule if grad else None,
                       lambda inputs, outputs, params: flops * outputs[0].size, samples,
                       lambda x: (as_array(x),), doc=doc))


def _special(name: str) -> Callable[..., Any]:
    """A function of scipy.special, imported when it is first called because that takes longer than the engine."""
    def rule(x: Any) -> Any:
        from scipy import special

        return getattr(special, name)(x)

    return rule


def _positive() -> list[Sample]:
    return _random(low=0.1, high=3.0)


neg = _unary("neg", np.negative, lambda ct, out, x: -ct, any_kind=True)
abs = _unary("abs", np.abs, lambda ct, out, x: select(x < 0, -ct, ct), any_kind=True)
floor = _unary("floor", np.floor, None)
round = _unary("round", np.rint, None, doc="To the nearest integer, ties to even.")
exp = _unary("exp", np.exp, lambda ct, out, x: ct * out, 10)
log = _unary("log", np.log, lambda ct, out, x: ct / x, 12, samples=_positive)
log1p = _unary("log1p", np.log1p, lambda ct, out, x: ct / (x + 1), 14, samples=_positive)
sqrt = _unary("sqrt", np.sqrt, lambda ct, out, x: ct * 0.5 / out, 4, samples=_positive)
tanh = _unary("tanh", np.tanh, lambda ct, out, x: ct * (1 - out * out), 14)

logistic = _unary("logistic", _special("expit"), lambda ct, out, x: ct * out * (1 - out), 12, doc="1 / (1 + exp(-x)).")
erf = _unary("erf", _special("erf"), lambda ct, out, x: ct * (2 / math.sqrt(math.pi)) * exp(-x * x), 20)
sin: Op = _unary("sin", np.sin, lambda ct, out, x: ct * sin(x + np.pi / 2), 14)


def _binary(name: str, numpy: Callable[..., Any], grad: Callable[..., tuple[Array, Array]], flops: int = 1,
            samples: Callable[[], list[Sample]] = _pairs) -> Op:
    return register(Op(name, "binary", _same(name), numpy, grad,
                       lambda inputs, outputs, params: flops * outputs[0].size, samples,
                       lambda a, b: broadcast_together(*promote(a, b))))


def _positive_pairs() -> list[Sample]:
    return _pairs(0.2, 2.0)


def _pow_grad(ct: Array, out: Array, a: Array, b: Array) -> tuple[Array, Array]:
    safe, zero = select(a > 0, a, full_like(a, 1.0)), full_like(a, 0.0)
    return select(b == 0, zero, ct * b * pow(a, b - 1)), ct * out * select(a > 0, log(safe), zero)


def _pick_grad(ct: Array, first: Array, tie: Array) -> tuple[Array, Array]:
    """The cotangent goes to the operand that was picked, half to each on a tie."""
    half, zero = ct * 0.5, full_like(ct, 0.0)
    return select(tie, half, select(first, ct, zero)), select(tie, half, select(first, zero, ct))


add = _binary("add", np.add, lambda ct, out, a, b: (ct, ct))
sub = _binary("sub", np.subtract, lambda ct, out, a, b: (ct, -ct))
mul = _binary("mul", np.multiply, lambda ct, out, a, b: (ct * b, ct * a))
div = _binary("div", lambda a, b: np.floor_divide(a, b) if a.dtype.kind in "iu" else np.divide(a, b),
              lambda ct, out, a, b: (ct / b, -ct * out / b), 4, _positive_pairs)
pow = _binary("pow", np.power, _pow_grad, 25, _positive_pairs)
maximum = _binary("max", np.maximum, lambda ct, out, a, b: _pick_grad(ct, a > b, a == b))
minimum = _binary("min", np.minimum, lambda ct, out, a, b: _pick_grad(ct, a < b, a == b))

_COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
            "ne": np.not_equal}


def _compare_shape(a: Aval, b: Aval, *, kind: str) -> Aval:
    require(a == b, "compare", "operands have one dtype and one shape", a=a, b=b)
    require(kind in _COMPARE, "compare", f"kind is one of {' '.join(_COMPARE)}", kind=kind)
    return Aval(dtypes.bool_, a.shape)


def _compare_samples() -> list[Sample]:
    generator = np.random.default_rng(2)
    a, b = generator.integers(-2, 3, (2, 4, 5)).astype(float)
    return [Sample((a, b), {"kind": kind}) for kind in _COMPARE]


compare: Op = register(Op(
    "compare", "logic", _compare_shape, lambda a, b, kind: _COMPARE[kind](a, b), None, elements,
    _compare_samples, lambda a, b: broadcast_together(*promote(a, b)),
    doc="Kinds lt, le, gt, ge, eq, ne; NaN compares as in IEEE 754."))


def _booleans(name: str) -> Callable[..., Aval]:
    same = _same(name)

    def shape(*operands: Aval) -> Aval:
        require(all(aval.dtype is dtypes.bool_ for aval in operands), name, "operands are bool", "compare them first",
                **{f"operand {index}": aval for index, aval in enumerate(operands)})
        return same(*operands)

    return shape


def _boolean_samples(count: int) -> Callable[[], list[Sample]]:
    def samples() -> list[Sample]:
        generator = np.random.default_rng(3)
        return [Sample(tuple(generator.random((count, *shape)) < 0.5)) for shape in ((3, 4), (), (2, 9))]

    return samples


logical_and: Op = register(Op(
    "and", "logic", _booleans("and"), np.logical_and, None, elements, _boolean_samples(2),
    lambda a, b: broadcast_together(as_array(a), as_array(b))))
logical_or: Op = register(Op(
    "or", "logic", _booleans("or"), np.logical_or, None, elements, _boolean_samples(2),
    lambda a, b: broadcast_together(as_array(a), as_array(b))))
logical_not: Op = register(Op(
    "not", "logic", _booleans("not"), np.logical_not, None, elements, _boolean_samples(1),
    lambda x: (as_array(x),)))


def _select_shape(condition: Aval, a: Aval, b: Aval) -> Aval:
    require(condition.dtype is dtypes.bool_ and a == b and condition.shape == a.shape, "select",
            "a bool condition and two operands of one dtype, all of one shape", condition=condition, a=a, b=b)
    return a


def _select_grad(ct: Array, out: Array, condition: Array, a: Array, b: Array) -> tuple[None, Array, Array]:
    zero = full_like(ct, 0.0)
    return None, select(condition, ct, zero), select(condition, zero, ct)


def _select_samples() -> list[Sample]:
    generator = np.random.default_rng(4)
    return [Sample((generator.random(shape) < 0.5, generator.normal(size=shape), generator.normal(size=shape)))
            for shape in ((3, 4), (), (2, 9))]


def _select_prepare(condition: Any, a: Any, b: Any) -> tuple[Array, ...]:
    return broadcast_together(as_array(condition), *promote(a, b))


select: Op = register(Op(
    "select", "elementwise", _select_shape, np.where, _select_grad, elements, _select_samples,
    _select_prepare, doc="a where the condition holds, b elsewhere."))


def _convert_numpy(x: Any, *, dtype: Any) -> Any:
    dtype = as_dtype(dtype)
    if dtype is dtypes.bfloat16:
        return dtypes.encode_bfloat16(np.asarray(x, np.float32))
    if dtype.kind in ("int", "uint") and x.dtype.kind == "f":
        limits = np.iinfo(dtype.storage)
        high = x.dtype.type(limits.max)
        if int(high) > limits.max:
            high = np.nextafter(high, x.dtype.type(0))
        return np.where(np.isnan(x), 0, np.clip(x, x.dtype.type(limits.min), high)).astype(dtype.storage)
    return x.astype(dtype.storage)


def _convert_samples() -> list[Sample]:
    values = np.array([-3.7, -0.5, 0.0, 0.5, 1.5, 2.5, 100.25, 127.0])
    return [Sample((values,), {"dtype": dtype}) for dtype in (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int8,
                                                              dtypes.bool_, dtypes.bfloat16)]


convert: Op = register(Op(
    "convert", "elementwise", lambda x, *, dtype: Aval(as_dtype(dtype), x.shape), _convert_numpy,
    lambda ct, out, x, *, dtype: (convert(ct, dtype=x.dtype) if as_dtype(dtype).is_float else None,),
    elements, _convert_samples, lambda x: (as_array(x),),
    doc="To another dtype; float to integer truncates, saturates, and takes NaN to 0."))
