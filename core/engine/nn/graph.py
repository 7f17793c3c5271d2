"""Building blocks of message-passing networks on batches of molecular graphs (Gilmer et al. 2017, arXiv 1704.01212).

Invariant: a batch is one graph of many parts. Atoms are rows; an edge carries a message from ``source`` to ``target``
(atom numbers), and ``molecule`` numbers the molecule of each atom. A number outside its range marks padding: it reads
zeros and adds nothing.

    atoms     f32[atom, d]
    source    i32[edge]
    target    i32[edge]
    molecule  i32[atom]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from core.engine import random
from core.engine.array import Array
from core.engine.module import Module, static
from core.engine.nn.activation import Activation, relu
from core.engine.nn.init import Initialiser, fan_in_uniform
from core.engine.nn.linear import MLP
from core.engine.nn.recurrent import GRUCell, LSTMCell
from core.engine.ops import concatenate, dot, gather, logistic, ones, segment_softmax, segment_sum, zeros
from core.engine.ops import sum as sum_


class EdgeNetwork(Module):
    """A matrix for each edge from its features: A(e) of Gilmer et al. 2017, section 5, as a sum of shared matrices.

    The last layer of a network that makes the d * d numbers of A(e) is linear, so that A(e) is the sum over k of
    g_k(e) times a matrix, where g are the last hidden numbers and a 1 for the layer's bias. `edge_messages` takes the
    two apart, and no matrix of an edge is ever made. Weights are tied over the steps of a network: g is computed once.

    Attributes
    ----------
    hidden : edge features to g but its 1, through its activation
    matrices : f32[k, d, d], the sender's axis first; the last one belongs to the 1
    """

    hidden: MLP
    matrices: Array

    @classmethod
    def init(cls, key: Array, features: int, width: int, *, hidden: Sequence[int], activation: Activation = relu,
             initialiser: Initialiser = fan_in_uniform) -> Self:
        """A network from edge features through hidden layers to matrices of d = `width`."""
        one, two = random.split(key)
        terms = hidden[-1] + 1
        matrices = initialiser(two, (terms * width, width)).reshape(terms, width, width)
        return cls(MLP.init(one, (features, *hidden), activation=activation), matrices)

    def __call__(self, edges: Array) -> Array:
        """The coefficients g : f32[..., k], from edges : f32[..., feature]."""
        return edge_coefficients(self.hidden, edges)

    def messages(self, atoms: Array, coefficients: Array, senders: Array) -> Array:
        """See `edge_messages`."""
        return edge_messages(atoms, self.matrices, coefficients, senders)


def edge_coefficients(network: MLP, edges: Array) -> Array:
    """g : f32[..., k], the last hidden numbers of a network on edges : f32[..., feature], and a 1."""
    hidden = network.activation(network(edges))
    return concatenate([hidden, ones((*hidden.shape[:-1], 1), hidden.dtype)], axis=-1)


def edge_messages(atoms: Array, matrices: Array, coefficients: Array, senders: Array) -> Array:
    """The sum of h_sender A(e) over the edges that end at each atom, where A(e) = sum over k of g_k(e) matrices_k.

    The outer products of g(e) and h_sender are summed over the edges first and multiplied with the matrices after.

    Parameters
    ----------
    atoms : as in the module's text
    matrices : f32[k, d, d], the sender's axis first
    coefficients : f32[atom, degree, k], g of the edges that end at each atom
    senders : i32[atom, degree], where those edges start; outside the atoms where an atom has fewer

    Returns
    -------
    f32[atom, d]
    """
    return outer_sums(atoms, coefficients, senders) @ matrices.reshape(-1, matrices.shape[-1])


def outer_sums(atoms: Array, coefficients: Array, senders: Array) -> Array:
    """f32[atom, k * d], the outer products of g(e) and h_sender summed over the edges that end at each atom."""
    summed = dot(coefficients, gather(atoms, senders, axis=0), contract=((1,), (1,)), batch=((0,), (0,)))
    return summed.reshape(atoms.shape[0], -1)


def typed_sums(atoms: Array, kind: Array, kinds: int, source: Array, target: Array) -> Array:
    """The states of the senders, summed by the atom that an edge ends at and by the kind of the edge.

    Where edges are of few kinds that share a matrix each (Li et al. 2016, arXiv 1511.05493), a layer from these sums to
    d gives the messages, and nothing of size edge x d x d exists.

    Parameters
    ----------
    atoms, source, target : as in the module's text
    kind : i32[edge], in 0..kinds-1

    Returns
    -------
    f32[atom, kinds * d]
    """
    count = atoms.shape[0]
    # A target outside the atoms stays outside, because a kind is less than the number of kinds.
    summed = segment_sum(gather(atoms, source, axis=0), target * kinds + kind, count * kinds)
    return summed.reshape(count, -1)


class GatedUpdate(Module):
    """The new state of an atom: a GRU with the message as input (Li et al. 2016, section 3.2).

    Attributes
    ----------
    cell : a GRU cell
    """

    cell: GRUCell

    @classmethod
    def init(cls, key: Array, message: int, width: int) -> Self:
        """An update of states of `width` from messages of `message` numbers."""
        return cls(GRUCell.init(key, message, width))

    def __call__(self, atoms: Array, messages: Array) -> Array:
        """New states f32[atom, d], from messages : f32[atom, message]."""
        return self.cell(messages, atoms)


class Set2Set(Module):
    """A vector for each molecule, whatever the order of its atoms (Vinyals et al. 2015, arXiv 1511.06391, section 4.2).

    At each step (equations 3 to 7) an LSTM turns the last reading q* into a query q, the query attends to the atoms by
    the softmax of q . h within each molecule, and q* is the query joined with the attended sum r.

    Attributes
    ----------
    cell : LSTM from 2 d to d
    steps : number of readings
    """

    cell: LSTMCell
    steps: int = static()

    @classmethod
    def init(cls, key: Array, width: int, steps: int) -> Self:
        """A readout of atoms of d = `width`."""
        return cls(LSTMCell.init(key, 2 * width, width), steps)

    def __call__(self, atoms: Array, molecule: Array, count: int) -> Array:
        """Readings f32[molecule, 2 d] of `count` molecules; one without atoms has r = 0."""
        reading = zeros((count, 2 * atoms.shape[1]), atoms.dtype)
        state = self.cell.initial(count)
        for _ in range(self.steps):
            state = self.cell(reading, state)
            query = state[0]
            scores = sum_(gather(query, molecule, axis=0) * atoms, axis=1, keepdims=True)
            attended = segment_sum(segment_softmax(scores, molecule, count) * atoms, molecule, count)
            reading = concatenate([query, attended], axis=1)
        return reading


class GatedReadout(Module):
    """A vector for each molecule: the sum of its atoms' values, each weighted by a gate.

    R = sum over atoms of sigmoid(gate(h_T, h_0)) * value(h_T), with the last state h_T and the first state h_0
    (Gilmer et al. 2017, equation 4; Li et al. 2016, equation 7).

    Attributes
    ----------
    gate : from h_T joined with h_0 to the outputs
    value : from h_T to the outputs
    """

    gate: MLP
    value: MLP

    @classmethod
    def init(cls, key: Array, width: int, first: int, outputs: int, *, hidden: Sequence[int] = (),
             activation: Activation = relu) -> Self:
        """A readout of last states of `width` and first states of `first` numbers, `hidden` layers in both networks."""
        one, two = random.split(key)
        return cls(MLP.init(one, (width + first, *hidden, outputs), activation=activation),
                   MLP.init(two, (width, *hidden, outputs), activation=activation))

    def __call__(self, atoms: Array, first: Array, molecule: Array, count: int) -> Array:
        """f32[molecule, outputs] of `count` molecules.

        Parameters
        ----------
        atoms : f32[atom, d], last states
        first : f32[atom, first], first states
        """
        gate = logistic(self.gate(concatenate([atoms, first], axis=1)))
        return segment_sum(gate * self.value(atoms), molecule, count)
