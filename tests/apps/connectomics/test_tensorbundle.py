"""Checkpoints of TensorFlow: a small writer as the oracle, Google's own file, and damaged or hostile files."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.connectomics.crc32c import crc32c, unmask
from apps.connectomics.tensorbundle import MAX_DATA_BYTES, MAX_INDEX_BYTES, MAX_NAME_BYTES, read_bundle
from core.engine.errors import DataError

DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?", 17: "u2", 19: "f2", 22: "u4",
          23: "u8"}
MAGIC = 0xDB4775248B80FB57
HEADER = (b"", b"\x08\x01\x1a\x02\x08\x01")  # one data file, little endian, version 1
MUTANTS = 1000

Entries = Iterable[tuple[bytes, bytes]]

# A writer of leveldb tables and of the messages in them


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def mask(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def sealed(content: bytes, compression: int = 0) -> bytes:
    whole = content + bytes([compression])
    return whole + struct.pack("<I", mask(crc32c(whole)))


def content(entries: Entries, restarts: int = 1) -> bytes:
    """A block without its trailer; each key shares with the one before it what it can."""
    result, previous = b"", b""
    for key, value in entries:
        shared = next((place for place, (left, right) in enumerate(zip(key, previous, strict=False)) if left != right),
                      min(len(key), len(previous)))
        result += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return result + bytes(4 * restarts) + struct.pack("<I", restarts)


def table(*blocks: bytes) -> bytes:
    """A table of these blocks, which come without trailers."""
    result, handles = b"", []
    for number, block in enumerate(blocks):
        handles.append((b"%03d" % number, varint(len(result)) + varint(len(block))))
        result += sealed(block)
    return closed(result, handles)


def closed(blocks: bytes, handles: Entries, magic: int = MAGIC) -> bytes:
    filters, index = content(()), content(handles)
    footer = varint(len(blocks)) + varint(len(filters))
    blocks += sealed(filters)
    footer += varint(len(blocks)) + varint(len(index))
    return blocks + sealed(index) + footer.ljust(40, b"\0") + struct.pack("<Q", magic)


def entry(kind: int, shape: Iterable[int], size: int, *, shard: int = 0, offset: int = 0, checksum: int = 0) -> bytes:
    axes = b"".join(field(2, field(1, length)) for length in shape)
    return (field(1, kind) + field(2, axes) + field(3, shard) + field(4, offset) + field(5, size)
            + varint(6 << 3 | 5) + struct.pack("<I", mask(checksum)))


def write(prefix: Path, tensors: Mapping[str, NDArray[Any]], *, shards: int = 1, big: bool = False,
          blocks: int = 1) -> Path:
    """A bundle whose tensors go to the data files in turn."""
    data = [b""] * shards
    entries = [(b"", field(1, shards) + field(2, int(big)))]
    for number, (name, array) in enumerate(sorted(tensors.items(), key=lambda item: item[0].encode())):
        raw, shard = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes(), number % shards
        kind = next(kind for kind, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype)
        entries.append((name.encode(), entry(kind, array.shape, len(raw), shard=shard, offset=len(data[shard]),
                                             checksum=crc32c(raw))))
        data[shard] += raw
    size = -(-len(entries) // blocks)
    prefix.with_name(prefix.name + ".index").write_bytes(
        table(*(content(entries[start:start + size]) for start in range(0, len(entries), size))))
    for shard, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    return prefix


TENSORS = {"conv0/biases": np.array([0.5, -2.0], "f4"), "conv0/weights": np.arange(12, dtype="f4").reshape(3, 2, 2),
           "fractions": np.array([3, -4, 5]), "global_step": np.array(27, "i4"), "none": np.zeros((0, 3), "f4")}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "model.ckpt-27", TENSORS)


def same(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == array.dtype and left[name].shape == array.shape and np.array_equal(left[name], array)
        for name, array in right.items())


# The checksum


def bitwise(data: bytes) -> int:
    """CRC32C as it is defined."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "checksum"), [
    (b"", 0), (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),  # RFC 3720, B.4
    (bytes(range(31, -1, -1)), 0x113FDB5C)])
