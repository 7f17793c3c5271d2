"""The networks of the benchmark, in JAX.

Invariant: a network is a function of a list of weights, one entry a layer, which its builder drew in the common order.
In training the function puts moved running statistics into the list that it is given for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from core.accel.tpu.architectures import Architecture, Channel, Conv, Dense, Draw, Pool, Up, build

Part = Callable[..., Any]


def convolve(x: Any, w: Any, stride: int, padding: Sequence[int], sums: Any = None) -> Any:
    """Channels last; `sums` is the dtype of the result where it is not that of x."""
    space = "DHW"[-len(padding):]
    return lax.conv_general_dilated(x, w, (stride,) * len(padding), [(pad, pad) for pad in padding],
                                    dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
                                    preferred_element_type=sums)


def normalise(x: Any, norm: Sequence[Any], epsilon: float) -> Any:
    """Batch norm by running statistics: scale, shift, mean, variance."""
    scale, shift, mean, variance = norm
    factor = scale * lax.rsqrt(variance + epsilon)
    return x * factor + (shift - mean * factor)


class _Builder:
    """See `architectures.Builder`; a part is ``part(weights, x, moved)``, `moved` None in inference."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self.weights: list[dict[str, Any]] = []

    def _keep(self, **arrays: Any) -> int:
        self.weights.append(arrays)
        return len(self.weights) - 1

    def conv(self, node: Conv, shape: Sequence[int], draw: Draw) -> Part:
        drawn = draw.kernel(*node.size, shape[-1], node.features)
        number = (self._keep(kernel=drawn, norm=draw.norm(node.features)) if node.norm
                  else self._keep(kernel=drawn, bias=draw.vector(node.features)))

        def part(weights: Any, x: Any, moved: Any) -> Any:
            own = weights[number]
            x = convolve(x, own["kernel"], node.stride, node.pads)
            if not node.norm:
                x = x + own["bias"]
            elif moved is None:
                x = normalise(x, own["norm"], self._epsilon)
            else:
                x, norm = self._train_norm(x, own["norm"])
                moved[number] = own | {"norm": norm}
            return jax.nn.relu(x) if node.relu else x

        return part

    def _train_norm(self, x: Any, norm: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
        scale, shift, mean, variance = norm
        axes, rows = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        here = x.mean(axes)
        spread = jnp.square(x - here).mean(axes)
        y = normalise(x, (scale, shift, here, spread), self._epsilon)
        return y, (scale, shift, mean + 0.1 * (here - mean),
                   variance + 0.1 * (spread * (rows / max(rows - 1, 1)) - variance))

    def up(self, node: Up, shape: Sequence[int], draw: Draw) -> Part:
        rank = len(shape) - 2
        number = self._keep(kernel=draw.kernel(*(2,) * rank, shape[-1], node.features),
                            bias=draw.vector(node.features))
        space = "DHW"[-rank:]

        def part(weights: Any, x: Any, moved: Any) -> Any:
            own = weights[number]
            return lax.conv_transpose(x, own["kernel"], (2,) * rank, "VALID",
                                      dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C")) + own["bias"]

        return part

    def pool(self, node: Pool, shape: Sequence[int]) -> Part:
        rank = len(shape) - 2
        windows = ((1, *(node.size,) * rank, 1), (1, *(node.stride,) * rank, 1),
                   ((0, 0), *((node.padding, node.padding),) * rank, (0, 0)))
        if node.kind == "max":
            return lambda weights, x, moved: lax.reduce_window(x, -jnp.inf, lax.max, *windows)
        counts = lax.reduce_window(jnp.ones((1, *shape[1:-1], 1)), 0.0, lax.add, *windows)
        return lambda weights, x, moved: lax.reduce_window(x, 0.0, lax.add, *windows) / counts

    def relu(self) -> Part:
        return lambda weights, x, moved: jax.nn.relu(x)

    def mean(self, shape: Sequence[int]) -> Part:
        return lambda weights, x, moved: x.mean(tuple(range(1, x.ndim - 1)))

    def dense(self, node: Dense, shape: Sequence[int], draw: Draw) -> Part:
        number = self._keep(kernel=draw.kernel(shape[-1], node.features), bias=draw.vector(node.features))
        return lambda weights, x, moved: x @ weights[number]["kernel"] + weights[number]["bias"]

    def channel(self, node: Channel) -> Part:
        return lambda weights, x, moved: x[..., node.index:node.index + 1]

    def concat(self, branches: list[Part]) -> Part:
        return lambda weights, x, moved: jnp.concatenate([branch(weights, x, moved) for branch in branches], -1)

    def sum(self, branches: list[Part]) -> Part:
        return lambda weights, x, moved: sum(branch(weights, x, moved) for branch in branches)

    def chain(self, parts: list[Part]) -> Part:
        def whole(weights: Any, x: Any, moved: Any) -> Any:
            for part in parts:
                x = part(weights, x, moved)
            return x

        return whole


def network(architecture: Architecture, batch: int) -> tuple[Part, list[dict[str, Any]]]:
    """A network as a function, and its weights."""
    builder = _Builder(architecture.epsilon)
    whole, _ = build(architecture, batch, builder)
    return whole, builder.weights


def class_loss(logits: Any) -> Any:
    """Cross entropy where item i has class i."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def voxel_loss(logits: Any) -> Any:
    """Binary cross entropy of every voxel against a target of one half."""
    return jnp.mean(jnp.maximum(logits, 0) - 0.5 * logits + jnp.log1p(jnp.exp(-jnp.abs(logits))))


def lstm(layers: Any, x: Any) -> Any:
    """Hidden states [batch, time, hidden] of the last layer."""
    for first, second, bias in layers:
        zeros = jnp.zeros((x.shape[0], second.shape[0]))

        def step(carry: Any, projected: Any, second: Any = second) -> Any:
            hidden, cell = carry
            i, f, g, o = jnp.split(projected + hidden @ second, 4, -1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        _, states = lax.scan(step, (zeros, zeros), jnp.moveaxis(x @ first + bias, 1, 0))
        x = jnp.moveaxis(states, 0, 1)
    return x


def messages(weights: Sequence[Any], batch: Mapping[str, Any], count: int, depth: int) -> Any:
    """Directed message passing, as in this benchmark's own layers."""
    first, update, output, readout = weights
    atoms, source, target, reverse = (batch[name] for name in ("atoms", "source", "target", "reverse"))
    start = states = jax.nn.relu(atoms[source] @ first)
    for _ in range(depth - 1):
        arriving = jax.ops.segment_sum(states, target, len(atoms))
        states = jax.nn.relu(start + (arriving[source] - states[reverse]) @ update)
    arriving = jax.ops.segment_sum(states, target, len(atoms))
    hidden = jax.nn.relu(jnp.concatenate([atoms, arriving], 1) @ output)
    return jax.ops.segment_sum(hidden, batch["molecule"], count) @ readout
