"""The three networks: they learn, and a prediction depends on the molecule alone."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from apps.molecules.batches import Batch, collate
from apps.molecules.data import Example, Features, samples
from apps.molecules.model import CENTRES, Predictor, gaussians
from apps.molecules.readers import Record, read_rows
from apps.molecules.train import loss
from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.optim import Adam
from core.engine.testing import check_grads
from core.engine.train import State, gradient_step
from tests.apps.molecules.small import MODELS, SMILES, example, network

CLOSE = 1e-5
CHIRAL = (("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O"), ("F[C@](Cl)(Br)I", "F[C@@](Cl)(Br)I"))
CIS_TRANS = ("C/C=C/C#N", "C/C=C\\C#N")
REACTION = "[CH3:1][Br:2].[OH-:3]>>[CH3:1][OH:3].[Br-:2]"


def batch_of(found: list[Example], size: int) -> Batch:
    targets = np.array([part.targets if len(part.targets) else [np.nan] for part in found], np.float32)
    return collate(samples(found, targets), size)


def predict(model: Predictor, found: list[Example], size: int) -> np.ndarray:
    return model(batch_of(found, size)).numpy()[:len(found)]


@pytest.mark.parametrize("model", MODELS)
def test_it_overfits_eight_molecules(model: str) -> None:
    targets = np.random.default_rng(0).normal(size=8)
    batch = batch_of([example(text, targets=[target]) for text, target in zip(SMILES, targets, strict=True)], 8)
    start, adam = network(model), Adam()
    step = jit(gradient_step(lambda parameters, batch: loss(parameters, batch, (False,)), adam.update))
    program = step.bind(State(start, adam.init(start)), update=True)
    losses = [float(program(0.003, batch)) for _ in range(600)]
    assert losses[10] < losses[0]
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(program.value.parameters(batch).numpy()[:, 0], targets, atol=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_batch_mates_their_order_and_padding_do_not_matter(model: str) -> None:
    features = Features(descriptors=True)
    built, found = network(model, features, 2), [example(text, features) for text in SMILES]
    found = [replace(part, descriptors=part.descriptors / 1000) for part in found]
    alone = np.concatenate([predict(built, [part], 1) for part in found])
    spread = np.ptp(alone, axis=0)
    for order in (np.arange(8), np.arange(8)[::-1], np.random.default_rng(1).permutation(8)):
        for size in (8, 33):
            together = predict(built, [found[place] for place in order], size)
            assert (np.abs(together - alone[order]) < CLOSE * spread).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("explicit", [False, True])
def test_the_spelling_of_a_molecule_does_not_matter(model: str, explicit: bool) -> None:
    features = Features(explicit_hydrogens=explicit)
    built = network(model, features)
    for text in SMILES:
        spellings = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(text), 10, randomSeed=3)
        values = predict(built, [example(spelling, features) for spelling in (text, *spellings)], 11)
        np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), rtol=CLOSE)


@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_atoms_in_the_arrays_does_not_matter(model: str) -> None:
    """Features put atoms in canonical order; a network must not need that."""
    built, part = network(model), example(SMILES[2])
    graph = part.graph
    place = np.random.default_rng(0).permutation(len(graph.atoms)).astype(np.int32)
    back = np.argsort(place)
    source, target = place[graph.source], place[graph.target]
    order = np.lexsort((source, target))
    where = np.argsort(order).astype(np.int32)
    mixed = replace(graph, atoms=graph.atoms[back], edges=graph.edges[order], source=source[order],
                    target=target[order], reverse=where[graph.reverse[order]], origin=graph.origin[back],
                    atomic_numbers=graph.atomic_numbers[back])
    np.testing.assert_allclose(predict(built, [replace(part, graph=mixed)], 1), predict(built, [part], 1), rtol=CLOSE)


@pytest.mark.parametrize(("model", "one", "other"), [
    (model, *pair) for model in MODELS for pair in (*CHIRAL, CIS_TRANS) if (model, pair) != ("ggnn", CIS_TRANS)])
def test_stereoisomers_differ(model: str, one: str, other: str) -> None:
    """All but E and Z for ggnn, which sees the type of a double bond and not its configuration."""
    left, right = predict(network(model), [example(one), example(other)], 2)[:, 0]
    assert abs(left - right) > 100 * CLOSE * max(abs(left), abs(right))


@pytest.mark.parametrize("model", MODELS)
def test_a_reaction_is_not_its_reverse(model: str) -> None:
    features = Features(reaction=True)
    left, _, right = REACTION.partition(">>")
    values = predict(network(model, features), [example(REACTION, features), example(f"{right}>>{left}", features)], 2)
    assert abs(values[0, 0] - values[1, 0]) > 100 * CLOSE * np.abs(values).max()


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_the_whole_network(model: str) -> None:
    # Without a padded molecule, whose vector of zeros lies on the kink of relu.
    batch = batch_of([example(text) for text in SMILES[1:4]], 3)
    double = replace(batch, **{field.name: as_array(getattr(batch, field.name), "f64") for field in fields(batch)
                               if getattr(batch, field.name).dtype == np.float32})
    built = network(model, outputs=2, seed=1, hidden=5, depth=2, head=(4,), activation="tanh")
    check_grads(lambda parameters: parameters(double), [built])


def test_the_first_gradient_lowers_the_loss_of_a_mixture_of_tasks() -> None:
    rows = [(0.3, 1.0), (-1.2, np.nan), (np.nan, 0.0), (0.8, 0.0)]
    batch = batch_of([example(text, targets=row) for text, row in zip(SMILES, rows, strict=False)], 5)
    start, adam = network("dmpnn", outputs=2), Adam()
    step = jit(gradient_step(lambda parameters, batch: loss(parameters, batch, (False, True)), adam.update))
    program = step.bind(State(start, adam.init(start)), update=True)
    raw = start(batch).numpy()[:4].astype(np.float64)
    known = np.array(rows)
    squares = (raw[:, 0] - known[:, 0]) ** 2
    entropies = np.logaddexp(0, raw[:, 1]) - known[:, 1] * raw[:, 1]
    assert float(program(1e-3, batch)) == pytest.approx((np.nansum(squares) + np.nansum(entropies)) / 6, rel=1e-5)
    assert float(program(1e-3, batch)) < (np.nansum(squares) + np.nansum(entropies)) / 6


# ------------------------------------------------------------------------------------------------ three dimensions


DISTANCES = Features(distances=True)


def rotation(seed: int) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def in_space(molecule: Chem.Mol, coordinates: np.ndarray) -> Example:
    return DISTANCES.example(Record(1, "", molecule, None, coordinates, np.zeros(0), {}), keyed=False)


def molecules_in_space(realdata: Path, count: int) -> list[Record]:
    """Some of the first 400 molecules of QM7."""
    rows = read_rows(realdata / "molecules" / "qm7" / "qm7_7101.xyz.gz")
    return [record for _, record in zip(range(400), rows, strict=False) if isinstance(record, Record)][::400 // count]


@pytest.mark.realdata
def test_motion_and_numbering_do_not_matter_and_distances_do(realdata: Path) -> None:
    records = molecules_in_space(realdata, 20)
    built, generator = network("mpnn", DISTANCES), np.random.default_rng(0)
    for number, record in enumerate(records):
        here = record.coordinates
        assert here is not None
        order = generator.permutation(len(here)).tolist()
        moved = here @ rotation(number).T + generator.normal(size=3) * 10
        found = [in_space(record.molecule, here), in_space(record.molecule, moved),
                 in_space(Chem.RenumberAtoms(record.molecule, order), moved[order])]
        values = predict(built, found, 3)[:, 0]
        np.testing.assert_allclose(values, np.full(3, values[0]), rtol=CLOSE)
        stretched = predict(built, [in_space(record.molecule, here * 1.1)], 1)[0, 0]
        assert abs(stretched - values[0]) > 10 * CLOSE * abs(values[0])


@pytest.mark.realdata
def test_batch_mates_do_not_matter_where_every_pair_of_atoms_is_an_edge(realdata: Path) -> None:
    """The widest molecule of a batch sets how many edges an atom has room for."""
    found = [in_space(record.molecule, record.coordinates) for record in molecules_in_space(realdata, 20)
             if record.coordinates is not None]
    assert len({batch_of([part], 1).arriving.shape[1] for part in found}) > 2
    built = network("mpnn", DISTANCES)
    alone = np.concatenate([predict(built, [part], 1) for part in found])
    for order in (np.arange(20), np.random.default_rng(1).permutation(20)):
        np.testing.assert_allclose(predict(built, [found[place] for place in order], 33), alone[order], rtol=CLOSE)


def test_gaussians_of_a_distance_are_1_at_their_centre_and_equal_halfway_between_two() -> None:
    values = gaussians(as_array(np.array([[0.5], [1.375], [6.25]]))).numpy()
    assert values.shape == (3, CENTRES) and values[0, 0] == values[2, -1] == 1
    assert values[0].argmax() == 0 and values[1, 3] == values[1, 4] == pytest.approx(np.exp(-1 / 8))


def test_a_jitted_network_gives_what_the_eager_one_does() -> None:
    batch = batch_of([example(text) for text in SMILES], 8)
    for model in MODELS:
        built = network(model, seed=2)
        compiled = jit(lambda network, batch: network(batch))(built, batch).numpy()
        np.testing.assert_allclose(compiled, built(batch).numpy(), rtol=CLOSE, atol=CLOSE**2)