def test_checksums_that_are_published(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@given(st.binary(max_size=300))
def test_the_checksum_is_the_one_that_is_defined(data: bytes) -> None:
    assert crc32c(data) == bitwise(data) == unmask(mask(crc32c(data)))


def test_the_checksum_of_every_length() -> None:
    data = random.Random(1).randbytes(70)
    assert [crc32c(data[:length]) for length in range(71)] == [bitwise(data[:length]) for length in range(71)]


# What is written is read


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_type_in_both_byte_orders(tmp_path: Path, dtype: str, big: bool) -> None:
    values = np.array([[0, 1, 2], [3, 4, 100]]).astype(dtype)
    read = read_bundle(write(tmp_path / "model", {"values": values}, big=big))
    assert same(read, {"values": values}) and read["values"].dtype.isnative


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.lists(st.integers(0, 4), max_size=4), max_size=8),
       st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_names_shapes_files_and_blocks(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]],
                                       shards: int, blocks: int, chance: random.Random) -> None:
    tensors = {name: np.array([chance.randrange(100) for _ in range(int(np.prod(shape)))], "i4").reshape(shape)
               for name, shape in shapes.items() if name.isprintable()}
    prefix = write(tmp_path_factory.mktemp("bundle") / "m", tensors, shards=shards, blocks=blocks)
    read = read_bundle(prefix)
    assert same(read, tensors)
    assert list(read) == sorted(tensors, key=str.encode)


def test_a_prefix_an_index_and_a_folder_name_a_bundle(small: Path) -> None:
    for name in (small, small.with_name(small.name + ".index"), small.parent):
        assert same(read_bundle(name), TENSORS)
    write(small.with_name("other"), TENSORS)
    with pytest.raises(DataError, match=r"2 \.index files in this folder: model\.ckpt-27\.index, other\.index"):
        read_bundle(small.parent)


@pytest.mark.realdata
def test_the_published_flood_filling_network(realdata: Path) -> None:
    folder = realdata / "connectomics/ffn_fib25_tf"
    tensors = read_bundle(folder)
    weights = {name: array for name, array in tensors.items() if array.dtype == np.float32}
    assert len(tensors) == 3 + 1 + 2 * 25 and len(weights) == 2 * 25
    assert sum(array.size for array in weights.values()) == 638_433
    assert sum(array.nbytes for array in tensors.values()) == 2_553_784
    assert (folder / "model.ckpt-27465036.data-00000-of-00001").stat().st_size == 2_553_784
    assert tensors["global_step"] == 27_465_036 and tensors["global_step"].dtype == np.int32
    np.testing.assert_allclose(tensors["seed_update/conv_lom/biases"], [0.31461], atol=5e-6)
    shapes = {name.removeprefix("seed_update/"): array.shape for name, array in weights.items()}
    inner = ["conv0_b", *(f"conv{number}_{half}" for number in range(1, 12) for half in "ab")]
    assert shapes == {"conv0_a/weights": (3, 3, 3, 2, 32), "conv0_a/biases": (32,),
                      "conv_lom/weights": (1, 1, 1, 32, 1), "conv_lom/biases": (1,),
                      **{f"{name}/weights": (3, 3, 3, 32, 32) for name in inner},
                      **{f"{name}/biases": (32,) for name in inner}}


# Damaged files


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_every_truncation_is_refused(small: Path, suffix: str) -> None:
    path = small.with_name(small.name + suffix)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="expected"):
            read_bundle(small)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_every_flipped_byte_is_seen_or_harmless(small: Path, suffix: str) -> None:
    path = small.with_name(small.name + suffix)
    whole = path.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        for bits in (1, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1:])
            try:
                read = read_bundle(small)
            except DataError:
                continue
            assert same(read, TENSORS), f"byte {place}"
            harmless += 1
    assert harmless <= 3 * 40 * (suffix == ".index")  # what pads the footer


