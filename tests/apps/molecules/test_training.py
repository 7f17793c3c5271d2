"""`tilework molecules train`: what it takes, writes and refuses; the same seed gives the same bits, killed or not."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from apps.molecules.config import MoleculesConfig
from apps.molecules.trained import Trained
from core.engine.checkpoint import load
from core.engine.errors import ConfigError
from core.engine.run import RunDirectory
from tests.apps.molecules.small import (
    FAST,
    MODELS,
    QUICK,
    SMILES,
    example,
    lines,
    molecules,
    predicted,
    table,
    train,
    write_table,
)

ROOT = Path(__file__).parents[3]


def bits(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def copied(source: Path, target: Path, *more: Sequence[object]) -> Path:
    """A table with more rows after its own."""
    rows = lines(source)
    return write_table(target, rows[0], [*rows[1:], *more])


# ------------------------------------------------------------------------------------------------ words and files


def test_the_words_of_the_command(nci: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "nci.csv.gz", "wb") as file:
        file.write(nci.read_bytes())
    run = tmp_path / "run"
    outcome = molecules("train", tmp_path / "nci.csv.gz", "--target", "tpsa", "--smiles", "smiles", "--units",
                        "tpsa=A^2", "--model", "dmpnn", "--split", "random", "--epochs", "2", "--out", run)
    assert outcome.code == 0
    assert "rmse" in outcome.out and f"written to {run}" in outcome.out and "epoch 2/2" in outcome.err
    written = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert written == {".lock", "run.json", "config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors",
                       "members/1.safetensors", "report/report.json", "report/test_predictions.csv"}
    description = Trained.load(RunDirectory.open(run)).description
    assert (description.targets, description.units, description.smiles) == (("tpsa",), {"tpsa": "A^2"}, "smiles")
    rows = table(run / "report" / "test_predictions.csv")
    numbers = json.loads((run / "report" / "report.json").read_text())
    errors = np.array([float(row["measured"]) - float(row["predicted"]) for row in rows])
    assert (len(rows), numbers["training rows"]) == (numbers["test rows"], 48)
    assert numbers["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert {"ridge baseline rmse", "mean baseline rmse", "r2", "mae"} <= numbers.keys()


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_falls(runs: dict[str, Path], model: str) -> None:
    losses = [line["loss"] for line in RunDirectory.open(runs[model]).metrics() if line["epoch_done"]]
    assert len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]


def test_a_dry_run_shows_shapes_and_writes_nothing(nci: Path, tmp_path: Path) -> None:
    outcome = molecules("train", nci, "--target", "tpsa", "--out", tmp_path / "run", "--dry-run", "--json")
    assert outcome.code == 0
    assert outcome.numbers["prediction"] == "f32[1, 1]"
    assert outcome.numbers["row"].startswith("1: ")
    assert not list(tmp_path.iterdir())


def test_several_files_are_one_set(nci: Path, tmp_path: Path) -> None:
    rows = lines(nci)
    first = write_table(tmp_path / "a.csv", rows[0], rows[1:31])
    second = write_table(tmp_path / "b.csv", ["tpsa", "SMILES"], [reversed(row) for row in rows[31:]])
    train(nci, "--target", "tpsa", "--epochs", "2", "--out", tmp_path / "whole")
    train(first, second, "--target", "tpsa", "--epochs", "2", "--out", tmp_path / "parts")
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")


# ------------------------------------------------------------------------------------------------ bad rows, bad files

BAD = [("c1ccccc", "1", "RDKit cannot parse it"), ("", "1", "empty SMILES"),
       ("C" * 50, "1", "50 heavy atoms, the limit is 40"),
       (".".join("O" * 5), "1", "5 unconnected parts, the limit is 4"), ("CCO", "nan", "not a finite number"),
       ("CCO", "high", "not a number")]
LIMITS = ("--max-atoms", "40", "--max-fragments", "4")


def test_bad_rows_are_listed_and_stop_nothing(nci: Path, tmp_path: Path) -> None:
    data = copied(nci, tmp_path / "dirty.csv", *[row[:2] for row in BAD])
    outcome = molecules("train", data, "--target", "tpsa", "--epochs", "2", "--out", tmp_path / "run", *QUICK, *LIMITS)
    assert outcome.code == 4
    assert f"6 items were refused; {tmp_path / 'run' / 'refused.csv'} lists them with reasons" in outcome.err
    listed = table(tmp_path / "run" / "refused.csv")
    assert [int(row["row"]) for row in listed] == list(range(61, 67))
    for row, (text, _, reason) in zip(listed, BAD, strict=True):
        assert reason in row["reason"] and row["text"] == text
    assert "Traceback" not in outcome.err
    train(nci, "--target", "tpsa", "--epochs", "2", "--out", tmp_path / "clean", *LIMITS)
    dirty, clean = (load(tmp_path / name / "model.safetensors")[0] for name in ("run", "clean"))
    for name, array in clean.items():
        np.testing.assert_array_equal(array.numpy(), dirty[name].numpy(), err_msg=name)


def test_rows_without_a_value_are_counted(nci: Path, tmp_path: Path) -> None:
    data = copied(nci, tmp_path / "blank.csv", ("CCO", ""), ("CCN", ""))
    outcome = molecules("train", data, "--target", "tpsa", "--epochs", "1", "--out", tmp_path / "run", *QUICK)
    assert outcome.code == 0 and "rows without a value in tpsa, left out: 2" in outcome.err


@pytest.mark.parametrize(("content", "words", "code", "says"), [
    ("smiles,y\nc1ccc,1\n,2\n", "--target y", 3, "has no usable row among its 2 rows; row 1: RDKit cannot parse it"),
    ("smiles,y\n", "--target y", 3, "no usable row"),
    ("smiles,y\nCCO,\nCC,\n", "--target y", 3, "no row of"),
    ("smiles,y\nCCO,1\n", "--target z", 3, "has no column 'z'; its columns are 'smiles', 'y'"),
    ("smiles,y\nCCO,1\n", "--target y --smiles mol", 3, "has no column 'mol'"),
    ("smiles,y\nCCO,1\n", "--target y --split column", 3, "has no column 'split'"),
    ("smiles,y\nCCO,1\n", "--target y", 3, "leaves none for"),
    ("smiles,y\nCCO,1\nCC,2\n", "--target y --folds 5", 3, "5 folds need more than 2 different molecules"),
    ("smiles,y\nCCO,3\nCC,0\n", "--target y --task classification", 3, "classes are 0 and 1; 'y' has [3.0]"),
    ("smiles,y\nCCO,1\n", "", 2, "--target is missing"),
    ("smiles,y\nCCO,1\n", "--target y --units x=m", 2, "units are COLUMN=UNIT for a target (y); found 'x=m'"),
    ("smiles,y\nCCO,1\n", "--target y --model dmpn", 2, "did you mean dmpnn?"),
    ("smiles,y\nCCO,1\n", "--target y --fractions 1 --fractions 1 --fractions 1", 2, "sum to 1"),
    ("rxn,y\n[CH4:1]>>[CH4:1],1\n", "--target y --offset counts", 2, "reactions have neither an offset nor"),
])
def test_what_cannot_be_used_is_one_clear_sentence(tmp_path: Path, content: str, words: str, code: int,
                                                   says: str) -> None:
    data = tmp_path / "data.csv"
    data.write_text(content)
    outcome = molecules("train", data, "--out", tmp_path / "run", "--epochs", "1", *QUICK, *words.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err and "Traceback" not in outcome.err


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="three parts that sum to 1"):
        MoleculesConfig(targets=("y",), fractions=(0.5, 0.5))
    assert MoleculesConfig(targets=("y",), units=("y=log10(mol/L)=x",)).unit_of == {"y": "log10(mol/L)=x"}


@pytest.mark.parametrize(("name", "target", "refused"), [("BBBP.csv", "p_np", 11), ("tox21.csv.gz", "NR-AhR", 8)])
def test_published_sets_train_but_for_their_bad_rows(realdata: Path, tmp_path: Path, name: str, target: str,
                                                     refused: int) -> None:
    numbers = published(realdata / "molecules" / "moleculenet" / name, target, tmp_path)
    assert len(table(tmp_path / "run" / "refused.csv")) == refused
    assert 0 <= numbers["roc_auc"] <= 1 and 0.4 < numbers["mean baseline accuracy"] <= 1


@pytest.mark.slow
def test_the_large_set_trains_but_for_its_bad_rows(realdata: Path, tmp_path: Path) -> None:
    published(realdata / "molecules" / "moleculenet" / "HIV.csv.gz", "HIV_active", tmp_path)
    assert len(table(tmp_path / "run" / "refused.csv")) == 7


def published(path: Path, target: str, folder: Path) -> dict[str, float]:
    # Most rows go to the validation part, so that little is trained on.
    parts = [word for part in ("0.05", "0.9", "0.05") for word in ("--fractions", part)]
    return train(path, "--target", target, "--epochs", "1", "--out", folder / "run", *parts, says=4)


# ------------------------------------------------------------------------------------------------ targets


@pytest.fixture(scope="module")
def mixture(nci: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class, a number, and blanks in both; the last row has neither."""
    rows = table(nci)
    values = [(row["smiles"], int(float(row["tpsa"]) > 40) if place % 3 else "", row["tpsa"] if place % 4 else "")
              for place, row in enumerate(rows)]
    return write_table(tmp_path_factory.mktemp("mixture") / "mixture.csv", ["smiles", "polar", "tpsa"],
                       [*values, ("CCO", "", "")])


