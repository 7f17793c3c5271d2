"""Module: a frozen dataclass that is a tree of arrays; calling it is pure.

Invariant: a module never changes; training makes a new one with `tree.map`. Fields made by `static()` are part of the
structure, all other fields are children.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, dataclass_transform

from core.engine import tree
from core.engine.array import Array
from core.engine.trace import current_layer, is_staging, layer


def static(**options: Any) -> Any:
    """A field that holds a hashable setting (a size, a name), not an array."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
class Module:
    """Base of layers and models: a subclass lists its fields and defines ``__call__``."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        register_dataclass(cls)
        if "__call__" in cls.__dict__:
            cls.__call__ = _named(cls.__dict__["__call__"])  # type: ignore[method-assign]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no __call__")


def register_dataclass(kind: type) -> type:
    """Make a dataclass a node of trees: static fields are structure, the others children. Usable as a decorator."""
    static_names = tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get("static"))
    names = tuple(f.name for f in dataclasses.fields(kind) if not f.metadata.get("static"))

    def flatten(node: Any) -> tree.Children:
        return names, [getattr(node, name) for name in names], tuple(getattr(node, name) for name in static_names)

    def unflatten(settings: Any, children: Any) -> Any:
        node: Any = object.__new__(kind)
        for name, value in zip((*names, *static_names), (*children, *settings), strict=True):
            object.__setattr__(node, name, value)
        return node

    tree.register(kind, flatten, unflatten)
    return kind


def _named(call: Callable[..., Any]) -> Callable[..., Any]:
    """Run a module's call under its name: the attribute of the module that calls it, else its class."""

    @functools.wraps(call)
    def named(self: Module, *arguments: Any, **options: Any) -> Any:
        if not is_staging():
            return call(self, *arguments, **options)
        with layer(_name_in(current_layer(), self), self):
            return call(self, *arguments, **options)

    return named


def _name_in(parent: object | None, child: Module) -> str:
    if isinstance(parent, Module):
        for field in dataclasses.fields(parent):  # type: ignore[arg-type]
            for name, part in _parts(field.name, getattr(parent, field.name)):
                if part is child:
                    return name
    return type(child).__name__


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _parts(f"{name}.{index}", part)


def parameters(module: Any) -> dict[str, Array]:
    """Arrays of a module by dotted name, such as ``encoder.layers.0.weight``."""
    leaves, structure = tree.flatten(module)
    return dict(zip(tree.paths(structure), leaves, strict=True))


def map_modules(function: Callable[[str, Module], Any | None], node: Any, path: str = "") -> Any:
    """A tree with some of its modules replaced.

    Parameters
    ----------
    function : from the dotted path of a module and the module itself to what takes its place, which is not looked into;
        or to None, which keeps it and goes on inside
    """
    if isinstance(node, Module):
        found = function(path, node)
        if found is not None:
            return found
        children = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)  # type: ignore[arg-type]
                    if not field.metadata.get("static")}
        return replace(node, **{name: map_modules(function, child, joined(path, name))
                                for name, child in children.items()})
    if isinstance(node, tuple | list):
        return type(node)(map_modules(function, child, joined(path, str(index))) for index, child in enumerate(node))
    if isinstance(node, dict):
        return {name: map_modules(function, child, joined(path, str(name))) for name, child in node.items()}
    return node


def joined(path: str, name: str) -> str:
    """The dotted path of a child."""
    return f"{path}.{name}" if path else name


def replace(module: Any, **fields: Any) -> Any:
    """The module with some fields replaced."""
    return dataclasses.replace(module, **fields)


def child(node: Any, path: str) -> Any:
    """What lies at a dotted path of a tree of modules, tuples, lists and dicts; the tree itself at the empty path."""
    for name in path.split(".") if path else ():
        if isinstance(node, tuple | list):
            node = node[int(name)]
        else:
            node = node[name] if isinstance(node, dict) else getattr(node, name)
    return node


def with_child(node: Any, path: str, module: Any) -> Any:
    """A tree with another module at a dotted path where it has one."""
    return map_modules(lambda found, _: module if found == path else None, node)
