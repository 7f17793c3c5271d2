"""Checkpoints of TensorFlow (tensor bundles) read as numpy arrays, without TensorFlow.

Invariant: a tensor is handed out only after its checksum and that of every block of the index hold; sizes are compared
with the files before memory is taken for them; a checkpoint that cannot be read gives one `DataError`.

A bundle is ``<prefix>.index`` and ``<prefix>.data-00000-of-00001``, more of these where it is sharded. The index is a
leveldb table (leveldb's doc/table_format.md): blocks of prefix-compressed, sorted entries, each block followed by its
compression and masked CRC32C, at the end a footer that says where the index of the blocks is. The empty name maps to a
BundleHeaderProto, every other to a BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from apps.connectomics.crc32c import crc32c, unmask
from core.engine.errors import DataError, compose

MAX_INDEX_BYTES = 4 << 20
MAX_DATA_BYTES = 256 << 20
"""Of one file and of all tensors; the network of Januszewski et al. (2018) takes 2.5 MB."""
MAX_NAME_BYTES = 256
MAX_AXES = 32

_MAGIC = 0xDB4775248B80FB57
_FOOTER = struct.Struct("<40sQ")  # the handles of two blocks, padded, and the magic number
_TRAILER = struct.Struct("<BI")  # behind each block: its compression, and its masked checksum
_COMPRESSIONS = {0: "none", 1: "Snappy", 2: "Zstandard"}
_DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?", 17: "u2", 19: "f2", 22: "u4",
           23: "u8"}
"""numpy's names for the numbers of TensorFlow's DataType (tensorflow/core/framework/types.proto)."""


def read_bundle(prefix: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a checkpoint by name, in native byte order.

    Parameters
    ----------
    prefix : what the names of its files begin with, such as ``model.ckpt-27465036``; or the ``.index`` file; or a
        folder with one such file

    Raises
    ------
    DataError
        If a file is missing, truncated, damaged or too large, or holds what this reader does not know: compressed
        blocks, sliced tensors, tensors of text or other rare types.
    """
    index = _index_file(Path(prefix))
    header, tensors = _Table(index).tensors()
    total = sum(tensor.size for tensor in tensors)
    if total > MAX_DATA_BYTES:
        _refuse(index, f"tensors of {total:,} bytes", f"at most {MAX_DATA_BYTES:,}")
    arrays: dict[str, NDArray[Any]] = {}
    for shard in sorted({tensor.shard for tensor in tensors}):
        path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{header.shards:05d}")
        arrays.update(_read_shard(path, [tensor for tensor in tensors if tensor.shard == shard], header.order))
    return {tensor.name: arrays[tensor.name] for tensor in tensors}


def _index_file(prefix: Path) -> Path:
    if not prefix.is_dir():
        return prefix if prefix.suffix == ".index" else prefix.with_name(prefix.name + ".index")
    found = sorted(prefix.glob("*.index"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:6]) or "none"
        _refuse(prefix, f"{len(found)} .index files in this folder: {names}", "one; otherwise name the one to read")
    return found[0]


def _refuse(path: Path, found: str, expected: str) -> NoReturn:
    raise DataError(compose(f"cannot read the TensorFlow checkpoint {path}",
                            [("found", found), ("expected", expected)]))


def _read(path: Path, limit: int, kind: str) -> bytes:
    """The whole of a file that is no longer than `limit`."""
    try:
        if not path.is_file():
            _refuse(path, "no such file" if not path.exists() else "no regular file", kind)
        if (size := path.stat().st_size) > limit:
            _refuse(path, f"{size:,} bytes", f"at most {limit:,}")
        return path.read_bytes()
    except OSError as error:
        _refuse(path, f"{type(error).__name__}: {error.strerror}", kind)


