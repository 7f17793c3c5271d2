"""Array: a value with a dtype and a static shape, concrete or being traced; behaves like a numpy array.

Invariant: nothing in the engine changes an Array. A concrete one holds a numpy array, a traced one a graph value.
`as_array` shares the memory of a numpy array, as `Array.numpy` does; `array` and `numpy.array` copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from core.engine import dtypes
from core.engine.dtypes import DType, as_dtype
from core.engine.errors import ShapeError, TraceError
from core.engine.graph import Aval, Value

Scalar = bool | int | float


class Array:
    """A value of the engine.

    Attributes
    ----------
    aval : dtype and shape
    data : numpy storage array (bfloat16 as uint16) if concrete, graph value if traced
    trace : the trace it belongs to, or None if concrete
    """

    __slots__ = ("aval", "data", "trace")
    __array_priority__ = 1000

    def __init__(self, aval: Aval, data: NDArray[Any] | Value, trace: object | None = None) -> None:
        self.aval = aval
        self.data = data
        self.trace = trace

    @property
    def dtype(self) -> DType:
        return self.aval.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def ndim(self) -> int:
        return len(self.aval.shape)

    @property
    def size(self) -> int:
        return self.aval.size

    @property
    def is_traced(self) -> bool:
        return self.trace is not None

    @property
    def value(self) -> Value:
        """The graph value of a traced array."""
        assert isinstance(self.data, Value)
        return self.data

    @property
    def storage(self) -> NDArray[Any]:
        """The numpy storage of a concrete array; raises `TraceError` while tracing."""
        if self.trace is not None:
            raise TraceError(f"the value of {self.aval} is not known while it is traced; use select, scan or "
                             f"arithmetic instead of Python's if, for and float()")
        return cast("NDArray[Any]", self.data)

    def numpy(self) -> NDArray[Any]:
        """A numpy array of the values; bfloat16 comes as float32."""
        return dtypes.decode_bfloat16(self.storage) if self.dtype is dtypes.bfloat16 else self.storage

    def item(self) -> Any:
        """The value of an array of one element as a Python scalar."""
        return self.numpy().item()

    def astype(self, dtype: Any) -> Array:
        return ops.convert(self, dtype=as_dtype(dtype))

    def reshape(self, *shape: Any) -> Array:
        target = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return ops.reshape(self, shape=_fill_in(self, tuple(target)))

    def transpose(self, *axes: Any) -> Array:
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return ops.transpose(self, axes=tuple(order) or tuple(reversed(range(self.ndim))))

    @property
    def T(self) -> Array:
        return self.transpose()

    def sum(self, axis: Any = None, keepdims: bool = False) -> Array:
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Array:
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Array:
        return ops.amax(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Array:
        return ops.amin(self, axis, keepdims)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[number] for number in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self.numpy() if dtype is None else self.numpy().astype(dtype)
        return values.copy() if copy and values is self.data else values

    def __repr__(self) -> str:
        return f"Array({self.aval}, traced)" if self.is_traced else f"Array({self.aval}, {self.numpy()!r})"

    def __getitem__(self, index: Any) -> Array:
        return ops.index(self, index)

    def __neg__(self) -> Array:
        return ops.neg(self)

    def __abs__(self) -> Array:
        return ops.abs(self)

    def __add__(self, other: Any) -> Array:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Array:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Array:
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Array:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Array:
        return ops.mul(self, other)

    def __rmul__(self, other: Any) -> Array:
        return ops.mul(other, self)

    def __truediv__(self, other: Any) -> Array:
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Array:
        return ops.div(other, self)

    def __pow__(self, other: Any) -> Array:
        if type(other) is int and other == 2:
            return self * self
        return ops.pow(self, other)

    def __rpow__(self, other: Any) -> Array:
        return ops.pow(other, self)

    def __matmul__(self, other: Any) -> Array:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Array:
        return ops.matmul(other, self)

    def __lt__(self, other: Any) -> Array:
        return ops.compare(self, other, kind="lt")

    def __le__(self, other: Any) -> Array:
        return ops.compare(self, other, kind="le")

    def __gt__(self, other: Any) -> Array:
        return ops.compare(self, other, kind="gt")

    def __ge__(self, other: Any) -> Array:
        return ops.compare(self, other, kind="ge")

    def __eq__(self, other: Any) -> Array:  # type: ignore[override]
        return ops.compare(self, other, kind="eq")

    def __ne__(self, other: Any) -> Array:  # type: ignore[override]
        return ops.compare(self, other, kind="ne")

    def __and__(self, other: Any) -> Array:
        return ops.logical_and(self, other)

    def __or__(self, other: Any) -> Array:
        return ops.logical_or(self, other)

    def __invert__(self) -> Array:
        return ops.logical_not(self)

    __hash__ = object.__hash__



def _fill_in(array: Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Replace one -1 by the extent that keeps the size."""
    if -1 not in shape:
        return tuple(int(extent) for extent in shape)
    known = 1
    for extent in shape:
        known *= extent if extent != -1 else 1
    if shape.count(-1) > 1 or known == 0 or array.size % known:
        raise ShapeError(f"ShapeError in reshape: {array.aval} does not fill the shape {shape}")
    return tuple(array.size // known if extent == -1 else int(extent) for extent in shape)


def as_array(value: Any, dtype: Any = None) -> Array:
    """An Array of an Array, a numpy array, or Python numbers (floats become f32, integers i32).

    Raises
    ------
    TypeError
        If the value has no dtype of the engine.
    OverflowError
        If Python integers do not fit into i32.
    """
    if isinstance(value, Array):
        return value if dtype is None or value.dtype is as_dtype(dtype) else value.astype(dtype)
    if dtype is None and type(value) is np.ndarray:
        return Array(aval_of_storage(value.dtype, value.shape), value)
    if dtype is None and not isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
        dtype = {"f": dtypes.float32, "i": dtypes.int32, "b": dtypes.bool_}.get(value.dtype.kind)
        if dtype is dtypes.int32 and value.size and not -2**31 <= value.min() <= value.max() < 2**31:
            raise OverflowError(f"integers from {value.min()} to {value.max()} do not fit into i32; name another dtype")
    if dtype is not None and as_dtype(dtype) is dtypes.bfloat16:
        bits = dtypes.encode_bfloat16(np.asarray(value, np.float32))
        return Array(Aval(dtypes.bfloat16, bits.shape), bits)
    storage = np.asarray(value, None if dtype is None else as_dtype(dtype).storage)
    return Array(Aval(as_dtype(storage.dtype), storage.shape), storage)


@functools.lru_cache(maxsize=4096)
def aval_of_storage(storage: np.dtype[Any], shape: tuple[int, ...]) -> Aval:
    """The aval of numpy arrays of a dtype and shape; always the same object, so that it compares fast."""
    return Aval(as_dtype(storage), shape)


def array(value: Any, dtype: Any = None) -> Array:
    """An Array of a copy of these values."""
    if isinstance(value, np.ndarray):
        value = value.copy()
    return as_array(value, dtype)


_SIGNED = {2: dtypes.int16, 4: dtypes.int32, 8: dtypes.int64}
"""By bytes; an unsigned integer fits into the signed one of twice its own."""
_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2}


