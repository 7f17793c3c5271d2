"""The pickle inside of PyTorch's files, run by a small interpreter of our own.

Invariant: nothing that a pickle names is ever imported or called. The interpreter knows a fixed set of opcodes and
builders; every other class or function becomes an inert `Opaque` record, and its steps are counted.

The opcodes are those of pickle protocol 2, PyTorch's default, as the standard library's ``pickletools`` documents them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from core.engine.errors import DataError, compose

MAX_WORK = 1_000_000
"""Most steps and copied elements of one pickle; a chemprop model takes about three thousand."""
MAX_NESTING = 100
MAX_SIZE = 256 << 20
"""Largest size, stride or offset of a tensor, in elements."""

Storage = Callable[[str, str, int], NDArray[Any]]
"""The elements of a tensor storage by its type, its key and its number of elements."""


@dataclass(eq=False)
class Opaque:
    """A class, function or instance that this reader keeps as a record and never touches.

    Attributes
    ----------
    name : module and name, as ``chemprop.nn.agg.MeanAggregation``
    args : arguments it would have been called with
    state : what would have been its ``__setstate__`` argument
    items : elements that would have been added to it; pairs of key and value for a mapping
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


class _Namespace(dict[str, Any]):
    """An object whose attributes are its entries, as ``argparse.Namespace``."""


@dataclass(eq=False)
class _Array:
    """A numpy array or dtype between its creation and the state that completes it."""

    dtype: np.dtype[Any] | None = None


def unpickle(where: Path, data: bytes, storage: Storage, kinds: Collection[str]) -> Any:
    """The object that a pickle describes.

    Parameters
    ----------
    where : the file, for messages
    kinds : the types that `storage` knows

    Raises
    ------
    DataError
        If the pickle is no whole one, holds too much, or uses a feature outside the sets of opcodes and builders below.
    """
    result = _Interpreter(where, data, storage, kinds).run()
    if _nesting(result) > MAX_NESTING:
        refuse(where, f"containers nested deeper than {MAX_NESTING}, or in a circle", "a shallow tree")
    return result


def refuse(where: Path, found: str, expected: str) -> NoReturn:
    """Say that a file cannot be read, and what was found there and expected."""
    message = compose(f"cannot read the PyTorch file {where}", [("found", found), ("expected", expected)])
    raise DataError(message) from None


def _nesting(root: Any) -> int:
    """Greatest depth of the containers under `root`, counted up to one more than `MAX_NESTING`."""
    heights: dict[int, int] = {}
    stack = [(root, False)]
    open_ids: set[int] = set()
    while stack:
        value, finished = stack.pop()
        children: Iterable[Any] = value.values() if isinstance(value, dict) else value
        if finished:
            open_ids.discard(id(value))
            heights[id(value)] = 1 + max((heights.get(id(child), 0) for child in children), default=0)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in heights:
            if id(value) in open_ids:
                return MAX_NESTING + 1
            open_ids.add(id(value))
            stack.append((value, True))
            stack.extend((child, False) for child in children)
    return heights.get(id(root), 0)


