"""Ops that multiply and sum: dot, conv and the weight gradient of conv.

Invariant: channels are last; a convolution is a cross-correlation, as networks use the word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.engine import dtypes
from core.engine.array import Array, as_array, promote
from core.engine.graph import Aval
from core.engine.ops.index import mirror
from core.engine.ops.reduce import Padding, window_extent
from core.engine.ops.shape import broadcast_to, reshape, transpose
from core.engine.ops.table import Op, Sample, register, require

Axes = tuple[tuple[int, ...], tuple[int, ...]]
_SHORT = (dtypes.int8, dtypes.int16)
"""Integers whose products are summed in 32 bits; the first operand may be u8 too."""


def _normal(*shape: int) -> Any:
    return np.random.default_rng(math.prod(shape)).normal(size=shape)


def _operands(a: Any, b: Any) -> tuple[Array, ...]:
    """Operands of one dtype, or integers of 8 and 16 bits, as they are."""
    given = as_array(a), as_array(b)
    return given if _is_pair(given[0].aval, given[1].aval) else promote(a, b)


def _is_pair(a: Aval, b: Aval) -> bool:
    return a.dtype is b.dtype or (a.dtype in (dtypes.uint8, *_SHORT) and b.dtype in _SHORT)


def _sum_dtype(a: Aval, b: Aval) -> dtypes.DType:
    """Integers of 8 and 16 bits are summed in i32, which wraps around; all others in their own dtype."""
    return dtypes.int32 if b.dtype in _SHORT else a.dtype


def _widened(a: Any, b: Any) -> tuple[Any, Any]:
    """numpy arrays as they are multiplied."""
    return (a.astype(np.int32), b.astype(np.int32)) if b.dtype in (np.int8, np.int16) else (a, b)


# --- dot -------------------------------------------------------------------------------------------------------------

def _free(ndim: int, *used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in itertools.chain(*used))


def _dot_shape(a: Aval, b: Aval, *, contract: Axes, batch: Axes) -> Aval:
    shown = {"a": a, "b": b, "contract": contract, "batch": batch}
    require(_is_pair(a, b) and a.dtype is not dtypes.bool_, "dot",
            "operands have one dtype, not bool, or are u8, i8 or i16 and i8 or i16", **shown)
    for left, right in (contract, batch):
        require(len(left) == len(right) and all(0 <= i < a.ndim for i in left) and all(0 <= j < b.ndim for j in right),
                "dot", "contracted and batch axes come in pairs", **shown)
        require(all(a.shape[i] == b.shape[j] for i, j in zip(left, right, strict=True)), "dot",
                "paired axes have one extent", **shown)
    require(len({*contract[0], *batch[0]}) == len(contract[0]) + len(batch[0])
            and len({*contract[1], *batch[1]}) == len(contract[1]) + len(batch[1]),
            "dot", "an axis is used once", **shown)
    shape = ([a.shape[i] for i in batch[0]] + [a.shape[i] for i in _free(a.ndim, contract[0], batch[0])]
             + [b.shape[j] for j in _free(b.ndim, contract[1], batch[1])])
    return Aval(_sum_dtype(a, b), tuple(shape))


def _dot_numpy(a: Any, b: Any, *, contract: Axes, batch: Axes) -> Any:
    free_a, free_b = _free(a.ndim, contract[0], batch[0]), _free(b.ndim, contract[1], batch[1])
    lead = tuple(a.shape[i] for i in batch[0])
    depth = math.prod(a.shape[i] for i in contract[0])
    rows, columns = (math.prod(x.shape[i] for i in free) for x, free in ((a, free_a), (b, free_b)))
    left = a.transpose(*batch[0], *free_a, *contract[0]).reshape(*lead, rows, depth)
    right = b.transpose(*batch[1], *contract[1], *free_b).reshape(*lead, depth, columns)
    out = np.matmul(*_widened(left, right))
    return out.reshape((*lead, *(a.shape[i] for i in free_a), *(b.shape[j] for j in free_b)))


def _dot_grad(ct: Array, out: Array, a: Array, b: Array, *, contract: Axes, batch: Axes) -> tuple[Array, Array]:
    free_a, free_b = _free(a.ndim, contract[0], batch[0]), _free(b.ndim, contract[1], batch[1])
    count = len(batch[0])
    lead = tuple(range(count))
    ct_a = tuple(range(count, count + len(free_a)))
    ct_b = tuple(range(count + len(free_a), ct.ndim))
    # ct . b over b's free axes has the axes (batch, free a, contracted in b's order).
    order_b = tuple(sorted(contract[1]))
    da = dot(ct, b, contract=(ct_b, free_b), batch=(lead, batch[1]))
    places_a = (*batch[0], *free_a, *(contract[0][contract[1].index(j)] for j in order_b))
    # a . ct over a's free axes has the axes (batch, contracted in a's order, free b).
    order_a = tuple(sorted(contract[0]))
    db = dot(a, ct, contract=(free_a, ct_a), batch=(batch[0], lead))
    places_b = (*batch[1], *(contract[1][contract[0].index(i)] for i in order_a), *free_b)
    return _place(da, places_a), _place(db, places_b)


def _place(x: Array, places: tuple[int, ...]) -> Array:
    """Move axis i to position places[i]."""
    if places == tuple(range(x.ndim)):
        return x
    return transpose(x, axes=tuple(int(axis) for axis in np.argsort(places)))


def _dot_flops(inputs: Sequence[Aval], outputs: Sequence[Aval], params: Mapping[str, Any]) -> int:
    depth: int = math.prod(inputs[0].shape[axis] for axis in params["contract"][0])
    return 2 * outputs[0].size * depth


dot: Op = register(Op(
    "dot", "contract", _dot_shape, _dot_numpy, _dot_grad, _dot_flops,
    lambda: [Sample((_normal(3, 4), _normal(4, 5)), {"contract": ((1,), (0,)), "batch": ((), ())}),
             Sample((_normal(4, 3), _normal(5, 4)), {"contract": ((0,), (1,)), "batch": ((), ())}),
             Sample((_normal(2, 3, 4), _normal(2, 4, 5)), {"contract": ((2,), (1,)), "batch": ((0,), (0,))}),
             Sample((_normal(3, 2, 4, 6), _normal(6, 2, 4)), {"contract": ((2, 3), (2, 0)), "batch": ((1,), (1,))}),
             Sample((_normal(4), _normal(4)), {"contract": ((0,), (0,)), "batch": ((), ())}),
             Sample((_normal(17, 33), _normal(33, 1)), {"contract": ((1,), (0,)), "batch": ((), ())})],
    _operands,
    doc="Sum of products over paired axes; output axes are batch, free axes of a, free axes of b. 8 and 16 bits "
        "give i32."))


def matmul(a: Any, b: Any) -> Array:
    """Matrix product as numpy's ``@``: the last axis of a with the second last of b, leading axes broadcast."""
    a, b = _operands(a, b)
    if a.ndim >= 1 and b.ndim <= 2:
        contract = ((a.ndim - 1,), (max(b.ndim - 2, 0),))
        return dot(a, b, contract=contract, batch=((), ()))
    if a.ndim == 1:
        return reshape(matmul(reshape(a, shape=(1, *a.shape)), b), shape=(*b.shape[:-2], b.shape[-1]))
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = broadcast_to(a, (*lead, *a.shape[-2:])), broadcast_to(b, (*lead, *b.shape[-2:]))
    axes = tuple(range(len(lead)))
    return dot(a, b, contract=((a.ndim - 1,), (b.ndim - 2,)), batch=(axes, axes))


