"""A trained model: networks with everything that turns a molecule into a value, its unit and its interval.

Invariant: what is saved is enough to predict; nothing is read from the training data again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from apps.molecules.batches import Batch, collate
from apps.molecules.data import Example, Features, samples
from apps.molecules.model import DirectedEncoder, EdgeEncoder, GatedEncoder, Predictor
from core.engine import checkpoint, ops, random, tree
from core.engine.array import Array, as_array
from core.engine.dtypes import as_dtype, float32
from core.engine.errors import CheckpointError
from core.engine.jit import jit
from core.engine.module import Module, register_dataclass, static
from core.engine.nn import MLP, activation
from core.engine.precision import as_saved
from core.engine.run import RunDirectory

register_dataclass(Batch)

DESCRIPTOR_LIMIT = 5.0
"""Scaled descriptors are cut here, so that a strange molecule cannot leave the range the network knows by far."""
BOND_KINDS = 4
"""Bond types of ggnn: the first edge features say single, double, triple or aromatic."""
_METADATA = "molecules"


def leaky_relu(x: Array) -> Array:
    """chemprop's, with a slope of 0.1."""
    return activation.leaky_relu(x, 0.1)


_ACTIVATIONS: dict[str, activation.Activation] = {
    "relu": activation.relu, "tanh": ops.tanh, "elu": activation.elu, "selu": activation.selu, "leakyrelu": leaky_relu}


def activation_named(name: str) -> activation.Activation:
    """The function of a name that chemprop knows too."""
    return _ACTIVATIONS[name]


@dataclass(frozen=True)
class Architecture:
    """What a network is made from.

    Attributes
    ----------
    name : ``dmpnn``, ``mpnn`` or ``ggnn``
    head : widths of the read-out's hidden layers
    norm : divisor of the aggregation ``norm``
    """

    name: str
    hidden: int
    depth: int
    head: tuple[int, ...]
    aggregation: str = "norm"
    norm: float = 100.0
    activation: str = "relu"
    dropout: float = 0.0

    def build(self, key: Array, features: Features, outputs: int) -> Predictor:
        """A network with drawn parameters."""
        atom, edge, described = features.widths
        function = activation_named(self.activation)
        encoder: DirectedEncoder | EdgeEncoder | GatedEncoder
        first, second = random.split(key)
        width = self.hidden
        if self.name == "dmpnn":
            encoder = DirectedEncoder.init(first, atom, edge, self.hidden, depth=self.depth,
                                           aggregation=self.aggregation, dropout=self.dropout, norm=self.norm,
                                           activation=function)
        elif self.name == "mpnn":
            encoder = EdgeEncoder.init(first, atom, edge, self.hidden, depth=self.depth, distances=features.distances)
            width = 2 * self.hidden
        else:
            encoder = GatedEncoder.init(first, atom, BOND_KINDS, self.hidden, depth=self.depth)
        head = MLP.init(second, (width + described, *self.head, outputs), activation=function)
        return Predictor(encoder, head, self.dropout)


