"""Quantising runs on molecules: the new run predicts like any other, near the old one, and bad input is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.app import load_config
from apps.molecules.config import MoleculesConfig
from apps.molecules.quantisable import quantisable
from core.engine.checkpoint import load
from core.engine.errors import DeviceError
from core.engine.jit import jit
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory
from tests.apps.molecules.small import FAST, MODELS, molecules, predicted, table, tilework, train


@pytest.fixture(scope="module")
def quantised(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of the runs in 8 bits."""
    folder = tmp_path_factory.mktemp("quantised")
    for model, run in runs.items():
        assert molecules("quantize", run, "--out", folder / model).code == 0
    return {model: folder / model for model in runs}


@pytest.mark.parametrize("model", MODELS)
def test_a_quantised_run_predicts_near_the_run_it_was_made_from(
        model: str, runs: dict[str, Path], quantised: dict[str, Path], nci: Path, tmp_path: Path) -> None:
    for name, run in (("f32", runs[model]), ("i8", quantised[model])):
        assert molecules("predict", run, nci, "--out", tmp_path / f"{name}.csv").code == 0
    exact, near = (predicted(tmp_path / f"{name}.csv", "tpsa") for name in ("f32", "i8"))
    assert 0 < np.abs(near - exact).max() < 0.1 * np.ptp(exact)
    assert list(table(tmp_path / "i8.csv")[0]) == list(table(tmp_path / "f32.csv")[0])  # intervals are kept


def test_it_says_what_it_was_made_from_and_what_that_did(run: Path, quantised: dict[str, Path], nci: Path,
                                                         tmp_path: Path) -> None:
    record = json.loads((quantised["dmpnn"] / "run.json").read_text())
    assert record["origin"]["run"] == str(run.resolve())
    assert record["origin"]["bits"] == 8
    assert record["status"] == "finished"
    result = record["result"]
    assert result["bytes before"] == (run / "model.safetensors").stat().st_size
    assert result["bytes after"] == (quantised["dmpnn"] / "model.safetensors").stat().st_size
    rows = table(quantised["dmpnn"] / "report" / "layers.csv")
    assert [row["layer"] for row in rows][:2] == ["members.0.network.encoder.atom_input",
                                                  "members.0.network.encoder.edge_input"]
    before = json.loads((run / "report" / "report.json").read_text())
    assert result["rmse before"] == pytest.approx(before["rmse"], rel=1e-9)  # on the run's own test rows
    outcome = molecules("evaluate", quantised["dmpnn"], nci, "--out", tmp_path / "report", "--json")
    given = molecules("quantize", run, nci, "--out", tmp_path / "given", "--json")
    assert given.numbers["rmse after"] == pytest.approx(outcome.numbers["rmse"], rel=0.02)


@pytest.mark.parametrize(("bits", "dtype"), [(4, "u8"), (2, "u8"), (1, "u8")])
def test_fewer_bits_are_packed(bits: int, dtype: str, run: Path, tmp_path: Path) -> None:
    outcome = molecules("quantize", run, "--bits", bits, "--out", tmp_path / "small", "--json")
    assert outcome.code == 0, outcome.err
    arrays, _ = load(tmp_path / "small" / "model.safetensors")
    packed = [array for name, array in arrays.items() if ".weight." in name]
    assert len(packed) == outcome.numbers["layers"]
    assert {array.dtype.short for array in packed} == {dtype}
    assert molecules("evaluate", tmp_path / "small", "--out", tmp_path / "report").code == 2  # DATA is missing


