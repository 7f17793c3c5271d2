"""Modules: trees of arrays with static settings, and the names that their ops carry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core.engine import ops, tree
from core.engine.array import Array, as_array
from core.engine.jit import jit
from core.engine.module import Module, parameters, register_dataclass, replace, static


class Affine(Module):
    """x w + b, times a setting."""

    weight: Array
    bias: Array | None
    scale: float = static(default=1.0)

    def __call__(self, x):
        out = x @ self.weight * self.scale
        return out if self.bias is None else out + self.bias


class Stack(Module):
    """Layers one after the other."""

    layers: tuple[Affine, ...]
    head: Affine

    def __call__(self, x):
        for layer in self.layers:
            x = ops.tanh(layer(x))
        return self.head(x)


def stack():
    generator = np.random.default_rng(0)
    affine = [Affine(as_array(generator.normal(size=(3, 3))), as_array(generator.normal(size=3))) for _ in range(2)]
    return Stack(tuple(affine), Affine(as_array(generator.normal(size=(3, 1))), None, scale=2.0))


def test_parameters_have_dotted_names():
    assert list(parameters(stack())) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
                                         "head.weight"]


def test_modules_are_frozen_trees():
    model = stack()
    doubled = tree.map(lambda leaf: leaf * 2, model)
    assert isinstance(doubled, Stack) and doubled.head.scale == 2.0
    np.testing.assert_array_equal(doubled.head.weight.numpy(), 2 * model.head.weight.numpy())
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.head = None


def test_settings_are_structure():
    model = stack()
    other = replace(model, head=replace(model.head, scale=3.0))
    assert tree.flatten(model)[1] != tree.flatten(other)[1]
    function = jit(lambda model, x: model(x), device="reference")
    x = as_array(np.ones((2, 3)))
    np.testing.assert_allclose(function(other, x).numpy(), function(model, x).numpy() * 1.5)


def test_equations_know_their_layer():
    traced = jit(lambda model, x: model(x), device="reference").trace(stack(), as_array(np.ones((2, 3))))
    layers = [str(equation.where).split()[0] for equation in traced.graph.equations if equation.op.name == "dot"]
    assert layers == ["Stack.layers.0", "Stack.layers.1", "Stack.head"]
    assert all("test_module.py:" in equation.where.source for equation in traced.graph.equations)


def test_a_module_without_a_call_says_so():
    class Empty(Module):
        pass

    with pytest.raises(TypeError, match="Empty defines no __call__"):
        Empty()()


def test_registered_dataclasses_are_trees():
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Batch:
        x: Array
        name: str = static(default="a")

    batch = Batch(as_array([1.0]))
    assert tree.map(lambda leaf: leaf + 1, batch).x.item() == 2.0
    assert tree.paths(tree.flatten(batch)[1]) == ["x"]
