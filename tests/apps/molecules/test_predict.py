"""`tilework molecules predict`: columns, order, refusals, units, the same value in any company and by any number of
processes, how it is stopped, and level memory."""

from __future__ import annotations

import gzip
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from apps.molecules import predict as prediction
from apps.molecules.formats import Row
from apps.molecules.predict import Part, answer, parts, predict_smiles
from apps.molecules.readers import DEFAULT_LIMITS, Record, read_rows, text_rows
from apps.molecules.trained import Trained
from core.accel import threads
from core.engine.errors import DataError
from core.engine.run import RunDirectory
from tests.apps.molecules.small import (
    FAST,
    MODELS,
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


def predict(run: Path, source: Path, out: Path, *words: object, code: int = 0) -> np.ndarray:
    outcome = molecules("predict", run, source, "--out", out, *words)
    assert outcome.code == code, outcome.err
    return predicted(out, lines(out)[0][1])


def test_columns_are_named_as_the_input_and_the_training_name_them(run: Path, nci: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "in.tsv", ["id", "Canonical SMILES", "note"], [(1, "CCO", "x"), (2, "c1ccccc1O", "")])
    predict(run, data, tmp_path / "out.csv")
    header, *rows = lines(tmp_path / "out.csv")
    assert header == ["Canonical SMILES", "tpsa", "tpsa_low", "tpsa_high"]
    assert [row[0] for row in rows] == ["CCO", "c1ccccc1O"]
    for _, *numbers in rows:
        value, low, high = map(float, numbers)
        assert low < value < high
        assert value - low == pytest.approx(high - value, rel=1e-6)
    predict(run, nci, tmp_path / "own.csv")
    assert lines(tmp_path / "own.csv")[0] == ["smiles", "tpsa", "tpsa_low", "tpsa_high"]


def test_a_model_without_intervals_writes_none(nci: Path, tmp_path: Path) -> None:
    train(nci, "--target", "tpsa", "--epochs", "1", "--coverage", "0", "--out", tmp_path / "run")
    predict(tmp_path / "run", nci, tmp_path / "out.csv")
    assert lines(tmp_path / "out.csv")[0] == ["smiles", "tpsa"]


def test_a_column_of_another_name_is_taken_when_told(run: Path, nci: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "in.csv", ["smiles", "metabolite"], [("CCO", "CCN"), ("CCC", "CCCl")])
    predict(run, data, tmp_path / "out.csv", "--smiles", "metabolite")
    assert [row[:1] for row in lines(tmp_path / "out.csv")] == [["metabolite"], ["CCN"], ["CCCl"]]


def test_the_column_of_the_training_is_found_again(nci: Path, tmp_path: Path) -> None:
    rows = [(row["smiles"], "CCO", row["tpsa"]) for row in table(nci)]
    data = write_table(tmp_path / "in.csv", ["drug", "smiles", "tpsa"], rows)
    train(data, "--target", "tpsa", "--smiles", "drug", "--epochs", "1", "--out", tmp_path / "run")
    assert len(set(predict(tmp_path / "run", data, tmp_path / "out.csv"))) > 50
    assert lines(tmp_path / "out.csv")[0][0] == "drug"
    assert molecules("evaluate", tmp_path / "run", data, "--out", tmp_path / "report", "--json").numbers["n"] == 60
    two = write_table(tmp_path / "two.csv", ["drug", "smiles"], [row[:2] for row in rows[:2]])
    assert molecules("explain", two, "--run", tmp_path / "run", "--out", tmp_path / "page.html").code == 0
    assert rows[0][0].replace("&", "&amp;") in (tmp_path / "page.html").read_text()


def test_refused_rows_are_listed_and_the_rest_keeps_its_order(run: Path, tmp_path: Path) -> None:
    good = SMILES[:3]
    texts = (good[0], "c1cc", good[1], "", good[2], "C" * 501)
    data = write_table(tmp_path / "in.csv", ["smiles"], [(text,) for text in texts])
    outcome = molecules("predict", run, data, "--out", tmp_path / "out.csv", "--json")
    assert (outcome.code, outcome.numbers) == (4, {"predicted": 3, "refused": 3})
    assert [row["smiles"] for row in table(tmp_path / "out.csv")] == list(good)
    listed = table(tmp_path / "refused.csv")
    assert [(row["row"], row["text"]) for row in listed] == [("2", "c1cc"), ("4", ""), ("6", "C" * 200)]
    assert listed[1]["reason"] == "empty SMILES"


@pytest.mark.parametrize(("content", "options", "says"), [
    ("smiles\nc1cc\n", "", "no usable row among its 1 rows; row 1: RDKit cannot parse it"),
    ("smiles\n[CH4:1]>>[CH4:1]\n", "", "row 1: the model learned from molecules, this is a reaction"),
    ("name,size\nwater,3\n", "", "has no column of SMILES; its columns are 'name', 'size'"),
    ("smiles\nCCO\n", "--smiles mol", "has no column 'mol'"),
    ("smiles\nCCO\n", "--units tpsa=nm^2", "is given as 'nm^2', but the model was trained on 'A^2'"),
    ("smiles\nCCO\n", "--units logP=1", "A unit is given for 'logP'"),
    ("smiles\nCCO\n", "--units tpsa", "units are COLUMN=UNIT; found 'tpsa'"),
])
def test_what_cannot_be_predicted_is_one_clear_sentence(run: Path, tmp_path: Path, content: str, options: str,
                                                        says: str) -> None:
    data = tmp_path / "in.csv"
    data.write_text(content)
    outcome = molecules("predict", run, data, "--out", tmp_path / "out.csv", *options.split())
    assert (outcome.code, outcome.out) == (3, "")
    assert says in outcome.err and outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_list_of_refused_rows_may_be_mended_and_predicted(run: Path, tmp_path: Path) -> None:
    """Its name is that of the list which the prediction makes."""
    source = tmp_path / "refused.csv"
    source.write_text("smiles\nCCO\nno molecule\n")
    assert molecules("predict", run, source, "--out", tmp_path / "values.csv").code == 2
    assert source.read_text() == "smiles\nCCO\nno molecule\n" and not (tmp_path / "values.csv").exists()
    (tmp_path / "out").mkdir()
    predict(run, source, tmp_path / "out" / "values.csv", code=4)


def test_the_right_unit_is_taken(run: Path, nci: Path, tmp_path: Path) -> None:
    predict(run, nci, tmp_path / "out.csv", "--units", "tpsa=A^2")


def test_a_run_that_has_not_finished_has_no_model(nci: Path, tmp_path: Path) -> None:
    outcome = molecules("train", nci, "--target", "tpsa", "--fractions", "0.999,0.001,0", "--out", tmp_path / "run")
    assert outcome.code == 3
    outcome = molecules("predict", tmp_path / "run", nci, "--out", tmp_path / "out.csv")
    assert (outcome.code, "has no model yet (failed)" in outcome.err) == (3, True)


@pytest.mark.parametrize("model", MODELS)
def test_company_order_and_spelling_do_not_matter(runs: dict[str, Path], nci: Path, tmp_path: Path, model: str) -> None:
    texts = [row["smiles"] for row in table(nci)]
    values = predict(runs[model], nci, tmp_path / "plain.csv")
    spread = np.ptp(values)
    order = np.random.default_rng(0).permutation(len(texts))
    spelled = [Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(texts[place]), 1, randomSeed=7)[0] for place in order]
    mixed = write_table(tmp_path / "mixed.csv", ["smiles"], [(text,) for text in [*spelled, *SMILES]])
    found = predict(runs[model], mixed, tmp_path / "mixed_out.csv")[:len(texts)]
    np.testing.assert_allclose(found, values[order], rtol=0, atol=1e-5 * spread)
    trained = Trained.load(RunDirectory.open(runs[model]))
    alone = [float(predict_smiles(trained, text, DEFAULT_LIMITS).values[0]) for text in texts[:5]]
    np.testing.assert_allclose(alone, values[:5], rtol=0, atol=1e-5 * spread)


