"""The pages as streamlit runs them: empty states, every tab on a trained run, and text that is not ours."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.engine.errors import DataError
from tests.ui.conftest import MAIN, found, wait
from ui import jobs, plots, results
from ui.molecules import drawings
from ui.session import duration, plain


def molecules() -> None:
    from ui.molecules.page import page

    page()


def shown(tab: str, data: Path | None = None) -> AppTest:
    """The molecules page with a tab open and a data set chosen."""
    test = AppTest.from_function(molecules, default_timeout=120)
    test.session_state["tab"] = tab
    if data is not None:
        test.session_state["molecules-data"] = str(data)
    test.run()
    assert not test.exception
    return test


def words(test: AppTest) -> str:
    """All text of a page."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "info", "error", "warning", "success")
    return "\n".join(str(item.value) for kind in kinds for item in test.get(kind)).replace("\\", "")


def metrics(test: AppTest) -> dict[str, str]:
    return {item.label: str(item.value) for item in test.metric}


@pytest.mark.parametrize(("tab", "said"), [
    ("Data", "take the sample"), ("Train", "Choose a data set in the tab"), ("Train", "There is no training yet"),
    ("Results", "No training has finished yet"), ("Predict", "There is no trained model yet")])
def test_an_empty_tab_says_what_to_do(folders: Path, tab: str, said: str) -> None:
    assert said in words(shown(tab))
    assert not (folders / "runs").exists(), "looking writes nothing"


def test_the_home_page_without_runs(folders: Path) -> None:
    test = AppTest.from_file(str(MAIN), default_timeout=120).run()
    assert not test.exception
    assert "There are no runs in" in words(test) and "Cores" in metrics(test)


def test_the_home_page_lists_the_runs(ready: Path) -> None:
    test = AppTest.from_file(str(MAIN), default_timeout=120).run()
    row = test.dataframe[0].value.iloc[0]
    assert (row["Run"], row["App"], row["Status"]) == ("ready", "molecules", "✓ finished")
    assert "rmse" in row["Result"]


def test_the_sample_is_taken_checked_and_traced(folders: Path) -> None:
    test = shown("Data")
    next(button for button in test.button if "sample" in button.label).click().run()
    assert not test.exception
    assert metrics(test) == {"Rows": "500", "Usable": "500", "Refused": "0", "Molecules are in": "smiles"}
    stages = {row["Stage"]: row["What it is there"].replace("\\", "") for _, row in test.table[0].value.iterrows()}
    assert stages["row"].startswith("1: CC1=CC") and stages["prediction"] == "f32[1, 1]"


def test_refused_rows_are_listed_with_their_reasons(folders: Path) -> None:
    path = folders / "mixed.csv"
    path.write_text("smiles,y\nCCO,1\nC(C,2\nCCN,x\nc1ccccc1,4\n")
    test = shown("Data", path)
    assert metrics(test)["Refused"] == "1", "words in a column that is no target do not matter"
    listed = test.dataframe[0].value
    assert list(listed["Row"]) == [2] and "cannot parse" in listed["Reason"][0]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("empty.csv", b"", "empty"), ("none.csv", b"a,b\n1,2\n", "no column of SMILES"), ("bad.sdf", b"\x00\x01", "")])
def test_an_unusable_file_gives_a_sentence(folders: Path, name: str, content: bytes, said: str) -> None:
    (folders / name).write_bytes(content)
    test = shown("Data", folders / name)
    assert not test.exception and len(test.error) == 1 and said in words(test)


def test_a_path_outside_the_roots_gives_a_sentence(folders: Path) -> None:
    for tab in ("Data", "Train"):
        test = shown(tab, Path("/etc/passwd"))
        assert not test.exception and "there is no data file" in words(test).lower()


def test_an_upload_becomes_the_data_set(folders: Path) -> None:
    test = shown("Data")
    test.file_uploader[0].upload("My set.csv", b"smiles,y\nCCO,1\nCCN,2\n").run()
    assert not test.exception and metrics(test)["Rows"] == "2"
    assert Path(test.session_state["molecules-data"]).parent == folders / "runs" / ".data"


def test_a_training_is_started_from_the_form(ready: Path) -> None:
    test = shown("Train", ready / "data" / "nci_tpsa.csv")
    values = {"epochs": 2, "hidden": 8, "head_hidden": 8}
    for item in test.number_input:
        name = item.key.split(".")[1]
        if name in values:
            item.set_value(values[name])
    test.run()
    next(button for button in test.button if button.label == "Start training").click().run()
    assert not test.exception and not test.error
    wait(lambda: not found("molecules-1").active)
    run = found("molecules-1")
    assert (run.status, run.failure) == ("finished", "")
    assert run.record["config"] | values | {"targets": ["tpsa"]} == run.record["config"]
    test.run()
    assert "Finished" in words(test) and test.get("vega_lite_chart")


def test_a_taken_name_gives_a_sentence(ready: Path) -> None:
    test = shown("Train", ready / "data" / "nci_tpsa.csv")
    next(item for item in test.text_input if item.label == "Name of the run").input("ready").run()
    next(button for button in test.button if button.label == "Start training").click().run()
    assert "there is a run named ready already" in words(test).lower()