class _Cursor:
    """Bytes that are taken from the front; whatever would run over their end is refused."""

    def __init__(self, path: Path, part: str, data: bytes) -> None:
        self.path, self.part, self.data = path, part, data
        self.position = 0

    @property
    def done(self) -> bool:
        return self.position == len(self.data)

    def refuse(self, found: str, expected: str) -> NoReturn:
        _refuse(self.path, f"{found}, at byte {self.position:,} of {self.part}", expected)

    def take(self, count: int) -> bytes:
        left = len(self.data) - self.position
        if count > left:
            self.refuse(f"{left:,} bytes", f"{count:,} more; the file is damaged")
        self.position += count
        return self.data[self.position - count:self.position]

    def varint(self) -> int:
        """A number of up to 64 bits, seven a byte, the low ones first."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 1 << 64:
                return value
        self.refuse("a number of more than 64 bits", "a smaller one; the file is damaged")


class _Message:
    """A message of protocol buffers: the numbers and the byte strings of its fields, by field number."""

    def __init__(self, cursor: _Cursor) -> None:
        self.numbers: dict[int, int] = {}
        self.strings: dict[int, list[bytes]] = {}
        while not cursor.done:
            field, wire = divmod(cursor.varint(), 8)
            if wire == 0:
                self.numbers[field] = cursor.varint()
            elif wire in (1, 5):
                self.numbers[field] = int.from_bytes(cursor.take(8 if wire == 1 else 4), "little")
            elif wire == 2:
                self.strings.setdefault(field, []).append(cursor.take(cursor.varint()))
            else:
                cursor.refuse(f"a field of the wire type {wire}", "0, 1, 2 or 5; the file is damaged")


@dataclass(frozen=True)
class _Header:
    shards: int
    order: Literal["<", ">"]


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies; `size` in bytes is that of its `dtype` and `shape`."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class _Table:
    """The leveldb table of an index file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _read(path, MAX_INDEX_BYTES, "the index of a TensorFlow checkpoint")
        self.end = len(self.data) - _FOOTER.size  # of the blocks

    def tensors(self) -> tuple[_Header, list[_Tensor]]:
        """The header, and the tensors in the order of their names."""
        header, tensors = None, []
        for key, value in self._entries():
            if header is None:
                if key:
                    break
                header = self._header(value)
            else:
                tensors.append(self._tensor(key, value, header))
        if header is None:
            _refuse(self.path, "a leveldb table without a bundle's header", "the index of a TensorFlow checkpoint")
        return header, tensors

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys, in rising order, and values."""
        if self.end < 0:
            _refuse(self.path, f"{len(self.data)} bytes", f"at least the {_FOOTER.size} of a footer")
        handles, magic = _FOOTER.unpack_from(self.data, self.end)
        if magic != _MAGIC:
            _refuse(self.path, f"the magic number {magic:#x} at the end", f"{_MAGIC:#x}; the file may be truncated")
        footer = _Cursor(self.path, "the footer", handles)
        for _ in self._block(footer.varint(), footer.varint()):  # of filters, which a bundle does not have
            pass
        position, previous = 0, None
        for _, handle in self._block(footer.varint(), footer.varint()):
            where = _Cursor(self.path, "the index of blocks", handle)
            offset, size = where.varint(), where.varint()
            if offset < position:
                _refuse(self.path, f"a block at byte {offset:,}", f"{position:,} or later, behind the one before it")
            position = offset + size
            for key, value in self._block(offset, size):
                if previous is not None and key <= previous:
                    _refuse(self.path, f"the name {_shown(key)} behind {_shown(previous)}", "names in rising order")
                previous = key
                yield key, value

    def _block(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the block of these bytes."""
        if offset + size + _TRAILER.size > self.end:
            _refuse(self.path, f"a block at byte {offset:,} of {size:,} bytes",
                    f"one that ends before byte {max(0, self.end - _TRAILER.size):,}")
        compression, checksum = _TRAILER.unpack_from(self.data, offset + size)
        _verify(self.path, f"the block at byte {offset:,}", self.data[offset:offset + size + 1], checksum)
        if compression:
            name = _COMPRESSIONS.get(compression, f"unknown type {compression}")
            _refuse(self.path, f"a block that is compressed ({name})", "blocks as TensorFlow writes them, uncompressed")
        cursor = _Cursor(self.path, f"the block at byte {offset:,}", self.data[offset:offset + size])
        restarts = int.from_bytes(cursor.data[-4:], "little")
        cursor.data = cursor.data[:max(0, size - 4 - 4 * restarts)]  # the entries; behind them, where keys stand whole
        key = b""
        while not cursor.done:
            shared, fresh, length = cursor.varint(), cursor.varint(), cursor.varint()
            if shared > len(key) or shared + fresh > MAX_NAME_BYTES:
                cursor.refuse(f"a name that shares {shared:,} of {len(key):,} bytes and adds {fresh:,}",
                              f"a name of at most {MAX_NAME_BYTES} bytes")
            key = key[:shared] + cursor.take(fresh)
            yield key, cursor.take(length)

    def _header(self, value: bytes) -> _Header:
        numbers = _Message(_Cursor(self.path, "the header", value)).numbers
        shards, order = numbers.get(1, 0), numbers.get(2, 0)
        if not 1 <= shards <= 99_999:
            _refuse(self.path, f"a bundle of {shards:,} data files", "1 to 99,999")
        if order not in (0, 1):
            _refuse(self.path, f"the byte order {order}", "0 (little endian) or 1 (big endian)")
        return _Header(shards, ">" if order else "<")

    def _tensor(self, key: bytes, value: bytes, header: _Header) -> _Tensor:
        part = f"the entry of {_shown(key)}"
        entry = _Message(_Cursor(self.path, part, value))
        kind = entry.numbers.get(1, 0)
        if kind not in _DTYPES:
            known = ", ".join(f"{number} ({np.dtype(dtype)})" for number, dtype in _DTYPES.items())
            _refuse(self.path, f"TensorFlow's data type {kind} in {part}", f"one of {known}")
        if 7 in entry.strings:
            _refuse(self.path, f"slices of a partitioned variable in {part}", "a whole tensor")
        shape = tuple(_Message(_Cursor(self.path, part, axis)).numbers.get(1, 0)
                      for message in entry.strings.get(2, [])
                      for axis in _Message(_Cursor(self.path, part, message)).strings.get(2, []))
        dtype, size, shard = np.dtype(_DTYPES[kind]), entry.numbers.get(5, 0), entry.numbers.get(3, 0)
        if len(shape) > MAX_AXES or math.prod(shape) * dtype.itemsize != size:
            _refuse(self.path, f"{size:,} bytes for {dtype}{list(shape[:MAX_AXES])} in {part}",
                    f"a shape of at most {MAX_AXES} axes that takes as many bytes")
        if math.prod(max(1, length) for length in shape) > MAX_DATA_BYTES:  # without elements, but beyond numpy
            _refuse(self.path, f"the shape {list(shape)} in {part}", f"axes of at most {MAX_DATA_BYTES:,} in all")
        if shard >= header.shards:
            _refuse(self.path, f"data file number {shard:,} in {part}", f"a number below {header.shards:,}")
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            _refuse(self.path, f"the name {_shown(key)}", "text in UTF-8")
        return _Tensor(name, dtype, shape, shard, entry.numbers.get(4, 0), size, entry.numbers.get(6, 0))


