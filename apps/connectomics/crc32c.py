"""CRC32C (Castagnoli), the checksum of leveldb tables and of TensorFlow's checkpoints.

Invariant: `crc32c` equals the bitwise definition in RFC 3720, section 12.1, for every length.

A CRC is linear over GF(2), so halves are summed on their own: with S(n) for "n zero bytes follow", the register after
AB is S(len B) applied to that of A, xor that of B. Neighbouring words are folded in pairs until one is left, and S(2n)
is S(n) applied twice; each step is a few table look-ups over a whole numpy array.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = np.uint32(0x82F63B78)
"""0x1EDC6F41 with the bits reversed, as the register is."""
_START = np.uint32(0x641F6454)
"""The word that takes the register from zero to all ones, where the definition starts."""
_MASK = 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes, in 0..2^32-1."""
    words = _words(data)
    for doublings in range(len(words).bit_length() - 1):
        words = _apply(_zeros(doublings), words[0::2]) ^ words[1::2]
    return int(_apply(_zeros(0), words)[0]) ^ _MASK


def unmask(stored: int) -> int:
    """The checksum of a stored value: leveldb rotates it and adds a constant, so that sums of sums stay useful."""
    rotated = (stored - 0xA282EAD8) & _MASK
    return (rotated >> 17 | rotated << 15) & _MASK


def _words(data: bytes | memoryview) -> NDArray[np.uint32]:
    """u32[word], a power of two of them: zeros, which leave a register of zero alone, the start, and the data."""
    count = (len(data) + 3) // 4 + 1
    words = np.zeros(1 << (count - 1).bit_length(), "<u4")
    message = words.view(np.uint8)[words.nbytes - len(data) - 4:]
    message[:4] = np.frombuffer(_START.tobytes(), np.uint8)
    message[4:] = np.frombuffer(data, np.uint8)
    return words


@functools.cache
def _zeros(doublings: int) -> NDArray[np.uint32]:
    """u32[byte, value]: what 4 * 2^doublings zero bytes make of a register with that value in that byte alone."""
    if doublings:
        return _apply(_zeros(doublings - 1), _zeros(doublings - 1))
    one = np.uint32(1)
    registers = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(32):
        registers = registers >> one ^ _POLYNOMIAL * (registers & one)
    return registers


def _apply(shift: NDArray[np.uint32], registers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A table of `_zeros`, applied to registers of any shape."""
    return (shift[0][registers & 255] ^ shift[1][registers >> 8 & 255]
            ^ shift[2][registers >> 16 & 255] ^ shift[3][registers >> 24])
