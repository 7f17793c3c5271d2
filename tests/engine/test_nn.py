"""Layers: gradients against finite differences, shapes, and numbers that PyTorch 2.13 gives for the same parameters.

Golden numbers were made in f64 from parameters and input on the curve sin(f i + p) of the element number i.
"""

from __future__ import annotations

import numpy as np
import pytest

from core.engine import nn, ops, random, tree
from core.engine.array import Array, as_array
from core.engine.errors import ConfigError, ShapeError
from core.engine.grad import grad
from core.engine.jit import jit
from core.engine.module import Module, parameters, replace

KEY = random.key(7)


def ramp(*shape, f=0.7, p=0.0):
    return as_array(np.sin(f * np.arange(np.prod(shape)) + p).reshape(shape))


def drawn(*shape, seed=0):
    return as_array(np.random.default_rng(seed).normal(size=shape))


def ids(*values):
    return as_array(np.array(values, np.int32))


def double(module):
    return tree.map(lambda leaf: leaf.astype("f64") if leaf.dtype.is_float else leaf, module)


def probe(result):
    """A scalar that every element of every output enters with another weight."""
    leaves = [leaf for leaf in tree.leaves(result) if leaf.dtype.is_float]
    return sum((ops.sum(leaf * ramp(*leaf.shape, f=0.3, p=1.0)) for leaf in leaves), as_array(0.0))


def moved(point, direction, step):
    return tree.map(lambda leaf, by: leaf + by * step if leaf.dtype.is_float else leaf, point, direction)


def dotted(a, b):
    return sum(float(np.sum(x.numpy() * y.numpy())) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)
               if x.dtype.is_float)


def gradient_error(function, point):
    """Difference between the gradient and a central difference along one random direction, relative to their size."""
    generator = np.random.default_rng(3)
    direction = tree.map(lambda leaf: as_array(generator.normal(size=leaf.shape)), point)
    step = 1e-5
    up, down = (function(moved(point, direction, by)).item() for by in (step, -step))
    numeric = (up - down) / (2 * step)
    exact = dotted(grad(function)(point), direction)
    return abs(exact - numeric) / max(abs(exact), abs(numeric))


class SetReader(Module):
    """Set2Set and the gated readout on three molecules, one of them empty, with padding atoms."""

    attend: nn.Set2Set
    gated: nn.GatedReadout

    def __call__(self, atoms: Array) -> tuple[Array, Array]:
        molecule = ids(0, 0, 2, 2, 2, 3, -1)
        return self.attend(atoms, molecule, 3), self.gated(atoms, atoms * atoms, molecule, 3)


class Messenger(Module):
    """One step of message passing along four edges: 1 to 0, 0 and 2 to 1, 1 to 2, and two places without an edge."""

    network: nn.EdgeNetwork
    update: nn.GatedUpdate

    def __call__(self, atoms: Array, edges: Array) -> Array:
        senders = ids(1, 9, 0, 2, 1, -1).reshape(3, 2)
        return self.update(atoms, nn.edge_messages(atoms, self.network.matrices, self.network(edges), senders))


MASK = as_array(np.arange(15).reshape(3, 5) % 4 != 1)

