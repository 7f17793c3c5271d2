"""Quantised networks compiled to TPU v1's stream: the simulated chip gives the bits of the cpu and of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.accel.tpu.compiler import compile_graph
from core.accel.tpu.instructions import Activate, Function, Memories, decode
from core.accel.tpu.programs import V1
from core.engine import nn, ops, tree
from core.engine.array import as_array
from core.engine.backends import backend
from core.engine.errors import DeviceError
from core.engine.jit import close, jit
from core.engine.module import Module, static
from core.engine.nn.pool import max_pool
from core.engine.precision import ByteAveragePool, QuantisedConv, QuantisedLinear, TableActivation

SMALL = Memories(4, 20_000, 64, 4)
CHIPS = [SMALL, Memories(8, 20_000, 300, 4), Memories(16, 20_000, 4096, 2)]


class Chain(Module):
    """Layers after each other; a name stands for an activation or a view."""

    layers: tuple
    words: tuple = static()

    def __call__(self, x):
        layers = iter(self.layers)
        for word in self.words:
            match word:
                case "layer":
                    x = next(layers)(x)
                case "relu":
                    x = nn.relu(x)
                case "other relu":
                    x = ops.select(x > 0, x, 0.0)
                case "relu6":
                    x = ops.minimum(ops.maximum(x, 0.0), 6.0)
                case "clip":
                    x = ops.maximum(ops.minimum(x, 0.7), -0.4)
                case "flat":
                    x = x.reshape(x.shape[0], -1)
                case ("max", size, stride, padding):
                    x = max_pool(x, size, stride=stride, padding=padding)
        return x


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def run_on(model, x, device):
    return jit(lambda model, x: model(x), device=device)(model, x).numpy()


def compiled(model, x, memories=SMALL, **options):
    graph = close(jit(lambda model, x: model(x)).trace(model, x))
    return compile_graph(graph, [leaf.storage for leaf in tree.leaves(model)], memories, **options)


def conv(kernel, out, channels, *, stride=1, padding="valid", groups=1, bits=8, seed=0, taken=(-2.0, 2.0), bias=True,
         dilation=1):
    """A quantised convolution of random weights."""
    rank = len(kernel)
    weights = drawn(*kernel, channels // groups, out, seed=seed) * 0.3
    layer = nn.Conv(weights, drawn(out, seed=seed) if bias else None, stride=(stride,) * rank, padding=padding,
                    dilation=(dilation,) * rank, groups=groups)
    return QuantisedConv.of(layer, taken, bits)


def linear(inputs, outputs, *, bits=8, seed=0, taken=(-2.0, 2.0), bias=True):
    """A quantised linear layer of random weights."""
    return QuantisedLinear.of(nn.Linear(drawn(inputs, outputs, seed=seed) * 0.3, drawn(outputs, seed=seed) if bias
                                        else None), taken, bits)


def extents(space, size, stride, padding):
    """Positions of a window along each axis."""
    return tuple(-(-extent // step) if padding == "same" else (extent - one) // step + 1
                 for extent, one, step in zip(space, size, stride, strict=True))


@st.composite
def networks(draw):
    """A network of quantised layers, the last of which gives the sums, and its input."""
    space = tuple(draw(st.lists(st.integers(3, 7), min_size=1, max_size=3)))
    rank, channels = len(space), draw(st.sampled_from([1, 2, 3, 5, 6]))
    x = drawn(draw(st.integers(1, 3)), *space, channels, seed=draw(st.integers(0, 9)))
    layers, words = [], []

    def taken():
        # A scale that is a power of two makes ties.
        return draw(st.sampled_from([(-2.0, 2.0), (-0.3, 1.7), (0.0, 1.0), (-4.0, 3.96875), (-1.0, 0.9921875)]))

    def common():
        return {"bits": draw(st.sampled_from([8, 8, 8, 4, 2, 1])), "seed": draw(st.integers(0, 99)),
                "taken": taken(), "bias": draw(st.booleans())}

    for _ in range(draw(st.integers(1, 2))):
        kernel = tuple(draw(st.integers(1, min(3, extent))) for extent in space)
        groups, stride = draw(st.sampled_from([1, 1, channels])), draw(st.integers(1, 3))
        padding = draw(st.sampled_from(["valid", "same"]))
        out = draw(st.sampled_from([1, 2, 4, 9])) * groups
        layers.append(conv(kernel, out, channels, stride=stride, padding=padding, groups=groups, **common()))
        words.append("layer")
        space, channels = extents(space, kernel, (stride,) * rank, padding), out
        word = draw(st.sampled_from(["none", "relu", "relu6", "clip", "sigmoid", "tanh"]))
        if word in ("sigmoid", "tanh"):
            layers.append(TableActivation.of(word, taken()))
            words.append("layer")
        elif word != "none":
            words.append(word)
        pool = draw(st.sampled_from(["none", "max", "average"])) if rank < 3 else "none"
        if pool != "none":
            size = tuple(draw(st.integers(1, min(3, extent))) for extent in space)
            steps = tuple(draw(st.integers(1, 2)) for _ in space)
            padding = draw(st.sampled_from(["valid", "same"])) if pool == "max" else "valid"
            if pool == "average":
                layers.append(ByteAveragePool.of(taken(), size, steps))
            words.append("layer" if pool == "average" else ("max", size, steps, padding))
            space = extents(space, size, steps, padding)
    layers.append(linear(channels * int(np.prod(space)), draw(st.integers(1, 9)), **common()))
    return Chain(tuple(layers), (*words, "flat", "layer")), x


def check_random_networks(examples, devices):
    """Compare the simulated chip with devices, bit by bit."""
    @given(networks(), st.sampled_from(CHIPS))
    @settings(max_examples=examples)
    def check(network, memories):
        model, x = network
        (found,) = compiled(model, x, memories)([x.numpy()])
        for device in devices:
            np.testing.assert_array_equal(found.view(np.int32), run_on(model, x, device).view(np.int32))

    check()


def test_random_networks_have_the_bits_of_the_reference():
    check_random_networks(20, ["reference"])


@pytest.mark.slow
@pytest.mark.parametrize(("examples", "devices"), [(300, ["reference"]), (40, ["cpu", "tpu-v1"])])
def test_more_random_networks_have_the_bits_of_each_device(examples, devices):
    check_random_networks(examples, devices)


IMAGE = (2, 9, 8, 5)
POOLS = [("max", (3, 2), (2, 1), "valid"), ("max", (3, 3), (2, 2), "same"), ("max", (2, 2), (2, 2), "valid")]
NETWORKS = {
    "relu": (("layer", "relu", "layer"), [conv((3, 3), 9, 5), conv((2, 2), 3, 9)]),
    "other relu": (("layer", "other relu", "layer"), [conv((3, 3), 9, 5), conv((2, 2), 3, 9)]),
    "relu6": (("layer", "relu6", "layer"), [conv((3, 3), 9, 5, taken=(-30, 30)), conv((2, 2), 3, 9, taken=(-9, 9))]),
    "clip": (("layer", "clip", "layer"), [conv((3, 3), 9, 5), conv((2, 2), 3, 9)]),
    "stride and padding": (("layer", "relu", "layer"), [conv((3, 3), 9, 5, stride=2, padding="same"),
                                                        conv((3, 3), 6, 9, stride=2, padding="same")]),
    "dilation": (("layer", "layer"), [conv((3, 3), 9, 5, dilation=2, padding="same"), conv((2, 2), 3, 9, dilation=2)]),
    "depthwise": (("layer", "relu", "layer"), [conv((3, 3), 10, 5, groups=5, padding="same"), conv((1, 1), 3, 10)]),
    "clip and average": (("layer", "clip", "layer", "layer"), [conv((3, 3), 9, 5), ByteAveragePool.of((-1, 1), (3, 2)),
                                                              conv((1, 1), 3, 9)]),
    "average of tanh": (("layer", "layer", "layer", "flat", "layer"), [
        conv((3, 3), 9, 5), TableActivation.of("tanh", (-2, 2)), ByteAveragePool.of((-1, 0.9921875), (2, 3), (1, 2)),
        linear(9 * 6 * 2, 4)]),
    "tanh behind relu": (("layer", "relu", "layer", "layer"), [
        conv((3, 3), 9, 5), TableActivation.of("tanh", (-2, 2)), conv((1, 1), 3, 9)]),
    "tanh of average": (("layer", "layer", "layer", "layer"), [
        conv((3, 3), 9, 5), ByteAveragePool.of((-3, 3), (2, 2)), TableActivation.of("tanh", (-1, 2)),
        conv((1, 1), 3, 9)]),
    "relu behind tanh": (("layer", "layer", "relu", "layer"), [conv((3, 3), 9, 5), TableActivation.of("tanh", (-2, 2)),
                                                               conv((1, 1), 3, 9)]),
    **{f"{kind} {size} {stride} {padding}": (("layer", "relu", (kind, size, stride, padding), "layer"), [
        conv((3, 3), 9, 5, padding="same"), conv((3, 3), 3, 9, padding="same")])
       for kind, size, stride, padding in POOLS},
    **{f"{word} and maximum": (("layer", "layer", POOLS[0], "flat", "layer"), [
        conv((3, 3), 9, 5), TableActivation.of(word, (-2, 2)), linear(9 * 3 * 5, 4)]) for word in ("sigmoid", "tanh")},
}
"""Words and layers over an image of five channels."""


@pytest.mark.parametrize("memories", CHIPS, ids=lambda memories: f"array {memories.array}")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_bits_of_the_reference(name, memories):
    words, layers = NETWORKS[name]
    model, x = Chain(tuple(layers), words), drawn(*IMAGE)
    made = compiled(model, x, memories)
    (found,) = made([x.numpy()])
    np.testing.assert_array_equal(found.view(np.int32), run_on(model, x, "reference").view(np.int32))
    activations = [one for one in made.program.instructions if isinstance(one, Activate)]
    functions, pools = {one.function.name for one in activations}, {one.pool.name for one in activations}
    wanted = {"TABLE"} if "tanh" in name and "average" not in name else {
        word.upper() for word in words if word in ("relu", "relu6")}
    assert wanted <= functions and functions & {"SUMS"}
    assert ("MAX" in pools) == any("max" in word for word in words)
    assert ("AVERAGE" in pools) == any(isinstance(layer, ByteAveragePool) for layer in layers)
    assert all(decode(one.encode()) == one for one in made.program.instructions)


def test_a_network_has_the_bits_of_the_cpu_and_the_backend():
    words, layers = NETWORKS["average of tanh"]
    model, x = Chain(tuple(layers), words), drawn(*IMAGE)
    (found,) = compiled(model, x)([x.numpy()])
    for device in ("cpu", "tpu-v1"):
        np.testing.assert_array_equal(found.view(np.int32), run_on(model, x, device).view(np.int32))


def test_bytes_of_either_sign_go_straight_to_the_chip():
    numbers = np.random.default_rng(0)
    weights = numbers.integers(-128, 128, (9, 7)).astype(np.int8)
    for dtype in (np.uint8, np.int8):
        x = numbers.integers(0, 256, (3, 5, 9)).astype(np.uint8).view(dtype)
        graph = close(jit(lambda weights, x: x @ weights).trace(weights, x))
        (found,) = compile_graph(graph, [weights], SMALL)([x])
        np.testing.assert_array_equal(found, x.astype(int) @ weights)


def test_the_order_of_a_table_matters_to_a_maximum():
    """A maximum of negated bytes is not the negated maximum of the bytes."""
    class Negated(Module):
        first: QuantisedConv
        table: TableActivation
        last: QuantisedConv

        def __call__(self, x):
            return self.last(max_pool(-self.table(self.first(x)), (2, 2)))

    model = Negated(conv((3, 3), 9, 5), TableActivation.of("tanh", (-2, 2)), conv((1, 1), 3, 9, taken=(-1, 1)))
    x = drawn(*IMAGE)
    with pytest.raises(DeviceError, match="cannot compute window at Negated"):
        compiled(model, x)
    (found,) = compiled(model, x, with_host=True)([x.numpy()])
    np.testing.assert_array_equal(found, run_on(model, x, "tpu-v1"))


@pytest.mark.parametrize(("kind", "parts"), [("max", 1), ("min", 2), ("sum", 2)])
def test_windows_of_whole_numbers(kind, parts):
    """The chip has no minimum, and sums of windows only where a mean is made of them."""
    numbers = np.random.default_rng(0)
    kernels = numbers.integers(-9, 9, (2, 1, 1, 5, 5)).astype(np.int8)
    x = numbers.integers(-9, 9, IMAGE).astype(np.int8)
    plain = {"stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1), "input_dilation": (1, 1), "groups": 1}
    windows = {"size": (1, 2, 2, 1), "stride": (1, 2, 2, 1), "padding": ((0, 0),) * 4}

    def function(kernels, x):
        y = ops.round(ops.conv(x, kernels[0], **plain).astype("f32") / 8.0).astype("i8").astype("i32")
        pooled = ops.window(*(y,) * (1 if kind == "sum" else 2), kind=kind, **windows)
        return ops.conv(pooled.astype("i8"), kernels[1], **plain)

    made = compile_graph(close(jit(function).trace(kernels, x)), [kernels], SMALL, with_host=True)
    assert len(made.program.parts) == parts
    np.testing.assert_array_equal(made([x])[0], jit(function, device="reference")(kernels, x).numpy())


def test_biases_add_up():
    numbers = np.random.default_rng(0)
    first, last = (numbers.integers(-9, 9, (5, 5)).astype(np.int8) for _ in range(2))
    biases = numbers.integers(-300, 300, (2, 5)).astype(np.int32)
    x = numbers.integers(-9, 9, (4, 5)).astype(np.int8)

    def function(first, last, biases, x):
        return ops.round((x @ first + biases[0] + biases[1]).astype("f32") / 8.0).astype("i8") @ last

    made = compile_graph(close(jit(function).trace(first, last, biases, x)), [first, last, biases], SMALL)
    wanted = jit(function, device="reference")(first, last, biases, x).numpy()
    np.testing.assert_array_equal(made([x])[0], wanted)


def test_a_product_for_two_layers_is_stored_for_each():
    """Two layers that take the same floats at their own scales: two Activates of the same sums."""
    class Fork(Module):
        first: QuantisedLinear
        left: QuantisedLinear
        right: QuantisedLinear

        def __call__(self, x):
            y = nn.relu(self.first(x))
            return self.left(y) + self.right(y)

    model, x = Fork(linear(6, 3), linear(3, 2, taken=(0, 1)), linear(3, 2, taken=(0, 3), seed=1)), drawn(4, 6)
    made = compiled(model, x)
    assert len(made.program.parts) == 1
    assert [one.function for one in made.program.instructions if isinstance(one, Activate)][:2] == [Function.RELU] * 2
    np.testing.assert_array_equal(made([x.numpy()])[0], run_on(model, x, "tpu-v1"))


def test_large_strides_and_distant_lines_are_walked_in_other_ways():
    """A stride of more than 6 bits, and lines further apart than 13 bits say."""
    wide = (1, 2, 9000, 1), (1, 1)
    for (shape, kernel), stride in ((((1, 140, 1), (3,)), 66), (wide, 1), (wide, 4500)):
        model, x = Chain((conv(kernel, 2, 1, stride=stride),), ("layer",)), drawn(*shape)
        (found,) = compiled(model, x, Memories(4, 100_000, 64, 4))([x.numpy()])
        np.testing.assert_array_equal(found, run_on(model, x, "reference"))


# --- what the chip does not compute -----------------------------------------------------------------------------------

class Residual(Module):
    first: QuantisedLinear
    second: QuantisedLinear
    last: QuantisedLinear

    def __call__(self, x):
        y = nn.relu(self.first(x))
        return self.last(y + self.second(y))


def test_a_residual_is_refused_by_layer_and_line_or_left_to_the_host():
    model, x = Residual(linear(6, 5), linear(5, 5), linear(5, 3)), drawn(4, 6)
    with pytest.raises(DeviceError) as caught:
        compiled(model, x)
    message = str(caught.value)
    assert message.startswith("tpu-v1 cannot compute add at Residual  (")
    assert all(part in message for part in ("test_compiler.py:", "f32[4, 5], f32[4, 5], between two products",
                                            "let the host compute it: --with-host"))
    made = compiled(model, x, with_host=True)
    assert len(made.program.parts) == 2
    text = str(made.program)
    assert "which computes\n" in text and " add" in text and "Interrupt_Host     step 1" in text
    np.testing.assert_array_equal(made([x.numpy()])[0], run_on(model, x, "tpu-v1"))


def test_a_program_that_is_cut_has_the_bits_of_the_backend_on_its_host():
    """Sums of two products of floats, which the cpu backend rounds as they meet in its kernels."""
    class Crossing(Residual):
        def __call__(self, x):
            y = self.first(x)
            z = y + self.second(y)
            return self.last(z) + z * 0.37

    model, x = Crossing(linear(6, 5), linear(5, 5, seed=1), linear(5, 5, seed=2)), drawn(40, 6)
    (found,) = compiled(model, x, with_host=True)([x.numpy()], backend("reference"))
    np.testing.assert_array_equal(found, run_on(model, x, "reference"))


TABLE = TableActivation.of("tanh", (-2, 2))


@pytest.mark.parametrize(("between", "op", "hint"), [
    (ops.tanh, "tanh", "make it a table of bytes, core.engine.precision.TableActivation"),
    (lambda x: x * x, "mul", "let the host"),
    (lambda x: ops.select(x <= 0.5, 0.0, x), "select", "let the host"),
    (lambda x: TABLE(x) * 0.3 + 0.1, "add", "let the host"),
    (lambda x: x.mean(1, keepdims=True) + x, "", "average bytes, core.engine.precision.ByteAveragePool"),
])
def test_what_has_no_instruction_is_named(between, op, hint):
    first, last = linear(6, 5), linear(5, 3)
    x = drawn(4, 6)
    graph = close(jit(lambda model, x: model[1](between(model[0](x)))).trace((first, last), x))
    held = [leaf.storage for leaf in tree.leaves((first, last))]
    with pytest.raises(DeviceError, match=rf"tpu-v1 cannot compute {op}.*\n(.*\n)*.*{hint}"):
        compile_graph(graph, held, SMALL)
    (found,) = compile_graph(graph, held, SMALL, with_host=True)([x.numpy()])
    wanted = jit(lambda model, x: model[1](between(model[0](x))), device="tpu-v1")((first, last), x).numpy()
    np.testing.assert_array_equal(found, wanted)


def test_loops_are_written_out():
    layer, x = linear(5, 5), drawn(3, 4, 5)

    def turn(state, row, layer):
        return nn.relu(layer(state + row)), None

    def looped(layer, x):
        return ops.scan(lambda state, row: turn(state, row, layer), ops.zeros((4, 5)), x)[0]

    graph = close(jit(looped).trace(layer, x))
    made = compile_graph(graph, [leaf.storage for leaf in tree.leaves(layer)], SMALL, with_host=True)
    assert len(made.program.parts) == 3
    assert len(made.program.tiles) == 4, "turns of the loop share tiles"
    np.testing.assert_array_equal(made([x.numpy()])[0], jit(looped, device="tpu-v1")(layer, x).numpy())


def refusal(function, held, x, memories=SMALL):
    with pytest.raises(DeviceError) as caught:
        compile_graph(close(jit(function).trace(*held, x)), held, memories)
    return str(caught.value)


def test_products_that_the_chip_cannot_do():
    numbers = np.random.default_rng(0)
    x = numbers.integers(-9, 9, (4, 4)).astype(np.int8)
    weights = numbers.integers(-9, 9, (2, 4, 4)).astype(np.int8)
    assert "a product of two activations" in refusal(lambda x: x @ x, [], x)
    assert "the matrix unit multiplies rows by one matrix" in refusal(
        lambda w, x: ops.dot(x, w, contract=((0,), (1,)), batch=((), ())), [weights], x)
    assert "no product of bytes" in refusal(lambda x: x + x, [], x)
    assert "the chip multiplies u8, i8 or i16" in refusal(lambda x: x.astype("f32") @ x.astype("f32"), [], x)
    padded = {"stride": (1, 1), "padding": ((1, 1), (0, 0)), "dilation": (1, 1), "input_dilation": (1, 1), "groups": 1}
    message = refusal(lambda w, x: ops.conv(x, w, **padded), [weights[None]], x[None, :, :, None] * np.ones(4, np.int8))
    assert "pad the bytes before the convolution, as QuantisedConv does" in message


def test_memories_that_are_too_small():
    model, x = Chain((conv((3, 3), 9, 5, padding="same"), conv((3, 3), 3, 9)), ("layer", "layer")), drawn(*IMAGE)
    with pytest.raises(DeviceError, match=r"unified buffer is too small\n  layer   conv i8\[2, 11, 10, 5\] x .*Chain"):
        compiled(model, x, Memories(4, 500, 64, 4))
    with pytest.raises(DeviceError, match=r"needed  \d+ rows of 256 bytes\n  found   98304 rows"):
        compiled(model, drawn(1, 300, 300, 5), V1)
    pooled = Chain((conv((3, 3), 9, 5), conv((1, 1), 3, 9)), ("layer", ("max", (7, 1), (1, 1), "valid"), "layer"))
    with pytest.raises(DeviceError, match=r"windows of 7 lines of 6 rows each\n  rule   half of the accumulators hold"):
        compiled(pooled, x)


def test_the_stream_says_what_it_does():
    words, layers = NETWORKS["max (2, 2) (2, 2) valid"]
    text = str(compiled(Chain(tuple(layers), words), drawn(*IMAGE)).program)
    assert "i8[2, 11, 10, 5] x i8[3, 3, 5, 9]: weight tiles 54, rows of sums 144\n        Chain.layers.0  (" in text
    assert "Convolve           buffer 0: 4 x 8 rows, lines 10 apart to accumulators 0..31, next_tile, signed" in text
    assert "accumulators from 0 on to buffer" in text and "relu, max, scaling" in text
    assert text.endswith("Halt")