def test_classes_and_numbers_are_learned_together_and_blanks_are_masked(mixture: Path, tmp_path: Path) -> None:
    numbers = train(mixture, "--target", "polar", "--target", "tpsa", "--epochs", "30", "--coverage", "0.5", *FAST,
                    "--out", tmp_path / "run", "--fractions", "0.6", "--fractions", "0.2", "--fractions", "0.2")
    assert {"polar roc_auc", "polar accuracy", "tpsa rmse", "tpsa coverage", "mean roc_auc"} <= numbers.keys()
    assert not {"polar rmse", "tpsa roc_auc"} & numbers.keys()
    rows = table(tmp_path / "run" / "report" / "test_predictions.csv")
    assert len(rows) == numbers["polar n"] + numbers["tpsa n"]
    assert numbers["test rows"] < len(rows)
    assert {row["low"] == "" for row in rows if row["target"] == "polar"} == {True}
    assert {row["low"] == "" for row in rows if row["target"] == "tpsa"} == {False}
    outcome = molecules("predict", tmp_path / "run", mixture, "--out", tmp_path / "out.csv")
    assert outcome.code == 0
    assert list(table(tmp_path / "out.csv")[0]) == ["smiles", "polar", "tpsa", "tpsa_low", "tpsa_high"]
    polar = predicted(tmp_path / "out.csv", "polar")
    truth = predicted_truth(mixture)
    assert polar.min() >= 0 and polar.max() <= 1 and len(polar) == 61
    assert polar[:60][truth > 40].mean() > polar[:60][truth <= 40].mean() + 0.2


