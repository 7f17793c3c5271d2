"""The tab Predict: one SMILES with its value, interval and attribution, or a file of them.

Invariant: a loaded model is shared by all sessions until its file changes; files are predicted by jobs of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import streamlit as st

from apps.app import load_config
from apps.molecules.app import APP
from apps.molecules.config import MoleculesConfig
from apps.molecules.data import limits_of
from apps.molecules.explain import Explainer, drawing
from apps.molecules.predict import predict_smiles
from apps.molecules.readers import Limits
from apps.molecules.trained import Prediction, Trained, interval
from core.engine.errors import TileworkError
from core.engine.run import RunDirectory
from ui import datasets, jobs, places
from ui.molecules.data import SUFFIXES
from ui.session import ago, choose_run, number, plain, show_error

EXAMPLE = "CC(=O)Oc1ccccc1C(=O)O"
LOADED = 4
POLL_SECONDS = 1.0


def tab() -> None:
    """Show the tab."""
    ready = [training for training in jobs.trainings(APP.name) if (training.path / "model.safetensors").is_file()]
    if not ready:
        st.info("There is no trained model yet. Start a training in the tab **Train**, and predict here once it has "
                "finished.")
        return
    training = choose_run("Model", ready, f"{APP.name}-predict")
    kind = st.segmented_control("Predict", ["One molecule", "A file"], default="One molecule", key="predict-kind",
                                label_visibility="collapsed", required=True)
    try:
        if kind == "A file":
            _file(training)
        else:
            _molecule(training)
    except TileworkError as error:
        show_error(error)


def units(training: jobs.Training) -> Mapping[str, str]:
    """Unit of each target of a run that has one."""
    entries = training.record.get("config", {}).get("units", ())
    return {name: unit for name, _, unit in (str(entry).partition("=") for entry in entries)}


# ------------------------------------------------------------------------------------------------ one molecule


@st.cache_resource(max_entries=LOADED, show_spinner="Loading the model")
def loaded(path: str, changed: int) -> tuple[Trained, Limits]:
    """The model of a run, and what it takes for a molecule; `changed` is when its file did."""
    run = RunDirectory.open(path)
    config: MoleculesConfig = load_config(MoleculesConfig, run.config_path)
    return Trained.load(run, config.device), limits_of(config)


@st.cache_resource(max_entries=LOADED, show_spinner=False)
def explainer(path: str, changed: int, target: int) -> Explainer:
    """What attributes a target of a run to atoms."""
    return Explainer(loaded(path, changed)[0], target)


def _molecule(training: jobs.Training) -> None:
    with st.form("smiles", border=False):
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        text = left.text_input("SMILES", key="predict-smiles", placeholder=f"such as {EXAMPLE}")
        right.form_submit_button("Predict", type="primary", width="stretch")
    if not text:
        st.info("Paste a SMILES and press Enter.")
        return
    version = (str(training.path), (training.path / "model.safetensors").stat().st_mtime_ns)
    trained, limits = loaded(*version)
    with st.spinner("Predicting; the first time a model is used, its kernels are compiled"):
        prediction = predict_smiles(trained, text.strip(), limits)
    names = trained.description.targets
    target = names.index(st.selectbox("Target", names, key="predict-target")) if len(names) > 1 else 0
    left, right = st.columns([2, 3], gap="large")
    with left:
        _value(trained, prediction, target)
    with right:
        _attribution(version, trained, prediction, target)


def _value(trained: Trained, prediction: Prediction, target: int) -> None:
    description = trained.description
    name, unit = description.targets[target], description.units.get(description.targets[target], "")
    value = float(prediction.values[target])
    if description.tasks[target] == "classification":
        st.metric(f"Probability of {plain(name)}", f"{value:.1%}")
        return
    st.metric(plain(name), f"{value:.4g} {unit}".strip())
    bounds = interval(prediction, target, description.tasks)
    if bounds is None:
        st.caption("The model was trained without intervals.")
    else:
        st.metric(f"{description.coverage:.0%} interval", f"{bounds[0]:.4g} to {bounds[1]:.4g}")
        st.caption(f"Of molecules like those it was trained on, {description.coverage:.0%} of the true values lie in "
                   "such an interval. For very different molecules it says little.")


def _attribution(version: tuple[str, int], trained: Trained, prediction: Prediction, target: int) -> None:
    example = prediction.example
    if trained.description.features.reaction or trained.description.features.distances:
        st.caption("What each atom adds is drawn only for models of plain molecules.")
        return
    with st.spinner("Attributing the prediction to atoms"):
        contributions = explainer(*version, target)(example)
    st.image(drawing(example, contributions, 560, 340), width="stretch", alt=f"Attribution drawn on {example.text}")
    largest = sorted(enumerate(contributions), key=lambda pair: -abs(pair[1]))[:3]
    rest = float(prediction.values[target]) - float(contributions.sum())
    st.caption("Red atoms raise the prediction, blue ones lower it, compared with a molecule without features. The "
               "largest: " + ", ".join(f"atom {atom + 1} {value:+.3g}" for atom, value in largest) + ". All atoms "
               f"together: {contributions.sum():+.3g}. The average and descriptors of the whole molecule: {rest:+.3g}.")


# ------------------------------------------------------------------------------------------------ a file


def _file(training: jobs.Training) -> None:
    files = datasets.listing(SUFFIXES)
    left, right = st.columns(2, gap="large")
    upload: Any = left.file_uploader("Upload (up to 50 MB)", key="predict-upload", max_upload_size=50)
    path = right.selectbox("Or a file on this machine", files, None, key="predict-path", accept_new_options=True,
                           format_func=datasets.short, placeholder="choose a file, or type its path")
    if st.button("Predict the file", type="primary", disabled=upload is None and not path):
        source = places.keep_upload(upload.name, upload.getvalue(), SUFFIXES) if upload is not None \
            else places.inside(str(path), places.data_roots())
        _start(training, source)
    st.subheader("Predicted files")
    active = any(map(_active, _folders(training.path)))
    st.fragment(_list, run_every=POLL_SECONDS if active else None)(training.path, active)


def _start(training: jobs.Training, source: Path) -> None:
    """A folder for the input's predictions, its refused rows and the job that makes them."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", source.name.partition(".")[0]).strip("-")[:60] or "predictions"
    parent = training.path / "predictions"
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    folder = parent / f"{stem}-{number}"
    jobs.start(folder, [APP.name, "predict", str(training.path), str(source), "--out", str(folder / "predictions.csv")])
    st.rerun()


