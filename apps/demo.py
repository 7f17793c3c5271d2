"""The demonstration: the main job, end to end, on real molecules that come with rdkit.

Invariant: nothing is downloaded, and the report says how well the network does beside two plain baselines.
"""

from __future__ import annotations

import csv
import html
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps import commands
from apps.app import Report
from apps.molecules import explain, sample
from apps.molecules.app import APP
from apps.molecules.predict import example_of
from apps.molecules.readers import DEFAULT_LIMITS
from apps.molecules.trained import Trained
from core.engine.checkpoint import written_whole
from core.engine.run import RunDirectory

MOLECULES = 2500
EPOCHS = 15
DRAWN = 5
FOLDER = Path("demo")
SETTINGS = {"targets": ("tpsa",), "units": (f"tpsa={sample.UNIT}",), "epochs": EPOCHS, "descriptors": False}
"""Without descriptors, because the polar surface area is one of them."""

Row = Mapping[str, str]


def main(out: Path | None) -> Report:
    """Train on polar surface areas, evaluate, and write ``report.html``; under 3 minutes on two cores."""
    started = time.monotonic()
    out = _unused(out or FOLDER)
    out.mkdir(parents=True)
    data = out / "nci_tpsa.csv"
    sample.write(data, MOLECULES)
    print(f"training on {MOLECULES} molecules of the NCI set and their polar surface areas", file=sys.stderr)
    outcome = commands.train(APP, [data], out / "run", None, SETTINGS, resume=False, json_lines=False, words=sys.argv)
    run = RunDirectory.open(out / "run")
    with open(run.report_path / "test_predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    page = out / "report.html"
    with written_whole(page, "w") as file:
        file.write(render(outcome.numbers, rows, drawings(Trained.load(run), rows)))
    named = {"network error": "rmse", "ridge error": "ridge baseline rmse",
             "mean predictor error": "mean baseline rmse", "intervals hold": "coverage"}
    return Report({**{name: outcome.numbers[key] for name, key in named.items()}, "unit": sample.UNIT,
                   "refused": outcome.refused, "seconds": round(time.monotonic() - started, 1), "report": str(page)})


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist: nothing is overwritten."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def drawings(trained: Trained, rows: Sequence[Row]) -> list[str]:
    """Five test molecules, from the best to the worst prediction, each atom coloured by what it adds."""
    ordered = sorted(rows, key=_error)
    places = [round(part * (len(ordered) - 1) / (DRAWN - 1)) for part in range(DRAWN)]
    explainer = explain.Explainer(trained, 0)
    figures = []
    for row in (ordered[place] for place in places):
        example = example_of(trained, row["molecule"], DEFAULT_LIMITS)
        svg = explain.drawing(example, explainer(example))
        figures.append(f"<figure>{svg}<figcaption>{html.escape(row['molecule'])}<br>"
                       f"measured {float(row['measured']):.1f}, "
                       f"predicted {float(row['predicted']):.1f}</figcaption></figure>")
    return figures


def _error(row: Row) -> float:
    return abs(float(row["measured"]) - float(row["predicted"]))


def render(numbers: Mapping[str, Any], rows: Sequence[Row], figures: Sequence[str]) -> str:
    """The report as one HTML page without scripts."""
    table = "".join(
        f"<tr><th>{name}</th><td>{numbers[prefix + 'rmse']:.2f}</td><td>{numbers[prefix + 'mae']:.2f}</td>"
        f"<td>{numbers[prefix + 'r2']:.3f}</td></tr>"
        for name, prefix in (("message-passing network", ""), ("ridge on fingerprints and counts", "ridge baseline "),
                             ("mean of the training molecules", "mean baseline ")))
    points = [(float(row["measured"]), float(row["predicted"])) for row in rows]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tilework demo</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child {{ text-align: left; font-weight: normal }}
figure {{ display: inline-block; margin: .5rem; width: 320px; vertical-align: top }}
figcaption {{ font-size: 13px; overflow-wrap: anywhere }}
</style></head><body>
<h1>Polar surface areas, learned from SMILES</h1>
<p>Trained on {numbers["training rows"]} molecules of the NCI set that ships inside rdkit; all figures are for
{numbers["test rows"]} molecules that training never saw, in square Angstrom.</p>
<table><tr><th></th><th>RMSE</th><th>MAE</th><th>R²</th></tr>{table}</table>
<p>The 90 % prediction intervals hold {100 * numbers["coverage"]:.0f} % of the true values.</p>
<h2>Measured and predicted</h2>{parity_plot(points)}
<h2>What each atom adds</h2><p>Red atoms raise the prediction, blue ones lower it (integrated gradients). From the best
to the worst prediction on the test molecules:</p>{"".join(figures)}
</body></html>
"""


def parity_plot(points: Sequence[tuple[float, float]], size: int = 420, margin: int = 48) -> str:
    """An SVG of predicted over measured values, with the line of perfect prediction."""
    values = [value for point in points for value in point]
    ticks = round_ticks(min(values), max(values))
    low, span = ticks[0], ticks[-1] - ticks[0]

    def place(value: float) -> float:
        return margin + (value - low) / span * (size - 2 * margin)

    labels = "".join(
        f'<text x="{place(tick):.1f}" y="{size - margin + 18}" text-anchor="middle">{tick:g}</text>'
        f'<text x="{margin - 8}" y="{size - place(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>' for tick in ticks)
    dots = "".join(f'<circle cx="{place(x):.1f}" cy="{size - place(y):.1f}" r="3"/>' for x, y in points)
    near, far = margin, size - margin
    return (f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" font-size="12" '
            f'font-family="sans-serif">'
            f'<path d="M{near} {near}V{far}H{far}M{near} {far}L{far} {near}" stroke="#999" fill="none"/>'
            f'<g fill="#2166ac" fill-opacity=".5">{dots}</g>'
            f'{labels}<text x="{size / 2}" y="{size - 8}" text-anchor="middle">measured</text>'
            f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">predicted</text></svg>')


def round_ticks(low: float, high: float) -> list[float]:
    """Two to ten round numbers that span a range; steps of one too narrow for its numbers are of the numbers' size."""
    scale = max(abs(low), abs(high))
    span = high - low if high - low > max(1e-9 * scale, sys.float_info.min) else max(scale, 1.0)
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.floor(low / step)
    return [step * number for number in range(first, max(math.ceil(high / step), first + 1) + 1)]
