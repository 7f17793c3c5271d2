"""The networks of the benchmark, in PyTorch's layers.

Invariant: parameters hold the numbers that every framework gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from core.accel.tpu.architectures import Architecture, Channel, Conv, Dense, Draw, Pool, Up, build
from tests.bench.kernels import arrays


class _Concat(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Any) -> Any:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _Sum(_Concat):
    def forward(self, x: Any) -> Any:
        return sum(branch(x) for branch in self.branches)


class _Mean(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean(tuple(range(2, x.ndim)))


class _Channel(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Any) -> Any:
        return x[:, self.index:self.index + 1]


def _fill(parameter: Any, array: Any) -> None:
    """Give a parameter new numbers, in their order in memory."""
    with torch.no_grad():
        parameter.data = torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _kernel(array: Any, axes: Sequence[int]) -> Any:
    """A kernel with its channels last in memory, seen as [axes..., space...]."""
    rank = array.ndim - 2
    last = np.ascontiguousarray(array.transpose(axes[0], *range(rank), axes[1]))
    return torch.from_numpy(last).movedim(-1, 1)


class _Builder:
    """See `architectures.Builder`."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Any:
        rank = len(node.size)
        layer = (nn.Conv2d, nn.Conv3d)[rank - 2](shape[-1], node.features, node.size, node.stride, node.pads,
                                                 bias=not node.norm)
        _fill(layer.weight, _kernel(draw.kernel(*node.size, shape[-1], node.features), (rank + 1, rank)))
        parts: list[nn.Module] = [layer]
        if node.norm:
            norm = (nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2](node.features, self._epsilon)
            for parameter, array in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var),
                                        draw.norm(node.features), strict=True):
                _fill(parameter, array)
            parts.append(norm)
        else:
            _fill(layer.bias, draw.vector(node.features))
        return nn.Sequential(*parts, *([nn.ReLU()] if node.relu else []))

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Any:
        rank = len(shape) - 2
        layer = (nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 2](shape[-1], node.features, 2, 2)
        drawn = draw.kernel(*(2,) * rank, shape[-1], node.features)
        mirrored = drawn[(slice(None, None, -1),) * rank]  # PyTorch mirrors the kernels of transposed convolutions
        _fill(layer.weight, _kernel(mirrored, (rank, rank + 1)))
        _fill(layer.bias, draw.vector(node.features))
        return layer

    def pool(self, node: Pool, shape: Sequence[int]) -> Any:
        rank = len(shape) - 2
        if node.kind == "max":
            return (nn.MaxPool2d, nn.MaxPool3d)[rank - 2](node.size, node.stride, node.padding)
        return (nn.AvgPool2d, nn.AvgPool3d)[rank - 2](node.size, node.stride, node.padding, count_include_pad=False)

    def relu(self) -> Any:
        return nn.ReLU()

    def mean(self, shape: Sequence[int]) -> Any:
        return _Mean()

    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Any:
        layer = nn.Linear(shape[-1], node.features)
        _fill(layer.weight, np.ascontiguousarray(draw.kernel(shape[-1], node.features).T))
        _fill(layer.bias, draw.vector(node.features))
        return layer

    def channel(self, node: Channel) -> Any:
        return _Channel(node.index)

    def concat(self, branches: list[Any]) -> Any:
        return _Concat(branches)

    def sum(self, branches: list[Any]) -> Any:
        return _Sum(branches)

    def chain(self, parts: list[Any]) -> Any:
        return nn.Sequential(*parts)


def network(architecture: Architecture, batch: int) -> Any:
    """An architecture with its weights."""
    return build(architecture, batch, _Builder(architecture.epsilon))[0]


def class_loss(network: Any, x: Any) -> Any:
    """Cross entropy where item i has class i."""
    logits = network(x)
    return functional.cross_entropy(logits, torch.arange(len(logits)))


def voxel_loss(network: Any, x: Any) -> Any:
    """Binary cross entropy of every voxel against a target of one half."""
    logits = network(x)
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5))


def perceptron(layers: int, width: int) -> Any:
    """The ten-layer perceptron."""
    parts: list[nn.Module] = []
    for weight, bias in arrays.perceptron(layers, width):
        layer = nn.Linear(width, width)
        _fill(layer.weight, np.ascontiguousarray(weight.T))
        _fill(layer.bias, bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def lstm(work: Mapping[str, Any]) -> Any:
    """LSTM layers; PyTorch has two biases, of which the second is 0."""
    network = nn.LSTM(work["inputs"], work["hidden"], work["layers"], batch_first=True)
    for layer, drawn in enumerate(arrays.lstm(work)):
        for name, array in zip(("weight_ih", "weight_hh", "bias_ih"), drawn, strict=True):
            getattr(network, f"{name}_l{layer}").data.copy_(torch.from_numpy(array.T))
        getattr(network, f"bias_hh_l{layer}").data.zero_()
    return network


class _MessageNetwork(nn.Module):
    """Directed message passing, as in this benchmark's own layers."""

    def __init__(self, width: int, count: int, depth: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.from_numpy(array))
                                        for array in arrays.message_weights(width))
        self.width, self.count, self.depth = width, count, depth

    def forward(self, atoms: Any, source: Any, target: Any, reverse: Any, molecule: Any) -> Any:
        first, update, output, readout = self.weights
        start = torch.relu(atoms[source] @ first)
        states = start
        for _ in range(self.depth - 1):
            states = torch.relu(start + (self._sums(states, target, len(atoms))[source] - states[reverse]) @ update)
        arriving = self._sums(states, target, len(atoms))
        hidden = torch.relu(torch.cat([atoms, arriving], 1) @ output)
        return self._sums(hidden, molecule, self.count) @ readout

    def _sums(self, data: Any, ids: Any, count: int) -> Any:
        return torch.zeros(count, self.width).index_add(0, ids, data)


def message_network(work: Mapping[str, Any], batch: arrays.Molecules) -> tuple[Any, tuple[Any, ...]]:
    """The network and its inputs."""
    atoms, *ids = batch
    network = _MessageNetwork(work["width"], work["molecules"], work["depth"])
    return network, (torch.from_numpy(atoms), *(torch.from_numpy(each.astype(np.int64)) for each in ids))
