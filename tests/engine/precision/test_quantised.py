"""Layers of whole numbers: their arithmetic, value by value, and the tree that they are part of.

Invariant: what is exact is compared for equality: sums with numpy's integers, and every backend with every other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine import checkpoint, nn, ops, random, tree
from core.engine.array import as_array
from core.engine.errors import CheckpointError, ConfigError, DataError
from core.engine.jit import jit
from core.engine.module import Module, parameters
from core.engine.precision import QuantisedConv, QuantisedLinear, as_saved, calibrate, quantise
from core.engine.precision.layered import layered
from core.engine.precision.weights import BITS, LARGEST, Packed, weight_scales, whole_numbers

KEY = random.key(3)
DEVICES = ("reference", "cpu")


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape, scale=scale).astype(np.float32)


def call(module, *arguments, device="reference"):
    return jit(lambda module, arguments: module(*arguments), device=device)(module, arguments)


# --- weights ---------------------------------------------------------------------------------------------------------

@given(st.sampled_from(BITS[1:]), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_packed_numbers_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(-LARGEST[bits], LARGEST[bits] + 1, (rows, columns)).astype(np.int8)
    numbers = np.where(numbers == 0, 1, numbers).astype(np.int8) if bits == 1 else numbers
    packed = Packed.pack(numbers, bits)
    assert np.array_equal(packed.unpacked().numpy(), numbers)
    assert tree.leaves(packed)[0].size == -(-rows * bits // 8) * columns


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", BITS[1:])
def test_packed_numbers_of_a_kernel_come_back_on_every_backend(bits: int, device: str) -> None:
    kernel = np.random.default_rng(0).integers(0, 2, (3, 3, 5, 4)).astype(np.int8) * 2 - 1
    assert np.array_equal(jit(lambda packed: packed.unpacked(), device=device)(Packed.pack(kernel, bits)), kernel)


def test_weights_become_the_numbers_of_their_papers() -> None:
    weight = as_array(np.array([[1.1, -4.0], [-2.0, 0.5], [0.3, 0.0]], np.float32))
    size = np.abs(weight.numpy())
    expected = {8: ([2 / 127, 4 / 127], [[70, -127], [-127, 16], [19, 0]]),
                4: ([2 / 7, 4 / 7], [[4, -7], [-7, 1], [1, 0]]),
                2: ([1.55, 4.0], [[1, -1], [-1, 0], [0, 0]]),
                1: (size.mean(0), [[1, -1], [-1, 1], [1, 1]])}
    for bits, (scales, numbers) in expected.items():
        found = weight_scales(weight, bits)
        np.testing.assert_allclose(found, scales, rtol=1e-6)
        assert whole_numbers(weight, found, bits).numpy().tolist() == numbers, bits


# --- arithmetic ------------------------------------------------------------------------------------------------------

def by_hand(layer, x: np.ndarray, sums) -> np.ndarray:
    """The formula of the module, with numpy's integers."""
    q = np.clip(np.rint(x / layer.input_scale.numpy()) + layer.zero_point.numpy(), -128, 127).astype(np.int64)
    scales = layer.weight_scale.astype("f32").numpy() * layer.input_scale.numpy()
    bias = 0 if layer.bias is None else layer.bias.numpy()
    return (sums(q - layer.zero_point.numpy()) + bias).astype(np.float32) * scales


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_its_formula_on_every_backend(bits: int, bias: bool) -> None:
    linear = nn.Linear(as_array(drawn(77, 40)), as_array(drawn(40, seed=1)) if bias else None)
    layer, x = QuantisedLinear.of(linear, (-2.0, 3.0), bits), drawn(5, 9, 77, seed=2)
    expected = by_hand(layer, x, lambda q: q @ layer.numbers.numpy().astype(np.int64))
    for device in DEVICES:
        assert np.array_equal(call(layer, x, device=device), expected), device


@pytest.mark.parametrize(("settings", "shape"), [
    ({"size": (3, 3)}, (2, 9, 8, 16)), ({"size": (3, 3, 3)}, (1, 5, 6, 7, 32)),
    ({"size": (5,), "stride": 2}, (2, 20, 8)),
    ({"size": (3, 3), "padding": "valid", "dilation": 2}, (1, 9, 9, 8)), ({"size": (1, 1)}, (1, 4, 5, 48)),
    ({"size": (3, 2), "padding": ((2, 0), (0, 3)), "groups": 2}, (1, 6, 5, 32))])
