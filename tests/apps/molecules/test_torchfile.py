"""The reader of PyTorch files: right numbers for every dtype; no code run, no hang, no other error for bad files."""

from __future__ import annotations

import gc
import io
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.molecules.chemprop import ChempropModel, read_chemprop
from apps.molecules.torchfile import MAX_DIRECTORY_BYTES, MAX_PICKLE_BYTES, read_torch_file
from apps.molecules.unpickling import Opaque
from core.engine.errors import DataError

FIXTURES = ["example_model_v1_regression_mol.pt", "example_model_v2_regression_mol.pt"]
MUTANTS = 300


def write(path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A torch zip file with this pickle; a member ``data_0`` is storage 0."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickle)
        for name, data in members.items():
            archive.writestr(f"model/{name.replace('_', '/')}", data)
    return path


# The opcodes of pickle protocol 2 that the tests assemble by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tuple_(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(name: str, *args: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + tuple_(*args) + b"R"


def shape(*sizes: int) -> bytes:
    return tuple_(*map(integer, sizes))


def storage(kind: str, count: int) -> bytes:
    return tuple_(text("storage"), f"c{kind}\n".encode(), text("0"), text("cpu"), integer(count)) + b"Q"


def tensor(kind: str, count: int, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    hooks = call("collections.OrderedDict")
    parts = (storage(f"torch\n{kind}Storage", count), integer(offset), shape(*sizes), shape(*strides), b"\x89", hooks)
    return call("torch._utils._rebuild_tensor_v2", *parts)


@pytest.mark.parametrize("order", ["little", "big", None])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", "f4"),
        ("Double", "f8"),
        ("Half", "f2"),
        ("Long", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
    ],
)
def test_a_storage_of_every_type_and_byte_order(tmp_path: Path, kind: str, dtype: str, order: str | None) -> None:
    values = np.array([[0, 1, 2], [3, 4, 100]]).astype(dtype)
    stored = values.astype(values.dtype.newbyteorder(">" if order == "big" else "<"))
    record = {} if order is None else {"byteorder": order.encode()}
    path = write(tmp_path / "m.pt", tensor(kind, 6, 0, (2, 3), (3, 1)) + b".", data_0=stored.tobytes(), **record)
    read = read_torch_file(path)
    assert read.dtype == values.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, values)
    assert not read.flags.writeable


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.0e38, 0.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    read = read_torch_file(write(tmp_path / "m.pt", tensor("BFloat16", 4, 0, (4,), (1,)) + b".", data_0=bits.tobytes()))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, rtol=2**-7)
    assert read[1] == -2.5


def test_offsets_and_strides_are_those_of_a_view(tmp_path: Path) -> None:
    values = np.arange(24, dtype="<f4")
    path = write(tmp_path / "m.pt", tensor("Float", 24, 4, (5, 3), (1, 6)) + b".", data_0=values.tobytes())
    expected = np.array([[4 + row + 6 * column for column in range(3)] for row in range(5)], np.float32)
    np.testing.assert_array_equal(read_torch_file(path), expected)


@pytest.mark.parametrize("fortran", [False, True])
def test_a_numpy_array_inside_the_pickle(tmp_path: Path, fortran: bool) -> None:
    values = np.array([[1.5, 2.0, -3.0], [4.0, 5.0, 300.25]], ">f8")
    data = call("_codecs.encode", text(values.tobytes("F" if fortran else "C").decode("latin1")), text("latin1"))
    empty = call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", shape(0), text("b"))
    dtype = call("numpy.dtype", text("f8"), b"\x89", b"\x88") + tuple_(integer(3), text(">")) + b"b"
    state = tuple_(integer(1), shape(2, 3), dtype, b"\x88" if fortran else b"\x89", data)
    np.testing.assert_array_equal(read_torch_file(write(tmp_path / "m.pt", empty + state + b"b.")), values)


@pytest.mark.realdata
def test_every_number_of_the_files_has_a_plain_type(realdata: Path) -> None:
    for name, weights in zip(FIXTURES, (9, 16), strict=True):
        content = read_torch_file(realdata / "molecules/chemprop_fixtures" / name)
        assert len(content["state_dict"]) == weights
        assert all(isinstance(weight, np.ndarray) for weight in content["state_dict"].values())


