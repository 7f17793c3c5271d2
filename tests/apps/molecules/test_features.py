"""Two spellings of one molecule give the same bits, isomers do not; published bits and predictions are met."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, rdBase

from apps.molecules.chemprop import read_chemprop
from apps.molecules.descriptors import COUNT_NAMES, DESCRIPTOR_NAMES, counts, descriptors, fingerprint
from apps.molecules.features import (
    MoleculeGraph,
    complete_graph,
    feature_widths,
    featurise,
    featurise_all,
    featurise_reaction,
)
from apps.molecules.readers import Record, parse_reaction, read_rows
from apps.molecules.schemes import SCHEMES
from core.engine.errors import ConfigError, DataError

MORPHINE = "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5"
STEREO = [MORPHINE, "C/C=C/[C@H](F)Cl", "C[C@H]1CC[C@@H](C)CC1", "F/C=C/C=C\\[C@@H](N)O",
          "O[C@H]1C[C@@H](O)C[C@H](O)C1", "C[S@](=O)c1ccccc1", "N[C@@H](CC(=O)O)C(=O)O", "C[C@@H](O)[C@H](O)[C@@H](C)O"]
PLAIN = ["C", "[Na+].[Cl-]", "C12C3C4C1C5C2C3C45", "c1ccc2[nH]ccc2c1", "[2H]C(Cl)Cl", "OS(=O)(=O)O",
         "[H][H]", "C1CC2CCC1CC2", "*CC*"]


def arrays(graph: MoleculeGraph) -> dict[str, np.ndarray]:
    """All arrays but the ones that tell where an atom stood in the spelling."""
    return {f.name: getattr(graph, f.name) for f in fields(graph) if f.name not in ("origin", "positions")}


def assert_same(one: MoleculeGraph, other: MoleculeGraph) -> None:
    for name, values in arrays(one).items():
        np.testing.assert_array_equal(values, arrays(other)[name], err_msg=name)


def respelled(molecule: Chem.Mol, times: int) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(text) for text in Chem.MolToRandomSmilesVect(molecule, times, randomSeed=7)]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("smiles", STEREO + PLAIN)
def test_spelling_does_not_matter(smiles: str, explicit: bool) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    graph = featurise(molecule, explicit_hydrogens=explicit)
    for other in respelled(molecule, 20):
        assert_same(graph, featurise(other, explicit_hydrogens=explicit))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("explicit", [False, True])
def test_company_does_not_matter(scheme: str, explicit: bool) -> None:
    molecules = [Chem.MolFromSmiles(text) for text in (*PLAIN, *STEREO)]
    together = featurise_all(molecules, scheme=scheme, explicit_hydrogens=explicit)
    for molecule, graph in zip(molecules, together, strict=True):
        alone = featurise(molecule, scheme=scheme, explicit_hydrogens=explicit)
        assert_same(graph, alone)
        np.testing.assert_array_equal(graph.origin, alone.origin)
        assert [array.dtype for array in arrays(graph).values() if isinstance(array, np.ndarray)] == [
            np.float32, np.float32, *[np.int32] * 4]
    assert featurise_all([]) == []


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["moleculenet/BBBP.csv", "moleculenet/tox21.csv.gz",
                                  "qm9/qm9_extra_train_12targets.csv.gz"])
def test_spelling_does_not_matter_in_published_sets(realdata: Path, file: str) -> None:
    records = [row for row in read_rows(realdata / "molecules" / file) if isinstance(row, Record)][::20]
    for record in records:
        graph = featurise(record.molecule)
        for other in respelled(record.molecule, 2):
            with rdBase.BlockLogs():
                assert_same(graph, featurise(other))


@pytest.mark.parametrize(("one", "other"), [
    ("C[C@H](F)Cl", "C[C@@H](F)Cl"),
    ("F/C=C/F", "F/C=C\\F"),
    ("C[C@H]1CC[C@@H](C)CC1", "C[C@H]1CC[C@H](C)CC1"),
    ("C[C@H](F)Cl", "CC(F)Cl"),
    ("C1CCCCC1", "C1CCCCCC1"),
    ("C[NH3+]", "CN"),
    ("[2H]C", "C"),
])
def test_different_molecules_differ(one: str, other: str) -> None:
    graphs = [featurise(Chem.MolFromSmiles(text)) for text in (one, other)]
    assert any(values.shape != arrays(graphs[1])[name].shape or (values != arrays(graphs[1])[name]).any()
               for name, values in arrays(graphs[0]).items())


def test_featurising_leaves_the_molecule_alone() -> None:
    molecule = Chem.MolFromSmiles(STEREO[1])
    before = featurise(molecule, scheme="chemprop-v1")
    featurise(molecule)
    assert_same(before, featurise(molecule, scheme="chemprop-v1"))


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("smiles", STEREO + PLAIN)
def test_edges_are_sorted_and_paired(scheme: str, smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    graph = featurise(molecule, scheme=scheme)
    assert graph.atoms.shape == (molecule.GetNumAtoms(), feature_widths(scheme)[0])
    assert graph.edges.shape == (2 * molecule.GetNumBonds(), feature_widths(scheme)[1])
    assert graph.atoms.dtype == graph.edges.dtype == np.float32
    assert {graph.source.dtype, graph.target.dtype, graph.reverse.dtype, graph.origin.dtype} == {np.dtype(np.int32)}
    assert (np.diff(graph.target) >= 0).all()
    np.testing.assert_array_equal(graph.source[graph.reverse], graph.target)
    np.testing.assert_array_equal(graph.reverse[graph.reverse], np.arange(len(graph.source)))
    np.testing.assert_array_equal(graph.edges[graph.reverse], graph.edges)
    bonds = {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in molecule.GetBonds()}
    assert {frozenset(pair) for pair in zip(graph.origin[graph.source].tolist(), graph.origin[graph.target].tolist(),
                                            strict=True)} == bonds
    numbers = [molecule.GetAtomWithIdx(int(i)).GetAtomicNum() for i in graph.origin]
    np.testing.assert_array_equal(graph.atomic_numbers, numbers)


@pytest.mark.parametrize(("scheme", "widths"), [
    ("tilework", (60, 17)), ("chemprop-v1", (133, 14)), ("chemprop-v2", (72, 14))])
def test_widths(scheme: str, widths: tuple[int, int]) -> None:
    assert feature_widths(scheme) == widths
    assert feature_widths(scheme, complete=True) == (widths[0], 5)
    assert feature_widths(scheme, reaction=True) == (2 * widths[0] - SCHEMES[scheme].elements, 2 * widths[1])


@pytest.mark.parametrize(("scheme", "smiles", "atom", "expected"), [
    # chemprop: element, degree, charge (-1 -2 1 2 0), chiral tag, hydrogens, hybridisation, aromatic
    ("chemprop-v1", "C", 0, {5: 1, 105: 1, 112: 1, 114: 1, 123: 1, 127: 1, 132: 0.12011}),
    ("chemprop-v1", "[O-]C", 0, {7: 1, 102: 1, 108: 1, 114: 1, 119: 1, 127: 1, 132: 0.15999}),
    ("chemprop-v1", "c1ccccc1", 0, {5: 1, 104: 1, 112: 1, 114: 1, 120: 1, 126: 1, 131: 1, 132: 0.12011}),
    ("chemprop-v2", "CI", 1, {36: 1, 39: 1, 49: 1, 51: 1, 56: 1, 66: 1, 71: 1.26904}),
    ("chemprop-v2", "[Au]C", 0, {37: 1}),
    ("tilework", "C[C@H](F)Cl", 1, {2: 1, 20: 1, 27: 1, 30: 1, 38: 1}),
])
def test_bits(scheme: str, smiles: str, atom: int, expected: dict[int, float]) -> None:
    graph = featurise(Chem.MolFromSmiles(smiles), scheme=scheme)
    vector = graph.atoms[graph.origin == atom][0]
    np.testing.assert_allclose([vector[i] for i in expected], list(expected.values()), atol=1e-5)
    if scheme == "chemprop-v1":
        assert np.count_nonzero(vector) == len(expected)


@pytest.mark.parametrize(("smiles", "expected"), [
    ("CC", [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ("C1CC1", [0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]),
    ("c1ccccc1", [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]),
    ("C#C", [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
])
def test_chemprop_bond_bits(smiles: str, expected: list[int]) -> None:
    np.testing.assert_array_equal(featurise(Chem.MolFromSmiles(smiles), scheme="chemprop-v1").edges[0], expected)


def test_chemprop_bond_stereo_bits() -> None:
    for smiles, bit in (("F/C=C\\F", 9), ("F/C=C/F", 10)):
        edges = featurise(Chem.MolFromSmiles(smiles), scheme="chemprop-v1").edges
        assert edges[:, bit].sum() == 2 and edges[:, 7].sum() == 4


def test_hydrogens_written_or_not_are_one_molecule() -> None:
    bare, whole = Chem.MolFromSmiles(MORPHINE), Chem.AddHs(Chem.MolFromSmiles(MORPHINE))
    assert_same(featurise(bare), featurise(whole))
    assert_same(featurise(bare, explicit_hydrogens=True), featurise(whole, explicit_hydrogens=True))
    assert featurise(whole).heavy_atoms == featurise(whole, explicit_hydrogens=True).heavy_atoms == 21
    np.testing.assert_array_equal(counts(bare), counts(whole))
    np.testing.assert_array_equal(fingerprint(bare), fingerprint(whole))
    np.testing.assert_array_equal(descriptors(bare)[0], descriptors(whole)[0])


@pytest.mark.realdata
def test_published_predictions_of_chemprop(realdata: Path) -> None:
    """Its v1 ESOL model, evaluated on our arrays, predicts its 50 published numbers (log10 mol/L)."""
    folder = realdata / "molecules/chemprop_fixtures"
    model = read_chemprop(folder / "example_model_v1_regression_mol.pt")
    records = list(read_rows(folder / "chemprop_v1_esol_predictions_50.csv", targets=["logSolubility"]))
    for record in records:
        graph = featurise(record.molecule, scheme=model.scheme)
        sums = np.zeros((len(graph.atoms), model.hidden), dtype=np.float32)
        initial = np.concatenate([graph.atoms[graph.source], graph.edges], axis=1) @ model.weights["W_i"].T
        state = np.maximum(initial, 0)
        for _ in range(model.depth - 1):
            sums[:] = 0
            np.add.at(sums, graph.target, state)
            message = sums[graph.source] - state[graph.reverse]
            state = np.maximum(initial + message @ model.weights["W_h"].T, 0)
        sums[:] = 0
        np.add.at(sums, graph.target, state)
        atoms = np.concatenate([graph.atoms, sums], axis=1) @ model.weights["W_o"].T + model.weights["W_o_bias"]
        value = np.maximum(atoms, 0).mean(axis=0)
        for layer, (weight, bias) in enumerate(model.ffn):
            value = (np.maximum(value, 0) if layer else value) @ weight.T + bias
        assert abs(value[0] * model.std[0] + model.mean[0] - record.targets[0]) <= 1e-6
    assert len(records) == 50


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="no feature scheme 'v3'; there are tilework, chemprop-v1, chemprop-v2"):
        featurise(Chem.MolFromSmiles("C"), scheme="v3")


# ------------------------------------------------------------------------------------------------ molecule rows


def test_descriptors_do_not_depend_on_spelling_and_are_finite() -> None:
    molecule = Chem.MolFromSmiles(MORPHINE)
    values, replaced = descriptors(molecule)
    assert values.shape == (len(DESCRIPTOR_NAMES),) and values.dtype == np.float32 and replaced == ()
    assert values[DESCRIPTOR_NAMES.index("MolWt")] == pytest.approx(285.343, abs=1e-3)
    for other in respelled(molecule, 5):
        np.testing.assert_array_equal(values, descriptors(other)[0])


def test_descriptors_that_cannot_be_computed_are_named_and_zero() -> None:
    values, replaced = descriptors(Chem.MolFromSmiles("C[Pt]C"))
    assert "MaxPartialCharge" in replaced and np.isfinite(values).all()
    assert values[[DESCRIPTOR_NAMES.index(name) for name in replaced]].tolist() == [0] * len(replaced)


@pytest.mark.parametrize(("smiles", "expected"), [
    ("CO", {"C": 1, "O": 1, "H": 4, "C-H": 3, "O-H": 1, "C-O": 1, "C sp3": 1}),
    ("[H][H]", {"H": 2, "other-H": 2}),
    ("FC=N", {"F": 1, "C": 1, "N": 1, "H": 2, "C-F": 1, "C=N": 1, "C-H": 1, "N-H": 1, "C sp2": 1}),
    ("c1ccccc1Cl", {"C": 6, "Cl": 1, "H": 5, "C-H": 5, "C:C": 6, "other - bond": 1, "C sp2": 6, "ring of 6": 1}),
])
def test_counts(smiles: str, expected: dict[str, int]) -> None:
    values = counts(Chem.MolFromSmiles(smiles))
    assert {name: value for name, value in zip(COUNT_NAMES, values, strict=True) if value} == expected


# ------------------------------------------------------------------------------------------------ 3-D


def rotation(generator: np.random.Generator) -> np.ndarray:
    turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    return turn * np.sign(np.linalg.det(turn))


@pytest.mark.realdata
def test_pairs_keep_distances_under_motion(realdata: Path) -> None:
    generator = np.random.default_rng(5)
    for record in [*read_rows(realdata / "molecules/qm9_3d/qm9_3d.xyz.gz")][::400]:
        graph = complete_graph(record.molecule, record.coordinates)
        count = len(record.coordinates)
        assert graph.edges.shape == (count * (count - 1), 5) and (np.diff(graph.target) >= 0).all()
        np.testing.assert_array_equal(graph.source[graph.reverse], graph.target)
        np.testing.assert_array_equal(graph.edges[graph.reverse], graph.edges)
        offsets = record.coordinates[graph.source] - record.coordinates[graph.target]
        np.testing.assert_allclose(graph.edges[:, 0], np.linalg.norm(offsets, axis=1), rtol=1e-6)
        assert graph.edges[:, 1:].sum() == 2 * record.molecule.GetNumBonds()
        moved = complete_graph(record.molecule, record.coordinates @ rotation(generator) + generator.normal(size=3))
        np.testing.assert_allclose(graph.edges, moved.edges, rtol=2e-7)
        bare = complete_graph(record.molecule, record.coordinates, explicit_hydrogens=False)
        assert np.count_nonzero(bare.atomic_numbers != 1) == bare.heavy_atoms == graph.heavy_atoms
        np.testing.assert_array_equal(bare.positions, record.coordinates[bare.origin].astype(np.float32))


def test_hydrogens_without_coordinates_are_an_error() -> None:
    with pytest.raises(DataError, match="4 hydrogen atoms have no coordinates"):
        complete_graph(Chem.MolFromSmiles("C"), np.zeros((1, 3)))


def test_positions_follow_the_atoms() -> None:
    molecule = Chem.MolFromSmiles("OCC#N")
    coordinates = np.arange(12.0).reshape(4, 3)
    graph = featurise(molecule, coordinates)
    np.testing.assert_array_equal(graph.positions, coordinates[graph.origin])


# ------------------------------------------------------------------------------------------------ reactions


def test_a_reaction_is_its_reactants_and_what_changes() -> None:
    scheme = SCHEMES["tilework"]
    graph = featurise_reaction(*parse_reaction("[CH3:1][Br:2].[OH-:3]>>[CH3:1][OH:3].[Br-:2]"))
    assert (graph.atoms.shape[1], graph.edges.shape[1]) == feature_widths(reaction=True)
    assert graph.atomic_numbers.tolist() == [6, 35, 8] and len(graph.source) == 4
    change = graph.edges[:, scheme.bond_width:]
    single = graph.edges[:, 0]
    assert sorted(zip(single.tolist(), change[:, 0].tolist(), strict=True)) == [(0, 1), (0, 1), (1, -1), (1, -1)]
    assert (graph.atoms[0, scheme.atom_width:] == 0).all(), "the carbon keeps its degree, charge and hydrogens"
    assert (graph.atoms[1:, scheme.atom_width:] != 0).any(axis=1).all()


def test_atoms_on_one_side_only_do_not_change() -> None:
    graph = featurise_reaction(*parse_reaction("[CH3:1][OH:2].CCN>>[CH2:1]=[O:2]"))
    width = SCHEMES["tilework"].atom_width
    assert len(graph.atoms) == 5 and (graph.atoms[2:, width:] == 0).all()
    assert (graph.edges[graph.target >= 2, SCHEMES["tilework"].bond_width:] == 0).all()


@pytest.mark.realdata
def test_published_reactions(realdata: Path) -> None:
    for record in read_rows(realdata / "molecules/chemprop_fixtures/rxn.csv"):
        graph = featurise_reaction(record.molecule, record.products)
        back = featurise_reaction(record.products, record.molecule)
        assert len(graph.atoms) == record.molecule.GetNumAtoms() == record.products.GetNumAtoms()
        assert len(graph.source) == len(back.source)
        np.testing.assert_array_equal(graph.source[graph.reverse], graph.target)
        assert np.abs(graph.edges[:, SCHEMES["tilework"].bond_width:]).sum() > 0, "some bond changes"


@pytest.mark.parametrize(("reaction", "message"), [
    ("CC>>CC", "no atom of the reaction is mapped on both sides"),
    ("[CH3:1][CH3:1]>>[CH3:1]C", "map number 1 occurs twice in the reactants"),
    ("[CH4:1]>>[NH3:1]", "map number 1 is C in the reactants and N in the products"),
])
def test_mapping_errors(reaction: str, message: str) -> None:
    sides = [Chem.MolFromSmiles(side) for side in reaction.split(">>")]
    with pytest.raises(DataError, match=message):
        featurise_reaction(*sides)
