"""The tab Train of every app: a form that starts a job, and the jobs, live.

Invariant: what is shown of a job is read from its run, so that it does not matter which page started it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from apps.app import App, load
from core.engine.errors import TileworkError
from core.engine.run import RunDirectory
from ui import forms, jobs, places, plots
from ui.session import ago, choose_run, duration, jump_to, number, plain, show_error

POLL_SECONDS = 1.0


def tab(app: App, data: Path | None, first: Sequence[str], options: forms.Options) -> None:
    """Show the tab.

    Parameters
    ----------
    data : the data set that was chosen
    first : settings that stand open in the form
    options : values to choose from, by setting
    """
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("New training")
        if data is None:
            st.info("Choose a data set in the tab **Data** first.")
        else:
            _form(app, data, first, options)
    with right:
        st.subheader("Trainings")
        trainings = jobs.trainings(app.name)
        if trainings:
            chosen = choose_run("Training", _active_first(trainings), f"{app.name}-training")
            _watch(app.name, chosen.name)
        else:
            st.info("There is no training yet. Once one is started, its curves appear here, also after a reload.")


def _active_first(trainings: Sequence[jobs.Training]) -> list[jobs.Training]:
    return sorted(trainings, key=lambda training: not training.active)


def _form(app: App, data: Path, first: Sequence[str], options: forms.Options) -> None:
    st.caption(f"Data set: {plain(data.name)}")
    config = forms.show(load(app.config), f"{app.name}-form", first=first, options=options)
    name = st.text_input("Name of the run", places.free_name(app.name), max_chars=64, key=_name_key(app),
                         persist_state="session", help=f"A folder of this name is made in {places.runs_root()}.")
    busy = [training.name for training in jobs.trainings() if training.active]
    if busy:
        st.caption(f"{plain(', '.join(busy))} is being trained; both would share the processor.")
    if not st.button("Start training", type="primary", disabled=config is None, icon=":material/play_arrow:"):
        return
    try:
        jobs.train(app, config, data, name)
    except TileworkError as error:
        show_error(error)
        return
    st.session_state["trainings started"] = st.session_state.get("trainings started", 0) + 1
    jump_to(name)
    st.rerun()


def _name_key(app: App) -> str:
    """Another widget after each start, which proposes another name."""
    return f"{app.name}-name-{st.session_state.get('trainings started', 0)}"


def _watch(app: str, name: str) -> None:
    """The chosen training; looked at again and again as long as it is active."""
    training = _found(app, name)
    active = training is not None and training.active
    st.fragment(_show, run_every=POLL_SECONDS if active else None)(app, name, active)


def _found(app: str, name: str) -> jobs.Training | None:
    return next((training for training in jobs.trainings(app) if training.name == name), None)


def _show(app: str, name: str, was_active: bool) -> None:
    training = _found(app, name)
    if training is None:
        st.info("This run is gone; its folder was moved or deleted.")
        return
    if was_active and not training.active:
        st.rerun()  # the whole page: there are results now, and nothing more to poll
    rows = _metrics(training)
    _headline(training, rows)
    _buttons(training)
    chart = plots.curves(rows)
    if chart is not None:
        st.altair_chart(chart, alt=f"Training curves of {training.name}")
    elif training.active:
        st.caption("The curve begins after the first epoch. The first training on a machine compiles kernels before "
                   "that, for a minute or so; later ones do not.")


def _metrics(training: jobs.Training) -> list[dict[str, Any]]:
    return RunDirectory(training.path, dict(training.record)).metrics() if training.record else []


def _headline(training: jobs.Training, rows: Sequence[plots.Row]) -> None:
    """Status in words, how far it is, and the numbers of the last epoch."""
    if training.status == "failed":
        show_error(training.failure or "the training failed")
    elif training.status == "finished":
        st.success(f"Finished; started {ago(training.started)}. The tab **Results** has the rest.",
                   icon=":material/check_circle:")
    elif training.status == "stopped":
        st.warning("Stopped. It can go on from its last checkpoint.", icon=":material/pause_circle:")
    if not rows:
        if training.active:
            st.progress(0.0, "Starting: reading the data and preparing the network")
        return
    last = rows[-1]
    epochs = int(last["epochs"])
    done = _epochs_done(last)
    if training.active:
        verb = "Stopping after this step" if _asked_to_stop(training) else f"Epoch {last['epoch']} of {epochs}"
        left = last["seconds"] * (epochs - done) / done if done else 0.0
        st.progress(min(done / epochs, 1.0), f"{verb}, about {duration(left)} left")
    _numbers(rows, done)


def _epochs_done(row: plots.Row) -> float:
    if row.get("epoch_done"):
        return float(row["epoch"])
    inside = min(row["batch"] / row["batches"], 1.0) if row.get("batches") else 0.0
    return float(row["epoch"]) - 1 + inside


def _numbers(rows: Sequence[plots.Row], done: float) -> None:
    ends = [row for row in rows if row.get("epoch_done")]
    last = rows[-1]
    shown = {"Epochs done": f"{int(done)} of {last['epochs']}"}
    if ends:
        shown["Training loss"] = number(ends[-1]["loss"])
        shown |= {name[:1].upper() + name[1:]: number(value) for name, value in ends[-1].get("metrics", {}).items()}
    shown["Speed"] = f"{number(round(last['items_per_second']))} rows/s"
    for column, (name, value) in zip(st.columns(len(shown)), shown.items(), strict=True):
        column.metric(name, value)


def _stop_key(training: jobs.Training) -> str:
    """Of the mark that a stop was asked for; another once the training goes on."""
    return f"stop asked {training.name} {training.record.get('resumed', 0)}"


def _asked_to_stop(training: jobs.Training) -> bool:
    return bool(st.session_state.get(_stop_key(training)))


def _buttons(training: jobs.Training) -> None:
    if training.active:
        if st.button("Stop", icon=":material/stop:", key=f"stop {training.name}", disabled=_asked_to_stop(training),
                     help="A checkpoint is written, and the training can be resumed."):
            st.session_state[_stop_key(training)] = jobs.stop(training)
            st.rerun(scope="fragment")
    elif training.resumable and st.button("Resume", icon=":material/resume:", key=f"resume {training.name}"):
        jobs.resume(training)
        jump_to(training.name)
        st.rerun()
