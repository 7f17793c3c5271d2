"""Message-passing networks on molecules: three encoders of one shape, and the read-out behind them.

Invariant: a prediction of a molecule does not depend on the batch it is in, on the order of its atoms, or on padding.

    dmpnn   messages along directed bonds (Yang et al., J. Chem. Inf. Model. 59:3370, 2019), as chemprop computes them
    mpnn    edge network, GRU update, set2set read-out (Gilmer et al., arXiv 1704.01212, "enn-s2s")
    ggnn    one matrix a bond type, GRU update, gated read-out (Li et al., arXiv 1511.05493; Gilmer et al., section 2)
"""

from __future__ import annotations

from typing import Self

import numpy as np

from apps.molecules.batches import Batch
from core.engine import ops, random
from core.engine.array import Array, as_array
from core.engine.module import Module, static
from core.engine.nn import (
    MLP,
    Dropout,
    EdgeNetwork,
    GatedReadout,
    GatedUpdate,
    Linear,
    Set2Set,
    typed_sums,
)
from core.engine.nn.activation import Activation, relu

CENTRES, SPACING = 24, 0.25
"""Gaussians that a distance becomes, and the way from one to the next, in Angstrom: from 0.5 to 6.25."""
COEFFICIENTS = 32
"""Matrices whose weighted sum is that of an edge, less the one with weight 1."""


class DirectedEncoder(Module):
    """Directed message passing: a state for each bond in each direction.

    With x the atoms, e the directed bonds v -> w, and tau the activation::

        z[v,w] = atom_input x[v] + edge_input e[v,w]
        h[v,w] = tau(z[v,w]);  depth - 1 times  h[v,w] = tau(z[v,w] + update(sum of h[u,v] over u, less h[w,v]))
        a[v]   = tau(atom_output x[v] + edge_output (sum of h[u,v] over u))

    which is chemprop's network with its W_i and W_o split in two. The first state is added before the activation.

    Attributes
    ----------
    depth : number of states computed for a bond, 1 for none but the first
    aggregation : ``mean``, ``sum`` or ``norm`` (the sum divided by `norm`) of the atoms of a molecule
    """

    atom_input: Linear
    edge_input: Linear
    update: Linear
    atom_output: Linear
    edge_output: Linear
    depth: int = static()
    aggregation: str = static()
    norm: float = static()
    activation: Activation = static()
    dropout: float = static()

    @classmethod
    def init(cls, key: Array, atom_width: int, edge_width: int, hidden: int, *, depth: int, aggregation: str,
             dropout: float, norm: float = 100.0, activation: Activation = relu) -> Self:
        """An encoder of molecules into `hidden` numbers."""
        keys = random.split(key, 5)
        return cls(Linear.init(keys[0], atom_width, hidden, bias=False),
                   Linear.init(keys[1], edge_width, hidden, bias=False),
                   Linear.init(keys[2], hidden, hidden, bias=False), Linear.init(keys[3], atom_width, hidden),
                   Linear.init(keys[4], hidden, hidden, bias=False), depth, aggregation, norm, activation, dropout)

    def __call__(self, batch: Batch, key: Array | None = None) -> Array:
        """f32[molecule, hidden]."""
        atoms = as_array(batch.atoms)
        count = atoms.shape[0]
        drop = Dropout(self.dropout)
        first = ops.gather(self.atom_input(atoms), batch.source, axis=0) + self.edge_input(as_array(batch.edges))
        states = self.activation(first)
        for step in range(self.depth - 1):
            arriving = ops.segment_sum(states, batch.target, count)
            messages = ops.gather(arriving, batch.source, axis=0) - ops.gather(states, batch.reverse, axis=0)
            states = drop(self.activation(first + self.update(messages)), _step_key(key, step))
        arriving = ops.segment_sum(states, batch.target, count)
        atom_states = self.activation(self.atom_output(atoms) + self.edge_output(arriving))
        return aggregate(drop(atom_states, _step_key(key, self.depth)), batch, self.aggregation, self.norm)


