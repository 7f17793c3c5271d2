"""Modules that keep their weights in plain arrays, taken apart into layers that can be exchanged one by one.

Invariant: taking apart changes no prediction: the layers multiply the arrays that were there, in the same order.
"""

from __future__ import annotations

from typing import Any

from core.engine import tree
from core.engine.array import Array
from core.engine.module import Module, map_modules, static
from core.engine.nn import MLP, EdgeNetwork, GRUCell, Linear, LSTMCell
from core.engine.nn.graph import edge_coefficients, outer_sums
from core.engine.nn.recurrent import LSTMState, gru_step, lstm_step
from core.engine.ops import zeros

Layer = Any
"""A `Linear` or `Conv`, or what stands for one: it is called with an array and gives one."""


class LayeredCell(Module):
    """A recurrent cell of two layers, both to all gates; its kinds say how a state begins and how it advances.

    Attributes
    ----------
    width : of the hidden state
    """

    input: Layer
    hidden: Layer
    width: int = static()

    def __call__(self, x: Array, state: Any) -> Any:
        """The next state, from x : f32[batch, in]."""
        return self.advance(self.project(x), state)

    def project(self, x: Array) -> Array:
        """What the input adds to the gates."""
        projected: Array = self.input(x)
        return projected

    def advance(self, projected: Array, state: Any) -> Any:
        """The next state, from a projected input."""
        raise TypeError(f"{type(self).__name__} defines no advance")


class LayeredLSTMCell(LayeredCell):
    """An `LSTMCell` in layers."""

    def initial(self, batch: int) -> LSTMState:
        """The state of zeros."""
        state = _zeros(self.hidden, batch, self.width)
        return state, state

    def advance(self, projected: Array, state: LSTMState) -> LSTMState:
        """The next state, from a projected input."""
        return lstm_step(projected, self.hidden(state[0]), state[1])


class LayeredGRUCell(LayeredCell):
    """A `GRUCell` in layers."""

    def initial(self, batch: int) -> Array:
        """The state of zeros."""
        return _zeros(self.hidden, batch, self.width)

    def advance(self, projected: Array, state: Array) -> Array:
        """The next state, from a projected input."""
        return gru_step(projected, self.hidden(state), state)


class LayeredEdgeNetwork(Module):
    """An `EdgeNetwork` whose matrices are one layer.

    Attributes
    ----------
    hidden : as in `EdgeNetwork`
    matrices : layer from k * d to d
    """

    hidden: MLP
    matrices: Layer

    def __call__(self, edges: Array) -> Array:
        """The coefficients of `EdgeNetwork`."""
        return edge_coefficients(self.hidden, edges)

    def messages(self, atoms: Array, coefficients: Array, senders: Array) -> Array:
        """See `core.engine.nn.edge_messages`."""
        messages: Array = self.matrices(outer_sums(atoms, coefficients, senders))
        return messages


def layered(module: Any) -> Any:
    """A tree with every recurrent cell and edge network in its layered form."""
    return map_modules(_layered, module)


def _layered(path: str, module: Module) -> Module | None:
    if isinstance(module, LSTMCell):
        return LayeredLSTMCell(Linear(module.weight_input, module.bias), Linear(module.weight_hidden, None),
                               module.weight_hidden.shape[0])
    if isinstance(module, GRUCell):
        return LayeredGRUCell(Linear(module.weight_input, module.bias_input),
                              Linear(module.weight_hidden, module.bias_hidden), module.weight_hidden.shape[0])
    if isinstance(module, EdgeNetwork):
        matrices = module.matrices
        return LayeredEdgeNetwork(module.hidden, Linear(matrices.reshape(-1, matrices.shape[-1]), None))
    return None


def _zeros(layer: Layer, *shape: int) -> Array:
    """Zeros in the float type that a layer gives: the widest that it holds, because scales of weights are narrow."""
    return zeros(shape, max((leaf.dtype for leaf in tree.leaves(layer) if leaf.dtype.is_float),
                            key=lambda dtype: dtype.itemsize))
