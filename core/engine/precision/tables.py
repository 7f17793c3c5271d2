"""Activations by a table of bytes, as chips of 8 bits compute sigmoid and tanh.

Invariant: a table holds what the function itself gives, so that every backend has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.module import Module, static
from core.engine.precision import rules
from core.engine.precision.quantised import Range


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


FUNCTIONS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], rules.Affine]] = {
    "sigmoid": (_sigmoid, rules.Affine(1 / 256, -128)),
    "tanh": (np.tanh, rules.Affine(1 / 128, 0)),
}
"""Each function, and what its bytes stand for in TFLite's quantization specification."""


class TableActivation(Module):
    """Sigmoid or tanh of 8-bit numbers; floats in and out.

    Attributes
    ----------
    table : i8[256], for the numbers -128..127
    scale : f32[], of the input
    zero_point : i32[], of the input
    output : what the numbers of the table stand for
    """

    table: Array
    scale: Array
    zero_point: Array
    output: rules.Affine = static()

    @classmethod
    def of(cls, name: Literal["sigmoid", "tanh"], taken: Range) -> Self:
        """The table of a function whose inputs lie in a range; halves are rounded away from zero."""
        function, output = FUNCTIONS[name]
        affine = rules.activation(*taken)
        numbers = np.arange(rules.LOWEST, rules.HIGHEST + 1, dtype=np.float64)
        found = function(np.asarray((numbers - affine.zero_point) * affine.scale, np.float64)) / output.scale
        whole = np.sign(found) * np.floor(np.abs(found) + 0.5) + output.zero_point
        return cls(as_array(np.clip(whole, rules.LOWEST, rules.HIGHEST).astype(np.int8)),
                   as_array(np.float32(affine.scale)), as_array(np.int32(affine.zero_point)), output)

    def __call__(self, x: Array) -> Array:
        """f32[...] to f32[...]."""
        places = rules.quantise(x, self.scale, self.zero_point).astype("i32") - rules.LOWEST
        found = ops.gather(self.table, places, axis=0).astype("i32") - self.output.zero_point
        return rules.dequantise(found, as_array(np.float32(self.output.scale)), x.dtype)
