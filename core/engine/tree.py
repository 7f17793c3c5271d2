"""Trees of arrays: nested tuples, lists, dicts, None and registered classes, flattened to leaves and rebuilt.

Invariant: ``unflatten(*reversed(flatten(x)))`` equals x, and a `Structure` is hashable, so that it can key a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Children = tuple[Sequence[str], Sequence[Any], Hashable]


@dataclass(frozen=True)
class Structure:
    """The shape of a tree: the node's type, what is static in it, its children's names and structures."""

    kind: type | None
    static: Hashable = None
    names: tuple[str, ...] = ()
    children: tuple[Structure, ...] = ()

    @property
    def leaf_count(self) -> int:
        return 1 if self.kind is None else sum(child.leaf_count for child in self.children)


LEAF = Structure(None)

_Unflatten = Callable[[Any, Sequence[Any]], Any]
_registry: dict[type, tuple[Callable[[Any], Children], _Unflatten]] = {}


def register(kind: type, flatten: Callable[[Any], Children], unflatten: _Unflatten) -> None:
    """Make a class a node: `flatten` gives names, children and hashable static data; `unflatten` takes them back."""
    _registry[kind] = (flatten, unflatten)


register(tuple, lambda node: (range_names(node), node, None), lambda static, children: tuple(children))
register(list, lambda node: (range_names(node), node, None), lambda static, children: list(children))
register(dict, lambda node: ([str(key) for key in node], list(node.values()), tuple(node)),
         lambda static, children: dict(zip(static, children, strict=True)))
register(type(None), lambda node: ((), (), None), lambda static, children: None)


def range_names(node: Sequence[Any]) -> list[str]:
    return [str(index) for index in range(len(node))]


@functools.cache
def tuple_of_leaves(count: int) -> Structure:
    """The structure of a tuple of so many leaves."""
    return Structure(tuple, None, tuple(range_names(range(count))), (LEAF,) * count)


def flatten(node: Any) -> tuple[list[Any], Structure]:
    """Leaves in order, and the structure."""
    leaves: list[Any] = []
    return leaves, _flatten(node, leaves)


def _flatten(node: Any, leaves: list[Any]) -> Structure:
    entry = _registry.get(type(node))
    if entry is None:
        leaves.append(node)
        return LEAF
    names, children, static = entry[0](node)
    return Structure(type(node), static, tuple(names), tuple(_flatten(child, leaves) for child in children))


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    """The tree of this structure with these leaves."""
    return _unflatten(structure, iter(leaves))


def _unflatten(structure: Structure, leaves: Any) -> Any:
    if structure.kind is None:
        return next(leaves)
    children = [_unflatten(child, leaves) for child in structure.children]
    return _registry[structure.kind][1](structure.static, children)


def leaves(node: Any) -> list[Any]:
    """Leaves of a tree, in order."""
    return flatten(node)[0]


def paths(structure: Structure, prefix: str = "") -> list[str]:
    """Dotted name of every leaf, such as ``encoder.layers.0.weight``."""
    if structure.kind is None:
        return [prefix]
    found = []
    for name, child in zip(structure.names, structure.children, strict=True):
        found += paths(child, f"{prefix}.{name}" if prefix else name)
    return found


def map(function: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """Apply a function to the corresponding leaves of trees of one structure.

    Raises
    ------
    ValueError
        If the structures differ.
    """
    head, structure = flatten(first)
    columns = [head]
    for other in rest:
        other_leaves, other_structure = flatten(other)
        if other_structure != structure:
            raise ValueError(f"trees of different structure: leaves {paths(structure)} and {paths(other_structure)}")
        columns.append(other_leaves)
    return unflatten(structure, [function(*group) for group in zip(*columns, strict=True)])