def test_one_smiles_that_cannot_be_read_says_why(models: dict[str, Trained]) -> None:
    with pytest.raises(DataError, match="RDKit cannot parse it"):
        predict_smiles(models["dmpnn"], "c1cc", DEFAULT_LIMITS)


# ------------------------------------------------------------------------------------------------ processes

BAD = ("c1cc", "", "caf\u00e9", "C" * 501, "[CH4:1]>>[CH4:1]", '"CCO')
# A shell that starts the tests in the background has interrupts ignored, and children would inherit that.
PROGRAM = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
           "from apps.cli import main; sys.exit(main(sys.argv[1:]))")


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two parts are a long file, and the number of threads is as before afterwards."""
    monkeypatch.setattr(prediction, "FEW_PARTS", 2)
    before = threads.pool().threads
    yield
    threads.set_threads(before)


@pytest.mark.usefixtures("few_parts")
def test_any_number_of_processes_writes_the_same_files(run: Path, nci: Path, tmp_path: Path) -> None:
    good = [row["smiles"] for row in table(nci)]
    texts = [text for bad in BAD for text in (*good, bad)] + ["\udcff", *good]
    content = "smiles\n" + "".join(f"{text}\n" for text in texts)
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(content.encode("utf-8", "surrogateescape")))
    written = []
    for count in (1, 2, 3):
        threads.set_threads(count)
        outcome = molecules("predict", run, tmp_path / "in.csv.gz", "--out", tmp_path / "out.csv", "--json")
        assert (outcome.code, outcome.numbers) == (4, {"predicted": 420, "refused": 7})
        written.append([(tmp_path / name).read_bytes() for name in ("out.csv", "refused.csv")])
    assert written[0] == written[1] == written[2]


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("count", [1, 2])
def test_a_long_file_without_a_usable_row_is_one_clear_sentence(run: Path, tmp_path: Path, count: int) -> None:
    threads.set_threads(count)
    data = write_table(tmp_path / "in.csv", ["smiles"], [("c1cc",)] * 200)
    outcome = molecules("predict", run, data, "--out", tmp_path / "out.csv")
    assert outcome.code == 3
    assert outcome.err == ("in.csv has no usable row among its 200 rows; "
                           "row 1: RDKit cannot parse it: unclosed ring.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["qm7/qm7_7101.xyz.gz", "chemprop_fixtures/rxn.csv", "moleculenet/HIV.csv.gz", "sdf"])
def test_a_part_arrives_as_it_was_sent(realdata: Path, tmp_path: Path, models: dict[str, Trained], file: str) -> None:
    path = realdata / "molecules" / file
    if file == "sdf":
        path = tmp_path / "all.sdf"
        path.write_text("".join(f"{Chem.MolToMolBlock(Chem.MolFromSmiles(text))}> <x>\n1\n\n$$$$\n" for text in SMILES))
    part = next(parts(text_rows(path)))
    arrived = Part.parse(part.dump())
    assert [tuple(row.lines) for row in arrived.rows] == [tuple(row.lines) for row in part.rows]
    assert [(row.text, row.columns, row.reason) for row in arrived.rows] == [
        (row.text, row.columns, row.reason) for row in part.rows]
    sent, back = (answer(models["dmpnn"], DEFAULT_LIMITS, one) for one in (part, arrived))
    assert sent == back and len(sent.predicted) + len(sent.refused) == len(part.rows)


def test_parts_hold_all_rows_and_few_characters() -> None:
    rows = [Row("C" * (number * 7919 % 400_000)) for number in range(300)]
    found = list(parts(rows))
    assert [row for part in found for row in part.rows] == rows
    assert [part.first for part in found] == [1 + sum(len(part.rows) for part in found[:place])
                                              for place in range(len(found))]
    assert max(sum(row.characters for row in part.rows) for part in found) < prediction.LARGEST_PART + 400_000
    assert list(parts([])) == []


@pytest.mark.parametrize(("victim", "number", "code", "says"), [
    ("worker", signal.SIGKILL, 5, "out of memory: a worker process was killed"),
    ("owner", signal.SIGINT, 130, "interrupted"),
    ("owner", signal.SIGTERM, -15, ""),
])
def test_a_prediction_that_is_stopped_leaves_no_file_and_no_process(run: Path, nci: Path, tmp_path: Path, victim: str,
                                                                    number: signal.Signals, code: int,
                                                                    says: str) -> None:
    texts = [row["smiles"] for row in table(nci)] * 1000
    data = write_table(tmp_path / "in.csv", ["smiles"], [(text,) for text in texts])
    words = [sys.executable, "-c", PROGRAM, "molecules", "predict", run, data, "--out", tmp_path / "out.csv"]
    owner = subprocess.Popen([*map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "TILEWORK_THREADS": "2"})
    children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        assert owner.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(int(workers[0]) if victim == "worker" else owner.pid, number)
    _, told = owner.communicate()
    assert (owner.returncode, told.count("\n")) == (code, 1 if says else 0), told
    assert told.startswith(says)
    assert not (tmp_path / "out.csv").exists() and not (tmp_path / "refused.csv").exists()
    for _ in range(600):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return
        time.sleep(0.05)
    pytest.fail("a worker lives on")


# ------------------------------------------------------------------------------------------------ memory


def test_predictions_come_one_batch_at_a_time(models: dict[str, Trained]) -> None:
    taken = itertools.count()
    endless = (example(text) for text in itertools.cycle(SMILES) if next(taken) >= 0)
    stream = models["dmpnn"].predict(endless, 16)
    values = [float(next(stream).values[0]) for _ in range(17)]
    np.testing.assert_allclose(values[8:16], values[:8], rtol=1e-6)
    assert next(taken) == 32


PEAK = """
import resource, sys
from apps.cli import main
code = main(sys.argv[1:])
print("peaks", *[resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)])
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(run: Path, nci: Path, tmp_path: Path) -> None:
    peaks = []
    for copies in (68, 680):
        texts = [row["smiles"] for row in table(nci)] * copies
        data = write_table(tmp_path / "in.csv", ["smiles"], [(text,) for text in texts])
        words = ["molecules", "predict", run, data, "--out", tmp_path / "out.csv"]
        done = subprocess.run([sys.executable, "-c", PEAK, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                              check=True)
        peaks.append([int(word) for word in done.stdout.split("peaks ")[1].split()])
        assert len(table(tmp_path / "out.csv")) == 60 * copies
    assert all(long < short * 1.05 for short, long in zip(*peaks, strict=True)), peaks


# ------------------------------------------------------------------------------------------------ three dimensions


def rotation(seed: int) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def moved(record: Record, seed: int) -> tuple[np.ndarray, list[int]]:
    """The atoms of a record turned, shifted and renumbered."""
    generator = np.random.default_rng(seed)
    assert record.coordinates is not None
    order = generator.permutation(len(record.coordinates)).tolist()
    return (record.coordinates @ rotation(seed).T + generator.normal(size=3) * 5)[order], order


@pytest.mark.realdata
def test_molecules_in_an_xyz_file_may_be_moved_and_renumbered(realdata: Path, tmp_path: Path) -> None:
    rows = read_rows(realdata / "molecules" / "qm7" / "qm7_7101.xyz.gz", targets=["hof_pbe0_kcal"])
    records = [record for record in itertools.islice(rows, 40) if isinstance(record, Record)]
    texts: dict[str, list[str]] = {"here": [], "moved": []}
    for number, record in enumerate(records):
        for name in texts:
            positions, order = moved(record, number)
            if name == "here":
                positions, order = record.coordinates, list(range(len(order)))
            atoms = [record.molecule.GetAtomWithIdx(place).GetSymbol() for place in order]
            texts[name] += [str(len(atoms)), f"e={record.targets[0]}", *(
                f"{atom} {x:.12f} {y:.12f} {z:.12f}" for atom, (x, y, z) in zip(atoms, positions, strict=True))]
    for name, rows in texts.items():
        (tmp_path / f"{name}.xyz").write_text("\n".join(rows) + "\n")
    numbers = train(tmp_path / "here.xyz", "--target", "e", "--model", "mpnn", "--epochs", "5", *FAST, "--out",
                    tmp_path / "run")
    assert numbers["training rows"] == 32
    assert Trained.load(RunDirectory.open(tmp_path / "run")).description.features.distances
    here, there = (predict(tmp_path / "run", tmp_path / f"{name}.xyz", tmp_path / f"{name}.csv") for name in texts)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5 * np.std([record.targets[0] for record in records]))
    assert np.ptp(here) > 1