def test_missing_files_are_named(tmp_path: Path, small: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.index\n  found +no such file"):
        read_bundle(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"0 \.index files in this folder: none"):
        (tmp_path / "empty").mkdir()
        read_bundle(tmp_path / "empty")
    with pytest.raises(DataError, match="no regular file"):
        (tmp_path / "folder.index").mkdir()
        read_bundle(tmp_path / "folder")
    write(tmp_path / "two", TENSORS, shards=2)
    (tmp_path / "two.data-00001-of-00002").unlink()
    with pytest.raises(DataError, match=r"two\.data-00001-of-00002\n  found +no such file"):
        read_bundle(tmp_path / "two")


def test_files_that_are_too_large_are_not_read(small: Path) -> None:
    for suffix, limit in ((".data-00000-of-00001", MAX_DATA_BYTES), (".index", MAX_INDEX_BYTES)):
        os.truncate(small.with_name(small.name + suffix), limit + 1)
        tracemalloc.start()
        with pytest.raises(DataError, match=f"{limit + 1:,} bytes"):
            read_bundle(small)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


# Hostile files: checksums hold, what they say is wrong


def one(value: bytes, key: bytes = b"w") -> bytes:
    """An index of one tensor with this entry."""
    return table(content([HEADER, (key, value)]))


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "a text": (b"model_checkpoint_path: model.ckpt-27465036, and so on\n", "the magic number"),
    "another magic number": (closed(b"", [], MAGIC + 1), "0xdb4775248b80fb58"),
    "no blocks": (closed(b"", []), "without a bundle's header"),
    "no header": (table(content([(b"w", entry(1, (), 4))])), "without a bundle's header"),
    "block beyond the file": (closed(b"", [(b"a", varint(0) + varint(1 << 40))]), "a block at byte 0 of 1,099,511"),
    "block at a huge offset": (closed(b"", [(b"a", varint(1 << 63) + varint(1))]), "a block at byte 9,223,372,036,85"),
    "handle that is cut off": (closed(b"", [(b"a", b"\xff")]), "0 bytes, at byte 1 of the index of blocks"),
    "handle of eleven bytes": (closed(b"", [(b"a", b"\xff" * 10 + b"\x01")]), "more than 64 bits"),
    "one block twice": (closed(sealed(content([HEADER])), [(b"a", b"\0\x11"), (b"b", b"\0\x11")]), "a block at byte 0"),
    "Snappy": (closed(sealed(content([HEADER]), 1), [(b"a", b"\0\x11")]), r"compressed \(Snappy\)"),
    "another compression": (closed(sealed(content([HEADER]), 9), [(b"a", b"\0\x11")]), "unknown type 9"),
    "restarts beyond the block": (table(content([HEADER])[:-4] + b"\xff\xff\xff\xff"), "without a bundle's header"),
    "block of three bytes": (table(b"abc"), "without a bundle's header"),
    "name that shares too much": (table(b"\x05\x00\x00" + content(())), "shares 5 of 0 bytes and adds 0"),
    "name that is too long": (one(b"", b"w" * (MAX_NAME_BYTES + 1)), "a name of at most 256 bytes"),
    "name beyond the block": (table(b"\x00\x7f\x00w" + content(())), "1 bytes, at byte 3 of the block at byte 0"),
    "value of 2^63 bytes": (table(b"\x00\x01" + varint(1 << 63) + b"w" + content(())), "0 bytes, at byte 13"),
    "names out of order": (table(content([HEADER, (b"b", entry(1, (), 4)), (b"a", b"")])), "the name 'a' behind 'b'"),
    "name twice": (table(content([HEADER, (b"w", entry(1, (), 4)), (b"w", b"")])), "the name 'w' behind 'w'"),
    "name that is no text": (one(entry(1, (), 4), b"\xff"), r"the name '\\\\xff'"),
    "no data files": (table(content([(b"", field(1, 0))])), "a bundle of 0 data files"),
    "too many data files": (table(content([(b"", field(1, 1 << 60))])), "a bundle of 1,152,921,504,606,846,976 data"),
    "another byte order": (table(content([(b"", field(1, 1) + field(2, 2))])), "the byte order 2"),
    "group in a message": (one(b"\x0b"), "a field of the wire type 3"),
    "message that is cut off": (one(field(1, 1) + b"\x12\x7f"), "0 bytes, at byte 4 of the entry of 'w'"),
    "no type": (one(entry(0, (), 4)), "TensorFlow's data type 0 in the entry of 'w'"),
    "text": (one(entry(7, (), 4)), "TensorFlow's data type 7"),
    "slices": (one(entry(1, (), 4) + field(7, b"\x0a\x00")), "slices of a partitioned variable"),
    "more bytes than the shape": (one(entry(1, (2, 3), 28)), r"28 bytes for float32\[2, 3\]"),
    "axis of -1": (one(entry(1, ((1 << 64) - 1,), 4)), "4 bytes for float32"),
    "too many axes": (one(entry(1, (1,) * 300, 4)), "at most 32 axes"),
    "shape beyond all memory": (one(entry(1, (1 << 62, 1 << 62), 1 << 63)), "9,223,372,036,854,775,808 bytes"),
    "no elements, huge axes": (one(entry(1, (0, 1 << 40, 1 << 40), 0)), "the shape"),
    "another data file": (one(entry(1, (), 4, shard=1)), "data file number 1"),
    "beyond the data": (one(entry(1, (), 4, offset=61)), "'w' in bytes 61 to 65"),
    "at a huge offset": (one(entry(1, (), 4, offset=1 << 63)), "'w' in bytes 9,223,372,036,854,775,808"),
    "more than all data": (one(entry(1, (1 << 28,), 1 << 30)), "tensors of 1,073,741,824 bytes"),
    "the same data twice": (table(content([HEADER, *((b"%d" % i, entry(1, (), 4, checksum=crc32c(bytes(4))))
                                                     for i in range(2))])), "'1' in bytes 0 to 4"),
    "another checksum": (one(entry(1, (), 4, checksum=5)), "the checksum 0x48674bc7 of 'w'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_index_is_refused(tmp_path: Path, case: str) -> None:
    index, found = MALFORMED[case]
    path = tmp_path / "model.index"
    path.write_bytes(index)
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(64))
    started = time.process_time()
    with pytest.raises(DataError, match=found) as caught:
        read_bundle(path)
    assert time.process_time() - started < 2
    assert f"checkpoint {tmp_path / 'model.'}" in str(caught.value) and "expected" in str(caught.value)


def test_damage_under_right_checksums_is_refused_or_harmless(small: Path) -> None:
    """Blocks are damaged, then sealed anew, so that whatever stands behind the checksums has to cope."""
    path = small.with_name(small.name + ".index")
    size = path.read_bytes().index(struct.pack("<II", 0, 1)) + 8
    block = path.read_bytes()[:size]
    refused, slowest, highest = 0, 0.0, 0
    for seed in range(MUTANTS):
        chance = random.Random(seed)
        damaged = bytearray(block)
        for _ in range(chance.randint(1, 4)):
            place, length = chance.randrange(len(damaged)), chance.choice((1, 1, 2, 9))
            piece = bytes(damaged[place:place + length])
            damaged[place:place + length] = chance.choice((chance.randbytes(len(piece)), b"", piece * 2))
        path.write_bytes(table(bytes(damaged)))
        tracemalloc.start()
        started = time.process_time()
        try:
            read_bundle(small)
        except DataError:
            refused += 1
        slowest = max(slowest, time.process_time() - started)
        highest = max(highest, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert refused > MUTANTS // 2
    assert slowest < 1.0
    assert highest < 4 << 20