class _Interpreter:
    """The pickle machine: a stack, a list of marks and a memo, over bytes that are never trusted."""

    def __init__(self, where: Path, data: bytes, storage: Storage, kinds: Collection[str]) -> None:
        self.where, self.data, self.storage, self.kinds = where, data, storage, kinds
        self.position = self.work = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (opcode := self.take(1)) != b".":
            self.spend(1)
            if opcode not in _OPCODES:
                self.refuse(f"opcode 0x{opcode.hex()}", "the opcodes that torch.save writes")
            _OPCODES[opcode](self)
        return self.pop()

    def refuse(self, found: str, expected: str) -> NoReturn:
        refuse(self.where, f"{found}, at byte {self.position:,} of data.pkl", expected)

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            self.refuse(f"more than {MAX_WORK:,} steps", "a pickle of the size of a model's description")

    # Reading arguments

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            self.refuse("the end of the pickle", f"{count:,} more bytes")
        self.position += count
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("bytes that are not UTF-8", "text")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        return self.text((end if end >= 0 else len(self.data)) + 1 - self.position)[:-1]

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, *kinds: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.refuse("an empty stack", "a value")
        if kinds and not isinstance(self.stack[-1], kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            self.refuse(f"a value of type {type(self.stack[-1]).__name__}", names)
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            self.refuse("no mark on the stack", "a mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def remember(self, index: int) -> None:
        self.memo[index] = value = self.pop()
        self.push(value)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.refuse(f"memo entry {index}, which was never stored", "a stored entry")
        self.push(self.memo[index])

    # Containers

    def extend(self, values: list[Any]) -> None:
        target = self.pop(list, Opaque)
        (target.items if isinstance(target, Opaque) else target).extend(values)
        self.push(target)

    def set_items(self, values: list[Any]) -> None:
        target = self.pop(dict, Opaque)
        if len(values) % 2:
            self.refuse("a key without a value", "pairs")
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Opaque):
            target.items.extend(pairs)
        else:
            target.update((self.key(key), value) for key, value in pairs)
        self.push(target)

    def key(self, value: Any) -> Any:
        """`value` if it may be a key: tuples and long integers could be made to collide by design."""
        if value is None or isinstance(value, (str, float)) or (isinstance(value, int) and value.bit_length() <= 64):
            return value
        self.refuse(f"a key of type {type(value).__name__}", "text or a number")

    # Objects

    def make(self, args: Any, function: Any) -> None:
        if not isinstance(function, Opaque) or not isinstance(args, tuple):
            self.refuse(f"a call of a {type(function).__name__}", "a named function and a tuple of arguments")
        builder = _BUILDERS.get(function.name)
        try:
            self.push(Opaque(function.name, args) if builder is None else builder(self, *args))
        except TypeError:
            self.refuse(f"arguments that {function.name} does not take", "those that torch.save writes")

    def build(self, state: Any) -> None:
        target = self.pop()
        if isinstance(target, _Namespace) and isinstance(state, dict):
            self.spend(len(state))
            target.update(state)
        elif isinstance(target, _Array):
            target = _complete(self, target, state)
        elif isinstance(target, Opaque):
            target.state = state
        elif not isinstance(target, dict):  # a dictionary's own attributes (torch's `_metadata`) carry no weights
            self.refuse(f"a state for a {type(target).__name__}", "an object")
        self.push(target)

    def persistent(self) -> None:
        match self.pop():
            case (str("storage"), Opaque(name=kind), str(key), str(), int(count)) if kind in self.kinds:
                self.push(self.storage(kind, key, count))
            case (str("storage"), Opaque(name=kind), *_):
                self.refuse(f"a storage of type {kind}", " ".join(self.kinds))
            case _:
                self.refuse("a reference to something outside the pickle", "a tensor storage")


def _tensor(machine: _Interpreter, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
    """A view of a storage, as ``torch._utils._rebuild_tensor_v2``; sizes, strides and offset count elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        machine.refuse("a tensor without a storage", "a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides) or len(shape) > 16:
        machine.refuse("a tensor without a stride for each axis", "at most 16 sizes and as many strides")
    if not all(type(number) is int and 0 <= number <= MAX_SIZE for number in (offset, *shape, *strides)):
        machine.refuse("a negative or huge size, stride or offset", "numbers within the storage")
    elements = math.prod(max(size, 1) for size in shape)
    if 0 in shape and elements <= MAX_SIZE:
        return np.empty(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.size or elements > storage.size:
        machine.refuse(f"a tensor {shape} that ends at element {last:,}", f"at most {storage.size:,} elements")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _dictionary(machine: _Interpreter, *args: Any) -> dict[Any, Any]:
    """An ordered dictionary; `torch.save` adds the entries afterwards."""
    return {} if not args else machine.refuse("an ordered dictionary made from something else", "an empty one")


def _encode(machine: _Interpreter, text: Any, codec: Any) -> bytes:
    """The bytes that protocol 2 writes as text, one character each."""
    if not isinstance(text, str) or not isinstance(codec, str) or codec != "latin1" or max(text, default="") > "\xff":
        machine.refuse("an encoding of text", "latin1")
    machine.spend(len(text))
    return text.encode("latin1")


def _dtype(machine: _Interpreter, code: Any, *_: Any) -> _Array:
    if not isinstance(code, str) or code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
        machine.refuse("a numpy array of something other than numbers", "numbers")
    return _Array(np.dtype(code))


def _complete(machine: _Interpreter, target: _Array, state: Any) -> Any:
    """Finish a numpy dtype (its byte order) or a numpy array (shape, dtype, order and bytes)."""
    match state:
        case (int(), str("<" | ">" | "|" as order), *_) if target.dtype is not None:
            return _Array(target.dtype.newbyteorder(order))
        case (int(), tuple(shape), _Array(dtype=np.dtype() as dtype), bool(fortran), bytes(data)):
            whole = all(type(size) is int and size > 0 for size in shape) and len(shape) <= 16
            if not whole or math.prod(shape) * dtype.itemsize != len(data):
                machine.refuse(f"{len(data):,} bytes for a numpy array", f"{shape} elements of {dtype}")
            machine.spend(len(data))
            array = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
            return array.astype(dtype.newbyteorder("="))
    machine.refuse("an unknown state of a numpy array", "shape, type, order and bytes")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda machine, tensor, *_: tensor,
    "collections.OrderedDict": _dictionary,
    "_codecs.encode": _encode,
    "numpy.ndarray": lambda machine, *_: _Array(),
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": lambda machine, *_: _Array(),
    "numpy._core.multiarray._reconstruct": lambda machine, *_: _Array(),
    "argparse.Namespace": lambda machine, *_: _Namespace(),
    "lightning.fabric.utilities.data.AttributeDict": lambda machine, *_: _Namespace(),
    "pytorch_lightning.utilities.parsing.AttributeDict": lambda machine, *_: _Namespace(),
}


_OPCODES: dict[bytes, Callable[[_Interpreter], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"K": lambda m: m.push(m.number("<B")),  # BININT1
    b"M": lambda m: m.push(m.number("<H")),  # BININT2
    b"J": lambda m: m.push(m.number("<i")),  # BININT
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),  # LONG1
    b"G": lambda m: m.push(m.number(">d")),  # BINFLOAT
    b"X": lambda m: m.push(m.text(m.number("<I"))),  # BINUNICODE
    b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"\x85": lambda m: m.tuple_of(1),  # TUPLE1
    b"\x86": lambda m: m.tuple_of(2),  # TUPLE2
    b"\x87": lambda m: m.tuple_of(3),  # TUPLE3
    b"t": lambda m: m.push(tuple(m.pop_marked())),  # TUPLE
    b"]": lambda m: m.push([]),  # EMPTY_LIST
    b"a": lambda m: m.extend([m.pop()]),  # APPEND
    b"e": lambda m: m.extend(m.pop_marked()),  # APPENDS
    b"}": lambda m: m.push({}),  # EMPTY_DICT
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.pop_marked()),  # SETITEMS
    b"q": lambda m: m.remember(m.number("<B")),  # BINPUT
    b"r": lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
    b"h": lambda m: m.recall(m.number("<B")),  # BINGET
    b"j": lambda m: m.recall(m.number("<I")),  # LONG_BINGET
    b"c": lambda m: m.push(Opaque(f"{m.line()}.{m.line()}")),  # GLOBAL
    b"R": lambda m: m.make(m.pop(), m.pop()),  # REDUCE
    b"\x81": lambda m: m.make(m.pop(), m.pop()),  # NEWOBJ
    b"b": lambda m: m.build(m.pop()),  # BUILD
    b"Q": lambda m: m.persistent(),  # BINPERSID
}
