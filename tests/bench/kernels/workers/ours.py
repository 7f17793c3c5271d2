"""Worker: this engine, through `jit(...).bind(...)` as a user has it.

Invariant: weights of inference are held by the program, those of training travel as arguments or are carried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from core.accel.tpu.architectures import ARCHITECTURES
from core.engine import ops, tree
from core.engine.array import as_array
from core.engine.grad import value_and_grad, vjp
from core.engine.jit import jit
from core.engine.nn import LSTM, MLP, BatchNorm, LayerNorm, Linear, LSTMCell, gelu, relu, softmax
from core.engine.optim import SGD, Adam
from core.engine.provenance import versions
from core.engine.train import State
from tests.bench.kernels import arrays
from tests.bench.kernels.arrays import MOMENTUM, RATE
from tests.bench.kernels.worker import Call, Unsupported, Work, serve
from tests.bench.kernels.workers import ours_networks, ours_peaks


class Ours:
    """See `worker.Framework`."""

    def versions(self) -> dict[str, str]:
        return versions()

    def build(self, work: Work) -> dict[str, Call]:
        return {"jit": _KINDS[work["kind"]](work)}

    def values(self, result: Any) -> list[Any]:
        return [as_array(leaf).numpy() for leaf in tree.leaves(result)]


def _bound(function: Callable[..., Any], held: Any, *arguments: Any) -> Call:
    """A call of a program that holds its first argument."""
    program = jit(function).bind(held)
    return lambda: program(*arguments)


def _free(function: Callable[..., Any], *arguments: Any) -> Call:
    """A call of a program that holds nothing."""
    return _bound(lambda nothing, *rest: function(*rest), (), *arguments)


def _draw(label: str, shape: Any, dtype: str) -> Any:
    if dtype == "int8":
        return as_array(arrays.integers(label, shape))
    return as_array(arrays.normal(label, shape), dtype)


def _convolution(work: Work) -> Call:
    x_shape, w_shape, dtype = tuple(work["x"]), tuple(work["w"]), work["dtype"]
    rank = len(x_shape) - 2
    parameters: dict[str, Any] = {
        "stride": (work["stride"],) * rank, "padding": tuple((pad, pad) for pad in work["padding"]),
        "dilation": (1,) * rank, "input_dilation": (1,) * rank, "groups": 1}
    x, w = _draw("x", x_shape, dtype), _draw("w", w_shape, dtype)

    def forward(w: Any, x: Any) -> Any:
        return ops.conv(x, w, **parameters)

    if dtype == "int8":
        return _quantised(forward, w, x)
    if work["pass"] == "forward":
        return _bound(forward, w, x)
    ct = _draw("ct", jit(forward, device="null").trace(w, x).graph.outputs[0].aval.shape, dtype)
    if work["pass"] == "input":
        return _free(lambda w, ct: vjp(lambda x: forward(w, x), ops.zeros(x_shape, dtype))[1](ct), w, ct)
    return _free(lambda x, ct: vjp(lambda w: forward(w, x), ops.zeros(w_shape, dtype))[1](ct), x, ct)


def _quantised(forward: Callable[..., Any], w: Any, x: Any) -> Call:
    """The quantised layer: sums in i32, scaled and rounded to u8 around 128. It is cut, so it is not compared."""
    program = jit(lambda held, x: (ops.round(forward(held[0], x).astype("f32") * held[1]) + 128.0).astype("u8")).bind(
        (w, as_array(np.float32(1.0))))

    def call() -> tuple[()]:
        program(x)
        return ()

    return call


def _product(work: Work) -> Call:
    a, b = (_draw(label, shape, work["dtype"])
            for label, shape in (("a", (work["m"], work["k"])), ("b", (work["k"], work["n"]))))
    return _bound(lambda b, a: a @ b, b, a)


def _softmax(work: Work) -> Call:
    return _free(softmax, arrays.normal("x", work["shape"]))


def _layer_norm(work: Work) -> Call:
    return _bound(lambda norm, x: norm(x), LayerNorm.init(work["shape"][-1]), arrays.normal("x", work["shape"]))


def _gelu(work: Work) -> Call:
    scale, bias = (arrays.normal(label, work["shape"][-1:]) for label in ("scale", "bias"))
    return _bound(lambda held, x: gelu(x * held[0] + held[1]), (scale, bias), arrays.normal("x", work["shape"]))


def _bias_norm_relu(work: Work) -> Call:
    channels = work["shape"][-1]
    norm = BatchNorm(*(as_array(abs(arrays.normal(label, (channels,))) + 0.5)
                       for label in ("scale", "shift", "mean", "variance")))
    bias = arrays.normal("bias", (channels,))
    return _bound(lambda held, x: relu(held[0](x + held[1])), (norm, bias), arrays.normal("x", work["shape"]))


def _adam(work: Work) -> Call:
    optimiser, parameter = Adam(), arrays.normal("parameter", work["shape"])

    def step(state: State, gradient: Any) -> Any:
        return State(*optimiser.update(gradient, state.optimiser, state.parameters, RATE)), ()

    program = jit(step).bind(State(parameter, optimiser.init(parameter)), update=True)
    gradient = arrays.normal("gradient", work["shape"])

    def call() -> Any:
        program(gradient)

    return call


def _segment_sum(work: Work) -> Call:
    batch = arrays.molecules(work["molecules"])
    data = arrays.normal("bonds", (len(batch.target), work["width"]))
    return _free(lambda data, target: ops.segment_sum(data, target, len(batch.molecule)), data, batch.target)


def _gather(work: Work) -> Call:
    batch = arrays.molecules(work["molecules"])
    data = arrays.normal("atoms", (len(batch.molecule), work["width"]))
    return _free(lambda data, source: ops.gather(data, source, axis=0), data, batch.source)


def _perceptron(work: Work) -> Call:
    layers = arrays.perceptron(work["layers"], work["width"])
    network = MLP(tuple(Linear(*map(as_array, layer)) for layer in layers), relu)
    return _bound(lambda network, x: network(x), network, arrays.normal("x", (1, work["width"])))


def _layers(work: Work) -> tuple[LSTM, ...]:
    return tuple(LSTM(LSTMCell(*map(as_array, layer))) for layer in arrays.lstm(work))


def _sequence(layers: tuple[LSTM, ...], x: Any) -> Any:
    for layer in layers:
        x, _ = layer(x)
    return x


def _lstm(work: Work) -> Call:
    return _bound(_sequence, _layers(work), arrays.normal("x", (work["batch"], work["time"], work["inputs"])))


def _lstm_training(work: Work) -> Call:
    x = arrays.normal("x", (work["batch"], work["time"], work["inputs"]))
    return _trained(lambda layers, x: (_sequence(layers, x) ** 2).mean(), _layers(work), x)


def _trained(loss: Callable[..., Any], parameters: Any, *batch: Any) -> Call:
    """A call of a step of gradient descent with momentum."""
    return _stepping(lambda network, *batch: (loss(network, *batch), network), parameters, *batch)


def _stepping(loss: Callable[..., Any], parameters: Any, *batch: Any) -> Call:
    """As `_trained`, where the loss comes with a network whose running statistics have moved."""
    optimiser = SGD(momentum=MOMENTUM)

    def step(state: State, *batch: Any) -> Any:
        (value, moved), gradients = value_and_grad(loss, has_aux=True)(state.parameters, *batch)
        return State(*optimiser.update(gradients, state.optimiser, moved, RATE)), value

    program = jit(step).bind(State(parameters, optimiser.init(parameters)), update=True)
    return lambda: program(*batch)


def _inference(work: Work) -> Call:
    architecture = ARCHITECTURES[work["network"]]()
    network = ours_networks.network(architecture, work["batch"])
    return _bound(lambda network, x: network(x), network, arrays.normal("x", (work["batch"], *architecture.item)))


def _training(work: Work) -> Call:
    architecture = ARCHITECTURES[work["network"]]()
    network = ours_networks.network(architecture, work["batch"])
    loss = ours_networks.voxel_loss if architecture.dense_targets else ours_networks.class_loss
    return _stepping(loss, network, arrays.normal("x", (work["batch"], *architecture.item)))


def _messages(work: Work) -> tuple[Any, Any]:
    batch = {name: as_array(value) for name, value in arrays.molecules(work["molecules"])._asdict().items()}
    return ours_networks.MessageNetwork(*map(as_array, arrays.message_weights(work["width"]))), batch


def _mpnn_inference(work: Work) -> Call:
    network, batch = _messages(work)
    return _bound(lambda network, batch: network(batch, work["molecules"], work["depth"]), network, batch)


def _mpnn_training(work: Work) -> Call:
    network, batch = _messages(work)
    return _trained(lambda network, batch: (network(batch, work["molecules"], work["depth"]) ** 2).mean(), network,
                    batch)


def _copy(work: Work) -> Call:
    source = np.ones(work["bytes"], np.uint8)
    return ours_peaks.copying(source, np.zeros_like(source))


def _peak(work: Work) -> Call:
    call = ours_peaks.peak(work["dtype"], work["operations"])
    if call is None:
        raise Unsupported("this processor has no such instruction")
    return call


_KINDS: dict[str, Callable[[Work], Call]] = {
    "conv": _convolution, "matmul": _product, "softmax": _softmax, "layer-norm": _layer_norm, "gelu": _gelu,
    "bias-norm-relu": _bias_norm_relu, "adam": _adam, "segment-sum": _segment_sum, "gather": _gather,
    "mlp": _perceptron, "lstm": _lstm, "lstm-training": _lstm_training, "inference": _inference,
    "training": _training, "mpnn-inference": _mpnn_inference, "mpnn-training": _mpnn_training, "copy": _copy,
    "peak": _peak}


if __name__ == "__main__":
    serve(Ours)