def _read_shard(path: Path, tensors: list[_Tensor], order: Literal["<", ">"]) -> Mapping[str, NDArray[Any]]:
    """The tensors of one data file, by name."""
    data = _read(path, MAX_DATA_BYTES, "a data file of a TensorFlow checkpoint")
    arrays, position, before = {}, 0, "the start"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        end = tensor.offset + tensor.size
        if tensor.offset < position or end > len(data):
            _refuse(path, f"{len(data):,} bytes, and {tensor.name!r} in bytes {tensor.offset:,} to {end:,}",
                    f"each tensor within the file and behind the one before it (here byte {position:,}, {before})")
        content = data[tensor.offset:end]
        _verify(path, repr(tensor.name), content, tensor.checksum)
        stored = np.frombuffer(content, tensor.dtype.newbyteorder(order))
        arrays[tensor.name] = stored.reshape(tensor.shape).astype(tensor.dtype)
        position, before = end, tensor.name
    return arrays


def _verify(path: Path, part: str, content: bytes, checksum: int) -> None:
    if (found := crc32c(content)) != unmask(checksum):
        _refuse(path, f"the checksum {found:#010x} of {part}", f"{unmask(checksum):#010x}; the file is damaged")


def _shown(key: bytes) -> str:
    return repr(key.decode("utf-8", "backslashreplace"))
