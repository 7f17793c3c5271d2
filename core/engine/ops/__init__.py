"""The op table and the functions written with it; `TABLE` lists the records."""

from core.engine.ops.contract import bit_dot, conv, conv_dw, dot, matmul
from core.engine.ops.control import all_reduce, call, custom_call, scan
from core.engine.ops.elementwise import (
    abs,
    add,
    compare,
    convert,
    div,
    erf,
    exp,
    floor,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    logistic,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    round,
    select,
    sin,
    sqrt,
    sub,
    tanh,
)
from core.engine.ops.index import (
    gather,
    index,
    mirror,
    one_hot,
    scatter_add,
    segment_mean,
    segment_reduce,
    segment_softmax,
    segment_sum,
    sort,
    take_along,
)
from core.engine.ops.random import random_bits
from core.engine.ops.reduce import amax, amin, argmax, argreduce, cumsum, mean, reduce, sum, window, window_grad
from core.engine.ops.shape import (
    arange,
    broadcast,
    broadcast_to,
    concat,
    concatenate,
    dynamic_slice,
    dynamic_update,
    expand,
    full,
    full_like,
    iota,
    moveaxis,
    ones,
    pad,
    reshape,
    slice,
    stack,
    take_range,
    transpose,
    zeros,
)
from core.engine.ops.table import TABLE, Op

__all__ = [
    "TABLE", "Op", "abs", "add", "all_reduce", "amax", "amin", "arange", "argmax", "argreduce", "bit_dot",
    "broadcast", "broadcast_to", "call", "compare", "concat", "concatenate", "conv", "conv_dw", "convert", "cumsum",
    "custom_call", "div", "dot", "dynamic_slice", "dynamic_update", "erf", "exp", "expand", "floor", "full",
    "full_like", "gather", "index", "iota", "log", "log1p", "logical_and", "logical_not", "logical_or", "logistic",
    "matmul", "maximum", "mean", "minimum", "mirror", "moveaxis", "mul", "neg", "one_hot", "ones", "pad", "pow",
    "random_bits", "reduce", "reshape", "round", "scan", "scatter_add", "segment_mean", "segment_reduce",
    "segment_softmax", "segment_sum", "select", "sin", "slice", "sort", "sqrt", "stack", "sub", "sum", "take_along",
    "take_range", "tanh", "transpose", "window", "window_grad", "zeros",
]
