"""Element types of arrays.

Invariant: a `DType` names a meaning, its `storage` names the numpy type that holds it. They differ for one type only:
bfloat16 is stored as the upper 16 bits of a float32 in a uint16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DType:
    """One element type; there is one object of each.

    Attributes
    ----------
    name : full name, as numpy spells it where numpy has the type
    short : name in messages and graphs, such as ``f32``
    kind : ``bool``, ``int``, ``uint`` or ``float``
    storage : numpy type that holds an element
    """

    name: str
    short: str
    kind: str
    storage: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    def __repr__(self) -> str:
        return self.short


bool_ = DType("bool", "bool", "bool", np.dtype(np.bool_))
int8 = DType("int8", "i8", "int", np.dtype(np.int8))
int16 = DType("int16", "i16", "int", np.dtype(np.int16))
int32 = DType("int32", "i32", "int", np.dtype(np.int32))
int64 = DType("int64", "i64", "int", np.dtype(np.int64))
uint8 = DType("uint8", "u8", "uint", np.dtype(np.uint8))
uint16 = DType("uint16", "u16", "uint", np.dtype(np.uint16))
uint32 = DType("uint32", "u32", "uint", np.dtype(np.uint32))
bfloat16 = DType("bfloat16", "bf16", "float", np.dtype(np.uint16))
float32 = DType("float32", "f32", "float", np.dtype(np.float32))
float64 = DType("float64", "f64", "float", np.dtype(np.float64))

ALL = (bool_, int8, int16, int32, int64, uint8, uint16, uint32, bfloat16, float32, float64)
BY_NAME = {name: dtype for dtype in ALL for name in (dtype.name, dtype.short)}
_BY_STORAGE = {dtype.storage: dtype for dtype in ALL if dtype is not bfloat16}


def as_dtype(spec: Any) -> DType:
    """The DType that `spec` names: a DType, a name such as ``"f32"``, or a numpy type.

    Raises
    ------
    TypeError
        If the engine has no such type.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in BY_NAME:
        return BY_NAME[spec]
    try:
        return _BY_STORAGE[np.dtype(spec)]
    except (KeyError, TypeError):
        known = " ".join(dtype.short for dtype in ALL)
        raise TypeError(f"no dtype {spec!r} in the engine; it has {known}") from None


def encode_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bits, to nearest and ties to even; NaN stays a quiet NaN."""
    bits = np.asarray(values, np.float32, order="C").view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def decode_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bits, exactly."""
    return np.asarray(bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
