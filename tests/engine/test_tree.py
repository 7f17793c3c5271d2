"""Trees: flatten and unflatten are inverse, structures are keys, paths name leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine import tree

TREES = st.recursive(
    st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3), max_leaves=12)


@given(TREES)
def test_flatten_and_unflatten_are_inverse(node):
    leaves, structure = tree.flatten(node)
    assert tree.unflatten(structure, leaves) == node
    assert structure.leaf_count == len(leaves) == len(tree.paths(structure)) == len(set(tree.paths(structure)))
    assert hash(structure) == hash(tree.flatten(node)[1])


@given(TREES)
def test_map_keeps_the_structure(node):
    doubled = tree.map(lambda leaf: 2 * leaf, node)
    assert tree.flatten(doubled)[1] == tree.flatten(node)[1]
    assert tree.leaves(tree.map(lambda a, b: b - a, node, doubled)) == tree.leaves(node)


def test_paths():
    _, structure = tree.flatten({"encoder": [1, {"w": 2}], "head": (3, None)})
    assert tree.paths(structure) == ["encoder.0", "encoder.1.w", "head.0"]


@pytest.mark.parametrize(("first", "second"), [
    ([1], (1,)), ([1, 2], [1]), ({"a": 1}, {"b": 1}), (None, 1), ([None], [1])])
def test_different_structures(first, second):
    assert tree.flatten(first)[1] != tree.flatten(second)[1]
    with pytest.raises(ValueError, match="different structure"):
        tree.map(lambda a, b: a, first, second)
