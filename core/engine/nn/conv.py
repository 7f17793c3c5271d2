"""Convolution over 1, 2 or 3 axes of space, and its transpose.

Invariant: arrays are channels-last, f32[batch, space..., channel]; the rank of the kernel decides the number of axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from core.engine.array import Array
from core.engine.errors import ConfigError
from core.engine.module import Module, static
from core.engine.nn.init import Initialiser, fan_in_uniform
from core.engine.ops import conv, zeros

Pairs = tuple[tuple[int, int], ...]
Padding = str | Pairs
"""``"valid"`` (none), ``"same"`` (output extent = input extent / stride, rounded up), or a (low, high) pair an axis."""


class Conv(Module):
    """A convolution (cross-correlation), x * K + b.

    Attributes
    ----------
    kernel : f32[space..., in / groups, out]
    bias : f32[out], or None
    stride, dilation : one an axis of space
    padding : see `Padding`; with "same" an odd pad has its larger half at the high end, as in TensorFlow
    groups : parts of the channels that do not mix; as many as inputs for a depthwise convolution
    """

    kernel: Array
    bias: Array | None
    stride: tuple[int, ...] = static()
    padding: Padding = static()
    dilation: tuple[int, ...] = static()
    groups: int = static()

    @classmethod
    def init(cls, key: Array, inputs: int, outputs: int, size: Sequence[int], *, stride: int | Sequence[int] = 1,
             padding: Padding = "same", dilation: int | Sequence[int] = 1, groups: int = 1, bias: bool = True,
             initialiser: Initialiser = fan_in_uniform) -> Self:
        """A layer with a drawn kernel of `size`, one extent an axis of space, and a bias of 0.

        Raises
        ------
        ConfigError
            If the groups do not divide the inputs, or the padding is of another kind.
        """
        if inputs % groups:
            raise ConfigError(f"groups divide the input channels, found {groups} groups and {inputs} channels")
        rank = len(size)
        return cls(initialiser(key, (*size, inputs // groups, outputs)), zeros((outputs,)) if bias else None,
                   per_axis(stride, rank), checked_padding(padding, rank), per_axis(dilation, rank), groups)

    def __call__(self, x: Array) -> Array:
        """f32[batch, space..., in] to f32[batch, space..., out]."""
        padding = window_padding(self.padding, x.shape[1:-1], self.kernel.shape[:-2], self.stride, self.dilation)
        y: Array = conv(x, self.kernel, stride=self.stride, padding=padding, dilation=self.dilation,
                        input_dilation=(1,) * len(self.stride), groups=self.groups)
        return y if self.bias is None else y + self.bias


class ConvTranspose(Module):
    """The transpose of a convolution: output extents are about the input's times the stride.

    It is a convolution of the input with stride - 1 zeros between its elements. The kernel is not mirrored; PyTorch's
    is, so mirror its axes of space when its weights are loaded.

    Attributes
    ----------
    kernel : f32[space..., in, out]
    bias : f32[out], or None
    stride : one an axis of space
    padding : of the convolution that this one transposes: output extents are n stride with "same",
        (n - 1) stride + k with "valid", and that less low and high with pairs
    """

    kernel: Array
    bias: Array | None
    stride: tuple[int, ...] = static()
    padding: Padding = static()

    @classmethod
    def init(cls, key: Array, inputs: int, outputs: int, size: Sequence[int], *, stride: int | Sequence[int] = 2,
             padding: Padding = "same", bias: bool = True, initialiser: Initialiser = fan_in_uniform) -> Self:
        """A layer with a drawn kernel of `size`, one extent an axis of space, and a bias of 0."""
        rank = len(size)
        return cls(initialiser(key, (*size, inputs, outputs)), zeros((outputs,)) if bias else None,
                   per_axis(stride, rank), checked_padding(padding, rank))

    def __call__(self, x: Array) -> Array:
        """f32[batch, space..., in] to f32[batch, larger space..., out]."""
        ones = (1,) * len(self.stride)
        y: Array = conv(x, self.kernel, stride=ones, padding=self._spread_padding(x), dilation=ones,
                        input_dilation=self.stride, groups=1)
        return y if self.bias is None else y + self.bias

    def _spread_padding(self, x: Array) -> Pairs:
        """Padding of the input after zeros were put between its elements."""
        size = self.kernel.shape[:-2]
        large = tuple(n * s for n, s in zip(x.shape[1:-1], self.stride, strict=False))
        forward = window_padding(self.padding, large, size, self.stride, (1,) * len(size))
        if self.padding != "same":
            return tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, forward, strict=False))
        # The high end also has the elements that the last stride of the forward convolution steps over.
        return tuple((k - 1 - low, s - 1 + low) for k, s, (low, _) in zip(size, self.stride, forward, strict=False))


def per_axis(setting: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """A setting for each axis of space; one integer serves all."""
    return (setting,) * rank if isinstance(setting, int) else tuple(setting)


def checked_padding(padding: Padding, rank: int) -> Padding:
    """The padding, hashable; raises `ConfigError` unless it is of a kind that `Padding` lists."""
    if isinstance(padding, str):
        if padding in ("same", "valid"):
            return padding
    elif len(padding) == rank and all(len(pair) == 2 for pair in padding):
        return tuple((low, high) for low, high in padding)
    raise ConfigError(f'padding is "same", "valid" or {rank} pairs (low, high), found {padding!r}')


def window_padding(padding: Padding, space: Sequence[int], size: Sequence[int], stride: Sequence[int],
                   dilation: Sequence[int]) -> Pairs:
    """Padding in pairs for windows of `size` over these extents."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return ((0, 0),) * len(size)
    # Not strict: an input of another rank gets its ShapeError from the op.
    totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
              for n, k, s, d in zip(space, size, stride, dilation, strict=False)]
    return tuple((total // 2, total - total // 2) for total in totals)
