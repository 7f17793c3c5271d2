"""Recurrent layers: LSTM and GRU, one step (a cell) and a whole sequence (a scan over the cell).

Invariant: equations and gate order are PyTorch's, so that its weights load after a transposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from core.engine import random
from core.engine.array import Array
from core.engine.module import Module, static
from core.engine.ops import logistic, moveaxis, scan, tanh, zeros

LSTMState = tuple[Array, Array]
"""Hidden state and cell state, f32[batch, hidden] each."""


def _hidden_uniform(key: Array, shape: Sequence[int], hidden: int) -> Array:
    """Uniform in +-1 / sqrt(hidden), as PyTorch draws recurrent weights."""
    bound = 1.0 / math.sqrt(hidden)
    return random.uniform(key, shape, -bound, bound)


def _gates(x: Array, count: int) -> list[Array]:
    """Equal parts of the last axis."""
    width = x.shape[-1] // count
    return [x[..., number * width:(number + 1) * width] for number in range(count)]


def lstm_step(projected: Array, recurred: Array, cell: Array) -> LSTMState:
    """The next state of an `LSTMCell`, from the projections f32[batch, 4 * hidden] of input and hidden state."""
    i, f, g, o = (x + h for x, h in zip(_gates(projected, 4), _gates(recurred, 4), strict=True))
    cell = logistic(f) * cell + logistic(i) * tanh(g)
    return logistic(o) * tanh(cell), cell


def gru_step(projected: Array, recurred: Array, state: Array) -> Array:
    """The next state of a `GRUCell`, from the projections f32[batch, 3 * hidden] of input and hidden state."""
    x_r, x_z, x_n = _gates(projected, 3)
    h_r, h_z, h_n = _gates(recurred, 3)
    reset, keep = logistic(x_r + h_r), logistic(x_z + h_z)
    new = tanh(x_n + reset * h_n)
    return new + keep * (state - new)


class LSTMCell(Module):
    """One step of long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    ``i, f, g, o`` are the parts of ``x W_input + h W_hidden + b`` in this order, and

        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Attributes
    ----------
    weight_input : f32[in, 4 * hidden], PyTorch's ``weight_ih`` transposed
    weight_hidden : f32[hidden, 4 * hidden], PyTorch's ``weight_hh`` transposed
    bias : f32[4 * hidden], the sum of PyTorch's ``bias_ih`` and ``bias_hh``
    """

    weight_input: Array
    weight_hidden: Array
    bias: Array

    @classmethod
    def init(cls, key: Array, inputs: int, hidden: int) -> Self:
        """A cell with drawn weights and a bias of 0."""
        first, second = random.split(key)
        return cls(_hidden_uniform(first, (inputs, 4 * hidden), hidden),
                   _hidden_uniform(second, (hidden, 4 * hidden), hidden), zeros((4 * hidden,)))

    def initial(self, batch: int) -> LSTMState:
        """The state of zeros, in the dtype of the weights."""
        state = zeros((batch, self.weight_hidden.shape[0]), self.weight_hidden.dtype)
        return state, state

    def __call__(self, x: Array, state: LSTMState) -> LSTMState:
        """The next state, from x : f32[batch, in]."""
        return self.advance(self.project(x), state)

    def project(self, x: Array) -> Array:
        """What the input adds to the gates; it does not depend on the state, so a sequence can do it at once."""
        return x @ self.weight_input + self.bias

    def advance(self, projected: Array, state: LSTMState) -> LSTMState:
        """The next state, from a projected input."""
        hidden, cell = state
        return lstm_step(projected, hidden @ self.weight_hidden, cell)


class GRUCell(Module):
    """One step of a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, in the variant of PyTorch and cuDNN).

    ``r, z, n`` are the parts, in this order, of the input's and of the hidden state's projection:

        r = sigmoid(x_r + h_r);  z = sigmoid(x_z + h_z);  n = tanh(x_n + r h_n)
        h' = (1 - z) n + z h

    Attributes
    ----------
    weight_input : f32[in, 3 * hidden], PyTorch's ``weight_ih`` transposed
    weight_hidden : f32[hidden, 3 * hidden], PyTorch's ``weight_hh`` transposed
    bias_input, bias_hidden : f32[3 * hidden], PyTorch's ``bias_ih`` and ``bias_hh``
    """

    weight_input: Array
    weight_hidden: Array
    bias_input: Array
    bias_hidden: Array

    @classmethod
    def init(cls, key: Array, inputs: int, hidden: int) -> Self:
        """A cell with drawn weights and biases of 0."""
        first, second = random.split(key)
        return cls(_hidden_uniform(first, (inputs, 3 * hidden), hidden),
                   _hidden_uniform(second, (hidden, 3 * hidden), hidden), zeros((3 * hidden,)), zeros((3 * hidden,)))

    def initial(self, batch: int) -> Array:
        """The state of zeros, in the dtype of the weights."""
        return zeros((batch, self.weight_hidden.shape[0]), self.weight_hidden.dtype)

    def __call__(self, x: Array, state: Array) -> Array:
        """The next state f32[batch, hidden], from x : f32[batch, in]."""
        return self.advance(self.project(x), state)

    def project(self, x: Array) -> Array:
        """What the input adds to the gates; it does not depend on the state, so a sequence can do it at once."""
        return x @ self.weight_input + self.bias_input

    def advance(self, projected: Array, state: Array) -> Array:
        """The next state, from a projected input."""
        return gru_step(projected, state @ self.weight_hidden + self.bias_hidden, state)


class LSTM(Module):
    """An LSTM over a sequence; a bidirectional one is two of them, one with `reverse`, and their outputs joined.

    Attributes
    ----------
    cell : the step
    reverse : from the last time to the first; outputs keep the order of the input
    """

    cell: LSTMCell
    reverse: bool = static(default=False)

    @classmethod
    def init(cls, key: Array, inputs: int, hidden: int, *, reverse: bool = False) -> Self:
        """A layer with a drawn cell."""
        return cls(LSTMCell.init(key, inputs, hidden), reverse)

    def __call__(self, x: Array, state: LSTMState | None = None) -> tuple[Array, LSTMState]:
        """Hidden states f32[batch, time, hidden] and the last state, from x : f32[batch, time, in]."""

        def step(carry: LSTMState, projected: Array) -> tuple[LSTMState, Array]:
            carry = self.cell.advance(projected, carry)
            return carry, carry[0]

        first = self.cell.initial(x.shape[0]) if state is None else state
        last, hidden = scan(step, first, moveaxis(self.cell.project(x), 1, 0), reverse=self.reverse)
        return moveaxis(hidden, 0, 1), last


class GRU(Module):
    """A GRU over a sequence.

    Attributes
    ----------
    cell : the step
    reverse : from the last time to the first; outputs keep the order of the input
    """

    cell: GRUCell
    reverse: bool = static(default=False)

    @classmethod
    def init(cls, key: Array, inputs: int, hidden: int, *, reverse: bool = False) -> Self:
        """A layer with a drawn cell."""
        return cls(GRUCell.init(key, inputs, hidden), reverse)

    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array]:
        """Hidden states f32[batch, time, hidden] and the last one, from x : f32[batch, time, in]."""

        def step(carry: Array, projected: Array) -> tuple[Array, Array]:
            carry = self.cell.advance(projected, carry)
            return carry, carry

        first = self.cell.initial(x.shape[0]) if state is None else state
        last, hidden = scan(step, first, moveaxis(self.cell.project(x), 1, 0), reverse=self.reverse)
        return moveaxis(hidden, 0, 1), last