# --- conv ------------------------------------------------------------------------------------------------------------

def _dilated(extent: int, dilation: int) -> int:
    return (extent - 1) * dilation + 1 if extent else 0


def _conv_shape(x: Aval, w: Aval, *, stride: tuple[int, ...], padding: Padding, dilation: tuple[int, ...],
                input_dilation: tuple[int, ...], groups: int) -> Aval:
    rank = x.ndim - 2
    shown = {"input": x, "kernel": w}
    require(rank >= 1 and w.ndim == x.ndim and _is_pair(x, w), "conv",
            "input is [batch, space ..., channel], kernel [space ..., in, out], of one dtype, or u8, i8 or i16 and i8 "
            "or i16", **shown)
    require(len(stride) == len(padding) == len(dilation) == len(input_dilation) == rank
            and min(*stride, *dilation, *input_dilation) > 0, "conv",
            f"stride, padding, dilation and input_dilation have {rank} entries > 0 (padding: pairs)", stride=stride,
            padding=padding, dilation=dilation, input_dilation=input_dilation, **shown)
    require(x.shape[-1] == w.shape[-2] * groups, "conv",
            f"input channels ({x.shape[-1]}) must equal kernel in-channels x groups ({w.shape[-2]} x {groups})",
            "images are channels-last; was this kernel made for another number of channels?", **shown)
    require(w.shape[-1] % groups == 0, "conv",
            f"kernel out-channels ({w.shape[-1]}) divide into {groups} groups", **shown)
    space = tuple(window_extent(_dilated(n, inner), k, s, p, d) for n, inner, k, s, p, d in
                  zip(x.shape[1:-1], input_dilation, w.shape[:-2], stride, padding, dilation, strict=True))
    require(all(extent > 0 for extent in space), "conv", "the padded input holds at least one window",
            padding=padding, **shown)
    return Aval(_sum_dtype(x, w), (x.shape[0], *space, w.shape[-1]))