# Hostile pickles


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("os.system", "touch {}"),
        ("posix.system", "touch {}"),
        ("subprocess.getoutput", "touch {}"),
        ("builtins.eval", "open('{}', 'w').close()"),
        ("builtins.exec", "open('{}', 'w').close()"),
    ],
)
@pytest.mark.parametrize("form", ["reduce", "newobj", "build", "append"])
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, name: str, command: str, form: str) -> None:
    sentinel = tmp_path / "sentinel"
    command = command.format(sentinel)
    argument = tuple_(text(command))
    module, _, function = name.rpartition(".")
    named = f"c{module}\n{function}\n".encode()
    pickle = {
        "reduce": named + argument + b"R.",
        "newobj": named + argument + b"\x81.",
        "build": named + b")R" + argument + b"b.",
        "append": named + argument + b"R" + text(command) + b"a.",
    }[form]
    record = read_torch_file(write(tmp_path / "m.pt", pickle))
    assert isinstance(record, Opaque) and record.name == name
    assert not sentinel.exists()
    with pytest.raises(DataError, match="Opaque"):
        read_chemprop(tmp_path / "m.pt")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Times of the reader alone: a collection walks whatever the tests before have left in memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


NUMPY = call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", shape(0), text("b"))
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty pickle": (b"", "end of the pickle"),
    "no stop": (b"N", "end of the pickle"),
    "stop on an empty stack": (b".", "empty stack"),
    "opcode of protocol 0": (b"I1\n.", "opcode 0x49"),
    "opcode INST": (b"(ios\nsystem\n.", "opcode 0x69"),
    "persistent text": (b"P0\n.", "opcode 0x50"),
    "extension registry": (b"\x82\x01.", "opcode 0x82"),
    "text that is too short": (b"X\xff\xff\xff\xffabc.", "end of the pickle"),
    "text that is not UTF-8": (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
    "global without an end": (b"cos", "end of the pickle"),
    "memo never stored": (b"h\x07.", "memo entry 7"),
    "tuple without a mark": (b"t.", "no mark"),
    "pop through a mark": (b"N(0.", "opcode 0x30"),
    "append to a number": (b"K\x01Na.", "a value of type int"),
    "key without a value": (b"}(Nu.", "key without a value"),
    "list as a key": (b"}]Ns.", "key of type list"),
    "tuple as a key": (b"})Ns.", "key of type tuple"),
    "long key": (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns.", "key of type int"),
    "call of a number": (b"K\x01)R.", "call of a int"),
    "call without a tuple": (b"cos\nsystem\nNR.", "tuple of arguments"),
    "too few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "does not take"),
    "state for a number": (b"K\x01Nb.", "state for a int"),
    "dictionary from pairs": (call("collections.OrderedDict", b"]") + b".", "ordered dictionary"),
    "encoding with a codec": (call("_codecs.encode", text("a"), text("zlib")) + b".", "latin1"),
    "encoding beyond latin1": (call("_codecs.encode", text("\u20ac"), text("latin1")) + b".", "latin1"),
    "array of objects": (call("numpy.dtype", text("O8"), b"\x89", b"\x88") + b".", "other than numbers"),
    "array without a state": (NUMPY + b"Nb.", "unknown state"),
    "reference to a file": (text("/etc/passwd") + b"Q.", "outside the pickle"),
    "storage of no type": (storage("os\nsystem", 1) + b".", "type os.system"),
    "storage of another length": (tensor("Float", 9, 0, (9,), (1,)) + b".", "32 bytes in storage '0'"),
    "tensor beyond its storage": (tensor("Float", 8, 4, (5,), (1,)) + b".", "ends at element 8"),
    "tensor before its storage": (tensor("Float", 8, -1, (5,), (1,)) + b".", "negative or huge"),
    "tensor that repeats itself": (tensor("Float", 8, 0, (9,), (0,)) + b".", "at most 8 elements"),
    "tensor without strides": (tensor("Float", 8, 0, (2, 2), (1,)) + b".", "stride for each axis"),
    "two storage types": (storage("torch\nIntStorage", 8) + storage("torch\nFloatStorage", 8) + b".", "and as torch"),
    "deep lists": (b"]" * 200 + b"a" * 199 + b".", "nested deeper"),
    "deep tuples": (b"N" + b"\x85" * 100_000 + b".", "nested deeper"),
    "circle": (b"]q\x00h\x00a.", "nested deeper|circle"),
    "more steps than a model": (b"(" + b"N" * 1_100_000 + b"t.", "more than 1,000,000 steps"),
    "text encoded again and again": (
        text("a" * 50_000) + b"q\x00" + call("_codecs.encode", b"h\x00", text("latin1")) * 50 + b".",
        "more than 1,000,000 steps",
    ),
    "pickle that is too large": (text("a" * MAX_PICKLE_BYTES) + b".", "a pickle of"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.usefixtures("no_collector")
def test_a_malformed_pickle_is_refused(tmp_path: Path, case: str) -> None:
    pickle, found = MALFORMED[case]
    path = write(tmp_path / "m.pt", pickle, data_0=bytes(32))
    times = []
    for _ in range(3):  # the least of three: a busy machine can make any one of them slow
        started = time.thread_time()
        with pytest.raises(DataError, match=found) as caught:
            read_torch_file(path)
        times.append(time.thread_time() - started)
    assert min(times) < 2
    assert str(path) in str(caught.value) and "expected" in str(caught.value)


# Hostile archives


def test_the_archive_is_checked_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = write(tmp_path / "bomb.pt", b"N.", zipfile.ZIP_DEFLATED, data_0=bytes(1 << 26))
    assert bomb.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="compressed member 'model/data"):
        read_torch_file(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def damaged(whole: bytes, name: str) -> bytes:
    """A good file with one thing wrong."""
    end = len(whole) - 22
    return {
        "empty": b"",
        "a text": b"smiles,logS\n" * 20,
        "before PyTorch 1.6": b"\x80\x02\x8a\x0a" + whole,
        "first bytes only": whole[:20],
        "half": whole[: len(whole) // 2],
        "last byte gone": whole[:-1],
        "long directory": whole[: end + 12] + struct.pack("<I", MAX_DIRECTORY_BYTES + 1) + whole[end + 16 :],
        "directory elsewhere": whole[: end + 16] + struct.pack("<I", 0) + whole[end + 20 :],
        "changed weight": whole.replace(b"weight-bytes", b"weight_bytes", 1),
    }[name]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("empty", r"first bytes \(none\)"),
        ("a text", "first bytes 73 6d 69 6c"),
        ("before PyTorch 1.6", "first bytes 80 02"),
        ("first bytes only", "20 bytes"),
        ("half", "truncated"),
        ("last byte gone", "truncated"),
        ("long directory", "table of contents of"),
        ("directory elsewhere", "BadZipFile"),
        ("changed weight", "CRC"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str, found: str) -> None:
    pickle = tensor("Byte", 12, 0, (12,), (1,)) + b"."
    path = write(tmp_path / "m.pt", pickle, data_0=b"weight-bytes", padding=bytes(200))
    path.write_bytes(damaged(path.read_bytes(), name))
    with pytest.raises(DataError, match=found):
        read_torch_file(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_torch_file(path)


def test_missing_and_double_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no member 'data/0'"):
        read_torch_file(write(tmp_path / "m.pt", tensor("Float", 8, 0, (8,), (1,)) + b"."))
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    with pytest.raises(DataError, match=r"2 members named data\.pkl"):
        read_torch_file(tmp_path / "two.pt")
    with pytest.raises(DataError, match="byte order b'middle'"):
        read_torch_file(write(tmp_path / "m.pt", b"N.", byteorder=b"middle"))


# Random damage


def scatter(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes overwritten, removed or repeated."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(max(1, len(result)))
        length = chance.choice((1, 1, 1, 2, 9))
        piece = bytes(result[place : place + length])
        result[place : place + length] = chance.choice((chance.randbytes(len(piece)), b"", piece * 2))
    return bytes(result)


def mutant(whole: bytes, members: dict[str, bytes], chance: random.Random) -> bytes:
    """One damaged copy: truncated, overwritten in weights or directory, or well packed with a damaged pickle."""
    kind = chance.randrange(4)
    if kind == 0:
        return whole[: chance.randrange(len(whole))]
    if kind == 1:
        place = chance.randrange(chance.choice((0, len(whole) - 2500)), len(whole) - 100)
        return whole[:place] + scatter(whole[place:], chance)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, scatter(data, chance) if name.endswith("data.pkl") else data)
    return stream.getvalue()


@pytest.mark.realdata
@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.usefixtures("no_collector")
def test_damaged_models_give_a_data_error_or_a_model(realdata: Path, tmp_path: Path, name: str) -> None:
    whole = (realdata / "molecules/chemprop_fixtures" / name).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    outcomes: dict[Any, int] = {DataError: 0, ChempropModel: 0}
    path, slowest, highest = tmp_path / "mutant.pt", 0.0, 0
    for seed in range(MUTANTS):
        path.write_bytes(mutant(whole, members, random.Random(seed)))
        tracemalloc.start()
        started = time.thread_time()
        try:
            outcomes[type(read_chemprop(path))] += 1
        except DataError:
            outcomes[DataError] += 1
        slowest = max(slowest, time.thread_time() - started)
        highest = max(highest, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sum(outcomes.values()) == MUTANTS
    assert outcomes[DataError] > MUTANTS // 2 and outcomes[ChempropModel] > 0
    assert slowest < 2.0
    assert highest < 32 << 20