def predicted_truth(mixture: Path) -> np.ndarray:
    """The numbers of the mixture; those that are blank count as small."""
    return np.array([float(row["tpsa"] or 0) for row in table(mixture)[:60]])


def test_a_blank_row_teaches_nothing(nci: Path, tmp_path: Path) -> None:
    data = copied(nci, tmp_path / "blank.csv", ("CCCCCCO", ""))
    for name, path in (("with", data), ("without", nci)):
        train(path, "--target", "tpsa", "--epochs", "2", "--out", tmp_path / name)
    assert bits(tmp_path / "with") == bits(tmp_path / "without")


def test_the_task_may_be_told(mixture: Path, tmp_path: Path) -> None:
    numbers = train(mixture, "--target", "polar", "--task", "regression", "--epochs", "2", "--out", tmp_path / "run")
    assert "rmse" in numbers


def test_an_offset_takes_what_elements_explain(nci: Path, tmp_path: Path) -> None:
    counted = [(row["smiles"], 100 * row["smiles"].upper().count("O") - 7.5) for row in table(nci)]
    data = write_table(tmp_path / "oxygen.csv", ["smiles", "energy"], counted)
    numbers = train(data, "--target", "energy", "--offset", "elements", "--epochs", "1", "--out", tmp_path / "run")
    assert numbers["rmse"] < 0.2 * numbers["mean baseline rmse"]


# ------------------------------------------------------------------------------------------------ reactions


@pytest.mark.parametrize("model", MODELS)
def test_reactions(realdata: Path, tmp_path: Path, model: str) -> None:
    data = realdata / "molecules" / "chemprop_fixtures" / "rxn.csv"
    train(data, "--target", "ea", "--model", model, "--epochs", "8", *FAST, "--out", tmp_path / "run")
    losses = [line["loss"] for line in RunDirectory.open(tmp_path / "run").metrics() if line["epoch_done"]]
    assert losses[-1] < losses[0]
    outcome = molecules("predict", tmp_path / "run", data, "--out", tmp_path / "out.csv")
    assert outcome.code == 0
    rows = table(tmp_path / "out.csv")
    assert [row["smiles"] for row in rows] == [row["smiles"] for row in table(data)]
    assert np.std(predicted(tmp_path / "out.csv", "ea")) > 0


# ------------------------------------------------------------------------------------------------ splits