@dataclass(frozen=True)
class Description:
    """What a model is, in words and settings.

    Attributes
    ----------
    targets, tasks : names, and ``regression`` or ``classification`` for each
    units : unit of each target that has one
    members : number of networks
    coverage : share of true values that intervals hold; 0 if there are none
    smiles : column of the training file, if it was a CSV
    precision : in which predictions are computed, ``f32`` or ``f64``; an imported model takes f64, so that it differs
        from the program it comes from by that program's rounding alone
    """

    architecture: Architecture
    features: Features
    targets: tuple[str, ...]
    tasks: tuple[str, ...]
    units: dict[str, str]
    members: int
    coverage: float = 0.0
    smiles: str | None = None
    precision: str = "f32"

    def dump(self) -> dict[str, str]:
        """As metadata of a weight file."""
        return {_METADATA: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def parse(cls, metadata: dict[str, str], source: str) -> Description:
        """From metadata; raises `CheckpointError` if it is not that of a model of molecules."""
        try:
            fields = json.loads(metadata[_METADATA])
            architecture = fields.pop("architecture")
            architecture["head"] = tuple(architecture["head"])
            features = Features(**fields.pop("features"))
            for name in ("targets", "tasks"):
                fields[name] = tuple(fields[name])
            return cls(architecture=Architecture(**architecture), features=features, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source} is not a model of molecules ({error!r})") from error


class Scales(Module):
    """Between the file's numbers and a network's.

    Attributes
    ----------
    mean, std : f64[target], of the targets less their offset
    offset : f64[count, target], what each count adds to a target
    descriptor_mean, descriptor_std : f32[descriptor]
    """

    mean: Array
    std: Array
    offset: Array
    descriptor_mean: Array
    descriptor_std: Array

    def batch(self, batch: Batch) -> Batch:
        """The batch with descriptors of zero mean and unit spread, cut at `DESCRIPTOR_LIMIT`."""
        scaled = (as_array(batch.descriptors) - self.descriptor_mean) / self.descriptor_std
        cut = ops.maximum(ops.minimum(scaled, DESCRIPTOR_LIMIT), -DESCRIPTOR_LIMIT)
        return replace(batch, descriptors=cut)

    def targets(self, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """f64[example, target] to the scale of the network, f32."""
        rest = targets - counts @ self.offset.numpy()
        return ((rest - self.mean.numpy()) / self.std.numpy()).astype(np.float32)


class Member(Module):
    """A network with the scales it was trained in.

    Attributes
    ----------
    classes : whether each target is a class, whose prediction is a probability
    """

    network: Predictor
    scales: Scales
    classes: tuple[bool, ...] = static()

    def __call__(self, batch: Batch) -> Array:
        """f64[molecule, target] less the offset: values in the file's unit, or probabilities."""
        raw = self.network(self.scales.batch(batch)).astype("f64")
        mask = ops.broadcast_to(np.array(self.classes), raw.shape)
        return ops.select(mask, ops.logistic(raw), raw * self.scales.std + self.scales.mean)


class Ensemble(Module):
    """Networks whose predictions are averaged.

    Attributes
    ----------
    half_width : f64[target], half the width of an interval; NaN where there is none
    """

    members: tuple[Member, ...]
    half_width: Array

    def __call__(self, batch: Batch) -> Array:
        """f64[molecule, target] less the mean of the members' offsets."""
        total = self.members[0](batch)
        for member in self.members[1:]:
            total = total + member(batch)
        return total * (1 / len(self.members))

    @property
    def offset(self) -> np.ndarray:
        """f64[count, target], the mean of the members' offsets."""
        return np.mean([member.scales.offset.numpy() for member in self.members], axis=0)


@dataclass(frozen=True)
class Prediction:
    """An example with its predicted values f64[target] and the half widths f64[target] of their intervals."""

    example: Example
    values: np.ndarray
    half_width: np.ndarray


class Trained:
    """A model that predicts."""

    def __init__(self, description: Description, ensemble: Ensemble, device: str = "cpu") -> None:
        self.description = description
        self.ensemble = ensemble
        self._offset = ensemble.offset
        self._program = jit(lambda ensemble, batch: ensemble(batch), device=device).bind(self._precise(ensemble))

    @classmethod
    def load(cls, run: RunDirectory, device: str = "cpu") -> Trained:
        """The model of a run."""
        if not run.model_path.exists():
            raise CheckpointError(f"{run.path} has no model yet ({run.status}); train it to the end first")
        arrays, metadata = checkpoint.load(run.model_path)
        description = Description.parse(metadata, str(run.model_path))
        like = as_saved(skeleton(description), arrays)
        return cls(description, checkpoint.tree_of(arrays, like, source=str(run.model_path)), device)

    def save(self, run: RunDirectory) -> None:
        """Write the model into a run."""
        run.save_model(self.ensemble, self.description.dump())

    def predict(self, found: Iterable[Example], batch_size: int = 64) -> Iterator[Prediction]:
        """Predictions in the order of the examples, which may be a stream of any length."""
        stream = iter(found)
        while chunk := list(islice(stream, batch_size)):
            yield from self._predict_batch(chunk, batch_size)

    def values(self, found: Sequence[Example]) -> np.ndarray:
        """Predictions f64[example, target]."""
        return np.array([prediction.values for prediction in self.predict(found)]).reshape(len(found), -1)

    def batch(self, chunk: Sequence[Example], batch_size: int) -> Batch:
        """Examples as the networks take them; targets are blank."""
        blank = np.full((len(chunk), len(self.description.targets)), np.nan, np.float32)
        return collate(samples(chunk, blank), batch_size)

    def _precise(self, node: Any) -> Any:
        """A tree with its f32 leaves in the precision of predictions."""
        dtype = as_dtype(self.description.precision)
        return tree.map(lambda leaf: as_array(leaf, dtype) if as_array(leaf).dtype is float32 else leaf, node)

    def _predict_batch(self, chunk: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        raw = self._program(self._precise(self.batch(chunk, batch_size))).numpy()
        half_width = self.ensemble.half_width.numpy()
        for example, values in zip(chunk, raw, strict=False):
            yield Prediction(example, values + example.counts @ self._offset, half_width)


def skeleton(description: Description) -> Ensemble:
    """An ensemble of the right structure, to be filled from a file."""
    outputs = len(description.targets)
    network = description.architecture.build(random.key(0), description.features, outputs)
    blank, wide = ops.zeros((outputs,), "f64"), ops.zeros((description.features.widths[2],))
    scales = Scales(blank, blank, ops.zeros((description.features.count_width, outputs), "f64"), wide, wide)
    member = Member(network, scales, classes_of(description.tasks))
    return Ensemble((member,) * description.members, blank)


def classes_of(tasks: Sequence[str]) -> tuple[bool, ...]:
    return tuple(task == "classification" for task in tasks)


def interval(prediction: Prediction, target: int, tasks: Sequence[str]) -> tuple[float, float] | None:
    """Lower and upper bound of a prediction, if the model holds intervals for the target."""
    half = float(prediction.half_width[target])
    if np.isnan(half) or tasks[target] == "classification":
        return None
    value = float(prediction.values[target])
    return value - half, value + half