# name: module, input shapes, how it is called, output shapes
LAYERS = {
    "linear": (nn.Linear.init(KEY, 3, 4), [(2, 5, 3)], None, [(2, 5, 4)]),
    "linear_no_bias": (nn.Linear.init(KEY, 3, 4, bias=False), [(3,)], None, [(4,)]),
    "mlp": (nn.MLP.init(KEY, (3, 8, 5, 2)), [(6, 3)], None, [(6, 2)]),
    "conv1d": (nn.Conv.init(KEY, 3, 4, (5,)), [(2, 9, 3)], None, [(2, 9, 4)]),
    "conv2d": (nn.Conv.init(KEY, 2, 4, (3, 3), stride=2), [(2, 7, 6, 2)], None, [(2, 4, 3, 4)]),
    "conv2d_valid": (nn.Conv.init(KEY, 2, 4, (3, 2), padding="valid", dilation=2), [(1, 7, 6, 2)], None,
                     [(1, 3, 4, 4)]),
    "depthwise": (nn.Conv.init(KEY, 4, 4, (3, 3), groups=4, bias=False), [(1, 5, 5, 4)], None, [(1, 5, 5, 4)]),
    "conv3d": (nn.Conv.init(KEY, 2, 3, (3, 3, 3), padding=((1, 0), (1, 1), (0, 0))), [(1, 4, 4, 5, 2)], None,
               [(1, 3, 4, 3, 3)]),
    "conv_transpose": (nn.ConvTranspose.init(KEY, 3, 2, (3, 3)), [(1, 3, 4, 3)], None, [(1, 6, 8, 2)]),
    "conv_transpose_small": (nn.ConvTranspose.init(KEY, 3, 2, (2,), stride=3), [(1, 4, 3)], None, [(1, 12, 2)]),
    "conv_transpose_valid": (nn.ConvTranspose.init(KEY, 3, 2, (4,), padding="valid"), [(1, 4, 3)], None, [(1, 10, 2)]),
    "batch_norm": (replace(nn.BatchNorm.init(3), mean=ramp(3), variance=ramp(3, p=1.0) + 2.0), [(4, 5, 3)], None,
                   [(4, 5, 3)]),
    "batch_norm_train": (nn.BatchNorm.init(3), [(4, 5, 3)], lambda layer, x: layer.train(x)[0], [(4, 5, 3)]),
    "layer_norm": (nn.LayerNorm.init(6), [(2, 3, 6)], None, [(2, 3, 6)]),
    "group_norm": (nn.GroupNorm.init(6, 3), [(2, 3, 4, 6)], None, [(2, 3, 4, 6)]),
    "lstm_cell": (nn.LSTMCell.init(KEY, 3, 4), [(2, 3), (2, 4), (2, 4)], lambda cell, x, h, c: cell(x, (h, c)),
                  [(2, 4), (2, 4)]),
    "gru_cell": (nn.GRUCell.init(KEY, 3, 4), [(2, 3), (2, 4)], None, [(2, 4)]),
    "lstm": (nn.LSTM.init(KEY, 3, 4), [(2, 5, 3)], None, [(2, 5, 4), (2, 4), (2, 4)]),
    "gru": (nn.GRU.init(KEY, 3, 4, reverse=True), [(2, 5, 3)], None, [(2, 5, 4), (2, 4)]),
    "dropout": (nn.Dropout(0.4), [(6, 5)], lambda layer, x: layer(x * x, KEY), [(6, 5)]),
    "embedding": (nn.Embedding.init(KEY, 5, 3), [], lambda layer: layer(ids(4, 0, 0, 7)), [(4, 3)]),
    "attention": (nn.MultiHeadAttention.init(KEY, 6, 2), [(2, 3, 6), (2, 5, 6)], lambda layer, x, y: layer(x, y, MASK),
                  [(2, 3, 6)]),
    "messages": (Messenger(nn.EdgeNetwork.init(KEY, 2, 4, hidden=(5,)), nn.GatedUpdate.init(KEY, 4, 4)),
                 [(3, 4), (3, 2, 2)], None, [(3, 4)]),
    "readouts": (SetReader(nn.Set2Set.init(KEY, 4, 3), nn.GatedReadout.init(KEY, 4, 4, 2, hidden=(3,))), [(7, 4)], None,
                 [(3, 8), (3, 2)]),
    "max_pool": (None, [(2, 5, 6, 2)], lambda _, x: nn.max_pool(x, (3, 2), stride=2, padding="same"), [(2, 3, 3, 2)]),
    "avg_pool": (None, [(2, 5, 6, 2)], lambda _, x: nn.avg_pool(x, (3, 2)), [(2, 1, 3, 2)]),
    "global_max_pool": (None, [(2, 5, 6, 2)], lambda _, x: nn.global_max_pool(x), [(2, 2)]),
    "global_avg_pool": (None, [(2, 5, 2)], lambda _, x: nn.global_avg_pool(x), [(2, 2)]),
}


