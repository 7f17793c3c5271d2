"""Convolutional networks as data, and one walk that turns them into the layers of any framework.

Invariant: every framework gets the same numbers, because the walk draws the weights, in one order from one seed. Arrays
are channels-last here: x[batch, space..., channel], kernels [space..., in, out]; all padding is by pairs of equal ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

SEED = 1


@dataclass(frozen=True)
class Conv:
    """A convolution; `norm` puts a batch norm behind it, which then has the bias, `relu` an activation."""

    features: int
    size: tuple[int, ...]
    stride: int = 1
    padding: tuple[int, ...] | None = None  # an axis of space, at both ends; None for half the size
    norm: bool = False
    relu: bool = False

    @property
    def pads(self) -> tuple[int, ...]:
        return tuple(extent // 2 for extent in self.size) if self.padding is None else self.padding


@dataclass(frozen=True)
class Up:
    """A transposed convolution of size 2 and stride 2."""

    features: int


@dataclass(frozen=True)
class Pool:
    """A maximum or mean over windows: padding is never the maximum, and counts as zeros in the mean."""

    kind: str  # "max" or "mean"
    size: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class Relu:
    pass


@dataclass(frozen=True)
class Mean:
    """The mean over all of space."""


@dataclass(frozen=True)
class Dense:
    features: int


@dataclass(frozen=True)
class Channel:
    """One channel of the input."""

    index: int


@dataclass(frozen=True)
class Concat:
    """Branches side by side, joined along channels."""

    branches: tuple[Chain, ...]


@dataclass(frozen=True)
class Sum:
    """Branches side by side, added; an empty branch is the input itself."""

    branches: tuple[Chain, ...]


Node = Conv | Up | Pool | Relu | Mean | Dense | Channel | Concat | Sum
Chain = tuple[Node, ...]


@dataclass(frozen=True)
class Architecture:
    """A network and the shape of one item of its input, [space..., channel]."""

    name: str
    item: tuple[int, ...]
    chain: Chain
    epsilon: float = 1e-5  # of its batch norms
    dense_targets: bool = False  # trained with a target for each voxel instead of a class for each item


class Builder(Protocol):
    """Makes a framework's layers; what its methods give is the framework's own affair. `shape` is the input's."""

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Any: ...
    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Any: ...
    def pool(self, node: Pool, shape: Sequence[int]) -> Any: ...
    def relu(self) -> Any: ...
    def mean(self, shape: Sequence[int]) -> Any: ...
    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Any: ...
    def channel(self, node: Channel) -> Any: ...
    def concat(self, branches: list[Any]) -> Any: ...
    def sum(self, branches: list[Any]) -> Any: ...
    def chain(self, parts: list[Any]) -> Any: ...


