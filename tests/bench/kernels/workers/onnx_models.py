"""The work of the benchmark as ONNX models, for the runtimes that read them.

Invariant: weights are initialisers, so that a runtime may prepare them; arrays are channels-first, as ONNX has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from core.accel.tpu.architectures import ARCHITECTURES, Channel, Conv, Dense, Draw, Pool, Up, build
from tests.bench.kernels import arrays
from tests.bench.kernels.worker import Unsupported, Work

OPSET, IR_VERSION = 20, 9
Inputs = dict[str, Any]


class _Graph:
    """A graph as it grows; a value is its name."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self.inputs: Inputs = {}

    def input(self, name: str, array: Any) -> str:
        self.inputs[name] = np.ascontiguousarray(array)
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; gives the name of its first output."""
        names = [f"v{len(self._nodes)}_{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def model(self, output: str, dtype: int = TensorProto.FLOAT) -> ModelProto:
        """The model with fixed input shapes and one output."""
        described = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                     for name, array in self.inputs.items()]
        result = helper.make_tensor_value_info(output, dtype, None)
        graph = helper.make_graph(self._nodes, "work", described, [result], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def model(work: Work) -> tuple[bytes, Inputs]:
    """A model of the work and its inputs by name; `Unsupported` where ONNX has no such computation."""
    rule = _KINDS.get(work["kind"])
    if rule is None or work.get("pass", "forward") != "forward":
        raise Unsupported("ONNX has no training")
    graph = _Graph()
    quantised = work.get("dtype") == "int8"
    output = rule(graph, work)
    return graph.model(output, TensorProto.UINT8 if quantised else TensorProto.FLOAT).SerializeToString(), graph.inputs


def _channels_first(array: Any) -> Any:
    return np.moveaxis(array, -1, 1)


def _kernel(array: Any) -> Any:
    """w[space..., in, out] as [out, in, space...]."""
    return np.moveaxis(array, (-1, -2), (0, 1))


def _convolution(graph: _Graph, work: Work) -> str:
    rank = len(work["x"]) - 2
    settings = {"strides": [work["stride"]] * rank, "pads": [*work["padding"]] * 2}
    if work["dtype"] == "int8":
        x = _channels_first(arrays.integers("x", work["x"]))
        return _quantised(graph, "Conv", x, _kernel(arrays.integers("w", work["w"])), **settings)
    x = graph.input("x", _channels_first(arrays.normal("x", work["x"])))
    return graph.add("Conv", x, graph.constant(_kernel(arrays.normal("w", work["w"]))), **settings)


def _quantised(graph: _Graph, kind: str, x: Any, w: Any, **settings: Any) -> str:
    """An op between marks of quantisation, which runtimes fuse: u8 by s8, and u8 again, cut to 8 bits."""
    one = graph.constant(np.float32(1))
    data = graph.input("x", (x + 4).astype(np.uint8))
    left = graph.add("DequantizeLinear", data, one, graph.constant(np.uint8(4)))
    right = graph.add("DequantizeLinear", graph.constant(w), one, graph.constant(np.int8(0)))
    return graph.add("QuantizeLinear", graph.add(kind, left, right, **settings), one, graph.constant(np.uint8(128)))


def _product(graph: _Graph, work: Work) -> str:
    shapes = (work["m"], work["k"]), (work["k"], work["n"])
    if work["dtype"] == "int8":
        return _quantised(graph, "MatMul", *map(arrays.integers, "ab", shapes))
    a, b = map(arrays.normal, "ab", shapes)
    return graph.add("MatMul", graph.input("a", a), graph.constant(b))


def _softmax(graph: _Graph, work: Work) -> str:
    return graph.add("Softmax", graph.input("x", arrays.normal("x", work["shape"])), axis=-1)


def _layer_norm(graph: _Graph, work: Work) -> str:
    width = work["shape"][-1]
    return graph.add("LayerNormalization", graph.input("x", arrays.normal("x", work["shape"])),
                     graph.constant(np.ones(width, np.float32)), graph.constant(np.zeros(width, np.float32)))


def _gelu(graph: _Graph, work: Work) -> str:
    scale, bias = (graph.constant(arrays.normal(label, work["shape"][-1:])) for label in ("scale", "bias"))
    x = graph.input("x", arrays.normal("x", work["shape"]))
    return graph.add("Gelu", graph.add("Add", graph.add("Mul", x, scale), bias))


def _bias_norm_relu(graph: _Graph, work: Work) -> str:
    channels = work["shape"][-1]
    norm = [graph.constant(abs(arrays.normal(label, (channels,))) + np.float32(0.5))
            for label in ("scale", "shift", "mean", "variance")]
    bias = graph.constant(arrays.normal("bias", (channels,)).reshape(-1, *(1,) * (len(work["shape"]) - 2)))
    x = graph.input("x", _channels_first(arrays.normal("x", work["shape"])))
    return graph.add("Relu", graph.add("BatchNormalization", graph.add("Add", x, bias), *norm))


def _segment(graph: _Graph, data: str, ids: str, count: int, width: int) -> str:
    zeros = graph.constant(np.zeros((count, width), np.float32))
    return graph.add("ScatterND", zeros, ids, data, reduction="add")


def _segment_sum(graph: _Graph, work: Work) -> str:
    batch, width = arrays.molecules(work["molecules"]), work["width"]
    data = graph.input("data", arrays.normal("bonds", (len(batch.target), width)))
    ids = graph.input("ids", batch.target[:, None].astype(np.int64))
    return _segment(graph, data, ids, len(batch.molecule), width)


def _gather(graph: _Graph, work: Work) -> str:
    batch = arrays.molecules(work["molecules"])
    data = graph.input("data", arrays.normal("atoms", (len(batch.molecule), work["width"])))
    return graph.add("Gather", data, graph.input("ids", batch.source.astype(np.int64)), axis=0)


def _perceptron(graph: _Graph, work: Work) -> str:
    x = graph.input("x", arrays.normal("x", (1, work["width"])))
    for number, layer in enumerate(arrays.perceptron(work["layers"], work["width"])):
        if number:
            x = graph.add("Relu", x)
        x = graph.add("Gemm", x, *map(graph.constant, layer))
    return x


def _lstm(graph: _Graph, work: Work) -> str:
    """ONNX orders time first, the directions second, and the gates input, output, forget, cell."""
    x = graph.input("x", arrays.normal("x", (work["batch"], work["time"], work["inputs"])))
    x, hidden = graph.add("Transpose", x, perm=[1, 0, 2]), work["hidden"]

    def gates(array: Any) -> Any:
        first, forget, cell, output = np.split(array, 4, axis=-1)
        return np.concatenate([first, output, forget, cell], axis=-1).T[None]

    for layer in arrays.lstm(work):
        first, second, drawn = map(gates, layer)
        bias = np.concatenate([drawn, np.zeros_like(drawn)], axis=1)
        x = graph.add("LSTM", x, *map(graph.constant, (first, second, bias)), hidden_size=hidden)
        x = graph.add("Squeeze", x, graph.constant(np.array([1])))
    return graph.add("Transpose", x, perm=[1, 0, 2])


def _mpnn(graph: _Graph, work: Work) -> str:
    batch, width = arrays.molecules(work["molecules"]), work["width"]
    atoms = graph.input("atoms", batch.atoms)
    source, reverse = (graph.input(name, getattr(batch, name).astype(np.int64)) for name in ("source", "reverse"))
    target, molecule = (graph.input(name, getattr(batch, name)[:, None].astype(np.int64))
                        for name in ("target", "molecule"))
    first, update, output, readout = map(graph.constant, arrays.message_weights(width))

    def arriving(states: str) -> str:
        return _segment(graph, states, target, len(batch.molecule), width)

    start = states = graph.add("Relu", graph.add("MatMul", graph.add("Gather", atoms, source), first))
    for _ in range(work["depth"] - 1):
        messages = graph.add("Sub", graph.add("Gather", arriving(states), source),
                             graph.add("Gather", states, reverse))
        states = graph.add("Relu", graph.add("Add", start, graph.add("MatMul", messages, update)))
    joined = graph.add("Concat", atoms, arriving(states), axis=1)
    hidden = graph.add("Relu", graph.add("MatMul", joined, output))
    return graph.add("MatMul", _segment(graph, hidden, molecule, work["molecules"], width), readout)


Part = Callable[[str], str]


class _Builder:
    """See `architectures.Builder`; a part takes the name of its input and gives that of its output."""

    def __init__(self, graph: _Graph, epsilon: float) -> None:
        self._graph = graph
        self._epsilon = epsilon

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Part:
        graph, rank = self._graph, len(node.size)
        inputs = [graph.constant(_kernel(draw.kernel(*node.size, shape[-1], node.features)))]
        norm = [graph.constant(array) for array in draw.norm(node.features)] if node.norm else []
        if not node.norm:
            inputs.append(graph.constant(draw.vector(node.features)))

        def part(x: str) -> str:
            x = graph.add("Conv", x, *inputs, strides=[node.stride] * rank, pads=[*node.pads] * 2)
            if norm:
                x = graph.add("BatchNormalization", x, *norm, epsilon=self._epsilon)
            return graph.add("Relu", x) if node.relu else x

        return part

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Part:
        rank = len(shape) - 2
        drawn = draw.kernel(*(2,) * rank, shape[-1], node.features)
        mirrored = drawn[(slice(None, None, -1),) * rank]  # ONNX mirrors the kernels of transposed convolutions
        inputs = [self._graph.constant(np.moveaxis(mirrored, (-2, -1), (0, 1))),
                  self._graph.constant(draw.vector(node.features))]
        return lambda x: self._graph.add("ConvTranspose", x, *inputs, strides=[2] * rank)

    def pool(self, node: Pool, shape: Sequence[int]) -> Part:
        rank = len(shape) - 2
        settings = {"kernel_shape": [node.size] * rank, "strides": [node.stride] * rank,
                    "pads": [node.padding] * (2 * rank)}
        kind = "MaxPool" if node.kind == "max" else "AveragePool"
        return lambda x: self._graph.add(kind, x, **settings)

    def relu(self) -> Part:
        return lambda x: self._graph.add("Relu", x)

    def mean(self, shape: Sequence[int]) -> Part:
        return lambda x: self._graph.add("Flatten", self._graph.add("GlobalAveragePool", x))

    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Part:
        inputs = [self._graph.constant(draw.kernel(shape[-1], node.features)),
                  self._graph.constant(draw.vector(node.features))]
        return lambda x: self._graph.add("Gemm", x, *inputs)

    def channel(self, node: Channel) -> Part:
        bounds = [self._graph.constant(np.array([value])) for value in (node.index, node.index + 1, 1)]
        return lambda x: self._graph.add("Slice", x, *bounds)

    def concat(self, branches: list[Part]) -> Part:
        return lambda x: self._graph.add("Concat", *(branch(x) for branch in branches), axis=1)

    def sum(self, branches: list[Part]) -> Part:
        return lambda x: self._graph.add("Add", *(branch(x) for branch in branches))

    def chain(self, parts: list[Part]) -> Part:
        def whole(x: str) -> str:
            for part in parts:
                x = part(x)
            return x

        return whole


def _network(graph: _Graph, work: Work) -> str:
    architecture = ARCHITECTURES[work["network"]]()
    whole, _ = build(architecture, work["batch"], _Builder(graph, architecture.epsilon))
    x = arrays.normal("x", (work["batch"], *architecture.item))
    output: str = whole(graph.input("x", _channels_first(x)))
    return output


_KINDS: dict[str, Callable[[_Graph, Work], str]] = {
    "conv": _convolution, "matmul": _product, "softmax": _softmax, "layer-norm": _layer_norm, "gelu": _gelu,
    "bias-norm-relu": _bias_norm_relu, "segment-sum": _segment_sum, "gather": _gather, "mlp": _perceptron,
    "lstm": _lstm, "inference": _network, "mpnn-inference": _mpnn}
