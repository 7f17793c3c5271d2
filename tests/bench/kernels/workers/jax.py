"""Worker: JAX on the CPU, each computation under `jax.jit`, channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from core.accel.tpu.architectures import ARCHITECTURES
from tests.bench.kernels import arrays
from tests.bench.kernels.arrays import MOMENTUM, RATE
from tests.bench.kernels.worker import Call, Unsupported, Work, serve
from tests.bench.kernels.workers import jax_networks

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "int8": jnp.int8}


class Jax:
    """See `worker.Framework`."""

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__}

    def build(self, work: Work) -> dict[str, Call]:
        rule = _KINDS.get(work["kind"])
        if rule is None:
            raise Unsupported("not measured in JAX")
        return {"jit": rule(work)}

    def values(self, result: Any) -> list[Any]:
        return [jnp.asarray(leaf, jnp.float32).__array__() for leaf in jax.tree.leaves(result)]


def _jitted(function: Callable[..., Any], *arguments: Any) -> Call:
    compiled, arguments = jax.jit(function), jax.tree.map(jnp.asarray, arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _draw(label: str, shape: Any, dtype: str) -> Any:
    drawn = arrays.integers(label, shape) if dtype == "int8" else arrays.normal(label, shape)
    return jnp.asarray(drawn, DTYPES[dtype])


def _convolution(work: Work) -> Call:
    dtype, x_shape, w_shape = work["dtype"], work["x"], work["w"]
    sums = jnp.int32 if dtype == "int8" else None

    def forward(x: Any, w: Any) -> Any:
        return jax_networks.convolve(x, w, work["stride"], work["padding"], sums)

    x, w = _draw("x", x_shape, dtype), _draw("w", w_shape, dtype)
    if work["pass"] == "forward":
        return _jitted(forward, x, w)
    ct = _draw("ct", jax.eval_shape(forward, x, w).shape, dtype)
    if work["pass"] == "input":
        return _jitted(lambda w, ct: jax.linear_transpose(lambda x: forward(x, w), x)(ct), w, ct)
    return _jitted(lambda x, ct: jax.linear_transpose(lambda w: forward(x, w), w)(ct), x, ct)


def _product(work: Work) -> Call:
    dtype = work["dtype"]
    a, b = _draw("a", (work["m"], work["k"]), dtype), _draw("b", (work["k"], work["n"]), dtype)
    return _jitted(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.int32 if dtype == "int8" else None), a, b)


def _softmax(work: Work) -> Call:
    return _jitted(jax.nn.softmax, arrays.normal("x", work["shape"]))


def _layer_norm(work: Work) -> Call:
    def norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)

    return _jitted(norm, arrays.normal("x", work["shape"]))


def _gelu(work: Work) -> Call:
    scale, bias = (arrays.normal(label, work["shape"][-1:]) for label in ("scale", "bias"))
    return _jitted(lambda x, scale, bias: jax.nn.gelu(x * scale + bias, approximate=False),
                   arrays.normal("x", work["shape"]), scale, bias)


def _bias_norm_relu(work: Work) -> Call:
    channels = work["shape"][-1]
    norm = [abs(arrays.normal(label, (channels,))) + 0.5 for label in ("scale", "shift", "mean", "variance")]
    return _jitted(lambda x, bias, norm: jax.nn.relu(jax_networks.normalise(x + bias, norm, 1e-5)),
                   arrays.normal("x", work["shape"]), arrays.normal("bias", (channels,)), norm)


def _adam(work: Work) -> Call:
    def update(state: Any, gradient: Any) -> Any:
        parameter, mean, square, step = state
        step = step + 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient * gradient
        root = jnp.sqrt(square / (1 - 0.999 ** step)) + 1e-8
        return (parameter - RATE * mean / (1 - 0.9 ** step) / root, mean, square, step), ()

    zeros = jnp.zeros(work["shape"])
    state = (jnp.asarray(arrays.normal("parameter", work["shape"])), zeros, zeros + 0.0, jnp.float32(0))
    return _carried(update, state, jnp.asarray(arrays.normal("gradient", work["shape"])))


def _carried(step: Callable[..., Any], state: Any, *rest: Any) -> Call:
    """Calls of ``state, result = step(state, *rest)``, whose state is given away and replaced."""
    compiled = jax.jit(step, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state, result = jax.block_until_ready(compiled(state, *rest))
        return result

    return call


def _trained(loss: Callable[..., Any], parameters: Any, *batch: Any) -> Call:
    """A step of gradient descent with momentum; `loss` gives the value and new running statistics."""
    def step(state: Any, *batch: Any) -> Any:
        parameters, velocity = state
        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(parameters, *batch)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        return (jax.tree.map(lambda p, v: p - RATE * v, moved, velocity), velocity), value

    parameters, batch = jax.tree.map(jnp.array, (parameters, batch))
    return _carried(step, (parameters, jax.tree.map(jnp.zeros_like, parameters)), *batch)


def _batch(work: Work) -> arrays.Molecules:
    return arrays.molecules(work["molecules"])


def _segment_sum(work: Work) -> Call:
    batch = _batch(work)
    data = arrays.normal("bonds", (len(batch.target), work["width"]))
    return _jitted(lambda data, target: jax.ops.segment_sum(data, target, len(batch.molecule)), data, batch.target)


def _gather(work: Work) -> Call:
    batch = _batch(work)
    data = arrays.normal("atoms", (len(batch.molecule), work["width"]))
    return _jitted(lambda data, source: data[source], data, batch.source)


def _perceptron(work: Work) -> Call:
    def apply(layers: Any, x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    return _jitted(apply, arrays.perceptron(work["layers"], work["width"]), arrays.normal("x", (1, work["width"])))


def _sequence(work: Work) -> Any:
    return arrays.normal("x", (work["batch"], work["time"], work["inputs"]))


def _lstm(work: Work) -> Call:
    return _jitted(jax_networks.lstm, arrays.lstm(work), _sequence(work))


def _lstm_training(work: Work) -> Call:
    return _trained(lambda layers, x: (jnp.square(jax_networks.lstm(layers, x)).mean(), layers),
                    arrays.lstm(work), _sequence(work))


def _inference(work: Work) -> Call:
    architecture = ARCHITECTURES[work["network"]]()
    apply, weights = jax_networks.network(architecture, work["batch"])
    return _jitted(lambda weights, x: apply(weights, x, None), weights,
                   arrays.normal("x", (work["batch"], *architecture.item)))


def _training(work: Work) -> Call:
    architecture = ARCHITECTURES[work["network"]]()
    apply, weights = jax_networks.network(architecture, work["batch"])
    loss_of = jax_networks.voxel_loss if architecture.dense_targets else jax_networks.class_loss

    def loss(weights: Any, x: Any) -> Any:
        moved = list(weights)
        value = loss_of(apply(weights, x, moved))
        return value, moved

    return _trained(loss, weights, arrays.normal("x", (work["batch"], *architecture.item)))


def _mpnn_inference(work: Work) -> Call:
    return _jitted(lambda weights, batch: jax_networks.messages(weights, batch, work["molecules"], work["depth"]),
                   arrays.message_weights(work["width"]), _batch(work)._asdict())


def _mpnn_training(work: Work) -> Call:
    def loss(weights: Any, batch: Any) -> Any:
        return jnp.square(jax_networks.messages(weights, batch, work["molecules"], work["depth"])).mean(), weights

    return _trained(loss, arrays.message_weights(work["width"]), _batch(work)._asdict())


_KINDS: dict[str, Callable[[Work], Call]] = {
    "conv": _convolution, "matmul": _product, "softmax": _softmax, "layer-norm": _layer_norm, "gelu": _gelu,
    "bias-norm-relu": _bias_norm_relu, "adam": _adam, "segment-sum": _segment_sum, "gather": _gather,
    "mlp": _perceptron, "lstm": _lstm, "lstm-training": _lstm_training, "inference": _inference,
    "training": _training, "mpnn-inference": _mpnn_inference, "mpnn-training": _mpnn_training}


if __name__ == "__main__":
    serve(Jax)
