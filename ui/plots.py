"""Charts: training curves, measured against predicted, and distributions.

Invariant: a chart holds at most `MOST_POINTS` points a series, however long the training or the file was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

MOST_POINTS = 600
HEIGHT = 320
BLUE, ORANGE, GREY = "#0b6e75", "#d9822b", "#8a9499"

Row = Mapping[str, Any]
Layers = alt.LayerChart | alt.FacetChart
"""What altair says that layers are, facets or not; ours are never facets."""


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most `MOST_POINTS` rows, evenly spaced, the last one among them."""
    stride = -(-len(rows) // MOST_POINTS) or 1
    return list(rows[::-1][::stride][::-1])


def curves(rows: Sequence[Row]) -> Layers | None:
    """Training loss and validation losses over the steps, from the lines of ``metrics.jsonl``; None without points."""
    points = [point for series in _series(rows).values() for point in thinned(series)]
    if not points:
        return None
    values = [point["value"] for point in points]
    logarithmic = min(values) > 0 and max(values) / min(values) > 20
    several = len({point["part"] for point in points}) > 1
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("step:Q", title="Step", scale=alt.Scale(nice=False, zero=False)),
        y=alt.Y("value:Q", title="Loss (log scale)" if logarithmic else "Loss",
                scale=alt.Scale(type="log" if logarithmic else "linear", nice=True),
                axis=alt.Axis(format=".4~g", tickCount=6)),
        color=alt.Color("series:N", title=None, scale=alt.Scale(range=[BLUE, ORANGE, GREY]),
                        legend=alt.Legend(orient="top")),
        detail="part:N", opacity=alt.value(0.7 if several else 1.0),
        tooltip=[alt.Tooltip("series:N", title="Curve"), alt.Tooltip("part:N", title="Part"),
                 alt.Tooltip("epoch:Q", title="Epoch"), alt.Tooltip("step:Q", title="Step"),
                 alt.Tooltip("value:Q", title="Loss", format=".4g")])
    return alt.layer(base.mark_line(strokeWidth=2), base.mark_circle(size=26)).properties(height=HEIGHT)


def _series(rows: Sequence[Row]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Points by part of the training and curve."""
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        part = str(row.get("name") or "training")
        named = [("training loss", row.get("loss"))] if row.get("epoch_done") else []
        named += [(name, value) for name, value in row.get("metrics", {}).items() if "loss" in name]
        for name, value in named:
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault((part, name), []).append({
                    "part": part, "series": name, "step": row["step"], "epoch": row["epoch"], "value": value})
    return series


def parity(rows: Sequence[Row], title: str) -> Layers:
    """Measured against predicted values with their intervals, and the line on which both are the same.

    Parameters
    ----------
    rows : ``measured``, ``predicted``, ``label``, and ``low`` and ``high`` where there is an interval; finite numbers
    title : of what is measured, with its unit
    """
    shown = thinned(rows)
    values = [row[name] for row in shown for name in ("measured", "predicted")]
    margin = (max(values) - min(values)) * 0.05 or 1.0
    domain = [min(values) - margin, max(values) + margin]
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    base = alt.Chart(alt.InlineData(values=shown))
    x = alt.X("measured:Q", title=f"Measured {title}", scale=scale)
    layers = [alt.Chart(alt.InlineData(values=[{"at": end} for end in domain])).mark_line(color=GREY, strokeDash=[5, 4])
              .encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale))]
    if all("low" in row for row in shown):
        layers.append(base.mark_rule(color=BLUE, opacity=0.25, clip=True).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"))
    layers.append(base.mark_circle(color=BLUE, size=45, opacity=0.75).encode(
        x=x, y=alt.Y("predicted:Q", title=f"Predicted {title}", scale=scale),
        tooltip=[alt.Tooltip("label:N", title="Item"), alt.Tooltip("measured:Q", format=".4g"),
                 alt.Tooltip("predicted:Q", format=".4g")]))
    return alt.layer(*layers).properties(height=440)


def classes(rows: Sequence[Row], title: str) -> alt.Chart:
    """How predicted probabilities are distributed over rows of either class."""
    values = [{"predicted": row["predicted"], "measured": "1" if row["measured"] else "0"} for row in rows]
    return alt.Chart(alt.InlineData(values=values)).mark_bar(opacity=0.75).encode(
        x=alt.X("predicted:Q", bin=alt.Bin(step=0.05, extent=[0, 1]), title=f"Predicted probability of {title}"),
        y=alt.Y("count():Q", title="Rows", stack=True),
        color=alt.Color("measured:N", title="Measured class", scale=alt.Scale(domain=["0", "1"], range=[GREY, ORANGE])),
    ).properties(height=HEIGHT)


def distribution(values: Sequence[float], title: str) -> alt.Chart:
    """A histogram."""
    rows = list(_bins(values))
    return alt.Chart(alt.InlineData(values=rows)).mark_bar(color=BLUE).encode(
        x=alt.X("low:Q", bin="binned", title=title, scale=alt.Scale(nice=False, zero=False),
                axis=alt.Axis(format=".4~g", tickCount=6)),
        x2="high:Q",
        y=alt.Y("count:Q", title="Rows"), tooltip=[alt.Tooltip("low:Q", format=".4g"),
                                                  alt.Tooltip("high:Q", format=".4g"), "count:Q"],
    ).properties(height=200)


def _bins(values: Sequence[float], most: int = 30) -> Iterator[dict[str, float]]:
    low, high = min(values), max(values)
    width = (high - low) / most or 1.0
    counts = [0] * most
    for value in values:
        counts[min(int((value - low) / width), most - 1)] += 1
    for place, count in enumerate(counts if high > low else counts[:1]):
        yield {"low": low + place * width, "high": low + (place + 1) * width, "count": count}
