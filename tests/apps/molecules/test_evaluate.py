"""`tilework molecules evaluate`: the metrics, and how they are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apps.molecules.evaluate import coverage, numbers, score
from tests.apps.molecules.small import lines, molecules, predicted, table, write_table


def test_metrics_are_those_of_the_predictions(run: Path, nci: Path, tmp_path: Path) -> None:
    outcome = molecules("evaluate", run, nci, "--out", tmp_path / "report", "--json")
    assert outcome.code == 0
    assert molecules("predict", run, nci, "--out", tmp_path / "out.csv").code == 0
    values, measured = predicted(tmp_path / "out.csv", "tpsa"), predicted(nci, "tpsa")
    assert outcome.numbers["n"] == 60
    assert outcome.numbers["rmse"] == pytest.approx(np.sqrt(np.mean((values - measured) ** 2)), rel=1e-5)
    assert outcome.numbers["mae"] == pytest.approx(np.mean(np.abs(values - measured)), rel=1e-5)
    assert outcome.numbers["r2"] == pytest.approx(1 - np.mean((values - measured) ** 2) / np.var(measured), rel=1e-5)
    low, high = predicted(tmp_path / "out.csv", "tpsa_low"), predicted(tmp_path / "out.csv", "tpsa_high")
    assert outcome.numbers["coverage"] == pytest.approx(np.mean((low <= measured) & (measured <= high)))
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == outcome.numbers
    assert [int(row["row"]) for row in table(tmp_path / "report" / "predictions.csv")] == list(range(1, 61))


def test_rows_without_a_value_count_for_nothing_and_bad_ones_are_listed(run: Path, nci: Path, tmp_path: Path) -> None:
    header, *rows = lines(nci)
    data = write_table(tmp_path / "in.csv", header, [*rows, ("CCO", ""), ("c1cc", 3), ("CCO", "inf")])
    plain = molecules("evaluate", run, nci, "--out", tmp_path / "plain", "--json")
    outcome = molecules("evaluate", run, data, "--out", tmp_path / "report", "--json")
    assert outcome.code == 4
    assert outcome.numbers == pytest.approx(plain.numbers)
    assert [row["row"] for row in table(tmp_path / "report" / "refused.csv")] == ["62", "63"]


def test_without_out_the_report_lies_in_the_run(run: Path, nci: Path) -> None:
    trained = (run / "report" / "report.json").read_bytes()
    assert molecules("evaluate", run, nci).out.endswith(f"written to {run / 'evaluation'}\n")
    assert (run / "evaluation" / "predictions.csv").exists()
    assert (run / "report" / "report.json").read_bytes() == trained


@pytest.mark.parametrize(("content", "says"), [
    ("smiles,psa\nCCO,1\n", "has no column 'tpsa'; its columns are 'smiles', 'psa'; did you mean 'psa'?"),
    ("smiles,tpsa\nc1cc,1\n", "no usable row among its 1 rows"),
    ("smiles,tpsa\n[CH4:1]>>[CH4:1],1\n", "the model learned from molecules, this is a reaction"),
])
def test_what_cannot_be_evaluated_is_one_clear_sentence(run: Path, tmp_path: Path, content: str, says: str) -> None:
    data = tmp_path / "in.csv"
    data.write_text(content)
    outcome = molecules("evaluate", run, data, "--out", tmp_path / "report")
    assert (outcome.code, outcome.out) == (3, "")
    assert says in outcome.err and outcome.err.count("\n") == 1


NAN = np.nan


def test_scores_of_a_mixture_of_tasks() -> None:
    values = np.array([[1.0, 0.9], [2.0, 0.4], [4.0, 0.2], [9.0, 0.6]])
    targets = np.array([[1.0, 1.0], [3.0, 1.0], [4.0, 0.0], [NAN, 0.0]])
    first, second = score(values, targets, ("regression", "classification"))
    assert first == pytest.approx({"n": 3, "rmse": (1 / 3) ** 0.5, "mae": 1 / 3, "r2": 1 - 1 / (14 / 3)})
    assert second["roc_auc"] == pytest.approx(0.75)
    assert second["accuracy"] == pytest.approx(0.5)
    flat = numbers(("a", "b"), [first, second], "plain ")
    assert flat["plain a rmse"] == flat["plain mean rmse"]
    assert flat["plain mean roc_auc"] == second["roc_auc"]
    assert set(numbers(("a",), [first])) == {"n", "rmse", "mae", "r2"}


def test_what_is_not_defined_is_nan() -> None:
    found = score(np.array([[0.2], [NAN]]), np.array([[0.0], [NAN]]), ("classification",))
    assert found[0]["n"] == 1 and found[0]["accuracy"] == 1 and np.isnan(found[0]["roc_auc"])
    assert np.isnan(score(np.array([[NAN]]), np.array([[1.0]]), ("classification",))[0]["accuracy"])
    assert np.isnan(numbers(("a", "b"), found * 2)["mean roc_auc"])


def test_coverage_counts_known_values() -> None:
    targets = np.array([[1.5, 0], [2.5, 0], [0.2, 0], [NAN, 0]])
    shares = coverage(np.ones((4, 2)), targets, np.array([1.0, NAN]))
    np.testing.assert_allclose(shares, [2 / 3, NAN])
