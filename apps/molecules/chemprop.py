"""Message-passing models that chemprop v1 and v2 trained, read from their files without chemprop or PyTorch.

Invariant: a model that `read_chemprop` returns predicts what chemprop predicts. A file with any part that this reader
does not know (extra descriptors, several molecules, reactions, another output layer) is refused with a sentence, never
read in part.

References
----------
Yang et al., "Analyzing Learned Molecular Representations for Property Prediction", J. Chem. Inf. Model. 59:3370, 2019.
Heid et al., "Chemprop: A Machine Learning Package for Chemical Property Prediction", J. Chem. Inf. Model. 64:9, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from apps.molecules.torchfile import read_torch_file
from apps.molecules.unpickling import Opaque
from core.engine.errors import DataError, compose

Float32Array = NDArray[np.float32]

SCHEMES = {(133, 14): "chemprop-v1", (72, 14): "chemprop-v2"}
"""Feature scheme by the widths of its atom and bond vectors."""
ACTIVATIONS = ("relu", "leakyrelu", "tanh", "selu", "elu")
BATCH_NORM_EPSILON = 1e-5
"""PyTorch's default, which chemprop does not change."""

_V1_TASKS = {"regression": "regression", "classification": "classification"}
_V2_TASKS = {"RegressionFFN": "regression", "BinaryClassificationFFN": "classification"}
_V2_AGGREGATIONS = {"MeanAggregation": "mean", "SumAggregation": "sum", "NormAggregation": "norm"}
_V1_REFUSED = {
    "atom_messages": "messages along atoms",
    "undirected": "undirected messages",
    "bias": "a bias in the messages, which version 1 also adds to padding, so that a prediction depends on its batch",
    "reaction": "reactions",
    "reaction_solvent": "reactions in a solvent",
    "features_only": "a model without a molecular graph",
    "use_input_features": "extra molecule features",
    "atom_descriptors": "extra atom descriptors",
    "bond_descriptors": "extra bond descriptors",
    "overwrite_default_atom_features": "own atom features",
    "overwrite_default_bond_features": "own bond features",
    "is_atom_bond_targets": "targets of atoms or bonds",
    "explicit_h": "explicit hydrogens",
    "adding_h": "added hydrogens",
}
_WITHOUT_EFFECT = re.compile(r".*\.cached_zero_vector|bn\.num_batches_tracked|(predictor\.criterion|metrics)\..*")


