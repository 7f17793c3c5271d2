"""chemprop's own model files give chemprop's own predictions, and what cannot be reproduced is refused by name."""

from __future__ import annotations

import csv
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rdkit import Chem

from apps.molecules.chemprop import ChempropModel, read_chemprop
from apps.molecules.features import MoleculeGraph, featurise
from core.engine.errors import DataError

V1 = "molecules/chemprop_fixtures/example_model_v1_regression_mol.pt"
V2 = "molecules/chemprop_fixtures/example_model_v2_regression_mol.pt"
PREDICTIONS = "molecules/chemprop_fixtures/chemprop_v1_esol_predictions_50.csv"

# What chemprop 2.3.1 (PyTorch 2.13, CPU, its own featuriser) predicts with the v2 file.
V2_PREDICTIONS = [
    ("OCC3OC(OCC2OC(OC(C#N)c1ccccc1)C(O)C(O)C2O)C(O)C(O)C3O", 2.2141836),
    ("CC12CCC3C(CCC4=CC(=O)CCC34C)C2CCC1C(=O)CO", 2.2249374),
    ("CCN2c1ncccc1N(C)C(=O)c3cccnc23", 2.252677),
    ("CC1=C(SCCO1)C(=O)Nc2ccccc2", 2.246186),
    ("C", 2.1721492),
    ("[Na+].[Cl-]", 2.1723053),
    ("[H][H]", 2.1429305),
    ("F/C=C/F", 2.1777654),
    ("C[C@H](N)C(=O)O", 2.1939945),
    ("[Pt](Cl)(Cl)(N)N", 2.1688914),
    ("O=S(=O)(O)O", 2.1750019),
    ("c1ccc2[nH]ccc2c1", 2.2805498),
    ("[2H]OC", 2.1685576),
    ("[Xe]", 2.1609497),
    ("C#N", 2.1922183),
    ("I[I-]I", 2.1616268),
    ("P(F)(F)(F)(F)F", 2.1905656),
    ("CCO", 2.1818821),
]


def graph_of(smiles: str, scheme: str) -> MoleculeGraph:
    return featurise(Chem.MolFromSmiles(smiles), scheme=scheme)


