"""The convolution layers of the five networks, each shape once, with the number of times that it occurs.

Invariant: layers come from the architectures by a walk over their shapes; none is listed by hand. Transposed
convolutions are measured with the whole networks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from core.accel.tpu.architectures import ARCHITECTURES, Architecture, Channel, Conv, Dense, Draw, Pool, Up, build

BATCH = {"resnet50": 8, "inception-v3": 8, "unet-2d": 1, "unet-3d": 1, "ffn": 1}
"""Items a call: images of the small networks come in batches, the large ones one by one."""


@dataclass(frozen=True)
class Layer:
    """A convolution: x[batch, space..., in] by w[space..., in, out]; stride and padding are one an axis of space."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int
    padding: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        space = ((n + 2 * p - k) // self.stride + 1
                 for n, k, p in zip(self.x[1:-1], self.w[:-2], self.padding, strict=True))
        return (self.x[0], *space, self.w[-1])

    @property
    def flops(self) -> int:
        return 2 * prod(self.out) * prod(self.w[:-1])

    @property
    def elements(self) -> int:
        """Of input, kernel and output together."""
        return prod(self.x) + prod(self.w) + prod(self.out)

    @property
    def name(self) -> str:
        """Such as ``8x56x56x64 3x3x64 /2``: input, then kernel extents and outputs, then a stride above 1."""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        valid = " valid" if max(self.w[:-2]) > 1 and max(self.padding) == 0 else ""
        return f"{_times(self.x)} {_times((*self.w[:-2], self.w[-1]))}{stride}{valid}"


def _times(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents))


class _Lister:
    """A builder that makes nothing but the list of its convolutions."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> None:
        self.layers.append(Layer(tuple(shape), (*node.size, shape[-1], node.features), node.stride, node.pads))

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> None: ...
    def pool(self, node: Pool, shape: Sequence[int]) -> None: ...
    def relu(self) -> None: ...
    def mean(self, shape: Sequence[int]) -> None: ...
    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> None: ...
    def channel(self, node: Channel) -> None: ...
    def concat(self, branches: list[Any]) -> None: ...
    def sum(self, branches: list[Any]) -> None: ...
    def chain(self, parts: list[Any]) -> None: ...


def layers(architecture: Architecture, batch: int) -> dict[Layer, int]:
    """The layers of a network and how often each occurs."""
    lister = _Lister()
    build(architecture, batch, lister)
    return {layer: lister.layers.count(layer) for layer in dict.fromkeys(lister.layers)}


def all_layers() -> dict[str, dict[Layer, int]]:
    """The layers of the five networks."""
    return {name: layers(make(), BATCH[name]) for name, make in ARCHITECTURES.items()}
