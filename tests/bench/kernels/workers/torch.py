"""Worker: PyTorch, eager and compiled, channels last.

A lone convolution or product is measured eagerly only: the compiler calls the same library for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from core.accel.tpu.architectures import ARCHITECTURES
from tests.bench.kernels import arrays
from tests.bench.kernels.arrays import MOMENTUM, RATE
from tests.bench.kernels.worker import Call, Unsupported, Work, serve, threads
from tests.bench.kernels.workers import torch_networks

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Torch:
    """See `worker.Framework`."""

    def __init__(self) -> None:
        torch.set_num_threads(threads())

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def build(self, work: Work) -> dict[str, Call]:
        torch.compiler.reset()
        rule = _KINDS.get(work["kind"])
        if rule is None:
            raise Unsupported("not measured in PyTorch")
        return rule(work)

    def values(self, result: Any) -> list[Any]:
        results = result if isinstance(result, tuple | list) else (result,)
        return [each.detach().float().numpy() for each in results if each is not None]


def _tensor(label: str, shape: Any) -> Any:
    return torch.from_numpy(arrays.normal(label, shape))


def channels_first(array: Any) -> Any:
    """x[batch, space..., channel] as torch's [batch, channel, space...], where it lies."""
    return torch.from_numpy(array).movedim(-1, 1)


def kernel(array: Any) -> Any:
    """w[space..., in, out] as torch's [out, in, space...], channels last in memory."""
    rank = array.ndim - 2
    return torch.from_numpy(np.ascontiguousarray(array.transpose(rank + 1, *range(rank), rank))).movedim(-1, 1)


def _inference(function: Callable[..., Any], *arguments: Any) -> Call:
    def call() -> Any:
        with torch.inference_mode():
            return function(*arguments)

    return call


def _both(function: Callable[..., Any], *arguments: Any) -> dict[str, Call]:
    """Eager, and compiled for these shapes."""
    return {"eager": _inference(function, *arguments),
            "compiled": _inference(torch.compile(function, dynamic=False), *arguments)}


def _convolution(work: Work) -> dict[str, Call]:
    if work["dtype"] == "int8":
        return _integer_convolution(work)
    dtype, rank = DTYPES[work["dtype"]], len(work["x"]) - 2
    x = channels_first(arrays.normal("x", work["x"])).to(dtype)
    w = kernel(arrays.normal("w", work["w"])).to(dtype)
    convolve = (functional.conv2d, functional.conv3d)[rank - 2]
    settings = {"stride": work["stride"], "padding": tuple(work["padding"])}
    if work["pass"] == "forward":
        return {"eager": _inference(lambda: convolve(x, w, **settings))}
    out = convolve(x, w, **settings)
    ct = channels_first(arrays.normal("ct", (out.shape[0], *out.shape[2:], out.shape[1]))).to(dtype)
    wanted = [work["pass"] == "input", work["pass"] == "weights", False]
    return {"eager": _inference(lambda: torch.ops.aten.convolution_backward(
        ct, x, w, None, [work["stride"]] * rank, work["padding"], [1] * rank, False, [0] * rank, 1, wanted))}


def _integer_convolution(work: Work) -> dict[str, Call]:
    """The quantised layer: u8 by s8 with s32 sums, and u8 again; zero point 4, because inputs lie in -4..4."""
    rank = len(work["x"]) - 2
    x = channels_first(arrays.integers("x", work["x"]).astype(np.float32))
    w = kernel(arrays.integers("w", work["w"]).astype(np.float32))
    x, w = torch.quantize_per_tensor(x, 1.0, 4, torch.quint8), torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)
    operations = torch.ops.quantized
    prepack, convolve = ((operations.conv2d_prepack, operations.conv2d),
                         (operations.conv3d_prepack, operations.conv3d))[rank - 2]
    packed = prepack(w, None, [work["stride"]] * rank, work["padding"], [1] * rank, 1)
    # Outputs are cut to 8 bits, so they are not compared.
    return {"eager": _silent(_inference(lambda: convolve(x, packed, 1.0, 128)))}


def _product(work: Work) -> dict[str, Call]:
    shapes = (work["m"], work["k"]), (work["k"], work["n"])
    if work["dtype"] == "int8":
        a, b = (torch.from_numpy(arrays.integers(label, shape)) for label, shape in zip("ab", shapes, strict=True))
        return {"eager": _inference(torch._int_mm, a, b)}
    a, b = (_tensor(label, shape).to(DTYPES[work["dtype"]]) for label, shape in zip("ab", shapes, strict=True))
    return {"eager": _inference(torch.matmul, a, b)}


def _softmax(work: Work) -> dict[str, Call]:
    return _both(lambda x: torch.softmax(x, -1), _tensor("x", work["shape"]))


def _layer_norm(work: Work) -> dict[str, Call]:
    width = work["shape"][-1]
    scale, shift = torch.ones(width), torch.zeros(width)
    return _both(lambda x: functional.layer_norm(x, (width,), scale, shift), _tensor("x", work["shape"]))


def _gelu(work: Work) -> dict[str, Call]:
    scale, bias = (_tensor(label, work["shape"][-1:]) for label in ("scale", "bias"))
    return _both(lambda x: functional.gelu(x * scale + bias), _tensor("x", work["shape"]))