def promote(*values: Any) -> tuple[Array, ...]:
    """Arrays of one dtype, which holds the numbers of all: the widest of the highest kind (bool, integer, float).

    Python numbers adapt to it.
    """
    if all(type(value) is Array and value.dtype is values[0].dtype for value in values):  # most calls
        return values
    arrays = [value if isinstance(value, Array) else as_array(value)
              for value in values if not isinstance(value, Scalar) or isinstance(value, np.generic)]
    if not arrays:
        arrays = [as_array(value) for value in values]
    dtype = max((array.dtype for array in arrays), key=lambda dtype: (_RANK[dtype.kind], dtype.itemsize))
    signed, unsigned = ([array.dtype for array in arrays if array.dtype.kind == kind] for kind in ("int", "uint"))
    if dtype.kind in ("int", "uint") and signed and unsigned:
        widths = [*(kind.itemsize for kind in signed), *(2 * kind.itemsize for kind in unsigned)]
        dtype = _SIGNED[max(widths)]
    if dtype.kind != "float" and any(type(value) is float for value in values):
        dtype = dtypes.float32
    if dtype.kind == "bool" and any(type(value) is int for value in values):
        dtype = dtypes.int32
    return tuple(_number(value, dtype) if type(value) is float and value != 0.0 else as_array(value, dtype)
                 for value in values)


@functools.lru_cache(maxsize=1024)
def _number(value: float, dtype: DType) -> Array:
    """Always the same array for a number, so that a graph captures it once; not for zeros, which have two signs."""
    array = as_array(value, dtype)
    array.storage.flags.writeable = False
    return array


# The ops are written with arrays, and the methods of Array with the ops: this import waits until Array exists.
from core.engine import ops  # noqa: E402