def _folders(run: Path) -> list[Path]:
    """Folders of predictions, latest first."""
    return sorted((run / "predictions").glob("*/"), key=lambda folder: folder.stat().st_mtime, reverse=True)


def _active(folder: Path) -> bool:
    job = jobs.find(folder)
    return job is not None and job.alive


def _list(run: Path, was_active: bool) -> None:
    folders = _folders(run)
    if was_active and not any(map(_active, folders)):
        st.rerun()
    if not folders:
        st.caption("There are none yet.")
    for folder in folders:
        job = jobs.find(folder)
        if job is not None:
            with st.container(border=True):
                _result(folder, job)


def _result(folder: Path, job: jobs.Job) -> None:
    st.markdown(f"**{plain(folder.name)}** · {ago(job.started)}")
    if job.alive:
        st.progress(0.0, "Predicting")
        return
    outcome = job.outcome
    if outcome is None or outcome.get("error"):
        show_error(job.failure)
        return
    predicted, refused = outcome["numbers"].get("predicted", 0), outcome.get("refused", 0)
    st.write(f"{number(predicted)} rows predicted, {number(refused)} refused.")
    out, refusals = folder / "predictions.csv", folder / "refused.csv"
    with st.container(horizontal=True):
        st.download_button("Predictions", out.read_bytes(), f"{folder.name}.csv", icon=":material/download:",
                           key=f"predictions {folder}", on_click="ignore")
        if refusals.is_file():
            st.download_button("Refused rows", refusals.read_bytes(), f"{folder.name}.refused.csv",
                               icon=":material/download:", key=f"refused {folder}", on_click="ignore")
    if refusals.is_file():
        with st.expander(f"Refused rows ({number(refused)})"):
            st.dataframe(_first_rows(refusals), hide_index=True)


def _first_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(islice(csv.DictReader(file), 200))