ACTIVATION = {
    "relu": lambda x: np.maximum(x, 0),
    "leakyrelu": lambda x: np.where(x > 0, x, np.float32(0.1) * x),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def predict_numpy(model: ChempropModel, graph: MoleculeGraph) -> NDArray[np.float64]:
    """The formula of `ChempropModel`, line by line, in f32: f64[target]."""
    tau, weights, bias = ACTIVATION[model.activation], model.weights, np.float32(0)

    def into_atoms(messages: NDArray[np.float32]) -> NDArray[np.float32]:
        total = np.zeros((len(graph.atoms), model.hidden), np.float32)
        np.add.at(total, graph.target, messages)
        return total

    start = np.hstack([graph.atoms[graph.source], graph.edges]) @ weights["W_i"].T + weights.get("W_i_bias", bias)
    state = tau(start)
    for _ in range(model.depth - 1):
        message = into_atoms(state)[graph.source] - state[graph.reverse]
        state = tau(start + message @ weights["W_h"].T + weights.get("W_h_bias", bias))
    atoms = tau(np.hstack([graph.atoms, into_atoms(state)]) @ weights["W_o"].T + weights["W_o_bias"])
    hidden = {"mean": atoms.mean(0), "sum": atoms.sum(0), "norm": atoms.sum(0) / model.norm}[model.aggregation]
    for index, (weight, offset) in enumerate(model.ffn):
        hidden = (tau(hidden) if index else hidden) @ weight.T + offset
    if model.task == "classification":
        return 1 / (1 + np.exp(-hidden.astype(np.float64)))
    return hidden * model.std + model.mean


@pytest.mark.realdata
def test_the_version_1_file_gives_its_50_published_predictions(realdata: Path) -> None:
    model = read_chemprop(realdata / V1)
    with (realdata / PREDICTIONS).open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = [predict_numpy(model, graph_of(row["smiles"], model.scheme))[0] for row in rows]
    published = [float(row["logSolubility"]) for row in rows]
    assert len(found) == 50
    np.testing.assert_allclose(found, published, rtol=0, atol=1e-6)


@pytest.mark.realdata
def test_the_version_2_file_predicts_what_chemprop_does(realdata: Path) -> None:
    model = read_chemprop(realdata / V2)
    found = [predict_numpy(model, graph_of(smiles, model.scheme))[0] for smiles, _ in V2_PREDICTIONS]
    np.testing.assert_allclose(found, [value for _, value in V2_PREDICTIONS], rtol=0, atol=1e-6)


@pytest.mark.realdata
def test_the_settings_of_both_files(realdata: Path) -> None:
    common = {
        "task": "regression", "depth": 3, "hidden": 300, "activation": "relu", "aggregation": "mean", "norm": 1.0,
        "dropout": 0.0, "bias": False,
    }  # fmt: skip
    own = {
        V1: {"version": "v1", "scheme": "chemprop-v1", "targets": ("logSolubility",)},
        V2: {"version": "v2", "scheme": "chemprop-v2", "targets": ("target 1",)},
    }
    widths = {V1: (133, 14), V2: (72, 14)}
    for name, settings in own.items():
        model = read_chemprop(realdata / name)
        assert {key: getattr(model, key) for key in common | settings} == common | settings
        atom, bond = widths[name]
        assert {key: weight.shape for key, weight in model.weights.items()} == {
            "W_i": (300, atom + bond), "W_h": (300, 300), "W_o": (300, atom + 300), "W_o_bias": (300,),
        }  # fmt: skip
        assert [weight.shape for weight, _ in model.ffn] == [(300, 300), (1, 300)]
        arrays = [*model.weights.values(), *(array for layer in model.ffn for array in layer)]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert read_chemprop(realdata / V1).mean == pytest.approx([-3.00043], abs=1e-5)
    assert read_chemprop(realdata / V2).std == pytest.approx([1.361529], abs=1e-6)


def edited(source: Path, target: Path, pattern: bytes, replacement: bytes) -> Path:
    """A copy of a model file in which what follows the groups of `pattern` was replaced at one place of the pickle."""

    def change(match: re.Match[bytes]) -> bytes:
        return b"".join(match.groups()) + replacement

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data, count = re.subn(pattern, change, data, count=1, flags=re.DOTALL)
                assert count == 1, pattern
            new.writestr(name, data)
    return target


def setting(name: bytes, old: bytes) -> bytes:
    """The pattern of a setting: its name, where the pickle's memo keeps it, and its value."""
    return rb"(" + name + rb"(?:q.|r....))" + old


def word(value: bytes) -> bytes:
    return b"X" + bytes([len(value), 0, 0, 0]) + value


FALSE, TRUE = rb"\x89", b"\x88"
REFUSED = [
    (V1, setting(b"atom_messages", FALSE), TRUE, "messages along atoms"),
    (V1, setting(b"undirected", FALSE), TRUE, "undirected messages"),
    (V1, setting(b"bias", FALSE), TRUE, "depends on its batch"),
    (V1, setting(b"reaction", FALSE), TRUE, "reactions"),
    (V1, setting(b"use_input_features", FALSE), TRUE, "extra molecule features"),
    (V1, setting(b"explicit_h", FALSE), TRUE, "explicit hydrogens"),
    (V1, setting(b"number_of_molecules", rb"K\x01"), b"K\x02", "several molecules"),
    (V1, setting(b"depth", rb"K\x03"), b"K\x00", "depth = 0"),
    (V1, setting(b"hidden_size", rb"M,\x01"), b"K\x20", r"W_i.weight of shape \(300, 147\)"),
    (V1, setting(b"activation", word(b"ReLU")), word(b"PReLU"), "activation = 'PReLU'"),
    (V1, setting(b"dataset_type", word(b"regression")), word(b"spectra"), "dataset_type = 'spectra'"),
    (V1, setting(b"aggregation", word(b"mean")), word(b"median"), "aggregation = 'median'"),
    (V1, rb"readout\.1\.bias", b"readout.2.bias", "no float tensor readout.1.bias"),
    (V1, rb"(logSolubility(?:q.|r....))a", b"aK\x01a", "target names that are not text"),
    (V1, rb"(logSolubility(?:q.|r....))a", b"a" + word(b"pKa") + b"a", "1 outputs for 2 targets"),
    (V1, rb"state_dict", b"state_tict", "found +entries args, state_tict"),
    (V2, rb"BondMessagePassing", b"AtomMessagePassing", "cls = 'AtomMessagePassing'"),
    (V2, rb"RegressionFFN", b"MveFFN", "cls = 'MveFFN'"),
    (V2, rb"MeanAggregation", b"AttentiveAggregation", "cls = 'AttentiveAggregation'"),
    (V2, setting(b"undirected", FALSE), TRUE, "undirected messages"),
    (V2, setting(b"bias", FALSE), TRUE, "no float tensor message_passing.W_i.bias"),
    (V2, setting(b"d_h", rb"M,\x01"), b"K\x20", r"expected +\(32, any\)"),
    (V2, rb"bn\.running_var", b"bn.running_bar", "no float tensor bn.running_var"),
    (V2, rb"predictor\.criterion\.task", b"predictor.uncertain.task", "part that this reader does not know"),
]


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "pattern", "replacement", "message"), REFUSED)
def test_what_cannot_be_reproduced_is_refused_by_name(
    realdata: Path, tmp_path: Path, name: str, pattern: bytes, replacement: bytes, message: str
) -> None:
    path = edited(realdata / name, tmp_path / "edited.pt", pattern, replacement)
    with pytest.raises(DataError, match=message):
        read_chemprop(path)


@pytest.mark.realdata
def test_the_other_aggregations_are_read(realdata: Path, tmp_path: Path) -> None:
    benzene = graph_of("c1ccccc1", "chemprop-v2")
    mean = predict_numpy(read_chemprop(realdata / V2), benzene)
    for name, factor in ((b"SumAggregation", 6.0), (b"NormAggregation", 6 / 100)):
        model = read_chemprop(edited(realdata / V2, tmp_path / "edited.pt", rb"MeanAggregation", name))
        # The read-out is not linear: scaling its first weights back must restore the mean's prediction.
        (weight, offset), last = model.ffn
        scaled = replace(model, ffn=((weight / np.float32(factor), offset), last))
        np.testing.assert_allclose(predict_numpy(scaled, benzene), mean, rtol=0, atol=1e-5)
        assert (model.aggregation, model.norm) in {("sum", 1.0), ("norm", 100.0)}
