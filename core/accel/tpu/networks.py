"""The named networks as graphs: those of `architectures`, with weights that are inputs, so that none is drawn or kept.

Invariant: the leading inputs of a graph are its weights, in the order of the layers; the last one is the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.accel.tpu.architectures import ARCHITECTURES, Channel, Conv, Dense, Draw, Pool, Up, build
from core.engine import ops
from core.engine.array import Array
from core.engine.dtypes import float32
from core.engine.graph import Aval, Graph
from core.engine.trace import Staging, interpret, layer

Part = Callable[[Array], Array]


@dataclass(frozen=True)
class Network:
    """A graph whose first `held` inputs are weights."""

    graph: Graph
    held: int


def network(name: str, batch: int) -> Network:
    """A network of `architectures` in inference, in f32."""
    architecture = ARCHITECTURES[name]()
    staging = Staging()
    with interpret(staging):
        whole, _ = build(architecture, batch, _Builder(staging))
        held = len(staging.graph.inputs)
        output = whole(staging.argument(Aval(float32, (batch, *architecture.item))))
    staging.graph.outputs = [output.value]
    constants = {staging.value(array): array.storage for array in staging.captures}
    return Network(Graph(staging.graph.inputs, staging.graph.equations, staging.graph.outputs, constants), held)


class _Builder:
    """See `architectures.Builder`; a part takes an array and gives one."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._numbers = itertools.count(1)

    def _weight(self, *shape: int) -> Array:
        return self._staging.argument(Aval(float32, shape))

    def _named(self, kind: str, part: Part) -> Part:
        name = f"{kind}{next(self._numbers)}"

        def named(x: Array) -> Array:
            with layer(name, part):
                return part(x)

        return named

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Part:
        rank = len(node.size)
        kernel = self._weight(*node.size, shape[-1], node.features)
        scale = self._weight(node.features) if node.norm else None
        shift = self._weight(node.features)

        def part(x: Array) -> Array:
            x = ops.conv(x, kernel, stride=(node.stride,) * rank, padding=tuple((pad, pad) for pad in node.pads),
                         dilation=(1,) * rank, input_dilation=(1,) * rank, groups=1)
            x = x + shift if scale is None else x * scale + shift
            return ops.maximum(x, 0.0) if node.relu else x

        return self._named("conv", part)

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Part:
        rank = len(shape) - 2
        kernel, shift = self._weight(*(2,) * rank, shape[-1], node.features), self._weight(node.features)
        return self._named("up", lambda x: shift + ops.conv(
            x, kernel, stride=(1,) * rank, padding=((1, 1),) * rank, dilation=(1,) * rank, input_dilation=(2,) * rank,
            groups=1))

    def pool(self, node: Pool, shape: Sequence[int]) -> Part:
        rank = len(shape) - 2
        size, stride = (1, *(node.size,) * rank, 1), (1, *(node.stride,) * rank, 1)
        padding = ((0, 0), *((node.padding, node.padding),) * rank, (0, 0))

        def part(x: Array) -> Array:
            if node.kind == "max":
                return ops.window(x, x, kind="max", size=size, stride=stride, padding=padding)
            return ops.window(x, kind="sum", size=size, stride=stride, padding=padding) * (1.0 / node.size ** rank)

        return self._named("pool", part)

    def relu(self) -> Part:
        return self._named("relu", lambda x: ops.maximum(x, 0.0))

    def mean(self, shape: Sequence[int]) -> Part:
        axes = tuple(range(1, len(shape) - 1))
        return self._named("mean", lambda x: ops.sum(x, axes) * (1.0 / math.prod(shape[1:-1])))

    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Part:
        kernel, shift = self._weight(shape[-1], node.features), self._weight(node.features)
        return self._named("dense", lambda x: x @ kernel + shift)

    def channel(self, node: Channel) -> Part:
        return lambda x: x[..., node.index:node.index + 1]

    def concat(self, branches: list[Any]) -> Part:
        return lambda x: ops.concatenate([branch(x) for branch in branches], axis=-1)

    def sum(self, branches: list[Any]) -> Part:
        def part(x: Array) -> Array:
            total = branches[0](x)
            for branch in branches[1:]:
                total = total + branch(x)
            return total

        return part

    def chain(self, parts: list[Any]) -> Part:
        def part(x: Array) -> Array:
            for piece in parts:
                x = piece(x)
            return x

        return part