class Draw:
    """The weights, in the order in which layers ask for them."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(SEED)

    def kernel(self, *shape: int) -> Any:
        """f32[..., in, out], normal with variance 2 / fan-in (He et al., arXiv 1502.01852)."""
        return (self._generator.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[:-1]))
                ).astype(np.float32)

    def vector(self, extent: int, around: float = 0.0) -> Any:
        """f32[extent] within 0.1 of a number."""
        return (around + self._generator.uniform(-0.1, 0.1, extent)).astype(np.float32)

    def norm(self, channels: int) -> tuple[Any, Any, Any, Any]:
        """Scale, shift, running mean and running variance."""
        return self.vector(channels, 1), self.vector(channels), self.vector(channels), self.vector(channels, 1)


def build(architecture: Architecture, batch: int, builder: Builder) -> tuple[Any, tuple[int, ...]]:
    """The whole network as its builder makes it, and the shape of the output."""
    return _chain(architecture.chain, (batch, *architecture.item), builder, Draw())


def _chain(chain: Chain, shape: tuple[int, ...], builder: Builder, draw: Draw) -> tuple[Any, tuple[int, ...]]:
    parts = []
    for node in chain:
        part, shape = _node(node, shape, builder, draw)
        parts.append(part)
    return builder.chain(parts), shape


def _node(node: Node, shape: tuple[int, ...], builder: Builder, draw: Draw) -> tuple[Any, tuple[int, ...]]:
    batch, *space, channels = shape
    match node:
        case Conv():
            out = tuple(_windows(n, k, node.stride, p) for n, k, p in zip(space, node.size, node.pads, strict=True))
            return builder.conv(node, shape, draw), (batch, *out, node.features)
        case Up():
            return builder.up(node, shape, draw), (batch, *(2 * n for n in space), node.features)
        case Pool():
            out = tuple(_windows(n, node.size, node.stride, node.padding) for n in space)
            return builder.pool(node, shape), (batch, *out, channels)
        case Relu():
            return builder.relu(), shape
        case Mean():
            return builder.mean(shape), (batch, channels)
        case Dense():
            return builder.dense(node, shape, draw), (*shape[:-1], node.features)
        case Channel():
            return builder.channel(node), (*shape[:-1], 1)
    results = [_chain(branch, shape, builder, draw) for branch in node.branches]
    parts, shapes = [part for part, _ in results], [out for _, out in results]
    if isinstance(node, Sum):
        return builder.sum(parts), shapes[0]
    return builder.concat(parts), (*shapes[0][:-1], sum(out[-1] for out in shapes))


def _windows(extent: int, size: int, stride: int, padding: int) -> int:
    return (extent + 2 * padding - size) // stride + 1


# --- networks --------------------------------------------------------------------------------------------------------

def resnet50() -> Architecture:
    """He et al., arXiv 1512.03385, with the stride in the 3x3 as PyTorch has it; 224 x 224."""
    def bottleneck(features: int, stride: int, first: bool) -> Chain:
        body = (Conv(features, (1, 1), norm=True, relu=True), Conv(features, (3, 3), stride, norm=True, relu=True),
                Conv(4 * features, (1, 1), norm=True))
        shortcut: Chain = (Conv(4 * features, (1, 1), stride, norm=True),) if first else ()
        return Sum((body, shortcut)), Relu()

    blocks = [bottleneck(features, 2 if number == 0 and features > 64 else 1, number == 0)
              for features, count in ((64, 3), (128, 4), (256, 6), (512, 3)) for number in range(count)]
    return Architecture("resnet50", (224, 224, 3), (
        Conv(64, (7, 7), 2, norm=True, relu=True), Pool("max", 3, 2, 1), *(node for block in blocks for node in block),
        Mean(), Dense(1000)))


def inception_v3() -> Architecture:
    """Szegedy et al., arXiv 1512.00567, as torchvision lays it out, without the auxiliary head; 299 x 299."""
    def unit(features: int, height: int, width: int, stride: int = 1, valid: bool = False) -> Conv:
        return Conv(features, (height, width), stride, (0, 0) if valid else None, norm=True, relu=True)

    mean = Pool("mean", 3, 1, 1)
    shrink = (Pool("max", 3, 2),)

    def module_a(pooled: int) -> Node:
        return Concat(((unit(64, 1, 1),), (unit(48, 1, 1), unit(64, 5, 5)),
                       (unit(64, 1, 1), unit(96, 3, 3), unit(96, 3, 3)), (mean, unit(pooled, 1, 1))))

    def module_c(width: int) -> Node:
        return Concat(((unit(192, 1, 1),), (unit(width, 1, 1), unit(width, 1, 7), unit(192, 7, 1)),
                       (unit(width, 1, 1), unit(width, 7, 1), unit(width, 1, 7), unit(width, 7, 1), unit(192, 1, 7)),
                       (mean, unit(192, 1, 1))))

    split = Concat(((unit(384, 1, 3),), (unit(384, 3, 1),)))
    module_e = Concat(((unit(320, 1, 1),), (unit(384, 1, 1), split), (unit(448, 1, 1), unit(384, 3, 3), split),
                       (mean, unit(192, 1, 1))))
    return Architecture("inception-v3", (299, 299, 3), (
        unit(32, 3, 3, 2, True), unit(32, 3, 3, 1, True), unit(64, 3, 3), *shrink, unit(80, 1, 1),
        unit(192, 3, 3, 1, True), *shrink, module_a(32), module_a(64), module_a(64),
        Concat(((unit(384, 3, 3, 2, True),), (unit(64, 1, 1), unit(96, 3, 3), unit(96, 3, 3, 2, True)), shrink)),
        module_c(128), module_c(160), module_c(160), module_c(192),
        Concat(((unit(192, 1, 1), unit(320, 3, 3, 2, True)),
                (unit(192, 1, 1), unit(192, 1, 7), unit(192, 7, 1), unit(192, 3, 3, 2, True)), shrink)),
        module_e, module_e, Mean(), Dense(1000)), epsilon=1e-3)


def unet(rank: int, extent: int, channels: int, doubled: bool, widths: Sequence[int]) -> Architecture:
    """An encoder and decoder with skips; where `doubled`, the first of two convolutions has half the width."""
    def pair(first: int, second: int) -> Chain:
        size = (3,) * rank
        return Conv(first, size, norm=doubled, relu=True), Conv(second, size, norm=doubled, relu=True)

    def level(number: int) -> Chain:
        width = widths[number]
        down = pair(width // 2 if doubled else width, width)
        if number == len(widths) - 1:
            return down
        inner = level(number + 1)
        up = Up(widths[number + 1] if doubled else width)
        return *down, Concat(((), (Pool("max", 2, 2), *inner, up))), *pair(width, width)

    return Architecture(f"unet-{rank}d", (*(extent,) * rank, channels), (*level(0), Conv(2, (1,) * rank)),
                        dense_targets=True)


def unet_2d() -> Architecture:
    """Ronneberger et al., arXiv 1505.04597, padded so that extents stay; 256 x 256."""
    return unet(2, 256, 1, False, (64, 128, 256, 512, 1024))


def unet_3d() -> Architecture:
    """Cicek et al., arXiv 1606.06650, padded so that extents stay; 32 x 32 x 32."""
    return unet(3, 32, 1, True, (64, 128, 256, 512))


def ffn() -> Architecture:
    """The flood-filling network of FIB-25 (Januszewski et al., arXiv 1611.00421): 12 modules of 32 features on 33^3.

    Input channels are the image and the logits so far, to which the network adds.
    """
    def unit(relu: bool) -> Conv:
        return Conv(32, (3, 3, 3), relu=relu)

    modules = [Sum(((Relu(), unit(True), unit(False)), ())) for _ in range(11)]
    return Architecture("ffn", (33, 33, 33, 2), (
        Sum(((unit(True), unit(False), *modules, Relu(), Conv(1, (1, 1, 1))), (Channel(1),))),), dense_targets=True)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "resnet50": resnet50, "inception-v3": inception_v3, "unet-2d": unet_2d, "unet-3d": unet_3d, "ffn": ffn}