def test_the_split_of_a_column(nci: Path, tmp_path: Path) -> None:
    sides = [(row["smiles"], row["tpsa"], ("train", "test", "valid", "Train")[place % 4]) for place, row in
             enumerate(table(nci))]
    data = write_table(tmp_path / "sides.csv", ["smiles", "tpsa", "part"], sides)
    numbers = train(data, "--target", "tpsa", "--split", "column", "--split-column", "part", "--epochs", "1",
                    "--out", tmp_path / "run")
    tested = {int(row["row"]) for row in table(tmp_path / "run" / "report" / "test_predictions.csv")}
    assert tested <= set(range(2, 61, 4))
    assert len(tested) == numbers["test rows"] == pytest.approx(15, abs=1)


def test_the_split_by_scaffold(nci: Path, tmp_path: Path) -> None:
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    train(nci, "--target", "tpsa", "--split", "scaffold", "--epochs", "1", "--out", tmp_path / "run")
    tested = {int(row["row"]) for row in table(tmp_path / "run" / "report" / "test_predictions.csv")}
    scaffolds = [MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(row["smiles"])) for row in table(nci)]
    held = {scaffolds[row - 1] for row in tested}
    assert tested and not held & {name for row, name in enumerate(scaffolds, 1) if row not in tested}


def test_folds_test_every_row_once_and_give_mean_and_deviation(nci: Path, tmp_path: Path) -> None:
    numbers = train(nci, "--target", "tpsa", "--folds", "3", "--epochs", "2", "--out", tmp_path / "run")
    folds = table(tmp_path / "run" / "report" / "folds.csv")
    column = [float(fold["rmse"]) for fold in folds]
    assert len(folds) == 3
    assert numbers["rmse"] == pytest.approx(np.mean(column))
    assert numbers["rmse sd"] == pytest.approx(np.std(column, ddof=1))
    assert numbers["n"] == numbers["test rows"] == 60
    tested = [int(row["row"]) for row in table(tmp_path / "run" / "report" / "test_predictions.csv")]
    assert sorted(tested) == list(range(1, 61))
    assert Trained.load(RunDirectory.open(tmp_path / "run")).description.members == 3


def test_folds_without_a_known_class_leave_their_metrics_out(nci: Path, tmp_path: Path) -> None:
    rows = [(row["smiles"], int(place == 7) if place < 20 else "", row["tpsa"]) for place, row in enumerate(table(nci))]
    data = write_table(tmp_path / "rare.csv", ["smiles", "rare", "tpsa"], rows)
    numbers = train(data, "--target", "rare", "--target", "tpsa", "--folds", "3", "--epochs", "1",
                    "--out", tmp_path / "run")
    assert np.isfinite(numbers["rare roc_auc"])
    assert numbers["rare roc_auc sd"] is None
    assert numbers["rare n"] == 20


