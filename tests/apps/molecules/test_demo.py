"""The demonstration, with fewer molecules and epochs, and the page it writes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps import demo
from apps.cli import main

NUMBERS = {f"{prefix}{name}": 1.5 for prefix in ("", "ridge baseline ", "mean baseline ")
           for name in ("rmse", "mae", "r2")} | {"training rows": 8, "test rows": 2, "coverage": 0.875}
ROWS = [{"molecule": "CCO", "measured": "20.2", "predicted": "21"},
        {"molecule": "CC<b>", "measured": "0", "predicted": "0.5"}]


def test_the_plot_is_an_svg_with_a_dot_a_molecule_inside_its_frame() -> None:
    points = [(0.0, 1.0), (100.0, 90.0), (50.0, -20.0)]
    svg = ElementTree.fromstring(demo.parity_plot(points, size=400, margin=50))
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in svg.iter("circle")]
    assert len(dots) == 3
    assert all(50 <= place <= 350 for dot in dots for place in dot)
    on_line = ElementTree.fromstring(demo.parity_plot([(3.0, 3.0), (5.0, 5.0)]))
    sums = [float(dot.get("cx", "")) + float(dot.get("cy", "")) for dot in on_line.iter("circle")]
    assert sums == pytest.approx([420, 420])
    assert [text.text for text in svg.iter("text")][:8:2] == ["-50", "0", "50", "100"]


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6))
@example(low=0.0, span=5e-324)
@example(low=1e6, span=1.2e-10)
def test_ticks_hold_the_range_and_are_few(low: float, span: float) -> None:
    ticks = demo.round_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * step and low + span <= ticks[-1] + 1e-9 * step
    assert 2 <= len(ticks) <= 10


def test_a_plot_of_one_value_is_drawn() -> None:
    assert "nan" not in demo.parity_plot([(2.0, 2.0)])


def test_the_page_shows_the_numbers_and_runs_nothing() -> None:
    page = demo.render(NUMBERS, ROWS, ["<figure>one</figure>"])
    assert page.count("<td>1.50</td>") == 6 and page.count("<td>1.500</td>") == 3
    assert "Trained on 8 molecules" in page and "hold 88 % of the true values" in page
    assert page.count("<circle") == 2 and "<figure>one</figure>" in page
    assert "<script" not in page and "http" not in page


def test_the_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "MOLECULES", 120)
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | {"epochs": 2, "hidden": 16, "head_hidden": 16})
    for name in ("demo", "demo-2"):
        assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
        page = (tmp_path / name / "report.html").read_text()
        assert page.count("<figure>") == demo.DRAWN
        assert len(re.findall("<circle ", page)) == 12
        out = capsys.readouterr().out
        assert str(tmp_path / name / "report.html") in out
        for shown in ("network error", "ridge error", "mean predictor error", "intervals hold", "seconds"):
            assert shown in out
