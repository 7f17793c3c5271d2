"""When the results of two backends agree.

Invariant: integers and booleans agree exactly, NaN and infinities too, floats as closely as their type allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.engine import dtypes
from core.engine.array import Array

RELATIVE = {dtypes.float32: 1e-5, dtypes.float64: 1e-11}
"""Largest difference, relative to the largest result."""


def assert_agree(expected: Array, actual: Array, tolerance: float | None = None) -> None:
    """One op's results: f32 and f64 relative to their scale, bfloat16 to one unit in the last place."""
    assert actual.aval == expected.aval
    if not expected.dtype.is_float:
        np.testing.assert_array_equal(actual.numpy(), expected.numpy())
    elif tolerance is None and expected.dtype is dtypes.bfloat16:
        assert units_apart(expected, actual) <= 1
    else:
        wanted, found = (array.numpy().astype(np.float64) for array in (expected, actual))
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, wanted))
        scale = np.abs(wanted[finite]).max(initial=0.0)
        bound = RELATIVE.get(expected.dtype, 1e-2) if tolerance is None else tolerance
        error = np.abs(wanted[finite] - found[finite]).max(initial=0.0)
        assert error <= bound * scale, f"{expected.aval}: off by {error:.1e} at a scale of {scale:.1e}"


def units_apart(expected: Array, actual: Array) -> int:
    """Largest distance of two bfloat16 arrays, counted in representable numbers; NaN matches NaN."""
    both = [np.where(np.isnan(array.numpy()), 0, array.storage.astype(np.int32)) for array in (expected, actual)]
    np.testing.assert_array_equal(np.isnan(actual.numpy()), np.isnan(expected.numpy()))
    ordered = [np.where(bits & 0x8000, -(bits & 0x7FFF), bits) for bits in both]
    return int(np.abs(ordered[0] - ordered[1]).max(initial=0))


def assert_same_bits(first: Sequence[Array], second: Sequence[Array]) -> None:
    """Lists of arrays are equal bit for bit."""
    assert [array.aval for array in first] == [array.aval for array in second]
    for one, other in zip(first, second, strict=True):
        assert one.storage.tobytes() == other.storage.tobytes(), f"{one.aval} differs"
