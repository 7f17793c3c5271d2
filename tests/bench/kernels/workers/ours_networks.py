"""The networks of the benchmark, in this engine's layers.

Invariant: a network is one tree of modules; `train` gives its output and the network with moved running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.accel.tpu.architectures import Architecture, Channel, Conv, Dense, Draw, Pool, Up, build
from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.losses import binary_cross_entropy, cross_entropy
from core.engine.module import Module, replace, static
from core.engine.nn import BatchNorm, ConvTranspose, Linear, avg_pool, global_avg_pool, max_pool, relu
from core.engine.nn import Conv as ConvLayer


class Unit(Module):
    """A convolution, then a norm and an activation if it has them."""

    conv: ConvLayer
    norm: BatchNorm | None
    relu: bool = static()

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return relu(x) if self.relu else x

    def train(self, x: Array) -> tuple[Array, Unit]:
        x, norm = self.conv(x), self.norm
        if norm is not None:
            x, norm = norm.train(x)
        return relu(x) if self.relu else x, replace(self, norm=norm)


class Plain(Module):
    """A layer, or a function without parameters, that is the same in training."""

    layer: Any
    function: Any = static(default=None)

    def __call__(self, x: Array) -> Array:
        result: Array = self.function(x) if self.layer is None else self.layer(x)
        return result

    def train(self, x: Array) -> tuple[Array, Plain]:
        return self(x), self


class Chain(Module):
    """Parts one after the other."""

    parts: tuple[Any, ...]

    def __call__(self, x: Array) -> Array:
        for part in self.parts:
            x = part(x)
        return x

    def train(self, x: Array) -> tuple[Array, Chain]:
        moved = []
        for part in self.parts:
            x, part = part.train(x)
            moved.append(part)
        return x, Chain(tuple(moved))


class Branches(Module):
    """Branches side by side, joined along channels or added."""

    branches: tuple[Any, ...]
    added: bool = static()

    def __call__(self, x: Array) -> Array:
        return self._joined([branch(x) for branch in self.branches])

    def train(self, x: Array) -> tuple[Array, Branches]:
        outputs, moved = zip(*(branch.train(x) for branch in self.branches), strict=True)
        return self._joined(outputs), Branches(tuple(moved), self.added)

    def _joined(self, outputs: Sequence[Array]) -> Array:
        if not self.added:
            return ops.concatenate(list(outputs), axis=-1)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


class _Builder:
    """See `architectures.Builder`."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Unit:
        kernel = as_array(draw.kernel(*node.size, shape[-1], node.features))
        bias = None if node.norm else as_array(draw.vector(node.features))
        norm = BatchNorm(*map(as_array, draw.norm(node.features)), epsilon=self._epsilon) if node.norm else None
        rank = len(node.size)
        return Unit(ConvLayer(kernel, bias, (node.stride,) * rank, tuple((pad, pad) for pad in node.pads), (1,) * rank,
                              1), norm, node.relu)

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Plain:
        rank = len(shape) - 2
        return Plain(ConvTranspose(as_array(draw.kernel(*(2,) * rank, shape[-1], node.features)),
                                   as_array(draw.vector(node.features)), (2,) * rank, ((0, 0),) * rank))

    def pool(self, node: Pool, shape: Sequence[int]) -> Plain:
        rank = len(shape) - 2
        pool = max_pool if node.kind == "max" else avg_pool
        return Plain(None, lambda x: pool(x, (node.size,) * rank, stride=node.stride,
                                          padding=((node.padding, node.padding),) * rank))

    def relu(self) -> Plain:
        return Plain(None, relu)

    def mean(self, shape: Sequence[int]) -> Plain:
        return Plain(None, global_avg_pool)

    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Plain:
        return Plain(Linear(as_array(draw.kernel(shape[-1], node.features)), as_array(draw.vector(node.features))))

    def channel(self, node: Channel) -> Plain:
        return Plain(None, lambda x: x[..., node.index:node.index + 1])

    def concat(self, branches: list[Any]) -> Branches:
        return Branches(tuple(branches), False)

    def sum(self, branches: list[Any]) -> Branches:
        return Branches(tuple(branches), True)

    def chain(self, parts: list[Any]) -> Chain:
        return Chain(tuple(parts))


def network(architecture: Architecture, batch: int) -> Chain:
    """An architecture with its weights."""
    made: Chain = build(architecture, batch, _Builder(architecture.epsilon))[0]
    return made


def class_loss(network: Chain, x: Array) -> tuple[Array, Chain]:
    """Cross entropy where item i has class i."""
    logits, moved = network.train(x)
    return cross_entropy(logits, np.arange(logits.shape[0], dtype=np.int32)), moved


def voxel_loss(network: Chain, x: Array) -> tuple[Array, Chain]:
    """Binary cross entropy of every voxel against a target of one half."""
    logits, moved = network.train(x)
    return binary_cross_entropy(logits, 0.5), moved


class MessageNetwork(Module):
    """Directed message passing (Yang et al., J. Chem. Inf. Model. 59:3370, 2019), and a linear read-out."""

    first: Array
    update: Array
    output: Array
    readout: Array

    def __call__(self, batch: dict[str, Any], count: int, depth: int) -> Array:
        atoms = batch["atoms"]
        start = relu(ops.gather(atoms, batch["source"], axis=0) @ self.first)
        states = start
        for _ in range(depth - 1):
            arriving = ops.segment_sum(states, batch["target"], atoms.shape[0])
            messages = (ops.gather(arriving, batch["source"], axis=0)
                        - ops.gather(states, batch["reverse"], axis=0))
            states = relu(start + messages @ self.update)
        arriving = ops.segment_sum(states, batch["target"], atoms.shape[0])
        hidden = relu(ops.concatenate([atoms, arriving], axis=1) @ self.output)
        return ops.segment_sum(hidden, batch["molecule"], count) @ self.readout
