"""The op random_bits: counter-based random words.

Invariant: word i depends on the key and on i alone (Threefry-2x32, 20 rounds; Salmon et al., SC 2011), so that every
backend and every number of threads gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine import dtypes
from core.engine.graph import Aval
from core.engine.ops.table import Op, Sample, register, require

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry(key: NDArray[np.uint32], low: NDArray[np.uint32],
             high: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Both words of Threefry-2x32 at the counters (low, high)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x0, x1 = low + schedule[0], high + schedule[1]
    for block in range(5):
        for turn in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << np.uint32(turn)) | (x1 >> np.uint32(32 - turn))) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1


def _bits_shape(key: Aval, *, shape: tuple[int, ...]) -> Aval:
    require(key == Aval(dtypes.uint32, (2,)), "random_bits", "the key is u32[2]", "make one with random.key(seed)",
            key=key)
    return Aval(dtypes.uint32, tuple(shape))


def _bits_numpy(key: Any, *, shape: tuple[int, ...]) -> Any:
    counter = np.arange(math.prod(shape), dtype=np.uint64)
    with np.errstate(over="ignore"):
        words, _ = threefry(key, counter.astype(np.uint32), (counter >> np.uint64(32)).astype(np.uint32))
    return words.reshape(shape)


random_bits: Op = register(Op(
    "random_bits", "random", _bits_shape, _bits_numpy, flops=lambda inputs, outputs, params: 80 * outputs[0].size,
    samples=lambda: [Sample((np.array([7, 9], np.uint32),), {"shape": shape}) for shape in ((3, 5), (1,), (), (33,))],
    doc="Element i is the first word of threefry2x32(key, i)."))