def test_an_ensemble_is_the_mean_of_its_members(nci: Path, tmp_path: Path) -> None:
    train(nci, "--target", "tpsa", "--ensemble", "2", "--epochs", "2", "--out", tmp_path / "run")
    trained = Trained.load(RunDirectory.open(tmp_path / "run"))
    batch = trained.batch([example(text) for text in SMILES], 8)
    one, other = (member(batch).numpy() for member in trained.ensemble.members)
    assert np.abs(one - other).min() > 0
    np.testing.assert_allclose(trained.ensemble(batch).numpy(), (one + other) / 2, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ the same bits

EAGER = "import core.engine.train as t; t.CHECKPOINT_SECONDS = t.EPOCH_SECONDS = -1.0\n"
PROGRAM = "import sys; from apps.cli import main; sys.exit(main())"
DEADLY = """
import os, signal
from core.engine import checkpoint
save, fatal = checkpoint.save_tree, {name!r}
def deadly(path, *rest):
    if path.name == fatal and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, *rest)
    if path.name == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_tree = deadly
"""


def words(data: Path, run: Path) -> list[str]:
    """An ensemble of two, with dropout, so that random keys count too."""
    found = ["molecules", "train", data, "--target", "tpsa", "--out", run, *QUICK, "--epochs", "12", "--ensemble", "2",
             "--dropout", "0.2", "--best-epoch", *(["--resume"] if (run / "run.json").exists() else [])]
    return list(map(str, found))


def start(data: Path, run: Path, before: str = "", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", before + PROGRAM, *words(data, run)], cwd=ROOT, text=True,
                            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[str]) -> int:
    with process:
        process.communicate(timeout=120)
    return process.returncode


@pytest.fixture(scope="module")
def whole(nci: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """What an uninterrupted process writes, and how long that takes."""
    run, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert finished(start(nci, run, EAGER)) == 0
    # A machine that compiled the kernels on the way, or is busy, takes longer than a second run would.
    return bits(run), min(time.monotonic() - started, 4.0)


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_the_threads_do_not_change_the_bits(nci: Path, tmp_path: Path, whole: tuple[bytes, float],
                                            threads: str) -> None:
    assert finished(start(nci, tmp_path / "run", TILEWORK_THREADS=threads)) == 0
    assert bits(tmp_path / "run") == whole[0]


def test_another_seed_gives_another_model(nci: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(nci, "--target", "tpsa", "--epochs", "1", "--seed", seed, "--out", tmp_path / name)
    assert bits(tmp_path / "a") == bits(tmp_path / "b") != bits(tmp_path / "c")


def kill_and_resume(data: Path, run: Path, kills: int, seconds: float, moments: random.Random) -> bytes:
    for _ in range(kills):
        process = start(data, run, EAGER)
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        process.kill()
        finished(process)
    assert finished(start(data, run)) == 0
    return bits(run)


def test_kills_at_five_moments_change_nothing(nci: Path, tmp_path: Path, whole: tuple[bytes, float]) -> None:
    assert kill_and_resume(nci, tmp_path / "run", 5, whole[1], random.Random(5)) == whole[0]


@pytest.mark.slow
def test_kills_at_twenty_moments_change_nothing(nci: Path, tmp_path: Path, whole: tuple[bytes, float]) -> None:
    for number in range(20):
        found = kill_and_resume(nci, tmp_path / f"run{number}", 1, whole[1], random.Random(number))
        assert found == whole[0], number


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["1.safetensors", "2.safetensors", "model.safetensors"])
def test_a_kill_between_members_changes_nothing(nci: Path, tmp_path: Path, whole: tuple[bytes, float], name: str,
                                                before: bool) -> None:
    """The process dies just before or just after it keeps a member, or the model."""
    run = tmp_path / "run"
    assert finished(start(nci, run, EAGER + DEADLY.format(name=name, before=before))) == -signal.SIGKILL
    assert not (run / "model.safetensors").exists() or (name, before) == ("model.safetensors", False)
    assert molecules(*words(nci, run)[1:]).code == 0
    assert bits(run) == whole[0]
    assert RunDirectory.open(run).record["resumed"] == 1
    epochs = [(line["name"], line["epoch"]) for line in RunDirectory.open(run).metrics() if line["epoch_done"]]
    assert epochs == [(f"member {member}", epoch) for member in (1, 2) for epoch in range(1, 13)]


# ------------------------------------------------------------------------------------------------ emulated chips


def test_an_emulated_chip_trains(nci: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    train(nci, "--target", "tpsa", "--epochs", "20", "--coverage", "0.5", "--device", "tpu-v2", *FAST, "--out",
          tmp_path / "run")
    losses, of_cpu = ([line["loss"] for line in RunDirectory.open(run).metrics() if line["epoch_done"]]
                      for run in (tmp_path / "run", runs["dmpnn"]))
    assert losses[-1] < 0.5 * losses[0]
    assert losses != of_cpu
    np.testing.assert_allclose(losses[:2], of_cpu[:2], rtol=1e-2)  # later on small differences have grown
    assert molecules("predict", tmp_path / "run", nci, "--out", tmp_path / "predicted.csv").code == 0
    assert np.isfinite(predicted(tmp_path / "predicted.csv", "tpsa")).all()


@pytest.mark.parametrize("model", ["dmpnn", *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS
                                              if model != "dmpnn")])
def test_an_emulated_chip_predicts_almost_the_same(runs: dict[str, Path], model: str) -> None:
    examples = [example(text) for text in SMILES]
    exact, one_pass, six_passes = (Trained.load(RunDirectory.open(runs[model]), device).values(examples)
                                   for device in ("cpu", "tpu-v2", "tpu-v2:6"))
    scale = np.abs(exact).max()
    assert 1e-5 * scale < np.abs(one_pass - exact).max() < 2e-2 * scale
    assert np.abs(six_passes - exact).max() < 1e-5 * scale


def test_the_integer_chip_refuses_to_train(nci: Path, tmp_path: Path) -> None:
    outcome = molecules("train", nci, "--target", "tpsa", "--device", "tpu-v1", *QUICK, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "tpu-v1 cannot compute dot at" in outcome.err and "quantise the run first" in outcome.err