@pytest.mark.parametrize("model", ["dmpnn", "mpnn"])
def test_training_for_few_bits_makes_up_for_the_rounding(model: str, runs: dict[str, Path], nci: Path,
                                                         tmp_path: Path) -> None:
    command = ("quantize", runs[model], nci, "--bits", "1", "--out", tmp_path / "small", "--json")
    outcome = molecules(*command, "--epochs", "15", "--rate", "0.01")  # measured on what it is trained on
    assert outcome.code == 0, outcome.err
    numbers = outcome.numbers
    assert numbers["rmse after"] < 0.8 * numbers["rmse rounded"]
    (row,) = [row for row in table(tmp_path / "small" / "report" / "metrics.csv") if row["metric"] == "rmse"]
    assert [float(row[state]) for state in ("before", "rounded", "after")] == [
        numbers[f"rmse {state}"] for state in ("before", "rounded", "after")]
    plain = molecules("quantize", runs[model], nci, "--bits", "1", "--out", tmp_path / "plain", "--json")
    assert plain.numbers["rmse after"] == numbers["rmse rounded"] and "rmse rounded" not in plain.numbers
    assert plain.numbers["bytes after"] == numbers["bytes after"]
    measured = molecules("evaluate", tmp_path / "small", nci, "--out", tmp_path / "report", "--json")
    assert measured.numbers["rmse"] == numbers["rmse after"]
    again = molecules(*command, "--epochs", "15", "--rate", "0.01", "--resume")
    assert (again.code, again.numbers) == (0, numbers)  # there is nothing left to do


