"""The tab Results of every app: what a run found, beside the baselines, and where it was most wrong.

Invariant: everything shown is read from the report that the training wrote; nothing is computed anew.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps.app import App
from ui import jobs, plots
from ui.session import ago, choose_run, number, plain

WORST = 6
HIGHER_IS_BETTER = frozenset({"r2", "roc_auc", "pr_auc", "accuracy", "coverage"})
UNRANKED = frozenset({"n", "coverage", "rows", "sd"})
_BASELINE = " baseline "
NAMES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "roc_auc": "ROC AUC", "pr_auc": "PR AUC", "accuracy": "Accuracy",
         "n": "Rows", "coverage": "Interval coverage"}

Row = dict[str, Any]
Numbers = Mapping[str, Any]


def tab(app: App, show_worst: Callable[[Sequence[Row], str], None], units: Callable[[jobs.Training], Mapping[str, str]]
        ) -> None:
    """Show the tab.

    Parameters
    ----------
    show_worst : draws rows of ``test_predictions.csv``, those with the largest errors; takes the unit too
    units : the unit of each target of a run that has one
    """
    finished = [training for training in jobs.trainings(app.name) if training.status == "finished"]
    if not finished:
        st.info("No training has finished yet. Start one in the tab **Train**; its results appear here.")
        return
    training = choose_run("Run", finished, f"{app.name}-results")
    numbers, rows = report(training)
    if not numbers:
        st.info("This run has no test results. It was imported, or its split left no rows for a test.")
    else:
        _comparison(numbers)
    if rows:
        targets = list(dict.fromkeys(str(row["target"]) for row in rows))
        target = targets[0] if len(targets) == 1 else st.selectbox("Target", targets, key=f"{app.name}-results-target")
        chosen = [row for row in rows if row["target"] == target]
        _predictions(chosen, target, units(training).get(target, ""), show_worst)
    _downloads(training)
    _provenance(training)


def report(training: jobs.Training) -> tuple[dict[str, Any], list[Row]]:
    """The numbers of a run's report, and its test predictions with their numbers read."""
    folder = training.path / "report"
    try:
        numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        with open(folder / "test_predictions.csv", encoding="utf-8", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return dict(training.record.get("result") or {}), []
    return numbers, [row for row in map(_read, rows) if math.isfinite(row["measured"] + row["predicted"])]


def _read(row: Mapping[str, str]) -> Row:
    """A line of the CSV; columns of words stay as they are."""
    return {name: value if name in ("row", "molecule", "target", "label") else _float(value)
            for name, value in row.items()}


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def compared(numbers: Numbers) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """A table of metrics with a column for the model and one for each baseline, and the numbers without a baseline."""
    baselines = list(dict.fromkeys(name.partition(_BASELINE)[0] for name in numbers if _BASELINE in name))
    table, rest = [], {}
    for name, value in numbers.items():
        if _BASELINE in name:
            continue
        others = [numbers.get(f"{baseline}{_BASELINE}{name}") for baseline in baselines]
        if not baselines or all(other is None for other in others) or name.split()[-1] in UNRANKED:
            rest[name] = value
            continue
        beside = dict(zip(baselines, others, strict=True))
        table.append({"Metric": metric_name(name), "Model": number(value),
                      **{f"Baseline: {baseline}": number(other) for baseline, other in beside.items()},
                      "Best": _best(name, value, beside)})
    return table, rest


def _best(name: str, value: Any, others: Mapping[str, Any]) -> str:
    known = {label: number for label, number in {"model": value, **others}.items() if isinstance(number, int | float)}
    pick = max if name.split()[-1] in HIGHER_IS_BETTER else min
    return pick(known, key=lambda label: known[label]) if known else ""


def metric_name(name: str) -> str:
    """A metric as it is written in the field, behind its target if there are several."""
    *target, metric = name.split(" ")
    return " ".join([*target, NAMES.get(metric, metric)])


def _comparison(numbers: Numbers) -> None:
    table, rest = compared(numbers)
    st.subheader("Metrics beside the baselines")
    if table:
        st.table(table, hide_index=True)
        st.caption("Mean: the average of the training values. Ridge: a linear model on descriptors. A model worth its "
                   "training beats both.")
    shown = {name: value for name, value in rest.items() if name.split()[-1] != "n" and not name.endswith(" sd")}
    for start in range(0, len(shown), 4):
        for column, (name, value) in zip(st.columns(4), list(shown.items())[start:start + 4], strict=False):
            column.metric(metric_name(name)[:1].upper() + metric_name(name)[1:], _share(name, value))


def _share(name: str, value: Any) -> str:
    return f"{value:.0%}" if name.endswith("coverage") and isinstance(value, float) else number(value)


def _predictions(rows: Sequence[Row], target: str, unit: str, show_worst: Callable[[Sequence[Row], str], None]) -> None:
    title = f"{target} ({unit})" if unit else target
    st.subheader("Measured against predicted")
    labelled = [{**row, "label": row.get("molecule", row.get("row"))} for row in rows]
    if is_classes(rows):
        st.altair_chart(plots.classes(labelled, target), alt=f"Predicted probabilities of {title}")
    else:
        chart, _ = st.columns([3, 2])
        chart.altair_chart(plots.parity(labelled, title), alt=f"Parity plot of {title}")
        if "low" in rows[0]:
            chart.caption("Dashed: prediction and measurement are the same. Vertical bars: prediction intervals.")
    st.subheader("Worst cases")
    worst = sorted(rows, key=lambda row: -abs(row["predicted"] - row["measured"]))[:WORST]
    show_worst(worst, unit)


def is_classes(rows: Sequence[Row]) -> bool:
    """Whether the target is a class: measured are 0 and 1 alone, and predictions are probabilities."""
    return all(row["measured"] in (0.0, 1.0) and 0 <= row["predicted"] <= 1 for row in rows)


def _downloads(training: jobs.Training) -> None:
    st.subheader("Files")
    files = [("report/report.json", "Metrics"), ("report/test_predictions.csv", "Test predictions"),
             ("refused.csv", "Refused rows"), ("config.toml", "Settings")]
    found = [(training.path / name, label) for name, label in files if (training.path / name).is_file()]
    with st.container(horizontal=True):
        for path, label in found:
            st.download_button(label, path.read_bytes(), f"{training.name}-{path.name}", icon=":material/download:",
                               key=f"download {path}", on_click="ignore")


def _provenance(training: jobs.Training) -> None:
    record = training.record
    with st.expander("How this run was made"):
        rows = [("Started", ago(training.started)), ("Folder", str(training.path)),
                ("Command", " ".join(record.get("command", []))),
                *[("Data", f"{Path(item['path']).name}, {item['bytes']:,} bytes, SHA-256 {item['sha256'][:16]}…")
                  for item in record.get("data", [])],
                ("Machine", ", ".join(map(str, record.get("machine", {}).values()))),
                ("Versions", ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items()))]
        st.markdown("\n".join(f"- **{name}:** {plain(value)}" for name, value in rows))