@pytest.mark.parametrize("bits", [8, 1])
def test_a_convolution_is_that_of_its_numbers_on_every_backend(settings, shape, bits: int) -> None:
    conv = nn.Conv.init(KEY, shape[-1], 12, **settings)
    conv = nn.Conv(conv.kernel, as_array(drawn(12)), conv.stride, conv.padding, conv.dilation, conv.groups)
    layer, x = QuantisedConv.of(conv, (-1.5, 4.0), bits), drawn(*shape, seed=2)

    def sums(q):  # f64 holds them exactly, and around q less its zero point lie zeros
        plain = nn.Conv(layer.numbers.astype("f64"), None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return plain(as_array(q.astype(np.float64))).numpy().astype(np.int64)

    expected = by_hand(layer, x, sums)
    for device in DEVICES:
        assert np.array_equal(call(layer, x, device=device), expected), device


def test_the_error_is_that_of_the_rounding() -> None:
    linear = nn.Linear(as_array(drawn(256, 64, scale=1 / 16)), as_array(drawn(64)))
    x = drawn(500, 256, seed=2)
    layer = QuantisedLinear.of(linear, (float(x.min()), float(x.max())), 8)
    # Two roundings, each of variance step^2 / 12, in each of 256 products.
    step_x, step_w = float(layer.input_scale), layer.weight_scale.astype("f32").numpy()
    spread = np.sqrt(256 / 12 * (step_x**2 / 16**2 + step_w.mean()**2))
    assert 0.9 < np.std(layer(as_array(x)).numpy() - linear(as_array(x)).numpy()) / spread < 1.1


def test_a_bias_far_above_the_products_is_kept() -> None:
    linear = nn.Linear(as_array(np.float32([[1e-12, 0.0]])), as_array(np.float32([3.0, -7.0])))
    found = QuantisedLinear.of(linear, (0.0, 1.0), 8)(as_array(np.float32([[1.0]])))
    np.testing.assert_allclose(found, [[3.0, -7.0]], rtol=1e-6)


def test_it_computes_in_the_float_type_of_its_input() -> None:
    layer = QuantisedLinear.of(nn.Linear.init(KEY, 8, 4), (-1.0, 1.0), 8)
    assert layer(as_array(drawn(3, 8).astype(np.float64))).dtype.name == "float64"


_PATHS = """
import sys, hashlib, numpy as np
from core.engine import nn, random
from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.precision import QuantisedConv
conv = QuantisedConv.of(nn.Conv.init(random.key(0), 32, 32, (3, 3, 3)), (-2.0, 2.5), 8)
x = np.random.default_rng(0).normal(size=(1, 7, 8, 9, 32)).astype(np.float32)
print(hashlib.sha256(jit(lambda conv, x: conv(x), device=sys.argv[1])(conv, x).numpy().tobytes()).hexdigest())
"""


def test_every_path_of_the_cpu_gives_the_same_bits(tmp_path: Path) -> None:
    from core.accel.chips import CHIPS, host

    def bits(device: str, path: str) -> str:
        environment = os.environ | {"TILEWORK_CPU": path} if path else os.environ
        return subprocess.run([sys.executable, "-c", _PATHS, device], env=environment, check=True, capture_output=True,
                              text=True, cwd=Path(__file__).parents[3]).stdout

    chips = [chip.name for chip in CHIPS if chip.features <= host().features]
    assert len({bits("reference", ""), *(bits("cpu", path) for path in chips)}) == 1


# --- models ----------------------------------------------------------------------------------------------------------

class Network(Module):
    """All kinds of layers."""

    first: nn.Conv
    second: nn.Conv
    rnn: nn.LSTM
    gated: nn.GRU
    attention: nn.MultiHeadAttention
    table: nn.Embedding
    head: nn.MLP

    @classmethod
    def init(cls):
        keys = iter(random.split(KEY, 7))
        return cls(nn.Conv.init(next(keys), 3, 16, (3,)), nn.Conv.init(next(keys), 16, 16, (3,)),
                   nn.LSTM.init(next(keys), 16, 16), nn.GRU.init(next(keys), 16, 16),
                   nn.MultiHeadAttention.init(next(keys), 16, 2), nn.Embedding.init(next(keys), 9, 3),
                   nn.MLP.init(next(keys), (16, 24, 2)))

    def __call__(self, symbols):
        x = nn.relu(self.second(nn.relu(self.first(self.table(symbols)))))
        x = self.gated(self.rnn(x)[0])[0]
        return self.head(self.attention(x).mean(1))


SYMBOLS = as_array(np.random.default_rng(0).integers(0, 9, (6, 12)).astype(np.int32))
LAYERS = ["second", "rnn.cell.input", "rnn.cell.hidden", "gated.cell.input", "gated.cell.hidden", "attention.query",
          "attention.key", "attention.value", "attention.output", "head.layers.0", "head.layers.1"]


def quantised_network(bits: int = 8, device: str = "cpu"):
    network = Network.init()
    return network, quantise(network, calibrate(lambda module, x: module(x), network, [SYMBOLS], device), bits)


def test_a_model_is_quantised_wherever_it_holds_weights() -> None:
    network, found = quantised_network()
    names = {name: array.dtype.short for name, array in parameters(found).items()}
    assert {name.removesuffix(".input_scale") for name in names if name.endswith(".input_scale")} == set(LAYERS)
    weights = {name: dtype for name, dtype in names.items() if name.split(".")[-1] in ("weight", "kernel")}
    assert {name for name, dtype in weights.items() if dtype == "f32"} == {"first.kernel"}
    exact, near = (call(module, SYMBOLS, device="cpu").numpy() for module in (network, found))
    assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


def test_taking_apart_changes_nothing() -> None:
    network = Network.init()
    for device in DEVICES:
        assert np.array_equal(call(network, SYMBOLS, device=device), call(layered(network), SYMBOLS, device=device))


def test_an_edge_network_is_taken_apart_and_quantised() -> None:
    edges = nn.EdgeNetwork.init(KEY, 4, 8, hidden=(5,))
    atoms, features = as_array(drawn(6, 8)), as_array(drawn(9, 4, seed=1))
    arriving = np.random.default_rng(0).integers(0, 9, (6, 2)).astype(np.int32)
    senders = np.random.default_rng(1).integers(0, 6, (6, 2)).astype(np.int32)

    def messages(network, atoms):
        return network.messages(atoms, ops.gather(network(features), arriving, axis=0), as_array(senders))

    assert np.array_equal(messages(edges, atoms), messages(layered(edges), atoms))
    near = quantise(edges, calibrate(messages, edges, [atoms]))
    assert sorted(name for name in parameters(near) if name.endswith("weight")) == [
        "hidden.layers.0.weight", "matrices.weight"]
    np.testing.assert_allclose(messages(near, atoms), messages(edges, atoms), atol=0.05)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_model_is_saved_and_loaded_as_any_other(tmp_path: Path, bits: int) -> None:
    network, found = quantised_network(bits)
    checkpoint.save_tree(tmp_path / "model.safetensors", found)
    arrays, _ = checkpoint.load(tmp_path / "model.safetensors")
    back = checkpoint.tree_of(arrays, as_saved(Network.init(), arrays))
    assert np.array_equal(call(back, SYMBOLS, device="cpu"), call(found, SYMBOLS, device="cpu"))
    weights = sum(array.size * array.dtype.itemsize for name, array in arrays.items() if ".weight" in name and
                  array.dtype.short in ("i8", "u8"))
    quantised = sum(leaf.size for name, leaf in parameters(layered(network)).items()
                    if name.rsplit(".", 1)[0] in LAYERS and name.split(".")[-1] in ("weight", "kernel"))
    assert weights == quantised * bits / 8


def test_a_file_of_another_model_is_refused() -> None:
    arrays = checkpoint.arrays_of(quantised_network()[1])
    with pytest.raises(CheckpointError, match="made for another model"):
        checkpoint.tree_of(arrays, as_saved(nn.MLP.init(KEY, (3, 4)), arrays))
    plain = checkpoint.arrays_of(Network.init())
    assert tree.flatten(as_saved(Network.init(), plain))[1] == tree.flatten(Network.init())[1]


def test_a_layer_that_is_not_seen_stays_as_it_is() -> None:
    network = nn.MLP.init(KEY, (8, 8, 8))
    found = quantise(network, calibrate(lambda module, x: module.layers[0](x), network, [drawn(2, 8)]))
    assert [type(layer) for layer in found.layers] == [QuantisedLinear, nn.Linear]


def test_ranges_are_those_of_all_batches_and_calls() -> None:
    layer = nn.Linear.init(KEY, 2, 2)

    def twice(module, x):
        return module["a"](x) + module["a"](x * 2.0)

    ranges = calibrate(twice, {"a": layer}, [np.float32([[1.0, 2.0]]), np.float32([[-3.0, 0.5]])])
    assert ranges == {"a": (-6.0, 4.0)}


class Recurrence(Module):
    """A layer in a loop, whose input grows from step to step."""

    layer: nn.Linear

    def __call__(self, x):
        return ops.scan(lambda state, row: (self.layer(state + row),) * 2, ops.zeros(x.shape[1:]), x)[1]


@pytest.mark.parametrize("device", [*DEVICES, "tpu-v2"])
def test_layers_in_loops_are_seen_at_every_step(device: str) -> None:
    network = Recurrence(nn.Linear(as_array(np.eye(4, dtype=np.float32) * 1.5), None))
    x = np.ones((3, 2, 4), np.float32)
    x[1, 0, 0] = -9.0
    ranges = calibrate(lambda module, x: module(x), network, [x], device)
    assert ranges == {"layer": (-10.25, 4.75)}  # 1.5 (1.5 - 9) + 1, and 1.5 (1.5 + 1) + 1
    small = quantise(network, ranges)
    assert type(small.layer) is QuantisedLinear
    np.testing.assert_allclose(call(small, x, device=device), call(network, x), atol=0.15)


def test_bad_calls_are_refused() -> None:
    layer = nn.Linear.init(KEY, 2, 2)
    with pytest.raises(DataError, match="nothing to calibrate on"):
        calibrate(lambda module, x: module(x), layer, [])
    with pytest.raises(ConfigError, match="weights have 8, 4, 2, 1 bits, found 3"):
        quantise(layer, {"": (0.0, 1.0)}, 3)
    with pytest.raises(DataError, match="not finite"):
        quantise(layer, calibrate(lambda module, x: module(x), layer, [np.float32([[np.inf, 1.0]])]))


def test_nothing_of_it_runs_on_the_host() -> None:
    found = quantised_network()[1]
    report = jit(lambda module, x: module(x)).report(found, SYMBOLS)
    assert not [step[0] for step in report.steps if step[0].startswith("host")]
    assert any("matmul" in step[0] for step in report.steps)
