"""Error messages: golden, because people read them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.errors import DeviceError, ShapeError, TileworkError, TraceError, compose
from core.engine.grad import grad, value_and_grad
from core.engine.jit import jit
from core.engine.module import Module


class Stem(Module):
    """A convolution."""

    kernel: Array

    def __call__(self, x):
        return ops.conv(x, self.kernel, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), input_dilation=(1, 1),
                        groups=1)


class Net(Module):
    """A model with a layer that has a name."""

    stem: Stem

    def __call__(self, x):
        return self.stem(x)


def zeros(*shape, dtype=np.float32):
    return as_array(np.zeros(shape, dtype))


def test_a_shape_error_names_layer_line_operands_rule_and_hint():
    net = Net(Stem(zeros(3, 3, 4, 32)))
    with pytest.raises(ShapeError) as caught:
        jit(lambda net, x: net(x), device="null")(net, zeros(8, 256, 256, 3))
    lines = str(caught.value).splitlines()
    assert re.fullmatch(r"ShapeError in conv at Net\.stem  \(.*engine/test_errors\.py:\d+\)", lines[0])
    assert lines[1:] == [
        "  input   f32[8, 256, 256, 3]",
        "  kernel  f32[3, 3, 4, 32]",
        "  rule    input channels (3) must equal kernel in-channels x groups (4 x 1)",
        "  hint    images are channels-last; was this kernel made for another number of channels?"]


WINDOW = {"size": (2,), "stride": (1,), "padding": ((0, 0),)}
REFUSED = {
    "broadcast": (lambda: zeros(2, 3) + zeros(2, 4), ["operand 0  f32[2, 3]", "operand 1  f32[2, 4]", "equal or 1"]),
    "dot": (lambda: zeros(2, 3) @ zeros(4, 5), ["a         f32[2, 3]", "b         f32[4, 5]",
                                                "paired axes have one extent"]),
    "exp": (lambda: ops.exp(as_array([1, 2])), ["x     i32[2]", "float type", "convert it first"]),
    "reshape": (lambda: ops.reshape(zeros(2, 3), shape=(4,)), ["x      f32[2, 3]", "the new shape holds 6 elements"]),
    "transpose": (lambda: zeros(2, 3).transpose(0, 0), ["axes  (0, 0)", "permutation"]),
    "reduce": (lambda: ops.sum(as_array([True])), ["x     bool[1]", "bool has no sum", "convert it to i32 first"]),
    "concat": (lambda: ops.concatenate([zeros(2, 3), zeros(2, 4)]), ["part 1  f32[2, 4]", "agree in dtype"]),
    "slice": (lambda: ops.take_range(zeros(3), 0, 1, 5), ["stop   (5,)", "0 <= start <= stop <= extent"]),
    "gather": (lambda: ops.gather(zeros(3), zeros(2), axis=0), ["indices  f32[2]", "indices are i32 or i64"]),
    "segment_reduce": (lambda: ops.segment_sum(zeros(3, 2), as_array([0, 1]), 2), ["one i32 or i64 segment id"]),
    "window": (lambda: ops.window(zeros(1), kind="sum", **WINDOW), ["holds at least one window", "x        f32[1]"]),
    "and": (lambda: zeros(2) & zeros(2), ["operands are bool", "compare them first"]),
    "select": (lambda: ops.select(zeros(2), 1.0, 2.0), ["a bool condition", "condition  f32[2]"]),
    "compare": (lambda: ops.compare(zeros(2), zeros(2), kind="is"), ["kind  is", "kind is one of lt le gt ge eq ne"]),
    "random_bits": (lambda: ops.random_bits(as_array([1, 2]), shape=(3,)), ["the key is u32[2]", "random.key(seed)"]),
    "dynamic_slice": (lambda: ops.dynamic_slice(zeros(3), as_array(0), sizes=(4,)), ["x        f32[3]"]),
    "scan": (lambda: ops.scan(lambda c, x: (c.astype("f64"), x), zeros(), zeros(3)), ["the carry the avals it takes"]),
    "argreduce": (lambda: ops.argmax(zeros(2, 0)), ["at least one element"]),
    "grad": (lambda: grad(lambda x: x * 2)(zeros(3)), ["must give a float scalar, it gave f32[3]", "take the mean"]),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("traced", (False, True), ids=("eager", "traced"))
def test_what_an_op_refuses(name, traced):
    call, parts = REFUSED[name]
    with pytest.raises(ShapeError) as caught:
        jit(call, device="null")() if traced else call()
    message = str(caught.value)
    assert message.startswith(f"ShapeError in {name}")
    assert not [part for part in parts if part not in message], message
    if name != "grad":
        assert "test_errors.py:" in message.splitlines()[0]


def test_an_unknown_device_is_named_with_those_that_exist():
    with pytest.raises(DeviceError, match=r"no device 'gpu'; this installation has reference, null, cpu"):
        jit(lambda x: x, device="gpu")(zeros(2))


@pytest.mark.parametrize("step", [lambda s, x: s, lambda s, x: (s, x, x), lambda s, x: ({"a": s}, x)])
def test_a_program_that_updates_gives_a_pair(step):
    with pytest.raises(ShapeError, match=r"must give \(new_first, result\)"):
        jit(step, device="cpu").bind(zeros(2), update=True)(zeros(2))


def test_a_program_keeps_the_avals_of_what_it_updates():
    with pytest.raises(ShapeError, match=r"must keep the avals it updates: f32\[2\] became f32\[4\]"):
        jit(lambda s, x: (ops.concatenate([s, s]), x), device="cpu").bind(zeros(2), update=True)(zeros(2))


def test_a_program_without_calls_has_no_report():
    with pytest.raises(ShapeError, match="call it once"):
        _ = jit(lambda s, x: s + x, device="cpu").bind(zeros(2)).report


def test_an_integer_loss_is_refused():
    with pytest.raises(ShapeError, match=r"it gave i32\[\]"):
        value_and_grad(lambda x: ops.argmax(x))(zeros(3))


def test_messages_are_aligned_and_errors_have_one_base():
    assert compose("head", [("a", "1"), ("long", "2")]) == "head\n  a     1\n  long  2"
    assert compose("head", []) == "head"
    assert issubclass(ShapeError, TileworkError) and issubclass(DeviceError, TileworkError)


def test_a_custom_call_refuses_to_be_differentiated():
    def called(x):
        return ops.sum(ops.custom_call(x, function=np.sin, avals=(x.aval,))[0])

    with pytest.raises(TraceError, match="custom_call has no gradient"):
        grad(called)(np.ones(3, np.float32))