def applied(name):
    """The layer's function of (module, inputs), and a point in f64."""
    module, shapes, call, _ = LAYERS[name]
    call = call or (lambda layer, *inputs: layer(*inputs))
    inputs = [drawn(*shape, seed=number) for number, shape in enumerate(shapes)]
    return lambda point: call(point[0], *point[1]), (double(module), inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_equals_finite_difference(name):
    function, point = applied(name)
    assert gradient_error(lambda point: probe(function(point)), point) < 1e-6


@pytest.mark.parametrize("name", LAYERS)
def test_shape_and_dtype_eager_and_jitted(name):
    function, point = applied(name)
    point = tree.map(lambda leaf: leaf.astype("f32"), point)
    eager, staged = tree.leaves(function(point)), tree.leaves(jit(function, device="reference")(point))
    for one, two, shape in zip(eager, staged, LAYERS[name][3], strict=True):
        assert (one.shape, str(one.dtype)) == (shape, "f32") == (two.shape, str(two.dtype))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["conv_transpose", "group_norm", "gru_cell", "lstm", "attention", "messages",
                                  "readouts"])
def test_second_derivative(name):
    function, point = applied(name)
    gradient = grad(lambda point: probe(function(point)))
    # A polynomial of the gradient, so that the layer's own second derivative is asked for.
    assert gradient_error(lambda point: probe(tree.map(lambda leaf: leaf * leaf, gradient(point))), point) < 1e-6


# --- activations -----------------------------------------------------------------------------------------------------