@pytest.fixture(scope="module")
def pair(nci: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two networks, with dropout, so that random keys count."""
    run = tmp_path_factory.mktemp("pair") / "run"
    train(nci, "--target", "tpsa", "--ensemble", "2", "--dropout", "0.2", "--epochs", "2", *FAST, "--out", run)
    return run


def test_a_stopped_training_for_few_bits_goes_on_to_the_same_bits(pair: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def words(out: str, *more: str) -> tuple[object, ...]:
        return ("quantize", pair, "--bits", "2", "--epochs", "3", "--out", tmp_path / out, *more)

    assert molecules(*words("whole")).code == 0
    append = RunDirectory.append_metrics

    def stopping(run: RunDirectory, values: Mapping[str, Any]) -> None:
        append(run, values)
        if (values["name"], values["epoch"]) == ("part 2", 2):
            run.request_stop()

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "append_metrics", stopping)
        stopped = molecules(*words("cut"))
    assert (stopped.code, "--resume goes on from there" in stopped.err) == (6, True)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    other = molecules(*words("cut", "--resume"), "--rate", "0.1")
    assert (other.code, "rate  0.1 is asked for, it began with None" in other.err) == (2, True)
    trained = molecules("train", tmp_path, "--out", tmp_path / "cut", "--resume")
    assert (trained.code, "was begun by quantize; go on with it by its command" in trained.err) == (2, True)
    assert molecules(*words("cut", "--resume")).code == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    ends = [(line["name"], line["step"]) for line in RunDirectory.open(tmp_path / "cut").metrics()
            if line["epoch_done"]]
    assert ends == [(f"part {part}", step) for part in (1, 2) for step in (6, 12, 18)]


def test_what_is_trained_on_may_be_given(pair: Path, nci: Path, tmp_path: Path) -> None:
    bits = []
    for name, more in (("own", ()), ("given", ("--train-on", nci))):
        outcome = molecules("quantize", pair, "--bits", "2", "--epochs", "1", "--out", tmp_path / name, *more)
        assert outcome.code == 0, outcome.err
        bits.append((tmp_path / name / "model.safetensors").read_bytes())
    assert bits[0] != bits[1]  # all sixty molecules are more than the training rows
    assert [item["path"] for item in RunDirectory.open(tmp_path / "given").record["data"]] == [str(nci)]
    alone = molecules("quantize", pair, "--train-on", nci, "--out", tmp_path / "alone")
    assert (alone.code, "add --epochs" in alone.err) == (2, True)
    assert molecules("quantize", pair, "--epochs", "1", "--train-on", tmp_path / "no.csv",
                     "--out", tmp_path / "none").code == 3
    assert not (tmp_path / "alone").exists() and not (tmp_path / "none").exists()


def test_bad_calls_are_refused_and_leave_nothing(run: Path, quantised: dict[str, Path], nci: Path,
                                                 tmp_path: Path) -> None:
    again = molecules("quantize", quantised["dmpnn"], "--out", tmp_path / "again")
    assert (again.code, f"quantise the run that it was made from, {run}" in again.err) == (2, True)
    odd = molecules("quantize", run, "--bits", "3", "--out", tmp_path / "odd")
    assert (odd.code, "--bits is one of 8, 4, 2, 1; found 3" in odd.err) == (2, True)
    assert molecules("quantize", tmp_path / "none", "--out", tmp_path / "new").code == 3
    assert molecules("quantize", run, tmp_path / "none.csv", "--out", tmp_path / "new").code == 3
    assert molecules("quantize", run, "--out", quantised["dmpnn"]).code == 2
    explained = molecules("explain", nci, "--run", quantised["dmpnn"], "--out", tmp_path / "page.html")
    assert (explained.code, "have no gradient; explain the run that it was made from" in explained.err) == (3, True)
    assert not list(tmp_path.iterdir())


def test_refused_rows_are_listed_beside_the_run(run: Path, nci: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text(nci.read_text() + "no molecule,20.2\n")
    outcome = molecules("quantize", run, data, "--out", tmp_path / "small")
    assert outcome.code == 4
    assert [row["text"] for row in table(tmp_path / "small.refused.csv")] == ["no molecule"]


def test_data_that_changed_is_refused(nci: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(nci.read_bytes())
    train(data, "--target", "tpsa", "--epochs", "1", *FAST, "--out", tmp_path / "run")
    data.write_text(data.read_text() + "CCO,20.2\n")
    outcome = molecules("quantize", tmp_path / "run", "--out", tmp_path / "new")
    assert outcome.code == 3
    assert "is not there any more" in outcome.err and "name the data to measure on behind the run" in outcome.err
    trained = molecules("quantize", tmp_path / "run", nci, "--epochs", "1", "--out", tmp_path / "new")
    assert (trained.code, "what to train on with --train-on" in trained.err) == (3, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_quantised_run_has_the_same_bits_on_the_chip_of_integers(model: str, quantised: dict[str, Path],
                                                                   nci: Path, tmp_path: Path) -> None:
    """Where all products are of bytes; the others are named."""
    run = RunDirectory.open(quantised[model])
    with Refusals(tmp_path / "refused.csv") as refused:
        subject = quantisable(run, load_config(MoleculesConfig, run.config_path), (nci,), refused)
    batch = subject.batches[0]

    def result(device: str) -> np.ndarray:
        return jit(subject.call, device=device)(subject.model, batch).numpy()

    if model != "mpnn":
        np.testing.assert_array_equal(result("tpu-v1"), result("cpu"))
    else:  # products of two activations
        with pytest.raises(DeviceError, match=r"tpu-v1 cannot compute dot at .*network"):
            result("tpu-v1")


@pytest.mark.parametrize("bits", [32, 8])
def test_a_run_is_timed_on_a_chip(bits: int, run: Path, quantised: dict[str, Path], nci: Path, tmp_path: Path) -> None:
    path = run if bits == 32 else quantised["dmpnn"]
    said = tilework("accel", "report", path, nci, "--chip", "tpu-v1", "--out", tmp_path / "chip", "--json")
    assert said.code == 0, said.err
    steps = table(tmp_path / "chip" / "steps.csv")
    assert said.numbers["milliseconds"] > 0 and any("encoder.update" in step["layer"] for step in steps)
    weights = sum(int(step["weight bytes"]) for step in steps)
    assert weights > 0
    again = tilework("accel", "report", path, nci, "--chip", "tpu-v1", "--batch", "3", "--out", tmp_path / "other")
    assert (again.code, "a run's batches are those of its data" in again.err) == (2, True)
    assert not (tmp_path / "other").exists()


def test_the_instruction_stream_of_a_run(quantised: dict[str, Path], nci: Path, tmp_path: Path) -> None:
    """The model passes messages, which is up to the host between two parts of the stream."""
    out = tmp_path / "stream.txt"
    refused = tilework("accel", "instructions", quantised["dmpnn"], nci, "--out", out)
    assert (refused.code, out.exists()) == (2, False)
    assert "tpu-v1 cannot compute gather at " in refused.err and "let the host compute it: --with-host" in refused.err
    said = tilework("accel", "instructions", quantised["dmpnn"], nci, "--with-host", "--out", out, "--json")
    assert said.code == 0, said.err
    assert said.numbers["values compared"] > 0 and said.numbers["values that differ"] == 0
    text = out.read_text()
    assert text.count("Interrupt_Host") == said.numbers["parts"] - 1 > 0
    assert f"{said.numbers['instructions']} instructions of 12 bytes" in text and "encoder.update" in text
