"""Counter-based random bits: element i of an array depends on the key and on i only.

Invariant: no state and no order; the bits are those of Threefry-2x32 with 20 rounds (J. K. Salmon, M. A. Moraes,
R. O. Dror and D. E. Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011), whatever the threads and the backend.
"""

from __future__ import annotations

import numpy as np

from core.accel.kernels.vectormath import inlined

_PARITY = np.uint32(0x1BD11BDA)


@inlined
def _round(x0: np.uint32, x1: np.uint32, turn: int) -> tuple[np.uint32, np.uint32]:
    """One round: add, rotate left by `turn` bits, exclusive or."""
    x0 = np.uint32(x0 + x1)
    rotated = np.uint32(np.uint32(x1 << np.uint32(turn)) | np.uint32(x1 >> np.uint32(32 - turn)))
    return x0, np.uint32(rotated ^ x0)


@inlined
def _even_rounds(x0: np.uint32, x1: np.uint32) -> tuple[np.uint32, np.uint32]:
    """Rounds 0-3, 8-11 and 16-19."""
    x0, x1 = _round(x0, x1, 13)
    x0, x1 = _round(x0, x1, 15)
    x0, x1 = _round(x0, x1, 26)
    return _round(x0, x1, 6)


@inlined
def _odd_rounds(x0: np.uint32, x1: np.uint32) -> tuple[np.uint32, np.uint32]:
    """Rounds 4-7 and 12-15."""
    x0, x1 = _round(x0, x1, 17)
    x0, x1 = _round(x0, x1, 29)
    x0, x1 = _round(x0, x1, 16)
    return _round(x0, x1, 24)


@inlined
def _add_key(x0: np.uint32, x1: np.uint32, a: np.uint32, b: np.uint32, number: int) -> tuple[np.uint32, np.uint32]:
    return np.uint32(x0 + a), np.uint32(np.uint32(x1 + b) + np.uint32(number))


@inlined
def threefry_u32(k0: np.uint32, k1: np.uint32, low: np.uint32, high: np.uint32) -> np.uint32:
    """First word of Threefry-2x32-20 of the counter (low, high) under the key (k0, k1).

    Element i of an array has low = i mod 2^32 and high = i div 2^32.
    """
    k2 = np.uint32(np.uint32(k0 ^ k1) ^ _PARITY)
    x0, x1 = np.uint32(low + k0), np.uint32(high + k1)
    x0, x1 = _even_rounds(x0, x1)
    x0, x1 = _add_key(x0, x1, k1, k2, 1)
    x0, x1 = _odd_rounds(x0, x1)
    x0, x1 = _add_key(x0, x1, k2, k0, 2)
    x0, x1 = _even_rounds(x0, x1)
    x0, x1 = _add_key(x0, x1, k0, k1, 3)
    x0, x1 = _odd_rounds(x0, x1)
    x0, x1 = _add_key(x0, x1, k1, k2, 4)
    x0, x1 = _even_rounds(x0, x1)
    x0, x1 = _add_key(x0, x1, k2, k0, 5)
    return x0
