"""Files of arrays: safetensors, written whole or not at all.

Invariant: a reader sees the old file or the new one, never a part of either, whenever the writer or the machine stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors

from core.engine import dtypes, tree
from core.engine.array import Array, as_array
from core.engine.errors import CheckpointError, ConfigError, compose
from core.engine.graph import Aval

PART = ".part"
"""Suffix of a file that is being written; one that no process is writing may be removed."""

_LISTED = 6


@contextlib.contextmanager
def written_whole(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` when the block ends, and is dropped if the block fails.

    Parameters
    ----------
    path : the file to replace or make, in a folder that exists
    mode : ``"wb"``, or ``"w"`` for UTF-8 text with the line ends as written

    Raises
    ------
    ConfigError
        If a folder is in its place.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder_for(out: Path) -> None:
    """Make the folder that `out` will lie in, and those above it, where they are missing.

    Raises
    ------
    ConfigError
        If a file is in their place.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out {out} lies in something that is a file, not a folder") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path | str, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays and texts.

    Parameters
    ----------
    path : the file to replace or make
    arrays : Arrays or numpy arrays of any dtype of the engine, by name
    metadata : texts by name

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is still there.
    """
    held = {name: as_array(value) for name, value in arrays.items()}
    # The writer takes addresses: `storages` keeps what they point to alive.
    storages = {name: np.array(array.storage, order="C", copy=None) for name, array in held.items()}
    specs = {name: safetensors.TensorSpec(dtype=held[name].dtype.name, shape=list(held[name].shape),
                                          data_ptr=storage.ctypes.data, data_len=storage.nbytes)
             for name, storage in storages.items()}
    # safetensors 0.8 writes an unreadable header for no arrays and an empty metadata that is not None.
    content = safetensors.serialize(specs, metadata=dict(metadata) if metadata else None)
    with written_whole(Path(path)) as file:
        file.write(content)


def load(path: Path | str) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and texts of a file.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is cut off, damaged or of another format.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CheckpointError(f"there is no weight file {path}") from None
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        arrays = {name: _array(entry) for name, entry in entries}
        metadata = _metadata(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(compose(f"{path} is not a whole safetensors file", [
            ("found", f"{len(content)} bytes; {error}"),
            ("hint", "it was cut off, damaged or is of another format; copy it again or take an earlier one"),
        ])) from error
    return arrays, metadata


def _array(entry: Mapping[str, Any]) -> Array:
    name = str(entry["dtype"]).lower()
    if name not in dtypes.BY_NAME:
        raise ValueError(f"dtype {entry['dtype']}, which the engine does not have")
    dtype = dtypes.BY_NAME[name]
    shape = tuple(entry["shape"])
    return Array(Aval(dtype, shape), np.frombuffer(entry["data"], dtype.storage).reshape(shape))


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header: 8 bytes of length, then JSON. `deserialize` has checked both."""
    header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__", {}))


def arrays_of(node: Any, prefix: str = "") -> dict[str, Array]:
    """The leaves of a tree by their dotted paths, such as ``encoder.layers.0.weight``."""
    leaves, structure = tree.flatten(node)
    paths = tree.paths(structure, prefix)
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise CheckpointError(f"two leaves of the tree have the path {twice[0]!r}; rename one of them")
    return {path: as_array(leaf) for path, leaf in zip(paths, leaves, strict=True)}


def tree_of(arrays: Mapping[str, Array], like: Any, prefix: str = "", source: str = "the file") -> Any:
    """The tree of the structure of `like` with these arrays as its leaves.

    Parameters
    ----------
    arrays : by dotted path; under a prefix, names outside it are left alone
    like : a tree whose leaves have the dtypes and shapes to expect
    source : what holds the arrays, for the message

    Raises
    ------
    CheckpointError
        If names are missing or left over, or dtypes or shapes differ.
    """
    expected = arrays_of(like, prefix)
    inside = {name for name in arrays if not prefix or name == prefix or name.startswith(f"{prefix}.")}
    different = [f"{name} is {arrays[name].aval}, expected {array.aval}" for name, array in expected.items()
                 if name in inside and arrays[name].aval != array.aval]
    problems = [("missing", sorted(expected.keys() - inside)), ("left over", sorted(inside - expected.keys())),
                ("different", different)]
    rows = [(label, _listed(names)) for label, names in problems if names]
    if rows:
        raise CheckpointError(compose(f"{source} was made for another model", [
            *rows, ("hint", "build the model with the settings it was saved with")]))
    return tree.unflatten(tree.flatten(like)[1], [arrays[name] for name in expected])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def save_tree(path: Path | str, node: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Write the leaves of a tree under their dotted paths; see `save`."""
    save(path, arrays_of(node), metadata)


def load_tree(path: Path | str, like: Any) -> Any:
    """The tree in a file that `save_tree` wrote, of the structure, dtypes and shapes of `like`.

    Raises
    ------
    CheckpointError
        If the file cannot be read (see `load`) or holds another tree (see `tree_of`).
    """
    return tree_of(load(path)[0], like, source=str(path))
