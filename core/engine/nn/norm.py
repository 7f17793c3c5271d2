"""Normalisation: batch, layer and group.

Invariant: the last axis is the channels'; scale and shift are one a channel, and variances are those of the population.
"""

from __future__ import annotations

from typing import Self

from core.engine.array import Array
from core.engine.errors import ConfigError
from core.engine.module import Module, replace, static
from core.engine.ops import ones, sqrt, zeros


class BatchNorm(Module):
    """Normalises each channel over the batch (Ioffe and Szegedy 2015, arXiv 1502.03167).

    In training ``y, norm = norm.train(x)`` uses the statistics of the batch and gives the layer with moved running
    statistics; in inference ``norm(x)`` uses the running ones. The gradient through `train` is 0 for the running
    statistics, so an optimiser leaves them alone.

    Attributes
    ----------
    scale, shift : f32[channel]
    mean, variance : f32[channel], running statistics
    momentum : weight of a batch in the running statistics (PyTorch's sense)
    epsilon : added to the variance
    """

    scale: Array
    shift: Array
    mean: Array
    variance: Array
    momentum: float = static(default=0.1)
    epsilon: float = static(default=1e-5)

    @classmethod
    def init(cls, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5) -> Self:
        """A layer that leaves input of mean 0 and variance 1 as it is."""
        one, zero = ones((channels,)), zeros((channels,))
        return cls(one, zero, zero, one, momentum, epsilon)

    def __call__(self, x: Array) -> Array:
        """f32[..., channel], normalised by the running statistics."""
        factor = self.scale / sqrt(self.variance + self.epsilon)
        return x * factor + (self.shift - self.mean * factor)

    def train(self, x: Array) -> tuple[Array, Self]:
        """f32[..., channel] normalised over all axes but the last, and the layer with moved running statistics.

        The running variance takes the batch's unbiased estimate, as PyTorch's does.
        """
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        centred = x - mean
        variance = (centred * centred).mean(axes)
        y = centred * (self.scale / sqrt(variance + self.epsilon)) + self.shift
        rows = x.size // x.shape[-1]
        unbiased = variance * (rows / max(rows - 1, 1))
        moved = replace(self, mean=self.mean + (mean - self.mean) * self.momentum,
                        variance=self.variance + (unbiased - self.variance) * self.momentum)
        return y, moved


class LayerNorm(Module):
    """Normalises the channels of each position (Ba et al. 2016, arXiv 1607.06450).

    Attributes
    ----------
    scale, shift : f32[channel]
    epsilon : added to the variance
    """

    scale: Array
    shift: Array
    epsilon: float = static(default=1e-5)

    @classmethod
    def init(cls, channels: int, *, epsilon: float = 1e-5) -> Self:
        """A layer with scale 1 and shift 0."""
        return cls(ones((channels,)), zeros((channels,)), epsilon)

    def __call__(self, x: Array) -> Array:
        """f32[..., channel], of mean 0 and variance 1 over the last axis before scale and shift."""
        return _standardised(x, (x.ndim - 1,), self.epsilon) * self.scale + self.shift


class GroupNorm(Module):
    """Normalises groups of channels over space, item by item (Wu and He 2018, arXiv 1803.08494).

    Attributes
    ----------
    scale, shift : f32[channel]
    groups : number of groups of neighbouring channels
    epsilon : added to the variance
    """

    scale: Array
    shift: Array
    groups: int = static()
    epsilon: float = static(default=1e-5)

    @classmethod
    def init(cls, channels: int, groups: int, *, epsilon: float = 1e-5) -> Self:
        """A layer with scale 1 and shift 0; raises `ConfigError` unless the groups divide the channels."""
        if channels % groups:
            raise ConfigError(f"groups divide the channels, found {groups} groups and {channels} channels")
        return cls(ones((channels,)), zeros((channels,)), groups, epsilon)

    def __call__(self, x: Array) -> Array:
        """f32[batch, space..., channel], of mean 0 and variance 1 over each group before scale and shift."""
        grouped = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        return _standardised(grouped, (1, 3), self.epsilon).reshape(x.shape) * self.scale + self.shift


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axes, keepdims=True)
    variance = (centred * centred).mean(axes, keepdims=True)
    return centred * (1.0 / sqrt(variance + epsilon))
