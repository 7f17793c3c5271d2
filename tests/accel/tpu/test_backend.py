"""The emulated chips as devices: names, training, bound programs, the molecules app, and what v1 refuses."""

from __future__ import annotations

import numpy as np
import pytest

from core.accel.tpu.compiler import compile_graph
from core.engine import nn, ops, random
from core.engine.array import as_array
from core.engine.backends import MODULES, Driven, Options, backend
from core.engine.errors import DeviceError
from core.engine.jit import close, jit
from core.engine.losses import mse
from core.engine.module import Module
from core.engine.optim import Adam
from core.engine.train import State, gradient_step

FLOATS = [name for name in MODULES if name.startswith(("tpu-v2", "tpu-v3"))]


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


class Network(Module):
    first: nn.Linear
    second: nn.Linear

    def __call__(self, x):
        return self.second(ops.tanh(self.first(x)))


def network():
    one, two = random.split(random.key(0))
    return Network(nn.Linear.init(one, 6, 40), nn.Linear.init(two, 40, 1))


def test_the_names():
    assert FLOATS == ["tpu-v2", "tpu-v2:3", "tpu-v2:6", "tpu-v3", "tpu-v3:3", "tpu-v3:6"]
    for name in ("tpu-v1", *FLOATS):
        executable = backend(name).compile(close(jit(lambda x: x + 1).trace(drawn(3))), Options())
        assert executable.report.backend == name and isinstance(executable, Driven)


@pytest.mark.parametrize(("name", "near"), [("tpu-v4", "tpu-v3"), ("tpuv2", "tpu-v2"), ("tpu-v2:2", "tpu-v2:6")])
def test_an_unknown_chip_is_answered_with_the_nearest(name, near):
    with pytest.raises(DeviceError, match=rf"no device '{name}' \(did you mean {near}\?\); this installation has ref"):
        backend(name)


@pytest.mark.parametrize("name", FLOATS)
def test_a_network_learns(name):
    x, model, optimiser = drawn(64, 6), network(), Adam()
    y = ops.sum(x, 1, True)
    step = jit(gradient_step(lambda model, x, y: mse(model(x), y), optimiser.update), device=name)
    program = step.bind(State(model, optimiser.init(model)), update=True)
    losses = [program(np.float32(0.01), x, y).item() for _ in range(40)]
    assert losses[-1] < 0.1 * losses[0]
    assert program.report.backend == name


def test_a_bound_program_has_the_bits_of_a_call():
    model, x = network(), drawn(5, 6)
    function = jit(lambda model, x: model(x), device="tpu-v2")
    program = function.bind(model)
    np.testing.assert_array_equal(program(x).numpy(), function(model, x).numpy())
    assert program.report.backend == "tpu-v2"


def test_a_report_has_the_time_of_the_chip():
    model, x = network(), drawn(256, 6)
    active = {}
    for name in ("tpu-v2", "tpu-v2:3"):
        program = jit(lambda model, x: model(x), device=name).bind(model)
        program(x)
        found = program.report.estimate
        assert found.machine.name == "tpu-v2" and found.weight_bytes == 4 * (6 * 40 + 40 + 40 + 1)
        assert [step.layer for step in found.steps if step.macs] == ["Network.first", "Network.second"]
        assert [step.macs for step in found.steps if step.macs] == [256 * 6 * 40, 256 * 40]
        active[name] = found.cycles()["active"]
    assert active["tpu-v2:3"] == 3 * active["tpu-v2"] > 0


# --- v1 --------------------------------------------------------------------------------------------------------------

def bytes_of(dtype, *shape):
    limits = np.iinfo(dtype)
    return np.random.default_rng(0).integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_products_of_bytes_have_the_bits_of_the_reference(dtype):
    def both(a, b, x, w):
        scaled = ops.round((a @ b).astype("f32") * 0.001)
        image = ops.conv(x, w, stride=(1, 2), padding=((1, 1), (0, 1)), dilation=(1, 1), input_dilation=(1, 1),
                         groups=1)
        return a @ b, scaled.astype("i8"), image

    arguments = (bytes_of(dtype, 20, 700), bytes_of(np.int8, 700, 33), bytes_of(dtype, 2, 9, 7, 33),
                 bytes_of(np.int8, 3, 3, 33, 20))
    found, expected = (jit(both, device=device)(*arguments) for device in ("tpu-v1", "reference"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize(("first", "second", "passes"), [(np.uint8, np.int8, 1), (np.int16, np.int8, 2),
                                                         (np.int8, np.int16, 2), (np.int16, np.int16, 4)])
def test_integers_of_16_bits_have_their_bits_and_their_time(first, second, passes):
    x, w = bytes_of(first, 700, 512), bytes_of(second, 512, 256)
    program = jit(lambda w, x: x @ w, device="tpu-v1").bind(w)
    expected = (x.astype(np.int64) @ w.astype(np.int64)).astype(np.int32)
    np.testing.assert_array_equal(program(x).numpy(), expected)
    found = program.report.estimate
    assert found.cycles()["active"] == passes * 700 * 2
    assert found.weight_bytes == w.nbytes and found.steps[0].weight_bytes == w.nbytes


def test_no_instructions_are_written_for_16_bits():
    w = bytes_of(np.int16, 6, 5)
    graph = close(jit(lambda w, x: x @ w).trace(w, bytes_of(np.int8, 3, 6)))
    with pytest.raises(DeviceError, match=r"i8\[3, 6\] times i16\[6, 5\](.|\n)*run it on the device tpu-v1"):
        compile_graph(graph, [w])


def in_a_loop(x, w):
    return ops.scan(lambda state, row: (ops.tanh(state @ w + row), None), ops.zeros((3, 6)), x)[0]


def convolved(x, w):
    return ops.conv(x[None], w[None, None], stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1),
                    input_dilation=(1, 1), groups=1)


@pytest.mark.parametrize(("function", "parts"), [
    (lambda x, w: x[0] @ w, ["dot at ", "f32[3, 6] times f32[6, 6]"]),
    (lambda x, w: jit(lambda y: y @ w)(x[0]), ["dot at "]),
    (lambda x, w: network()(x[0]), ["dot at Network.first  (", "f32[3, 6] times f32[6, 40]"]),
    (in_a_loop, ["dot at "]), (convolved, ["conv at "]),
    (lambda x, w: x[0].astype("i32") @ w.astype("i32"), ["i32[3, 6] times i32[6, 6]"]),
], ids=["dot", "call", "layer", "scan", "conv", "i32"])
def test_v1_refuses_products_of_other_numbers(function, parts):
    with pytest.raises(DeviceError) as caught:
        jit(function, device="tpu-v1")(drawn(4, 3, 6), drawn(6, 6, seed=1))
    message = str(caught.value)
    assert message.startswith("tpu-v1 cannot compute ")
    assert not [part for part in (*parts, "test_backend.py:", "the chip multiplies u8, i8 or i16 by i8 or i16",
                                  "quantise the run first: tilework APP quantize RUN --bits 8 --out RUN8")
                if part not in message], message