def test_a_failed_training_says_why(ready: Path) -> None:
    file = ready / "runs/ready/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "failed", "error": "DataError: *no* rows"}))
    assert "DataError: *no* rows" in words(shown("Train"))


def test_the_results_stand_beside_the_baselines(ready: Path) -> None:
    test = shown("Results")
    table = test.table[0].value
    assert list(table.columns) == ["Metric", "Model", "Baseline: mean", "Baseline: ridge", "Best"]
    assert list(table["Metric"]) == ["RMSE", "MAE", "R²"]
    assert metrics(test)["Test rows"] == "50"
    assert test.get("vega_lite_chart") and "Worst cases" in words(test) and "A^2" in words(test)
    assert len(test.image) == results.WORST
    assert {button.label for button in test.get("download_button")} == {"Metrics", "Test predictions", "Settings"}


def test_one_molecule_has_a_value_an_interval_and_a_picture(ready: Path) -> None:
    test = shown("Predict")
    test.text_input[0].input("CC(=O)Oc1ccccc1C(=O)O")
    next(button for button in test.button if button.label == "Predict").click().run()
    assert not test.exception and not test.error
    values = metrics(test)
    value = float(values["tpsa"].removesuffix(" A^2"))
    low, high = map(float, values["90% interval"].split(" to "))
    assert low < value < high
    assert len(test.image) == 1 and "Red atoms raise" in words(test)


@pytest.mark.parametrize(("smiles", "said"), [
    ("C(C", "cannot parse"), ("[CH3:1][OH:2]>>[CH2:1]=[O:2]", "this is a reaction"),
    ("C" * 20_000, "the limit is"), ("é", "not ASCII"),
    ("[Xx]", "cannot parse"), ("." * 50, "")])
def test_a_bad_smiles_gives_a_sentence(ready: Path, smiles: str, said: str) -> None:
    test = shown("Predict")
    test.text_input[0].input(smiles)
    next(button for button in test.button if button.label == "Predict").click().run()
    assert not test.exception and len(test.error) == 1 and said in words(test)
    assert not test.metric and not test.image


def test_a_file_is_predicted_with_its_refused_rows(ready: Path) -> None:
    test = shown("Predict")
    test.segmented_control[0].set_value("A file").run()
    test.file_uploader[0].upload("new.csv", b"smiles\nCCO\nC(C\nCCN\n").run()
    next(button for button in test.button if button.label == "Predict the file").click().run()
    assert not test.exception and not test.error
    folder = next((ready / "runs/ready/predictions").iterdir())
    wait(lambda: not jobs.find(folder).alive)
    test.run()
    assert "2 rows predicted, 1 refused" in words(test)
    assert {button.label for button in test.get("download_button")} == {"Predictions", "Refused rows"}
    assert list(test.dataframe[0].value["row"]) == ["2"]


# ------------------------------------------------------------------------------------------------ what they stand on


def test_baselines_without_a_match_are_left_apart() -> None:
    table, rest = results.compared({"a rmse": 1.0, "a r2": 0.5, "coverage": 0.9, "mean baseline a rmse": 2.0,
                                    "mean baseline a r2": 0.7, "test rows": 9})
    assert table == [
        {"Metric": "a RMSE", "Model": "1", "Baseline: mean": "2", "Best": "model"},
        {"Metric": "a R²", "Model": "0.5", "Baseline: mean": "0.7", "Best": "mean"}]
    assert rest == {"coverage": 0.9, "test rows": 9}


def test_curves_pass_over_what_is_not_finite_and_stay_small() -> None:
    rows = [{"name": "member 1", "epoch": step, "step": step, "epoch_done": True,
             "loss": None if step == 3 else 1 / step, "metrics": {"loss too": math.nan if step == 4 else 2 / step}}
            for step in range(1, 5001)]
    chart = plots.curves(rows).to_dict()
    points = next(iter(chart["datasets"].values())) if "datasets" in chart else chart["data"]["values"]
    assert len(points) <= 2 * plots.MOST_POINTS and {point["step"] for point in points} >= {5000}
    assert all(math.isfinite(point["value"]) for point in points)
    assert plots.curves([]) is None


@pytest.mark.parametrize("text", [
    "**bold**", "[a](b)", ":red[x]", "$x$", "<b>", "`c`", "# h", "- i", "1. n", "[O-][N+](=O)C"])
def test_text_of_others_is_no_markdown(text: str) -> None:
    escaped = plain(text)
    assert escaped.replace("\\", "") == text
    assert not any(escaped[at] in "*[]$<`#:" and escaped[at - 1] != "\\" for at in range(len(escaped)))


@pytest.mark.parametrize(("seconds", "text"), [
    (-1, "0 s"), (89, "89 s"), (120, "2 min"), (3 * 3600 + 1800, "3 h 30 min"), (2 * 3600 - 1, "1 h 59 min"),
    (5 * 86400, "5 days")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_picture_is_an_svg_and_nothing_else_is_drawn() -> None:
    assert drawings.svg("CCO").lstrip().startswith("<svg")
    with pytest.raises(DataError):
        drawings.svg("C(C")