@dataclass(frozen=True, eq=False)
class ChempropModel:
    """A directed message-passing network and its read-out, as numbers.

    With x the atoms, e the directed bonds v -> w, and tau the activation::

        z[v,w] = W_i [x[v], e[v,w]] (+ W_i_bias)
        h[v,w] = tau(z[v,w])
        repeat depth - 1 times:
            m[v,w] = sum over u of h[u,v], less h[w,v]
            h[v,w] = tau(z[v,w] + W_h m[v,w] (+ W_h_bias))        z is the state before the activation
        a[v]   = tau(W_o [x[v], sum over u of h[u,v]] + W_o_bias)
        y      = ffn(aggregation of a over the atoms), tau between its layers but not before the first

    A regression gives ``y * std + mean``, a classification the logistic function of y.

    Attributes
    ----------
    version : ``v1`` or ``v2``, the major version of chemprop
    scheme : ``chemprop-v1`` (133 atom and 14 bond features) or ``chemprop-v2`` (72 and 14)
    task : ``regression`` or ``classification``
    targets : one name for each output
    depth : number of edge states computed, 1 for none but the first
    hidden : width of a message
    activation : one of `ACTIVATIONS`; leakyrelu has the slope 0.1
    aggregation : ``mean``, ``sum`` or ``norm`` (the sum divided by `norm`)
    norm : divisor of the aggregation ``norm``; 1 for the others
    dropout : probability used in training, without effect on predictions
    bias : whether W_i_bias and W_h_bias exist
    weights : W_i f32[hidden, atom + bond feature], W_h f32[hidden, hidden], W_o f32[hidden, atom feature + hidden],
        W_o_bias f32[hidden] and, with `bias`, W_i_bias and W_h_bias f32[hidden]
    ffn : pairs of f32[output, input] and f32[output]; a batch normalisation before the first layer is folded into it
    mean, std : f64[target], in the unit of the target; 0 and 1 where the model does not scale
    """

    version: str
    scheme: str
    task: str
    targets: tuple[str, ...]
    depth: int
    hidden: int
    activation: str
    aggregation: str
    norm: float
    dropout: float
    bias: bool
    weights: Mapping[str, Float32Array]
    ffn: tuple[tuple[Float32Array, Float32Array], ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def read_chemprop(path: Path | str) -> ChempropModel:
    """The model in a file that chemprop v1 (``model.pt``) or v2 (``model.pt``, ``best.ckpt``) wrote.

    The file does not say whether hydrogens were added or stereo marks ignored on the command line of v2; like chemprop,
    the caller must choose as in training.

    Raises
    ------
    DataError
        If the file cannot be read, is no chemprop model, or has a part that this reader does not know.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        if isinstance(content.get("args"), dict):
            return _read_v1(_Source(Path(path), content["args"], content["state_dict"]), content)
        if isinstance(content.get("hyper_parameters"), dict):
            return _read_v2(_Source(Path(path), content["hyper_parameters"], content["state_dict"]), content)
    found = f"entries {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) else type(content).__name__
    _refuse(Path(path), found or "no entries", "state_dict with args (v1) or hyper_parameters (v2)")


def _refuse(where: Path, found: str, expected: str) -> NoReturn:
    raise DataError(compose(f"cannot use the chemprop model {where}", [("found", found), ("expected", expected)]))


class _Source:
    """Settings and tensors of one file; knows which tensors were used."""

    def __init__(self, where: Path, settings: Mapping[Any, Any], tensors: Mapping[Any, Any]) -> None:
        self.where, self.settings, self.tensors = where, settings, tensors
        self.unused = {str(name) for name in tensors if not _WITHOUT_EFFECT.fullmatch(str(name))}

    def refuse(self, found: str, expected: str) -> NoReturn:
        _refuse(self.where, found, expected)

    def section(self, name: str) -> _Source:
        """The settings of one part of the network."""
        settings = self.settings.get(name)
        if not isinstance(settings, dict):
            self.refuse(f"no settings of {name}", "settings of message_passing, agg and predictor")
        return _Source(self.where, settings, {})

    def integer(self, name: str) -> int:
        value = self.settings.get(name)
        if not isinstance(value, int) or not 1 <= value <= 10_000:
            self.refuse(f"{name} = {_show(value)}", "a whole number from 1 to 10,000")
        return int(value)

    def number(self, name: str, default: float) -> float:
        value = self.settings.get(name, default)
        if not _is_number(value):
            self.refuse(f"{name} = {_show(value)}", "a number")
        return float(value)

    def choice(self, name: str, choices: Mapping[str, str]) -> str:
        """The meaning of a setting, which is text, an enumeration's member or a class; capitals do not matter."""
        value = self.settings.get(name)
        if isinstance(value, Opaque):
            value = value.args[0] if value.args else value.name.rpartition(".")[2]
        meanings = {spelling.lower(): meaning for spelling, meaning in choices.items()}
        if not isinstance(value, str) or value.lower() not in meanings:
            self.refuse(f"{name} = {_show(value)}", ", ".join(choices))
        return meanings[value.lower()]

    def activation(self) -> str:
        return self.choice("activation", {name: name for name in ACTIVATIONS})

    def tensor(self, name: str, *shape: int | None) -> Float32Array:
        """A float tensor of that shape, None for any size."""
        array = self.tensors.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            self.refuse(f"no float tensor {name}", "the weights of a message-passing model")
        fits = [size in (None, found) for size, found in zip(shape, array.shape, strict=False)]
        if len(shape) != array.ndim or not all(fits):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            self.refuse(f"{name} of shape {array.shape}", f"({sizes})")
        self.unused.discard(name)
        return self.single(name, array)

    def single(self, name: str, array: NDArray[Any]) -> Float32Array:
        """`array` in single precision, finite."""
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(array, np.float32).reshape(array.shape)
        if not np.isfinite(result).all():
            self.refuse(f"{name} with values that are not finite", "finite weights")
        return result

    def check_all_used(self) -> None:
        if self.unused:
            names = ", ".join(sorted(self.unused)[:4])
            self.refuse(f"weights of a part that this reader does not know: {names}", "one molecule, no extra features")


def _show(value: Any) -> str:
    """A setting as a message shows it: a value only if it is a plain one."""
    return repr(value)[:60] if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= 1e30


def _read_v1(source: _Source, content: Mapping[Any, Any]) -> ChempropModel:
    for setting, meaning in _V1_REFUSED.items():
        if source.settings.get(setting):
            source.refuse(f"{setting}: {meaning}", "directed messages along the bonds of one molecule")
    if source.settings.get("number_of_molecules", 1) != 1:
        source.refuse("several molecules for one prediction", "number_of_molecules = 1")
    hidden = source.integer("hidden_size")
    weights, scheme = _messages(source, "encoder.encoder.0.", hidden, bias=False)
    ffn = _feed_forward(source, r"(?:ffn|readout)\.(\d+)\.weight", hidden)
    task = source.choice("dataset_type", _V1_TASKS)
    scaler = content.get("data_scaler") if task == "regression" else None
    outputs = len(ffn[-1][1])
    aggregation = source.choice("aggregation", {name: name for name in ("mean", "sum", "norm")})
    source.check_all_used()
    return ChempropModel(
        version="v1",
        scheme=scheme,
        task=task,
        targets=_targets(source, source.settings.get("task_names"), outputs),
        depth=source.integer("depth"),
        hidden=hidden,
        activation=source.activation(),
        aggregation=aggregation,
        norm=_positive(source, "aggregation_norm") if aggregation == "norm" else 1.0,
        dropout=source.number("dropout", 0.0),
        bias=False,
        weights=weights,
        ffn=ffn,
        mean=_scale(source, scaler, "means", outputs, default=0.0),
        std=_scale(source, scaler, "stds", outputs, default=1.0),
    )


def _read_v2(source: _Source, content: Mapping[Any, Any]) -> ChempropModel:
    messages, predictor, pooling = (source.section(name) for name in ("message_passing", "predictor", "agg"))
    messages.choice("cls", {"BondMessagePassing": "bond"})
    if messages.settings.get("undirected"):
        source.refuse("undirected messages", "directed messages along bonds")
    hidden = messages.integer("d_h")
    activation = messages.activation()
    if predictor.activation() != activation:
        source.refuse("different activations in the messages and the read-out", "one activation")
    bias = bool(messages.settings.get("bias"))
    weights, scheme = _messages(source, "message_passing.", hidden, bias)
    ffn = _feed_forward(source, r"predictor\.ffn\.(\d+)\.[02]\.weight", hidden)
    if "bn.weight" in source.tensors:
        ffn = (_fold_batch_norm(source, *ffn[0]), *ffn[1:])
    outputs = len(ffn[-1][1])
    scaler, transform = {}, "predictor.output_transform."
    if transform + "mean" in source.tensors:
        scaler = {name: source.tensor(transform + name, 1, outputs)[0] for name in ("mean", "scale")}
    source.check_all_used()
    aggregation = pooling.choice("cls", _V2_AGGREGATIONS)
    return ChempropModel(
        version="v2",
        scheme=scheme,
        task=predictor.choice("cls", _V2_TASKS),
        targets=_targets(source, content.get("output_columns"), outputs),
        depth=messages.integer("depth"),
        hidden=hidden,
        activation=activation,
        aggregation=aggregation,
        norm=_positive(pooling, "norm") if aggregation == "norm" else 1.0,
        dropout=messages.number("dropout", 0.0),
        bias=bias,
        weights=weights,
        ffn=ffn,
        mean=_scale(source, scaler, "mean", outputs, default=0.0),
        std=_scale(source, scaler, "scale", outputs, default=1.0),
    )


def _messages(source: _Source, prefix: str, hidden: int, bias: bool) -> tuple[dict[str, Float32Array], str]:
    """The weights of the message passing, and the feature scheme that their widths tell."""
    weights = {
        "W_i": source.tensor(prefix + "W_i.weight", hidden, None),
        "W_h": source.tensor(prefix + "W_h.weight", hidden, hidden),
        "W_o": source.tensor(prefix + "W_o.weight", hidden, None),
        "W_o_bias": source.tensor(prefix + "W_o.bias", hidden),
    }
    if bias:
        weights |= {f"{name}_bias": source.tensor(f"{prefix}{name}.bias", hidden) for name in ("W_i", "W_h")}
    atom = weights["W_o"].shape[1] - hidden
    bond = weights["W_i"].shape[1] - atom
    if (atom, bond) not in SCHEMES:
        known = " or ".join(f"{widths[0]} and {widths[1]} ({name})" for widths, name in SCHEMES.items())
        source.refuse(f"{atom} atom features and {bond} bond features", known)
    return weights, SCHEMES[atom, bond]


def _feed_forward(source: _Source, pattern: str, hidden: int) -> tuple[tuple[Float32Array, Float32Array], ...]:
    """The layers of the read-out in order; `pattern` captures the position of a layer's weight."""
    matches = [match for match in map(re.compile(pattern, re.ASCII).fullmatch, map(str, source.tensors)) if match]
    layers, width = [], hidden
    for match in sorted(matches, key=lambda match: int(match[1][:9])):
        weight = source.tensor(match[0], None, width)
        width = weight.shape[0]
        layers.append((weight, source.tensor(match[0].removesuffix("weight") + "bias", width)))
    if not layers or not width:
        source.refuse("a model without a read-out", "a feed-forward network on top of the messages")
    return tuple(layers)


def _fold_batch_norm(source: _Source, weight: Float32Array, bias: Float32Array) -> tuple[Float32Array, Float32Array]:
    """The layer that does what batch normalisation (of fixed statistics) and then the layer did; computed in f64."""
    names = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, variance = (source.tensor(f"bn.{name}", weight.shape[1]).astype(np.float64) for name in names)
    if (variance < 0).any():
        source.refuse("a negative variance in the batch normalisation", "zero or more")
    gain = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
    folded = bias + weight.astype(np.float64) @ (shift - gain * mean)
    return source.single("bn.weight", weight * gain), source.single("bn.bias", folded)


def _targets(source: _Source, names: Any, outputs: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"target {index + 1}" for index in range(outputs))
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        source.refuse("target names that are not text", "a list of names")
    if len(names) != outputs:
        source.refuse(f"{outputs} outputs for {len(names)} targets", "one output for each target")
    return tuple(names)


def _positive(source: _Source, name: str) -> float:
    value = source.number(name, 100.0)
    if value <= 0:
        source.refuse(f"{name} = {value}", "a positive number")
    return value


def _scale(source: _Source, scaler: Any, name: str, outputs: int, default: float) -> NDArray[np.float64]:
    """One row of the scaler, or `default` for every target if there is none."""
    values = scaler.get(name) if isinstance(scaler, dict) else None
    if values is None:
        return np.full(outputs, default)
    is_list = isinstance(values, list) and all(map(_is_number, values))
    if not is_list and not (isinstance(values, np.ndarray) and values.dtype.kind in "fiu"):
        source.refuse(f"{name} of the scaler that are not numbers", "numbers")
    row = np.array(values, np.float64)
    if row.shape != (outputs,) or not np.isfinite(row).all():
        source.refuse(f"{name} of the scaler of shape {row.shape}", f"{outputs} finite numbers")
    return row
