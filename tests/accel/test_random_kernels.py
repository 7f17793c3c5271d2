"""Threefry-2x32-20 against the known answers of Random123 and against its definition in Python integers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numba import njit

from core.accel.kernels.random import threefry_u32

MASK = 0xFFFFFFFF


@njit(error_model="numpy")
def words(k0, k1, low, high, out):
    for i in range(out.size):
        out[i] = threefry_u32(k0, k1, low[i], high[i])


def first_words(key, low, high):
    out = np.full(len(low), 0xA5A5A5A5, np.uint32)
    words(np.uint32(key[0]), np.uint32(key[1]), np.asarray(low, np.uint32), np.asarray(high, np.uint32), out)
    return out


def threefry(key, counter):
    """Both words of Threefry-2x32-20 (Salmon et al. 2011, section 3.2 and table 2)."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = (counter[0] + key[0]) & MASK, (counter[1] + key[1]) & MASK
    for number in range(20):
        turn = (13, 15, 26, 6, 17, 29, 16, 24)[number % 8]
        x0 = (x0 + x1) & MASK
        x1 = (x1 << turn | x1 >> (32 - turn)) & MASK ^ x0
        if number % 4 == 3:
            group = number // 4 + 1
            x0, x1 = (x0 + keys[group % 3]) & MASK, (x1 + keys[(group + 1) % 3] + group) & MASK
    return x0, x1


KNOWN = [  # key, counter, answer: kat_vectors of Random123 1.14
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((MASK, MASK), (MASK, MASK), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize("key,counter,answer", KNOWN)
def test_known_answers(key, counter, answer):
    assert threefry(key, counter) == answer
    assert first_words(key, counter[:1], counter[1:]) == [answer[0]]


def test_equals_the_definition_on_random_keys_and_counters():
    numbers = np.random.default_rng(0).integers(0, 2**32, (50, 4), dtype=np.uint32)
    for k0, k1, low, high in numbers.tolist():
        assert first_words((k0, k1), [low], [high])[0] == threefry((k0, k1), (low, high))[0]


def test_bits_look_random_over_a_plain_counter():
    """Every bit is set half of the time and neighbours differ in half of their bits, within 5 standard deviations."""
    count = 1 << 16
    out = first_words((1, 2), np.arange(count), np.zeros(count))
    bits = np.unpackbits(out.view(np.uint8)).reshape(count, 32)
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / count**0.5
    flips = (bits[1:] != bits[:-1]).mean()
    assert abs(flips - 0.5) < 5 * 0.5 / (32 * count)**0.5


def test_the_loop_is_vectorised():
    first_words((0, 0), [0], [0])
    (assembly,) = words.inspect_asm().values()
    assert re.search(r"\tv?p(rol|sll)[vd]+\t.*%[xyz]mm", assembly)
