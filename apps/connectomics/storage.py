"""What every format of volumes gives to `volumes`: an array with named axes that is read by boxes.

Invariant: what a library raises for a file or store that it cannot read becomes one `DataError` with the address.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine.errors import DataError, TileworkError, compose

AXES = "tczyx"
"""Time, channel and space; the usual order of an array is this, less what it lacks at the front."""

Selection = tuple[slice | int, ...]
"""A range or a place along each axis of an array."""

_LISTED = 12
_LONGEST_REASON = 240


@dataclass(frozen=True)
class Stored(ABC):
    """An array as its format stores it.

    Attributes
    ----------
    address : of the volume, as it was given
    shape : along its own axes
    dtype : of its values, in native byte order
    axes : one letter of `AXES` for each axis
    axes_stated : whether the format says so; otherwise they are the usual ones
    voxel_size : nm, along all axes or along those of space only, in the order of `axes`; empty if unknown
    chunk : shape of the pieces that can only be read as a whole; empty if there are none
    """

    address: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str
    axes_stated: bool
    voxel_size: tuple[float, ...]
    chunk: tuple[int, ...]

    @property
    def is_ours(self) -> bool:
        """Whether we wrote it and noted its axes, so that settings of axes are not about it."""
        return False

    @abstractmethod
    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        """A new array of what is selected, its axes in this order (of those that are left), C-contiguous."""


@dataclass(frozen=True)
class WritableStored(Stored):
    """An array that can also be written."""

    @abstractmethod
    def write(self, selection: Selection, order: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write what `read` would give for the same selection and order."""


def arranged(values: NDArray[Any], order: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`values` with their axes in this order, C-contiguous and of this dtype; a copy only where one is needed."""
    return np.ascontiguousarray(values.transpose(order), dtype)


def unreadable(address: str, found: str, expected: str, hint: str = "") -> DataError:
    """What to raise for a volume that cannot be read or written."""
    rows = [("found", found), ("expected", expected), *([("hint", hint)] if hint else [])]
    return DataError(compose(f"cannot use the volume {address}", rows))


@contextmanager
def reading(address: str, expected: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a library raises into a `DataError`."""
    try:
        yield
    except TileworkError:
        raise
    except errors as error:
        raise unreadable(address, reason(error), expected) from error


def check_packed(address: str, packed: int, unpacked: int) -> None:
    """Refuse a compressed piece that is much longer than what it stands for: small pieces cannot unpack to huge ones.

    Deflate makes at most 1,032 bytes of one, so that a chunk of 64^3 bytes takes at most some 400 MB.
    """
    if packed > unpacked + unpacked // 2 + 4096:
        raise unreadable(address, f"a compressed piece of {packed:,} bytes", f"at most the {unpacked:,} it stands for")


def reason(error: Exception) -> str:
    """What an exception of a library says, without the state that tensorstore puts in brackets behind it."""
    return re.split(r" \[\w+=|\n", f"{type(error).__name__}: {error}")[0][:_LONGEST_REASON]


def listed(names: list[str]) -> str:
    """Some names for a message."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more


# ---------------------------------------------------------------------------------------------- units


_NANOMETRES = {
    1e-1: ("a", "å", "angstrom", "angstroms"),
    1e0: ("nm", "nanometer", "nanometers", "nanometre"),
    1e3: ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometers", "micrometre"),
    1e6: ("mm", "millimeter", "millimeters", "millimetre"),
    1e7: ("cm", "centimeter", "centimeters"),
    1e9: ("m", "meter", "meters", "metre"),
}
_UNITS = {unit: factor for factor, units in _NANOMETRES.items() for unit in units}
_ATTRIBUTES = {"voxel_size": 1.0, "resolution": 1.0, "element_size_um": 1e3}
"""Names that HDF5 and Zarr files of the field give to the size of a voxel, and what their values are in nm."""


def nanometres(unit: object) -> float | None:
    """The nm in a unit of length, or None for one that is not known; ImageJ writes µ as ``\\u00b5``."""
    return _UNITS.get(unit.lower()) if isinstance(unit, str) else None


def attribute_voxel_size(attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """The size of a voxel in nm that the attributes of an array say, along its axes; empty if they say no numbers."""
    for name, factor in _ATTRIBUTES.items():
        if name in attributes:
            return numbers(attributes[name], factor)
    return ()


def numbers(value: Any, factor: float = 1.0) -> tuple[float, ...]:
    """Numbers, times a factor; empty if they are none."""
    if value is None:
        return ()
    try:
        return tuple(float(number) * factor for number in np.ravel(np.asarray(value, np.float64)))
    except (TypeError, ValueError):
        return ()
