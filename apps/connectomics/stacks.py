"""Volumes in stacks of slices: TIFF files of many pages, and folders of one TIFF or PNG file a slice.

Invariant: slices that are not compressed are mapped and read, or written, in part; others are decoded one at a time,
once their size is known. Files are open only while a box is read or written.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from apps.connectomics.storage import (
    AXES,
    Selection,
    Stored,
    WritableStored,
    arranged,
    attribute_voxel_size,
    check_packed,
    nanometres,
    reading,
    unreadable,
)

SUFFIXES = (".tif", ".tiff", ".png")
MAX_SLICE_PIXELS = 89_478_485
"""Of a compressed slice: Pillow's own bound against small files that unpack to huge images."""

_LETTERS = str.maketrans("QIZYXSCT", "zzzyxcct")
"""tifffile's letters of axes in ours; Q and I are pages without a meaning of their own."""
_NANOMETRES_OF_A_CENTIMETRE = 1e7
_GREY = ("L", "I;16")
"""Pillow's modes of grey images, of 8 and 16 bits."""


@dataclass(frozen=True)
class MappedTiff(WritableStored):
    """A TIFF file whose pages lie one behind the other, not compressed."""

    path: Path
    offset: int
    stored_dtype: np.dtype[Any]

    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        with reading(self.address, "a whole TIFF file", (OSError, ValueError)):
            mapped = np.memmap(self.path, self.stored_dtype, "r", self.offset, self.shape)
            return arranged(np.array(mapped[selection]), order, self.dtype)

    def write(self, selection: Selection, order: tuple[int, ...], values: NDArray[Any]) -> None:
        with reading(self.address, "a TIFF file that can be written", (OSError, ValueError)):
            mapped = np.memmap(self.path, self.stored_dtype, "r+", self.offset, self.shape)
            mapped[selection] = values.transpose(np.argsort(order))
            mapped.flush()


@dataclass(frozen=True)
class PagedTiff(Stored):
    """A TIFF file whose pages are decoded."""

    path: Path

    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        with _opened(self.address, self.path) as file:
            pages = _pages(file)
            values = _gathered(lambda number: _decoded(self.address, pages[number]), self, selection)
            return arranged(values, order, self.dtype)


@dataclass(frozen=True)
class SliceFolder(Stored):
    """A folder of files, one a slice, in the order of the numbers in their names."""

    paths: tuple[Path, ...]

    def read(self, selection: Selection, order: tuple[int, ...]) -> NDArray[Any]:
        return arranged(_gathered(self._slice, self, selection), order, self.dtype)

    def _slice(self, number: int) -> NDArray[Any]:
        return _read_slice(self.address, self.paths[number])


def open_tiff(address: str, place: str, part: str) -> MappedTiff | PagedTiff:
    """A TIFF file, BigTIFF and ImageJ's stacks among them."""
    _no_part(address, part)
    path = Path(place)
    with _opened(address, path) as file:
        series = file.series
        first = series[0]
        if len({(one.shape, one.dtype) for one in series}) > 1:
            raise unreadable(address, f"{len(series)} images of different sizes or types", "slices of one size")
        squeeze = len(first.get_shape(False)) != 3  # ImageJ's have six axes; three may be one long
        shape, letters, offset = first.get_shape(squeeze), first.get_axes(squeeze), first.dataoffset
        if len(series) > 1:
            shape, letters, offset = (len(series), *shape), "Q" + letters, None
        elif len(shape) == 2:
            shape, letters = (1, *shape), "Q" + letters
        dtype = first.dtype.newbyteorder("=")
        common: dict[str, Any] = {
            "address": address, "shape": shape, "dtype": dtype, "axes": _axes(letters), "axes_stated": False,
            "voxel_size": _stated_voxel_size(file), "path": path}
        if offset is not None:
            return MappedTiff(**common, chunk=(), offset=offset, stored_dtype=dtype.newbyteorder(file.byteorder))
        page = shape[-2:]
        if any(one is None or one.shape != page for one in _pages(file)):
            raise unreadable(address, f"pages that are not grey images of {page[0]} x {page[1]}", "grey slices")
        _check_pixels(address, page)
        return PagedTiff(**common, chunk=(1,) * (len(shape) - 2) + page)


def create_tiff(address: str, place: str, part: str, shape: tuple[int, ...], dtype: np.dtype[Any],
                voxel_size: tuple[float, ...], chunk: tuple[int, ...]) -> MappedTiff:
    """A stack of sections that are not compressed, one file, made if it is not there.

    The size of a pixel is in the usual tags, that of a voxel in the description of the first section.
    """
    _no_part(address, part)
    path = Path(place)
    if not path.exists():
        with reading(address, "a TIFF file that can be written", (OSError, ValueError)):
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.memmap(path, shape=shape, dtype=dtype, photometric="minisblack",
                            metadata={"axes": "ZYX", "voxel_size": voxel_size}, resolutionunit="CENTIMETER",
                            resolution=tuple(_NANOMETRES_OF_A_CENTIMETRE / size for size in voxel_size[:0:-1]))
    found = open_tiff(address, place, part)
    if not isinstance(found, MappedTiff):
        raise unreadable(address, "a TIFF file of compressed sections", "no file there, or one that was made here")
    return found


