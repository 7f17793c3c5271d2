"""The report: its files, and that what they show is one estimate."""

from __future__ import annotations

import csv
import json
from xml.etree import ElementTree

import pytest

from apps.cli import main
from core.accel.tpu.machine import names
from core.accel.tpu.report import report

FILES = {"steps.csv", "chips.csv", "roofline.svg", "units.svg", "report.txt"}


@pytest.mark.parametrize(("model", "own"), [("resnet50", set()), ("inception3", set()), ("mlp0", {"counters.csv"}),
                                            ("cnn1", {"counters.csv"})])
def test_the_command_writes_a_report(tmp_path, capsys, model, own):
    assert main(["accel", "report", model, "--chip", "tpu-v1", "--out", str(tmp_path), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    assert {path.name for path in tmp_path.iterdir()} == FILES | own
    assert sum(value for name, value in numbers.items() if name.startswith("%")) == pytest.approx(100)
    with open(tmp_path / "chips.csv", newline="", encoding="utf-8") as file:
        chips = list(csv.DictReader(file))
    assert [row["chip"] for row in chips] == names() and float(chips[0]["milliseconds"]) == numbers["milliseconds"]
    with open(tmp_path / "steps.csv", newline="", encoding="utf-8") as file:
        steps = list(csv.DictReader(file))
    marks = ElementTree.parse(tmp_path / "roofline.svg").findall(".//{*}circle")
    assert len(marks) == sum(int(row["MACs"]) > 0 for row in steps)
    bars = ElementTree.parse(tmp_path / "units.svg").findall(".//{*}title")
    assert len(bars) == 2 * (model not in ("mlp0", "cnn1")) + (model in ("mlp0", "cnn1")) + sum(
        (row["unit"] == "array") + (float(row["vector cycles"]) > 0) for row in steps)


def test_pods_of_a_chip_with_links():
    rows = list(csv.DictReader(report("resnet50", "tpu-v2", 8).files["pods.csv"].splitlines()))
    assert [int(row["chips"]) for row in rows] == [2**power for power in range(9)]
    assert rows[0]["its efficiency"] == rows[0]["its share of computing"] == "1.0"
    assert all(0 < float(row["its efficiency"]) <= 1 and float(row["shared network ms"]) > 0 for row in rows)
    assert "pods.csv" not in report("resnet50", "tpu-v1", 1).files


def test_a_network_that_another_chip_cannot_hold_is_told_in_the_comparison():
    rows = list(csv.DictReader(report("unet-2d", "tpu-v2", 8).files["chips.csv"].splitlines()))
    assert rows[1]["chip"] == "tpu-v1" and "8.5 MiB too little" in rows[1]["note"] and rows[1]["TOPS"] == ""


@pytest.mark.parametrize(("words", "found"), [
    (["resnet", "--chip", "tpu-v1"], "resnet50, inception-v3"), (["mlp0", "--batch", "3"], "a batch of 200 only"),
    (["resnet50", "--batch", "0"], "--batch"), (["resnet50", "--chip", "tpu-v7"], "tpu-v1, tpu-v2, tpu-v3"),
    (["unet-2d", "--chip", "tpu-v1"], "24.0 MiB of buffer")])
def test_what_there_is_not_is_refused_and_nothing_written(tmp_path, capsys, words, found):
    assert main(["accel", "report", *words, "--out", str(tmp_path / "out")]) == 2
    assert found in capsys.readouterr().err and not (tmp_path / "out").exists()
