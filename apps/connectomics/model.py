"""The flood-filling network: a stack of residual 3-D convolutions that improves a mask of one object.

Januszewski et al. 2016 (arXiv 1611.00421); the layers are those of ``convstack_3d`` in google/ffn.

Invariant: input and output cover the same field of view; every convolution pads with zeros, and computes in the dtype
of its kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from core.engine import ops, random
from core.engine.array import Array
from core.engine.module import Module
from core.engine.nn import Conv
from core.engine.nn.activation import relu
from core.engine.nn.init import Initialiser, he_normal

TAPS = (3, 3, 3)


class Residual(Module):
    """x + b(relu(a(relu(x)))), on f32[batch, z, y, x, feature]."""

    a: Conv
    b: Conv

    def __call__(self, x: Array) -> Array:
        return x + self.b(relu(self.a(relu(x))))


class FloodFillingNetwork(Module):
    """Logits of the mask of an object, from an image and the logits so far.

    Attributes
    ----------
    first_a, first_b : from the two channels to features
    blocks : residual blocks
    last : one logit a voxel, added to the old one
    """

    first_a: Conv
    first_b: Conv
    blocks: tuple[Residual, ...]
    last: Conv

    @classmethod
    def init(cls, key: Array, depth: int, features: int, initialiser: Initialiser = he_normal) -> Self:
        """A network of 2 `depth` convolutions with 3x3x3 taps.

        Parameters
        ----------
        depth : at least 1; 12 in the published networks
        features : channels between; 32 in the published networks
        """
        keys = iter(random.split(key, 2 * depth + 1))

        def conv(inputs: int) -> Conv:
            return Conv.init(next(keys), inputs, features, TAPS, initialiser=initialiser)

        first_a, first_b = conv(2), conv(features)
        blocks = tuple(Residual(conv(features), conv(features)) for _ in range(depth - 1))
        return cls(first_a, first_b, blocks, Conv.init(next(keys), features, 1, (1, 1, 1), initialiser=initialiser))

    def silent(self) -> Self:
        """The network with blocks and a last layer that add nothing yet, as a training begins.

        A mask goes through the network dozens of times, and whatever drawn layers add to it each time lets it explode.
        Blocks: Goyal et al. 2017, arXiv 1706.02677, section 5.1.
        """
        def zeroed(conv: Conv) -> Conv:
            return replace(conv, kernel=ops.zeros(conv.kernel.shape))

        return replace(self, blocks=tuple(replace(block, b=zeroed(block.b)) for block in self.blocks),
                       last=zeroed(self.last))

    def __call__(self, image: Array, logits: Array) -> Array:
        """New logits.

        Parameters
        ----------
        image : f32[batch, z, y, x], of mean about 0 and deviation about 1
        logits : f32[batch, z, y, x], of the mask so far

        Returns
        -------
        f32[batch, z, y, x]
        """
        x = ops.stack([image, logits], axis=-1).astype(self.first_a.kernel.dtype)
        x = self.first_b(relu(self.first_a(x)))
        for block in self.blocks:
            x = block(x)
        return logits + self.last(relu(x))[..., 0].astype("f32")
