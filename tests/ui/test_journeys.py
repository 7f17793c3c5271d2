"""What people do in the web app, in a real browser: train across a reload, stop and resume, look at results, predict.

Invariant: nothing leaves the machine; a page that asks another host for anything fails its test.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from core.engine.run import RunDirectory
from tests.ui.conftest import serving

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")
PATIENCE = 90_000  # milliseconds: a first training compiles its kernels
CHART = "[data-testid=stVegaLiteChart]"


@pytest.fixture
def page(browser: Path, ready: Path) -> Iterator[Page]:
    """The molecules page of a server on a folder with a trained run, on one tab of the browser."""
    foreign: list[str] = []
    with serving(ready) as address, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=ARGUMENTS)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:"))
                else foreign.append(request.url))
        page.goto(f"{address}/molecules")
        yield page
        chromium.close()
    assert not foreign


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def start(page: Page, epochs: int) -> None:
    """Take the sample data set, and start a training of many short epochs from the form."""
    page.get_by_text("Upload a file, or take the sample").wait_for()
    page.get_by_role("button", name="Take the sample data set").click()
    expect(page.get_by_text("every row is usable")).to_be_visible(timeout=PATIENCE)
    open_tab(page, "Train")
    fill(page, "Epochs", epochs)
    page.get_by_text("All other settings").click()
    fill(page, "Hidden", 8)
    fill(page, "Head hidden", 8)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("combobox", name="Training")).to_have_value(re.compile("molecules-1"), timeout=PATIENCE)
    expect(page.get_by_text(re.compile(rf"Epoch \d+ of {epochs}, about"))).to_be_visible(timeout=PATIENCE)
    expect(page.locator(CHART)).to_be_visible(timeout=PATIENCE)


def fill(page: Page, label: str, value: int) -> None:
    field = page.get_by_role("spinbutton", name=label, exact=True)
    field.fill(str(value))
    field.press("Enter")
    page.wait_for_timeout(300)


def epochs_done(page: Page) -> int:
    shown = page.locator("[data-testid=stMetric]", has_text="Epochs done").inner_text()
    return int(re.search(r"(\d+) of", shown)[1])


def test_a_training_is_found_again_after_a_reload(page: Page, ready: Path) -> None:
    start(page, 100)
    before = epochs_done(page)
    page.reload()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    page.locator(CHART).wait_for()
    assert epochs_done(page) >= before
    expect(page.get_by_text("Finished; started")).to_be_visible(timeout=PATIENCE)
    run = RunDirectory.open(ready / "runs" / "molecules-1")
    assert run.status == "finished" and run.record["config"]["epochs"] == 100 and run.record["resumed"] == 0


def test_a_training_stops_and_resumes(page: Page, ready: Path) -> None:
    start(page, 250)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("It can go on from its last checkpoint")).to_be_visible(timeout=PATIENCE)
    assert RunDirectory.open(ready / "runs" / "molecules-1").status == "stopped"
    before = epochs_done(page)
    assert before < 250
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Finished; started")).to_be_visible(timeout=PATIENCE)
    assert epochs_done(page) == 250
    run = RunDirectory.open(ready / "runs" / "molecules-1")
    assert run.status == "finished" and run.record["resumed"] == 1
    ends = [row["epoch"] for row in run.metrics() if row["epoch_done"]]
    assert ends == list(range(1, 251)), "no epoch is missing and none is there twice"


def test_results_and_predictions(page: Page, ready: Path) -> None:
    open_tab(page, "Results")
    expect(page.get_by_text("Metrics beside the baselines")).to_be_visible(timeout=PATIENCE)
    table = page.get_by_role("table")
    for word in ("RMSE", "Model", "Baseline: mean", "Baseline: ridge"):
        expect(table).to_contain_text(word)
    expect(page.locator(CHART)).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Worst cases")).to_be_visible()

    open_tab(page, "Predict")
    smiles = page.get_by_label("SMILES")
    smiles.fill("CC(=O)Oc1ccccc1C(=O)O")
    smiles.press("Enter")
    picture = page.locator("[data-testid=stImage] img")
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert "svg" in (picture.get_attribute("src") or "")[:40] or "svg" in page.evaluate(
        "async source => (await fetch(source)).headers.get('content-type')", picture.get_attribute("src"))
    expect(page.get_by_text("90% interval")).to_be_visible()
    expect(page.get_by_text("A^2")).to_be_visible()

    smiles.fill("C(C")
    smiles.press("Enter")
    expect(page.get_by_text("RDKit cannot parse it")).to_be_visible(timeout=PATIENCE)
    expect(picture).to_have_count(0)
    _predict_a_file(page, ready)


def _predict_a_file(page: Page, folder: Path) -> None:
    source = folder / "new molecules.csv"
    source.write_text("smiles\nCCO\nC(C\nCCN\n")
    page.get_by_role("radio", name="A file").or_(page.get_by_role("button", name="A file")).click()
    page.locator("input[type=file]").set_input_files(source)
    page.get_by_role("button", name="Predict the file").click()
    expect(page.get_by_text("2 rows predicted, 1 refused")).to_be_visible(timeout=PATIENCE)
    rows = _downloaded(page, "Predictions", folder)
    assert [row["smiles"] for row in rows] == ["CCO", "CCN"] and float(rows[0]["tpsa_low"]) < float(rows[0]["tpsa"])
    refused = _downloaded(page, "Refused rows", folder)
    assert [row["row"] for row in refused] == ["2"] and "cannot parse" in refused[0]["reason"]


def _downloaded(page: Page, button: str, folder: Path) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    path = folder / "downloaded.csv"
    shutil.copyfile(waiting.value.path(), path)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