POINTS = np.array([-30.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0])
ACTIVATIONS = {
    nn.relu: [0, 0, 0, 0, 0.5, 2, 30],
    nn.leaky_relu: [-0.3, -0.02, -0.005, 0, 0.5, 2, 30],
    nn.elu: [-0.9999999999999064, -0.8646647167633873, -0.3934693402873666, 0, 0.5, 2, 30],
    nn.selu: [-1.758099340847212, -1.5201664685956948, -0.6917581878028713, 0, 0.5253504936777402, 2.101401974710961,
              31.521029620664414],
    nn.gelu: [0, -0.04550026389635842, -0.15426876936299344, 0, 0.34573123063700656, 1.9544997361036416, 30],
    nn.silu: [-2.8072868906517896e-12, -0.2384058440442351, -0.1887703343990727, 0, 0.3112296656009273,
              1.7615941559557646, 29.999999999997197],
    nn.softplus: [9.357622968839737e-14, 0.1269280110429725, 0.4740769841801067, 0.6931471805599453, 0.9740769841801067,
                  2.1269280110429727, 30.000000000000092],
}


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activation_values(function):
    np.testing.assert_allclose(function(as_array(POINTS)), ACTIVATIONS[function], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activation_is_finite_at_any_size_and_keeps_nan(function):
    large = as_array(np.array([-1e30, -90.0, 90.0, 1e30], np.float32))
    slopes = grad(lambda x: ops.sum(function(x)))(large)
    assert np.all(np.isfinite(function(large))) and np.all(np.isfinite(slopes))
    assert np.isnan(function(as_array(np.nan)).item())


@pytest.mark.parametrize(("function", "slope"), [(nn.relu, 0.0), (nn.leaky_relu, 0.01), (nn.elu, 1.0), (nn.gelu, 0.5),
                                                 (nn.silu, 0.5), (nn.softplus, 0.5)])
def test_slope_at_zero(function, slope):
    assert grad(function)(as_array(0.0)).item() == pytest.approx(slope, rel=1e-6)


def test_softmax_of_large_scores():
    x = as_array(np.array([[1e4, 1e4 - 1.0, -1e4], [-1e4, -1e4, -1e4]]))
    e = np.exp(-1.0)
    np.testing.assert_allclose(nn.softmax(x), [[1 / (1 + e), e / (1 + e), 0], [1 / 3] * 3], rtol=1e-12)
    np.testing.assert_allclose(nn.log_softmax(x)[0, 2].item(), -2e4 - np.log1p(e), rtol=1e-12)
    assert gradient_error(lambda x: probe(nn.log_softmax(x, 0)) + probe(nn.softmax(x)), drawn(3, 4)) < 1e-6


# --- numbers of PyTorch ----------------------------------------------------------------------------------------------

def test_lstm_numbers():
    cell = nn.LSTMCell(ramp(3, 8), ramp(2, 8, p=1), ramp(8, p=2) + ramp(8, p=3))
    y, (h, c) = nn.LSTM(cell)(ramp(2, 4, 3, p=4))
    np.testing.assert_allclose(y[:, -1], [[-0.6324736793726333, -0.25189754664054237],
                                          [-0.06029155066504973, 0.05405780479672191]], rtol=1e-12)
    np.testing.assert_allclose(c, [[-0.9213407592568505, -0.2636663514429059],
                                   [-0.07098364410726726, 0.0680858045369977]], rtol=1e-12)
    np.testing.assert_array_equal(h, y[:, -1])
    assert ops.sum(y).item() == pytest.approx(-3.52968552544208, rel=1e-12)


def test_gru_numbers():
    y, h = nn.GRU(nn.GRUCell(ramp(3, 6), ramp(2, 6, p=1), ramp(6, p=2), ramp(6, p=3)))(ramp(2, 4, 3, p=4))
    np.testing.assert_allclose(h, [[-0.8251880443241931, -0.5752966667047623],
                                   [-0.9588422819326115, -0.5051091790461569]], rtol=1e-12)
    assert ops.sum(y).item() == pytest.approx(-9.932808406630816, rel=1e-12)


def test_conv_numbers():
    layer = nn.Conv(ramp(3, 2, 2, 6, p=1), ramp(6, p=2), (2, 1), ((1, 1), (1, 1)), (1, 2), 2)
    y = layer(ramp(2, 7, 6, 4))
    assert ops.sum(y * ramp(*y.shape, f=0.3)).item() == pytest.approx(2.15895159385608, rel=1e-11)
    layer = nn.ConvTranspose(ramp(3, 3, 4, 5, p=1), ramp(5, p=2), (2, 2), ((1, 1), (1, 1)))
    y = layer(ramp(2, 3, 4, 4))
    assert y.shape == (2, 5, 7, 5)
    assert ops.sum(y * ramp(*y.shape, f=0.3)).item() == pytest.approx(-23.552701774520248, rel=1e-11)


@pytest.mark.parametrize("padding", ["same", "valid", "pairs"])
@pytest.mark.parametrize(("extent", "size", "stride", "pair"), [(8, 3, 2, (1, 2)), (9, 4, 3, (1, 0)), (6, 2, 3, (1, 1)),
                                                                (5, 5, 1, (1, 2))])
def test_conv_transpose_is_the_transpose(padding, extent, size, stride, pair):
    # Each pair lets the windows end at the last element, as the output extent of the transpose assumes.
    padding = (pair,) if padding == "pairs" else padding
    forward = nn.Conv(drawn(size, 2, 3), None, (stride,), padding, (1,), 1)
    x = drawn(1, extent, 2, seed=1)
    y = drawn(*forward(x).shape, seed=2)
    mirrored = ops.transpose(ops.mirror(forward.kernel, (0,)), axes=(0, 2, 1))
    back = nn.ConvTranspose(mirrored, None, (stride,), padding)(y)
    shared = min(back.shape[1], extent)
    assert shared + stride > extent
    assert ops.sum(forward(x) * y).item() == pytest.approx(ops.sum(back[:, :shared] * x[:, :shared]).item(), rel=1e-10)


def test_norm_numbers():
    x, weight = ramp(3, 4, 6), ramp(3, 4, 6, f=0.3)
    scale, shift = ramp(6, p=1), ramp(6, p=2)
    y, norm = replace(double(nn.BatchNorm.init(6)), scale=scale, shift=shift).train(x)
    assert ops.sum(y * weight).item() == pytest.approx(-14.886794958243517, rel=1e-10)
    np.testing.assert_allclose(norm.mean[:2], [-0.000580815229236494, -0.0006305220083826228], rtol=1e-10)
    np.testing.assert_allclose(norm.variance[:2], [0.9541202169629576, 0.9539194803599468], rtol=1e-10)
    assert ops.sum(norm(x) * weight).item() == pytest.approx(-11.442615469036808, rel=1e-10)
    layer, group = nn.LayerNorm(scale, shift), nn.GroupNorm(scale, shift, 3)
    assert ops.sum(layer(x) * weight).item() == pytest.approx(-8.893208150693706, rel=1e-10)
    assert ops.sum(group(x) * weight).item() == pytest.approx(-14.843547064662328, rel=1e-10)


def test_attention_numbers():
    projections = [nn.Linear(ramp(6, 6, p=p), ramp(6, p=p + 4)) for p in range(4)]
    layer, x, context = nn.MultiHeadAttention(*projections, 2), ramp(2, 3, 6, p=1), ramp(2, 5, 6, p=2)
    weight = ramp(2, 3, 6, f=0.3)
    assert ops.sum(layer(x, context, MASK) * weight).item() == pytest.approx(3.89838818599994, rel=1e-11)
    assert ops.sum(layer(x, context) * weight).item() == pytest.approx(3.5429714693769756, rel=1e-11)


def test_attention_to_nothing_gives_zeros():
    x = drawn(1, 3, 2, 4)
    mixed = nn.attention(x, x, x, as_array(np.array([[True] * 3, [False] * 3, [True] * 3])))
    assert np.all(mixed.numpy()[:, 1] == 0) and np.all(mixed.numpy()[:, [0, 2]] != 0)


# --- recurrent layers against loops ----------------------------------------------------------------------------------

def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_equals_loop(reverse):
    layer, x = double(nn.LSTM.init(KEY, 3, 4, reverse=reverse)), drawn(2, 6, 3)
    w, u, b = (array.numpy() for array in tree.leaves(layer))
    h, c, expected = drawn(2, 4, seed=1).numpy(), drawn(2, 4, seed=2).numpy(), np.zeros((2, 6, 4))
    y, last = layer(x, (as_array(h), as_array(c)))
    for time in reversed(range(6)) if reverse else range(6):
        i, f, g, o = np.split(x.numpy()[:, time] @ w + h @ u + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = expected[:, time] = sigmoid(o) * np.tanh(c)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(last[0], h, rtol=1e-12)
    np.testing.assert_allclose(last[1], c, rtol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_gru_equals_loop(reverse):
    layer, x = double(nn.GRU.init(KEY, 3, 4, reverse=reverse)), drawn(2, 6, 3)
    layer = replace(layer, cell=replace(layer.cell, bias_input=ramp(12), bias_hidden=ramp(12, p=1)))
    w, u, b, d = (array.numpy() for array in tree.leaves(layer))
    h, expected = drawn(2, 4, seed=1).numpy(), np.zeros((2, 6, 4))
    y, last = layer(x, as_array(h))
    for time in reversed(range(6)) if reverse else range(6):
        (xr, xz, xn), (hr, hz, hn) = np.split(x.numpy()[:, time] @ w + b, 3, 1), np.split(h @ u + d, 3, 1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = expected[:, time] = (1 - z) * np.tanh(xn + r * hn) + z * h
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(last, h, rtol=1e-12)


# --- pooling, dropout, embedding, norms ------------------------------------------------------------------------------

def test_pools_leave_padding_out():
    x = as_array(-1.0 - np.arange(5.0).reshape(1, 5, 1))
    np.testing.assert_array_equal(nn.max_pool(x, (2,), padding="same").numpy()[0, :, 0], [-1, -3, -5])
    np.testing.assert_array_equal(nn.avg_pool(x, (2,), padding="same").numpy()[0, :, 0], [-1.5, -3.5, -5])
    np.testing.assert_array_equal(nn.avg_pool(x, (3,), stride=2, padding=((1, 1),)).numpy()[0, :, 0], [-1.5, -3, -4.5])


def test_dropout():
    layer, x = nn.Dropout(0.25), ops.ones((200, 200))
    y = layer(x, KEY).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    # Five standard deviations of the mean of 40,000 draws.
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / y.size)
    np.testing.assert_array_equal(y, layer(x, KEY))
    assert layer(x) is x and nn.Dropout(0.0)(x, KEY) is x
    with pytest.raises(ConfigError, match=r"0 <= rate < 1, found 1\.0"):
        nn.Dropout(1.0)


def test_embedding_outside_the_table_reads_zeros():
    assert np.all(nn.Embedding.init(KEY, 5, 3)(ids(5, -1)).numpy() == 0)


def test_batch_norm_trains_scale_and_shift_only():
    norm, x = double(nn.BatchNorm.init(3)), drawn(8, 3)
    gradient = grad(lambda norm: probe(norm.train(x)[0]))(norm)
    assert np.all(gradient.mean.numpy() == 0) and np.all(gradient.variance.numpy() == 0)
    assert np.all(gradient.scale.numpy() != 0) and np.all(gradient.shift.numpy() != 0)


@pytest.mark.parametrize(("initialiser", "variance", "bounded"), [
    (nn.fan_in_uniform, 1 / (3 * 450), True), (nn.glorot_uniform, 2 / (450 + 720), True),
    (nn.glorot_normal, 2 / (450 + 720), False), (nn.he_normal, 2 / 450, False)])
def test_initialisers_have_their_variance(initialiser, variance, bounded):
    weight = initialiser(KEY, (3, 3, 50, 80)).numpy()
    assert weight.var() == pytest.approx(variance, rel=0.03)
    assert abs(weight.mean()) < 5 * np.sqrt(variance / weight.size)
    assert bool(np.abs(weight).max() <= np.sqrt(3 * variance)) is bounded


# --- graphs ----------------------------------------------------------------------------------------------------------

SOURCE, TARGET, KIND = ids(0, 1, 1, 2, 3, 0), ids(1, 0, 2, 1, 3, 1), ids(0, 1, 2, 0, 1, 1)


ARRIVING = as_array(np.array([[1, -1, 6], [0, 5, 3], [2, 6, -1], [4, 6, 2**20]], np.int32))
"""The edges that end at each atom; -1, 6 and 2**20 are none."""


def senders() -> Array:
    return ops.gather(SOURCE + 1, ARRIVING, axis=0) - 1


def test_edge_and_typed_messages_equal_a_loop_over_edges():
    atoms, matrices = drawn(4, 3), drawn(3, 3, 3, seed=1)
    expected = np.zeros((4, 3))
    for source, target, kind in zip(SOURCE.numpy(), TARGET.numpy(), KIND.numpy(), strict=True):
        expected[target] += matrices.numpy()[kind] @ atoms.numpy()[source]
    coefficients = ops.gather(ops.one_hot(KIND, 3, "f64"), ARRIVING, axis=0)
    turned = ops.transpose(matrices, axes=(0, 2, 1))
    np.testing.assert_allclose(nn.edge_messages(atoms, turned, coefficients, senders()), expected, rtol=1e-12)
    np.testing.assert_allclose(nn.typed_sums(atoms, KIND, 3, SOURCE, TARGET) @ turned.reshape(9, 3), expected,
                               rtol=1e-12)


def test_edge_messages_are_those_of_the_matrix_that_a_linear_layer_makes_for_each_edge():
    """A(e) = W g + b, as Gilmer et al. write it, with a matrix an edge."""
    network, atoms, edges = double(nn.EdgeNetwork.init(KEY, 2, 3, hidden=(7, 5))), drawn(4, 3), drawn(6, 2, seed=1)
    hidden = nn.relu(network.hidden(edges)).numpy()
    flat = network.matrices.numpy().reshape(6, 9)
    matrices = (hidden @ flat[:-1] + flat[-1]).reshape(6, 3, 3)
    expected = np.zeros((4, 3))
    for source, target, matrix in zip(SOURCE.numpy(), TARGET.numpy(), matrices, strict=True):
        expected[target] += atoms.numpy()[source] @ matrix
    coefficients = ops.gather(network(edges), ARRIVING, axis=0)
    np.testing.assert_allclose(nn.edge_messages(atoms, network.matrices, coefficients, senders()), expected, rtol=1e-12)


@pytest.mark.parametrize("outside", [-1, 4, 2**20])
def test_padding_edges_add_nothing(outside):
    atoms, matrices = drawn(4, 3), drawn(3, 3, 3, seed=1)
    padded = [ops.concatenate([SOURCE, ids(0)]), ops.concatenate([TARGET, ids(outside)])]
    kind = ops.concatenate([KIND, ids(2)])
    np.testing.assert_array_equal(nn.typed_sums(atoms, kind, 3, *padded),
                                  nn.typed_sums(atoms, KIND, 3, SOURCE, TARGET))
    coefficients = drawn(4, 2, 3, seed=2)
    wider = ops.concatenate([coefficients, drawn(4, 1, 3, seed=3)], axis=1)
    places = ids(1, 0, 3, 3, 2, 0, 0, 1).reshape(4, 2)
    more = ops.concatenate([places, ops.full((4, 1), outside, "i32")], axis=1)
    np.testing.assert_allclose(nn.edge_messages(atoms, matrices, wider, more),
                               nn.edge_messages(atoms, matrices, coefficients, places), rtol=1e-14)


def test_readouts_do_not_depend_on_order_or_padding():
    reader, gated = double(nn.Set2Set.init(KEY, 4, 3)), double(nn.GatedReadout.init(KEY, 4, 4, 2))
    atoms, molecule = drawn(6, 4), ids(0, 0, 1, 1, 1, 1)
    order = ids(3, 1, 0, 5, 2, 4)
    shuffled, owners = ops.gather(atoms, order, axis=0), ops.gather(molecule, order, axis=0)
    padded, padded_owners = ops.concatenate([atoms, drawn(2, 4, seed=9)]), ops.concatenate([molecule, ids(2, -1)])
    for read in (lambda a, m: reader(a, m, 2), lambda a, m: gated(a, a, m, 2)):
        np.testing.assert_allclose(read(shuffled, owners), read(atoms, molecule), rtol=1e-12)
        np.testing.assert_allclose(read(padded, padded_owners), read(atoms, molecule), rtol=1e-12)


def test_set2set_with_one_atom_reads_that_atom():
    reading = double(nn.Set2Set.init(KEY, 4, 2))(drawn(1, 4), ids(0), 1)
    np.testing.assert_allclose(reading[:, 4:], drawn(1, 4), rtol=1e-12)


# --- names and errors ------------------------------------------------------------------------------------------------

class Model(Module):
    layers: tuple[nn.Linear, ...]
    head: nn.MLP

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


MODEL = Model((nn.Linear.init(KEY, 3, 4), nn.Linear.init(KEY, 4, 4)), nn.MLP.init(KEY, (4, 4, 1)))


def test_parameter_names():
    assert list(parameters(MODEL)) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
                                       "head.layers.0.weight", "head.layers.0.bias", "head.layers.1.weight",
                                       "head.layers.1.bias"]


def test_shape_error_names_the_layer():
    model = jit(lambda x: MODEL(x), device="reference")
    with pytest.raises(ShapeError, match=r"in dot at Model\.layers\.0 "):
        model(ops.ones((2, 5)))
    with pytest.raises(ShapeError, match=r"at Model\.head\.layers\.1 "):
        broken = replace(MODEL, head=replace(MODEL.head, layers=(MODEL.head.layers[0], nn.Linear.init(KEY, 7, 1))))
        jit(lambda x: broken(x), device="reference")(ops.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"input channels \(4\) must equal kernel in-channels x groups \(3 x 1\)"):
        nn.Conv.init(KEY, 3, 8, (3, 3))(ops.ones((1, 8, 8, 4)))
    with pytest.raises(ShapeError, match="kernel"):
        nn.Conv.init(KEY, 3, 8, (3, 3))(ops.ones((1, 8, 3)))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Conv.init(KEY, 3, 8, (3, 3), padding="full"), 'padding is "same", "valid" or 2 pairs'),
    (lambda: nn.Conv.init(KEY, 3, 8, (3,), padding=((1, 1), (1, 1))), "1 pairs"),
    (lambda: nn.Conv.init(KEY, 3, 8, (3, 3), groups=2), "2 groups and 3 channels"),
    (lambda: nn.GroupNorm.init(6, 4), "4 groups and 6 channels"),
    (lambda: nn.MultiHeadAttention.init(KEY, 6, 4), "4 heads and a width of 6")])
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
