"""Attribution: contributions sum to a difference of predictions, and are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.molecules.explain import LARGEST_LISTED, Explainer, drawing, target_index
from apps.molecules.trained import Trained
from core.engine.errors import DataError
from tests.apps.molecules.small import FAST, MODELS, SMILES, example, molecules, train, write_table


@pytest.mark.parametrize("model", MODELS)
def test_contributions_sum_to_the_difference_of_predictions(models: dict[str, Trained], model: str) -> None:
    trained = models[model]
    explainer = Explainer(trained, 0)
    for text in SMILES:
        batch = trained.batch([example(text)], 1)
        value, bare = (trained.ensemble(part).numpy()[0, 0]
                       for part in (batch, replace(batch, atoms=np.zeros_like(batch.atoms))))
        # Where the two predictions happen to be close, the error is held to a part of the value.
        assert explainer(example(text)).sum() == pytest.approx(value - bare, rel=0.02, abs=0.002 * abs(value))


def test_contributions_follow_the_spelling(models: dict[str, Trained]) -> None:
    explainer = Explainer(models["dmpnn"], 0)
    found = [example(text) for text in ("OCC", "CCO", "C(O)C")]
    given = [dict(zip(part.graph.origin.tolist(), explainer(part), strict=True)) for part in found]
    np.testing.assert_allclose([given[0][0], given[1][2], given[2][1]], given[0][0], rtol=1e-5)
    assert len(given[0]) == 3 and given[0][0] != pytest.approx(given[0][1])


def test_a_drawing_colours_the_atoms(models: dict[str, Trained]) -> None:
    part = example("CCO")
    raised = drawing(part, np.array([0.0, 0.0, 1.0])[part.graph.origin])
    lowered = drawing(part, np.array([0.0, 0.0, -1.0])[part.graph.origin])
    assert raised.strip().startswith("<svg") and raised.strip().endswith("</svg>")
    assert "#D83F33" in raised and "#3366D8" in lowered
    assert raised.count("#FFFFFF") > lowered.count("#D83F33") == 0


def test_the_page_has_a_drawing_a_molecule(run: Path, tmp_path: Path) -> None:
    texts = [*SMILES[:3], "c1cc", "N#N"]
    data = write_table(tmp_path / "in.csv", ["smiles"], [(text,) for text in texts])
    outcome = molecules("explain", data, "--run", run, "--out", tmp_path / "page.html", "--json")
    assert (outcome.code, outcome.numbers) == (4, {"molecules": 4, "target": "tpsa"})
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == page.count("<figcaption>") == 4
    assert "<script" not in page and "<h1>What each atom adds to tpsa</h1>" in page


def test_a_page_ends_somewhere(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.molecules.explain.LARGEST_LISTED", 3)
    data = write_table(tmp_path / "in.csv", ["smiles"], [(text,) for text in SMILES])
    outcome = molecules("explain", data, "--run", run, "--out", tmp_path / "page.html", "--json")
    assert outcome.numbers["molecules"] == 3 < LARGEST_LISTED


def test_names_of_targets(models: dict[str, Trained], run: Path, nci: Path, tmp_path: Path) -> None:
    assert target_index(models["dmpnn"], None) == target_index(models["dmpnn"], "tpsa") == 0
    with pytest.raises(DataError, match="does not predict 'logP'; it predicts tpsa"):
        target_index(models["dmpnn"], "logP")
    outcome = molecules("explain", nci, "--run", run, "--target", "logP", "--out", tmp_path / "page.html")
    assert (outcome.code, list(tmp_path.iterdir())) == (3, [])


@pytest.mark.realdata
def test_reactions_are_drawn_by_their_reactants(realdata: Path, tmp_path: Path) -> None:
    data = realdata / "molecules" / "chemprop_fixtures" / "rxn.csv"
    train(data, "--target", "ea", "--epochs", "1", *FAST, "--out", tmp_path / "run")
    outcome = molecules("explain", data, "--run", tmp_path / "run", "--out", tmp_path / "page.html", "--json")
    assert (outcome.code, outcome.numbers["molecules"]) == (0, 100)
