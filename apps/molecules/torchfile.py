"""Model files of PyTorch (`torch.save`) read as plain containers and numpy arrays, without PyTorch.

Invariant: time and memory are bounded before they are spent, nothing in a file is trusted (see `unpickling`), and a
file that cannot be read gives one `DataError`.

The layout is that of PyTorch >= 1.6: a zip archive of stored (uncompressed) members, ``<root>/data.pkl`` with the
object, ``<root>/data/<key>`` with the raw bytes of each storage and, since 2.1, ``<root>/byteorder``.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from apps.molecules.unpickling import refuse, unpickle
from core.engine.dtypes import decode_bfloat16

MAX_FILE_BYTES = 256 << 20
MAX_PICKLE_BYTES = 4 << 20
MAX_DIRECTORY_BYTES = 4 << 20

_STORAGES = {
    "torch.FloatStorage": "f4", "torch.DoubleStorage": "f8", "torch.HalfStorage": "f2", "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8", "torch.IntStorage": "i4", "torch.ShortStorage": "i2", "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1", "torch.BoolStorage": "?",
}  # fmt: skip
_FILE_ERRORS = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, struct.error)
_END = struct.Struct("<4s8xI4xH")  # end of central directory: signature, size of the directory, length of the comment
_END64 = struct.Struct("<4s36xQ8x")  # the same of zip64: signature and size
_TAIL_BYTES = _END64.size + 20 + _END.size  # with the locator of the zip64 record between them


def read_torch_file(path: Path | str) -> Any:
    """The object that ``torch.save`` wrote to `path`.

    Tensors come as read-only numpy arrays in native byte order, bfloat16 as float32; ordered dictionaries and
    namespaces come as dict, everything unknown as `Opaque`.

    Raises
    ------
    DataError
        If the file is missing, truncated, corrupted, too large, of the format before PyTorch 1.6, or uses a pickle
        feature outside the set that `unpickling` knows.
    """
    where = Path(path)
    with ExitStack() as resources:
        with _reading(where):
            stream = resources.enter_context(where.open("rb"))
            size = where.stat().st_size
        if size > MAX_FILE_BYTES:
            refuse(where, f"{size:,} bytes", f"at most {MAX_FILE_BYTES:,} bytes")
        _check_directory(where, stream, size)
        with _reading(where):
            archive = resources.enter_context(zipfile.ZipFile(stream))
        return _Archive(where, archive, size).read()


@contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Turn what the file system and `zipfile` raise for a bad file into a `DataError`."""
    try:
        yield
    except _FILE_ERRORS as error:
        refuse(where, f"{type(error).__name__}: {error}", "a complete file of torch.save")


def _check_directory(where: Path, stream: BinaryIO, file_size: int) -> None:
    """Refuse what is no torch zip, and a table of contents that would be slow to parse, before `zipfile` sees it."""
    head = stream.read(4)
    stream.seek(max(0, file_size - _TAIL_BYTES))
    tail = stream.read(_TAIL_BYTES)
    expected = "a zip archive, as torch.save writes since PyTorch 1.6"
    if head != b"PK\x03\x04":
        refuse(where, f"first bytes {head.hex(' ') or '(none)'}", f"{expected}; save an older file anew with PyTorch")
    if len(tail) < _TAIL_BYTES:
        refuse(where, f"{file_size} bytes", f"{expected}; the file is truncated")
    signature, size, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06" or comment:
        refuse(where, "no table of contents at the end", f"{expected}; the file may be truncated")
    signature64, size64 = _END64.unpack(tail[: _END64.size])
    size = size64 if signature64 == b"PK\x06\x06" else size
    if size > MAX_DIRECTORY_BYTES:
        refuse(where, f"a table of contents of {size:,} bytes", f"at most {MAX_DIRECTORY_BYTES:,} bytes")


class _Archive:
    """The members of a torch zip file, and the storages read so far."""

    def __init__(self, where: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.where, self.archive = where, archive
        self.members = {member.filename: member for member in archive.infolist()}
        if len(self.members) != len(archive.infolist()):
            refuse(where, "two members of one name", "distinct names")
        for member in self.members.values():
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                refuse(where, f"the compressed member {member.filename!r}", "stored members only")
        if (total := sum(member.file_size for member in self.members.values())) > size:
            refuse(where, f"members of {total:,} bytes in a file of {size:,}", "members that fit into the file")
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            refuse(where, f"{len(pickles)} members named data.pkl", "one")
        self.root = pickles[0].removesuffix("data.pkl")
        self.order = self._byte_order()
        self.storages: dict[str, tuple[str, NDArray[Any]]] = {}

    def _byte_order(self) -> Literal["<", ">"]:
        record = self._bytes("byteorder") if self.root + "byteorder" in self.members else b"little"
        if record not in (b"little", b"big"):
            refuse(self.where, f"the byte order {record[:20]!r}", "little or big")
        return "<" if record == b"little" else ">"

    def _bytes(self, name: str) -> bytes:
        member = self.members.get(self.root + name)
        if member is None:
            refuse(self.where, f"no member {name!r}", "one member for each tensor storage that the pickle names")
        with _reading(self.where):
            return self.archive.read(member)

    def read(self) -> Any:
        size = self.members[self.root + "data.pkl"].file_size
        if size > MAX_PICKLE_BYTES:
            refuse(self.where, f"a pickle of {size:,} bytes", f"at most {MAX_PICKLE_BYTES:,} bytes")
        return unpickle(self.where, self._bytes("data.pkl"), self.storage, _STORAGES)

    def storage(self, kind: str, key: str, count: int) -> NDArray[Any]:
        """The elements of one storage, read once: native, read-only, [count]."""
        if key not in self.storages:
            stored, data = np.dtype(_STORAGES[kind]), self._bytes(f"data/{key}")
            if len(data) != count * stored.itemsize:
                refuse(self.where, f"{len(data):,} bytes in storage {key!r}", f"{count:,} elements of {kind}")
            array = np.frombuffer(data, stored.newbyteorder(self.order)).astype(stored, copy=False)
            array = decode_bfloat16(array) if kind == "torch.BFloat16Storage" else array
            array.flags.writeable = False
            self.storages[key] = (kind, array)
        known, array = self.storages[key]
        if known != kind or array.size != count:
            refuse(self.where, f"storage {key!r} as {known} and as {kind}", "one type and one length")
        return array