@pytest.mark.realdata
def test_molecules_in_an_sdf_may_be_moved_and_renumbered(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "molecules" / "freesolv_3d"
    entries = [line.split(";") for line in (folder / "database.txt").read_text().splitlines() if line[0] != "#"]
    measured = {entry[0]: entry[3].strip() for entry in entries}
    blocks: dict[str, list[str]] = {"here": [], "moved": []}
    with tarfile.open(folder / "sdffiles.tar.gz") as archive:
        members = itertools.islice((member for member in archive if member.name.endswith(".sdf")), 30)
        for number, member in enumerate(members):
            file = archive.extractfile(member)
            assert file is not None
            block = file.read().decode().partition("M  END")[0] + "M  END\n"
            molecule = Chem.MolFromMolBlock(block, removeHs=False)
            tail = f"> <expt>\n{measured[Path(member.name).stem]}\n\n$$$$\n"
            positions = molecule.GetConformer().GetPositions()
            turned, order = moved(Record(1, "", molecule, None, positions, np.zeros(0), {}), number)
            other = Chem.RenumberAtoms(molecule, order)
            other.GetConformer().SetPositions(turned)
            blocks["here"].append(block + tail)
            blocks["moved"].append(Chem.MolToV3KMolBlock(other) + tail)
    for name, found in blocks.items():
        (tmp_path / f"{name}.sdf").write_text("".join(found))
    (tmp_path / "two.sdf").write_text("".join(blocks["here"][:2]))
    run = tmp_path / "run"
    train(tmp_path / "here.sdf", "--target", "expt", "--model", "mpnn", "--epochs", "5", *FAST, "--out", run)
    here, there = (predict(run, tmp_path / f"{name}.sdf", tmp_path / f"{name}.csv") for name in blocks)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5 * np.std([float(text) for text in measured.values()]))
    assert np.ptp(here) > 0.01
    header, *rows = lines(tmp_path / "here.csv")
    assert header[:2] == ["name", "expt"] and rows[0][0].startswith("mobley_")
    assert molecules("explain", tmp_path / "two.sdf", "--run", run, "--out", tmp_path / "page.html").code == 0
    flat = write_table(tmp_path / "flat.csv", ["smiles"], [("CCO",)])
    outcome = molecules("predict", run, flat, "--out", tmp_path / "flat_out.csv")
    assert (outcome.code, "there are no coordinates; the model learned from distances" in outcome.err) == (3, True)