def open_slices(address: str, place: str, part: str) -> SliceFolder:
    """A folder of slices."""
    _no_part(address, part)
    paths = slice_paths(Path(place))
    if len({path.suffix.lower().replace("tiff", "tif") for path in paths}) > 1:
        raise unreadable(address, "TIFF and PNG files in one folder", "slices of one kind")
    first = _read_slice(address, paths[0])
    return SliceFolder(address, shape=(len(paths), *first.shape), dtype=first.dtype, axes="zyx", axes_stated=False,
                       voxel_size=(), chunk=(1, *first.shape), paths=tuple(paths))


def slice_paths(folder: Path) -> list[Path]:
    """The slices of a folder in natural order: 2 before 10."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(paths, key=lambda path: [int(word) if word.isdecimal() else word
                                           for word in re.split(r"(\d+)", path.name)])


def _gathered(page: Callable[[int], NDArray[Any]], stored: Stored, selection: Selection) -> NDArray[Any]:
    """What is selected of an array whose last two axes are those of its pages."""
    leading, size = stored.shape[:-2], stored.shape[-2:]
    numbers = np.arange(math.prod(leading)).reshape(leading)[selection[:-2]]
    values = np.empty([at.stop - at.start for at in selection if isinstance(at, slice)], stored.dtype)
    planes = values.reshape(numbers.size, *values.shape[numbers.ndim:])
    for plane, number in zip(planes, np.ravel(numbers), strict=True):
        decoded = page(int(number))
        if decoded.shape != size or decoded.dtype.newbyteorder("=") != stored.dtype:
            raise unreadable(stored.address, f"slice {number} of {decoded.dtype}{list(decoded.shape)}",
                             f"{stored.dtype}{list(size)} as the first one")
        plane[...] = decoded[selection[-2:]]
    return values


def _pages(file: tifffile.TiffFile) -> Sequence[Any]:
    series = file.series
    return [one.pages[0] for one in series] if len(series) > 1 else series[0].pages


def _decoded(address: str, page: Any) -> NDArray[Any]:
    """One page of a TIFF file."""
    for packed in page.databytecounts:
        check_packed(address, packed, math.prod(page.chunks) * page.dtype.itemsize)
    return np.asarray(page.asarray())


def _axes(letters: str) -> str:
    """The axes of tifffile's letters, or the usual ones."""
    axes = letters.translate(_LETTERS)
    known = set(axes) <= set(AXES) and len(set(axes)) == len(axes)
    return axes if known else AXES[-len(axes):]


def _stated_voxel_size(file: tifffile.TiffFile) -> tuple[float, ...]:
    """nm along z, y, x that `create_tiff` or ImageJ wrote; empty if neither did, or in no unit of length."""
    if file.shaped_metadata:
        return attribute_voxel_size(file.shaped_metadata[0])
    described = file.imagej_metadata or {}
    unit, spacing, tags = nanometres(described.get("unit")), described.get("spacing"), file.pages.first.tags
    if unit is None or spacing is None or not {"XResolution", "YResolution"} <= {tag.name for tag in tags}:
        return ()
    pixels_y, pixels_x = (tags[name].value for name in ("YResolution", "XResolution"))  # as a fraction, a unit
    return (float(spacing) * unit, unit * pixels_y[1] / pixels_y[0], unit * pixels_x[1] / pixels_x[0])


def _read_slice(address: str, path: Path) -> NDArray[Any]:
    """One file of a folder."""
    expected = f"one grey image in {path.name}"
    if path.suffix.lower() != ".png":
        with _opened(address, path) as file:
            page = file.pages.first
            if len(file.pages) > 1 or len(page.shape) != 2:
                raise unreadable(address, f"{len(file.pages)} pages of {list(page.shape)}", expected)
            _check_pixels(address, page.shape)
            return _decoded(address, page)
    with reading(address, expected, (Exception,)), Image.open(path) as image:  # Pillow's decoders raise many things
        if image.mode not in _GREY:
            raise unreadable(address, f"an image of the mode {image.mode}", f"{expected}, of 8 or 16 bits")
        _check_pixels(address, (image.height, image.width))
        pixels: Any = image
        return np.asarray(pixels)


class _Complaints(logging.Handler):
    """The errors that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _opened(address: str, path: Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF file. tifffile logs damage and gives the pages before it; here damage is an error."""
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    logger.addHandler(complaints)
    expected = f"a whole TIFF file {path.name}"
    try:
        # Its parsing raises whatever it runs into.
        with reading(address, expected, (Exception,)), tifffile.TiffFile(path) as file:
            yield file
    finally:
        logger.removeHandler(complaints)
    if complaints.lines:
        raise unreadable(address, complaints.lines[0], expected)


def _check_pixels(address: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_SLICE_PIXELS:
        raise unreadable(address, f"compressed slices of {shape[0]} x {shape[1]} pixels",
                         f"at most {MAX_SLICE_PIXELS:,} pixels", "store it as Zarr, N5 or HDF5, which have chunks")


def _no_part(address: str, part: str) -> None:
    if part:
        raise unreadable(address, f"the name {part!r} behind the colon", "no name: a stack of slices is one volume")