def _spread_and_pad(x: Any, input_dilation: tuple[int, ...], padding: Padding) -> Any:
    """The input with zeros between and around its pixels; negative padding cuts."""
    spread = np.zeros((x.shape[0], *map(_dilated, x.shape[1:-1], input_dilation), x.shape[-1]), x.dtype)
    spread[(np.s_[:], *(np.s_[::step] for step in input_dilation))] = x
    cut = spread[(np.s_[:], *(np.s_[max(-low, 0):n - max(-high, 0)]
                              for n, (low, high) in zip(spread.shape[1:-1], padding, strict=True)))]
    return np.pad(cut, [(0, 0), *((max(low, 0), max(high, 0)) for low, high in padding), (0, 0)])


def _tap_slices(kernel: Sequence[int], space: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    for tap in itertools.product(*map(range, kernel)):
        yield tap, (np.s_[:], *(np.s_[t * d:t * d + (n - 1) * s + 1:s]
                                for t, d, n, s in zip(tap, dilation, space, stride, strict=True)))


def _channels(group: int, width: int) -> slice:
    return slice(group * width, (group + 1) * width)


def _conv_numpy(x: Any, w: Any, *, stride: tuple[int, ...], padding: Padding, dilation: tuple[int, ...],
                input_dilation: tuple[int, ...], groups: int) -> Any:
    aval = _conv_shape(Aval(dtypes.float64, x.shape), Aval(dtypes.float64, w.shape), stride=stride, padding=padding,
                       dilation=dilation, input_dilation=input_dilation, groups=groups)
    x, w = _widened(x, w)
    padded = _spread_and_pad(x, input_dilation, padding)
    out = np.zeros(aval.shape, x.dtype)
    width_in, width_out = w.shape[-2], w.shape[-1] // groups
    for tap, pixels in _tap_slices(w.shape[:-2], aval.shape[1:-1], stride, dilation):
        for group in range(groups):
            inner, outer = _channels(group, width_in), _channels(group, width_out)
            out[..., outer] += padded[pixels][..., inner] @ w[tap][:, outer]
    return out


def _swap_channels(w: Array, groups: int) -> Array:
    """The kernel mirrored in space, with in- and out-channels exchanged within each group."""
    rank = w.ndim - 2
    inner, outer = w.shape[-2], w.shape[-1] // groups
    mirrored = mirror(w, tuple(range(rank)))
    split = reshape(mirrored, shape=(*w.shape[:-1], groups, outer))
    turned = transpose(split, axes=(*range(rank), rank + 2, rank + 1, rank))
    return reshape(turned, shape=(*w.shape[:-2], outer, groups * inner))


def _conv_grad(ct: Array, out: Array, x: Array, w: Array, *, stride: tuple[int, ...], padding: Padding,
               dilation: tuple[int, ...], input_dilation: tuple[int, ...], groups: int) -> tuple[Array, Array]:
    params: dict[str, Any] = {"padding": padding, "input_dilation": input_dilation, "groups": groups}
    back = []
    for n, inner, k, s, (low, _), d, m in zip(x.shape[1:-1], input_dilation, w.shape[:-2], stride, padding, dilation,
                                                 ct.shape[1:-1], strict=True):
        low_back = (k - 1) * d - low
        back.append((low_back, _dilated(n, inner) + (k - 1) * d - _dilated(m, s) - low_back))
    dx = conv(ct, _swap_channels(w, groups), stride=input_dilation, padding=tuple(back), dilation=dilation,
              input_dilation=stride, groups=groups)
    return dx, conv_dw(x, ct, kernel=w.shape[:-2], stride=stride, dilation=dilation, **params)


def _conv_flops(inputs: Sequence[Aval], outputs: Sequence[Aval], params: Mapping[str, Any]) -> int:
    return 2 * outputs[0].size * math.prod(inputs[1].shape[:-1])


def conv_samples() -> list[Sample]:
    """1-D, 2-D and 3-D; stride, padding, dilation, input dilation, groups and depthwise."""
    def params(rank: int, **given: Any) -> dict[str, Any]:
        ones = (1,) * rank
        plain = {"stride": ones, "padding": ((0, 0),) * rank, "dilation": ones, "input_dilation": ones, "groups": 1}
        return plain | given

    return [Sample((_normal(2, 9, 3), _normal(3, 3, 4)), params(1)),
            Sample((_normal(1, 8, 2), _normal(3, 2, 5)), params(1, stride=(2,), padding=((2, 1),), dilation=(2,))),
            Sample((_normal(2, 5, 6, 3), _normal(3, 3, 3, 4)), params(2, padding=((1, 1), (1, 1)))),
            Sample((_normal(1, 6, 7, 4), _normal(3, 2, 2, 6)),
                   params(2, stride=(2, 2), groups=2, padding=((1, 0), (0, 1)))),
            Sample((_normal(1, 5, 5, 3), _normal(3, 3, 1, 3)), params(2, groups=3, padding=((1, 1), (1, 1)))),
            Sample((_normal(1, 3, 4, 2), _normal(3, 3, 2, 3)),
                   params(2, input_dilation=(2, 3), padding=((2, 1), (2, 2)))),
            Sample((_normal(1, 5, 4, 2), _normal(2, 2, 2, 3)), params(2, padding=((-1, 0), (1, -1)))),
            Sample((_normal(1, 4, 4, 5, 2), _normal(3, 3, 3, 2, 3)), params(3, padding=((1, 1), (1, 1), (1, 1)))),
            Sample((_normal(1, 4, 4, 17), _normal(1, 1, 17, 33)), params(2))]


conv: Op = register(Op(
    "conv", "contract", _conv_shape, _conv_numpy, _conv_grad, _conv_flops, conv_samples, _operands,
    doc="Convolution over 1, 2 or 3 axes of space; input_dilation puts zeros between pixels (transposed). 8 and 16 "
        "bits give i32."))


def _conv_dw_shape(x: Aval, ct: Aval, *, kernel: tuple[int, ...], groups: int, **params: Any) -> Aval:
    w = Aval(x.dtype, (*kernel, x.shape[-1] // groups, ct.shape[-1]))
    out = _conv_shape(x, w, groups=groups, **params)
    require(out == ct, "conv_dw", f"the cotangent has the aval of the convolution's output, {out}", input=x, ct=ct)
    return w


def _conv_dw_numpy(x: Any, ct: Any, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: Padding,
                   dilation: tuple[int, ...], input_dilation: tuple[int, ...], groups: int) -> Any:
    padded = _spread_and_pad(x, input_dilation, padding)
    width_in, width_out = x.shape[-1] // groups, ct.shape[-1] // groups
    out = np.zeros((*kernel, width_in, ct.shape[-1]), x.dtype)
    for tap, pixels in _tap_slices(kernel, ct.shape[1:-1], stride, dilation):
        for group in range(groups):
            inner, outer = _channels(group, width_in), _channels(group, width_out)
            rows = padded[pixels][..., inner].reshape(-1, width_in)
            out[tap][:, outer] = rows.T @ ct[..., outer].reshape(-1, width_out)
    return out


def _conv_dw_grad(g: Array, out: Array, x: Array, ct: Array, *, kernel: tuple[int, ...],
                  **params: Any) -> tuple[Array, Array]:
    dx, _ = _conv_grad(ct, ct, x, g, **params)
    return dx, conv(x, g, **params)


def _conv_dw_samples() -> list[Sample]:
    samples = []
    for sample in conv_samples():
        x, w = sample.inputs
        ct = _conv_shape(Aval(dtypes.float64, x.shape), Aval(dtypes.float64, w.shape), **sample.params)
        samples.append(Sample((x, _normal(*ct.shape)), {"kernel": w.shape[:-2], **sample.params}))
    return samples


def _conv_dw_flops(inputs: Sequence[Aval], outputs: Sequence[Aval], params: Mapping[str, Any]) -> int:
    return 2 * inputs[1].size * math.prod(outputs[0].shape[:-1])


conv_dw: Op = register(Op(
    "conv_dw", "contract", _conv_dw_shape, _conv_dw_numpy, _conv_dw_grad, _conv_dw_flops,
    _conv_dw_samples, lambda x, ct: (as_array(x), as_array(ct)),
    doc="Gradient of conv with respect to its kernel."))


# --- bit_dot ---------------------------------------------------------------------------------------------------------

_MEETINGS = {"and": np.bitwise_and, "xor": np.bitwise_xor}


def _bit_dot_shape(a: Aval, b: Aval, *, kind: str) -> Aval:
    require(a.ndim == b.ndim == 2 and a.dtype is b.dtype is dtypes.uint8 and a.shape[1] == b.shape[1], "bit_dot",
            "u8[m, byte] and u8[n, byte] of as many bytes", "pack the bits of a row into bytes", a=a, b=b)
    require(kind in _MEETINGS, "bit_dot", f"kind is one of {' '.join(_MEETINGS)}", kind=kind)
    return Aval(dtypes.int32, (a.shape[0], b.shape[0]))


def _bit_dot_numpy(a: Any, b: Any, *, kind: str) -> Any:
    if not a.size or not b.size:
        return np.zeros((len(a), len(b)), np.int32)
    # Row by row, so that no array of m x n x byte exists.
    return np.stack([np.bitwise_count(_MEETINGS[kind](row, b)).sum(1, dtype=np.int32) for row in a])


def _bit_dot_samples() -> list[Sample]:
    generator = np.random.default_rng(5)
    return [Sample((generator.integers(0, 256, (rows, count)).astype(np.uint8),
                    generator.integers(0, 256, (columns, count)).astype(np.uint8)), {"kind": kind})
            for kind in _MEETINGS for rows, columns, count in ((3, 4, 16), (1, 7, 1), (5, 2, 43), (2, 3, 0))]


bit_dot: Op = register(Op(
    "bit_dot", "contract", _bit_dot_shape, _bit_dot_numpy, None,
    lambda inputs, outputs, params: 16 * outputs[0].size * inputs[0].shape[1], _bit_dot_samples, _operands,
    doc="How many bits are set in both of two rows (and), or in one of them (xor)."))