class EdgeEncoder(Module):
    """Edge network, gated update and set2set: "enn-s2s". An edge may be a bond or, with distances, a pair of atoms.

    Attributes
    ----------
    depth : number of message-passing steps T, with tied weights
    distances : whether the first number of an edge is its length, which becomes `gaussians`
    """

    embed: Linear
    edge_network: EdgeNetwork
    update: GatedUpdate
    readout: Set2Set
    depth: int = static()
    distances: bool = static()

    @classmethod
    def init(cls, key: Array, atom_width: int, edge_width: int, hidden: int, *, depth: int, distances: bool = False,
             readings: int = 3) -> Self:
        """An encoder of molecules into 2 `hidden` numbers."""
        keys = random.split(key, 4)
        width = edge_width - 1 + CENTRES if distances else edge_width
        return cls(Linear.init(keys[0], atom_width, hidden),
                   EdgeNetwork.init(keys[1], width, hidden, hidden=(COEFFICIENTS,)),
                   GatedUpdate.init(keys[2], hidden, hidden), Set2Set.init(keys[3], hidden, readings), depth, distances)

    def __call__(self, batch: Batch, key: Array | None = None) -> Array:
        """f32[molecule, 2 hidden]."""
        states = relu(self.embed(as_array(batch.atoms)))
        edges = as_array(batch.edges)
        if self.distances:
            edges = ops.concatenate([gaussians(edges[:, :1]), edges[:, 1:]], axis=1)
        coefficients = ops.gather(self.edge_network(edges), batch.arriving, axis=0)
        # One more and one less: where there is no edge the sender is -1, which is no atom.
        senders = ops.gather(as_array(batch.source) + 1, batch.arriving, axis=0) - 1
        for _ in range(self.depth):
            messages = self.edge_network.messages(states, coefficients, senders)
            states = self.update(states, messages)
        return self.readout(states, as_array(batch.molecule), batch.weights.shape[0])


class GatedEncoder(Module):
    """Gated graph network: a matrix for each type of bond, gated update, gated read-out.

    Attributes
    ----------
    messages : from kinds * d to d, a matrix for each type of bond below each other; the type of an edge is the largest
        of its first `kinds` features (a one-hot code)
    depth : number of message-passing steps T, with tied weights
    """

    embed: Linear
    messages: Linear
    update: GatedUpdate
    readout: GatedReadout
    kinds: int = static()
    depth: int = static()

    @classmethod
    def init(cls, key: Array, atom_width: int, kinds: int, hidden: int, *, depth: int) -> Self:
        """An encoder of molecules into `hidden` numbers."""
        keys = random.split(key, 4)
        matrices = random.normal(keys[1], (kinds, hidden, hidden)) * hidden**-0.5
        below = ops.transpose(matrices, axes=(0, 2, 1)).reshape(-1, hidden)
        return cls(Linear.init(keys[0], atom_width, hidden), Linear(below, None),
                   GatedUpdate.init(keys[2], hidden, hidden), GatedReadout.init(keys[3], hidden, hidden, hidden), kinds,
                   depth)

    def __call__(self, batch: Batch, key: Array | None = None) -> Array:
        """f32[molecule, hidden]."""
        kind = ops.argmax(as_array(batch.edges)[:, :self.kinds], axis=1)
        source, target = as_array(batch.source), as_array(batch.target)
        first = relu(self.embed(as_array(batch.atoms)))
        states = first
        for _ in range(self.depth):
            states = self.update(states, self.messages(typed_sums(states, kind, self.kinds, source, target)))
        return self.readout(states, first, as_array(batch.molecule), batch.weights.shape[0])


class Predictor(Module):
    """An encoder, joined with molecule descriptors if there are any, and a read-out to one number a target.

    Attributes
    ----------
    head : from the molecule's vector to f32[molecule, target], in the scale the network is trained in
    """

    encoder: DirectedEncoder | EdgeEncoder | GatedEncoder
    head: MLP
    dropout: float = static()

    def __call__(self, batch: Batch, key: Array | None = None) -> Array:
        """Predictions f32[molecule, target]; a key turns dropout on."""
        vectors = self.encoder(batch, None if key is None else random.fold_in(key, 1))
        descriptors = as_array(batch.descriptors)
        if descriptors.shape[1]:
            vectors = ops.concatenate([vectors, descriptors], axis=1)
        drop = Dropout(self.dropout)
        for number, layer in enumerate(self.head.layers):
            if number:
                vectors = self.head.activation(vectors)
            vectors = layer(drop(vectors, None if key is None else random.fold_in(key, 2 + number)))
        return vectors


def aggregate(atoms: Array, batch: Batch, kind: str, norm: float) -> Array:
    """A vector for each molecule from those of its atoms."""
    count = batch.weights.shape[0]
    if kind == "mean":
        return ops.segment_mean(atoms, batch.molecule, count)
    total = ops.segment_sum(atoms, batch.molecule, count)
    return total * (1 / norm) if kind == "norm" else total


def gaussians(distance: Array) -> Array:
    """exp(-(distance - centre)^2 / (2 SPACING^2)) of each centre (Schütt et al., arXiv 1706.08566, section 4).

    Parameters
    ----------
    distance : f32[edge, 1] in Angstrom

    Returns
    -------
    f32[edge, CENTRES]
    """
    centres = as_array(SPACING * np.arange(2, CENTRES + 2), distance.dtype)
    steps = (distance - centres) * (1 / SPACING)
    return ops.exp(steps * steps * -0.5)


def _step_key(key: Array | None, step: int) -> Array | None:
    return None if key is None else random.fold_in(key, step)

