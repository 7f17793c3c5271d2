"""The formats of volumes, and how an address names one.

Invariant: one record a format; reading and writing take the same addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.connectomics.hdf5 import create_hdf5, open_hdf5
from apps.connectomics.stacks import SUFFIXES, create_tiff, open_slices, open_tiff, slice_paths
from apps.connectomics.storage import Stored, WritableStored, listed, reading, unreadable
from apps.connectomics.stores import N5, ChunkFormat, Precomputed, Zarr2, Zarr3
from core.engine.errors import DataError


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    open : ``(address, place, part)``
    create : ``(address, place, part, shape, dtype, voxel_size, chunk)``, or None if it is only read
    """

    open: Callable[..., Stored]
    create: Callable[..., WritableStored] | None = None


_CHUNKED: dict[str, ChunkFormat] = {"zarr3": Zarr3(), "zarr2": Zarr2(), "n5": N5(), "precomputed": Precomputed()}

FORMATS: dict[str, Format] = {
    "hdf5": Format(open_hdf5, create_hdf5),
    "tiff": Format(open_tiff, create_tiff),
    "slices": Format(open_slices),
    **{name: Format(chunked.open, chunked.create) for name, chunked in _CHUNKED.items()},
}

_PREFIX = re.compile(rf"({'|'.join(_CHUNKED)})://(.+)", re.DOTALL)
_HDF5 = re.compile(r"(.+\.(?:h5|hdf5|hdf))(?::(.+))?", re.DOTALL | re.IGNORECASE)
_FOLDER = re.compile(r"((?:\w+://[^/]*/|(?!\w+://)).*?):([^/:]+)", re.DOTALL)
_SUFFIX = {".zarr": "zarr3", ".n5": "n5", ".tif": "tiff", ".tiff": "tiff"}
_LOCAL_SUFFIXES = (".h5", ".hdf5", ".hdf", *SUFFIXES)
_SIGNATURES = {b"\x89HDF": "hdf5", b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff"}
_FORMS = ("FILE.h5:DATASET, a TIFF file, a folder of TIFF or PNG slices, or a Zarr, N5 or precomputed folder, local or "
          "at gs://, s3://, http:// or https://")


@dataclass(frozen=True)
class Address:
    """An address in its parts.

    Attributes
    ----------
    text : as it was given
    format : a key of `FORMATS`, or empty if the address alone does not say
    place : a path or URL
    part : behind the last colon: the dataset of an HDF5 file, the scale or level of others; may be empty
    """

    text: str
    format: str
    place: str
    part: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address such as ``FILE.h5:DATASET``, ``FOLDER.zarr/ARRAY``, ``precomputed://gs://BUCKET/PATH:SCALE``."""
        prefix, rest = match.groups() if (match := _PREFIX.fullmatch(text)) else ("", text)
        if not prefix and "://" not in rest and (match := _HDF5.fullmatch(rest)):
            return cls(text, "hdf5", match[1], match[2] or "")
        place, part = match.groups() if (match := _FOLDER.fullmatch(rest)) else (rest, "")
        return cls(text, prefix, place, part)

    @property
    def is_remote(self) -> bool:
        return "://" in self.place

    @property
    def format_to_write(self) -> str:
        """The format that the address says, by its prefix or a name in its path; empty if it does not."""
        by_suffix = [_SUFFIX[path.suffix.lower()] for path in map(Path, Path(self.place).parts)
                     if path.suffix.lower() in _SUFFIX]
        return self.format or "".join(by_suffix[:1])


def open_stored(text: str) -> Stored:
    """The array at an address."""
    address = Address.parse(text)
    with reading(text, _FORMS, (OSError,)):
        if not address.is_remote and not Path(address.place).exists():
            raise _missing(address)
        name = address.format or _format_of(address)
    return FORMATS[name].open(text, address.place, address.part)


def create_stored(text: str, *args: object) -> WritableStored:
    """The array at an address, made if it is not there; see `Format.create`."""
    address = Address.parse(text)
    name = address.format_to_write
    if not name or (create := FORMATS[name].create) is None or (address.is_remote and name not in _CHUNKED):
        raise unreadable(text, "an address that does not say in which format to write", "FILE.h5:DATASET, FOLDER.zarr, "
                         "FOLDER.n5, FILE.tif, or one that begins with "
                         f"{', '.join(f'{name}://' for name in _CHUNKED)}")
    return create(text, address.place, address.part, *args)


def _format_of(address: Address) -> str:
    """The format of what is at a place."""
    if address.is_remote:
        if Path(address.place).suffix.lower() in _LOCAL_SUFFIXES:
            raise unreadable(address.text, "an HDF5 or TIFF file that is not on this machine", "a copy of it on a disk")
        return _format_of_folder(address)
    return _format_of_file(address) if Path(address.place).is_file() else _format_of_folder(address)


def _missing(address: Address) -> DataError:
    """What is said of a path that leads nowhere: how far it leads, and what is there."""
    place = Path(address.place)
    above = next(parent for parent in place.absolute().parents if parent.exists())
    names = sorted(path.name for path in above.iterdir()) if above.is_dir() else []
    wanted = place.absolute().relative_to(above).parts[0]
    return unreadable(address.text, f"no {wanted} in {above}, only {listed(names)}", _FORMS)


def _format_of_file(address: Address) -> str:
    with open(address.place, "rb") as file:
        start = file.read(4)
    if start not in _SIGNATURES:
        raise unreadable(address.text, f"a file that begins with {start.hex(' ') or 'nothing'}", _FORMS)
    return _SIGNATURES[start]


def _format_of_folder(address: Address) -> str:
    for name, chunked in _CHUNKED.items():
        if chunked.known(address.text, address.place):
            return name
    if not address.is_remote and slice_paths(Path(address.place)):
        return "slices"
    markers = [marker for chunked in _CHUNKED.values() for marker in chunked.markers]
    names = [] if address.is_remote else sorted(path.name for path in Path(address.place).iterdir())
    raise unreadable(address.text, "none of its files can be read" if address.is_remote else listed(names),
                     f"a folder with {', '.join(markers)} or slices ({', '.join(SUFFIXES)})", _FORMS)