def _bias_norm_relu(work: Work) -> dict[str, Call]:
    channels = work["shape"][-1]
    scale, shift, mean, variance = (abs(_tensor(label, (channels,))) + 0.5
                                    for label in ("scale", "shift", "mean", "variance"))
    bias = _tensor("bias", (channels,)).reshape(-1, *(1,) * (len(work["shape"]) - 2))
    x = channels_first(arrays.normal("x", work["shape"]))
    return _both(lambda x: torch.relu(functional.batch_norm(x + bias, mean, variance, scale, shift)), x)


def _adam(work: Work) -> dict[str, Call]:
    def optimiser(**settings: Any) -> Any:
        parameter = torch.nn.Parameter(_tensor("parameter", work["shape"]))
        parameter.grad = _tensor("gradient", work["shape"])
        return torch.optim.Adam([parameter], lr=RATE, **settings)

    return {"fused": _silent(optimiser(fused=True).step), "foreach": _silent(optimiser(foreach=True).step),
            "compiled": _silent(torch.compile(optimiser(foreach=True).step))}


def _silent(step: Callable[[], Any]) -> Call:
    """A call that gives nothing to compare."""

    def call() -> Any:
        step()
        return ()

    return call


def _batch(work: Work) -> Any:
    return arrays.molecules(work["molecules"])


def _segment_sum(work: Work) -> dict[str, Call]:
    batch, width = _batch(work), work["width"]
    data, atoms = _tensor("bonds", (len(batch.target), width)), len(batch.molecule)
    target = torch.from_numpy(batch.target.astype(np.int64))
    wide = target[:, None].expand(-1, width)
    return {"index_add": _inference(lambda: torch.zeros(atoms, width).index_add_(0, target, data)),
            "scatter_add": _inference(lambda: torch.zeros(atoms, width).scatter_add_(0, wide, data)),
            "compiled": _inference(torch.compile(
                lambda data, target: torch.zeros(atoms, width).index_add_(0, target, data), dynamic=False),
                data, target)}


def _gather(work: Work) -> dict[str, Call]:
    batch = _batch(work)
    data = _tensor("atoms", (len(batch.molecule), work["width"]))
    return _both(lambda data, source: data.index_select(0, source), data, torch.from_numpy(batch.source))


def _perceptron(work: Work) -> dict[str, Call]:
    return _both(torch_networks.perceptron(work["layers"], work["width"]), _tensor("x", (1, work["width"])))


def _lstm(work: Work) -> dict[str, Call]:
    x = _tensor("x", (work["batch"], work["time"], work["inputs"]))
    network = torch_networks.lstm(work)
    return {"eager": _inference(lambda: network(x)[0])}


def _lstm_training(work: Work) -> dict[str, Call]:
    x = _tensor("x", (work["batch"], work["time"], work["inputs"]))
    return {"eager": _training(torch_networks.lstm(work), lambda network, x: network(x)[0].square().mean(), x)}


def _training(network: Any, loss: Callable[..., Any], *batch: Any) -> Call:
    """A call of a step of gradient descent with momentum."""
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)

    def call() -> Any:
        optimiser.zero_grad()
        value = loss(network, *batch)
        value.backward()
        optimiser.step()
        return value

    return call


def _network(work: Work) -> tuple[Any, Any]:
    architecture = ARCHITECTURES[work["network"]]()
    network = torch_networks.network(architecture, work["batch"])
    x = channels_first(arrays.normal("x", (work["batch"], *architecture.item)))
    return network, x


def _network_inference(work: Work) -> dict[str, Call]:
    network, x = _network(work)
    torch._inductor.config.freezing = True  # constant weights may be packed, as ours are
    return _both(network.eval(), x)


def _network_training(work: Work) -> dict[str, Call]:
    """Eager and compiled, or only the `variant` that the work asks for, so that its memory can be measured."""
    architecture = ARCHITECTURES[work["network"]]()
    loss = torch_networks.voxel_loss if architecture.dense_targets else torch_networks.class_loss
    torch._inductor.config.freezing = False
    calls = {}
    for variant in (work["variant"],) if "variant" in work else ("eager", "compiled"):
        network, x = _network(work)
        network.train()
        calls[variant] = _training(torch.compile(network, dynamic=False) if variant == "compiled" else network, loss, x)
    return calls


def _mpnn_inference(work: Work) -> dict[str, Call]:
    network, inputs = torch_networks.message_network(work, _batch(work))
    return _both(network, *inputs)


def _mpnn_training(work: Work) -> dict[str, Call]:
    def loss(network: Any, *inputs: Any) -> Any:
        return network(*inputs).square().mean()

    first, inputs = torch_networks.message_network(work, _batch(work))
    second, _ = torch_networks.message_network(work, _batch(work))
    return {"eager": _training(first, loss, *inputs),
            "compiled": _training(torch.compile(second, dynamic=False), loss, *inputs)}


_KINDS: dict[str, Callable[[Work], dict[str, Call]]] = {
    "conv": _convolution, "matmul": _product, "softmax": _softmax, "layer-norm": _layer_norm, "gelu": _gelu,
    "bias-norm-relu": _bias_norm_relu, "adam": _adam, "segment-sum": _segment_sum, "gather": _gather,
    "mlp": _perceptron, "lstm": _lstm, "lstm-training": _lstm_training, "inference": _network_inference,
    "training": _network_training, "mpnn-inference": _mpnn_inference, "mpnn-training": _mpnn_training}


if __name__ == "__main__":
    serve(Torch)
