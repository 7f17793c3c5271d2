"""The training loop: a generator of Progress records that can be killed at any moment and goes on with the same bits.

Invariant: what follows a checkpoint depends on the checkpoint and the arguments of `fit` alone. Batches are a function
of the epoch, the rate is one of the step, and random keys are one of the key and the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.engine import random, tree
from core.engine.array import Array
from core.engine.checkpoint import arrays_of, tree_of
from core.engine.errors import CheckpointError, ConfigError, DataError, TileworkError, compose
from core.engine.grad import value_and_grad
from core.engine.jit import Jitted, Program
from core.engine.module import register_dataclass
from core.engine.ops import random_bits
from core.engine.run import RunDirectory, Stopped
from core.engine.schedule import ReduceOnPlateau, Schedule

CHECKPOINT_SECONDS = 30.0
"""Time between checkpoints inside an epoch."""

EPOCH_SECONDS = 1.0
"""Epochs shorter than this do not all end in a checkpoint."""

RECORDED_STEPS = 20
"""Every so many steps, ``metrics.jsonl`` gets a line besides those of the epochs."""


KEY_BLOCK = 256
"""Keys of so many steps are made at once; one at a time would cost more than a small step."""


class DivergenceError(TileworkError):
    """The loss or the parameters of a training are no longer finite."""


@register_dataclass
@dataclass(frozen=True)
class State:
    """What a training step updates: the parameters (a tree) and the optimiser's own state (a tree)."""

    parameters: Any
    optimiser: Any


@dataclass(frozen=True)
class Progress:
    """Where a training is, after a step or after an epoch.

    Attributes
    ----------
    epoch : epoch that the step belongs to, 1..epochs
    epochs : planned epochs
    batch : steps done in this epoch
    batches : steps of an epoch; 0 during the first one
    step : steps done in all
    loss : of this step; at the end of an epoch, the mean over its steps
    rate : learning rate of the last step
    seconds : time spent training, all resumed parts together
    items_per_second : speed over this epoch
    metrics : validation metrics at the end of an epoch, else empty
    epoch_done : whether the epoch has ended
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    step: int
    loss: float
    rate: float
    seconds: float
    items_per_second: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch_done: bool = False


@dataclass(frozen=True)
class Monitor:
    """How the best epoch is chosen, and when training ends early.

    Attributes
    ----------
    metric : a name that the validation gives
    mode : ``min`` or ``max``: which values are better
    patience : epochs without a better value after which training ends; None to go through all epochs
    """

    metric: str
    mode: str = "min"
    patience: int | None = None

    def better(self, value: float, best: float | None) -> bool:
        """Whether an epoch of this value beats the best so far; NaN beats none."""
        if math.isnan(value):
            return False
        return best is None or (value < best if self.mode == "min" else value > best)


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training: the parameters of the best epoch, or of the last one without a monitor."""

    parameters: Any
    epoch: int
    metrics: Mapping[str, float]


@dataclass
class _Position:
    """Where a training is and what its decisions depend on; all of it goes into the checkpoint."""

    epoch: int = 0  # epochs done
    batch: int = 0  # steps done in the epoch after those
    batches: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    rate: float = 0.0
    best_epoch: int = 0
    best: float | None = None
    history: list[float] = field(default_factory=list)  # of what is monitored, one an epoch
    metrics: dict[str, float] = field(default_factory=dict)  # of the best epoch, or of the last without a monitor


def gradient_step(loss: Callable[..., Array], update: Callable[..., Any]) -> Callable[..., tuple[State, Array]]:
    """The usual step function for `fit`.

    Parameters
    ----------
    loss : ``loss(parameters, batch)``, or ``loss(parameters, key, batch)`` where `fit` gets a key; f32[]
    update : ``update(gradients, optimiser, parameters, rate)``, which gives new parameters and a new optimiser state
    """

    def step(state: State, rate: Array, *rest: Any) -> tuple[State, Array]:
        value, gradients = value_and_grad(lambda parameters: loss(parameters, *rest))(state.parameters)
        parameters, optimiser = update(gradients, state.optimiser, state.parameters, rate)
        return State(parameters, optimiser), value

    return step


def leading_extent(batch: Any) -> int:
    """Items of a batch whose first array has one row an item."""
    return len(tree.leaves(batch)[0])


def fit(step: Jitted, state: State, batches: Callable[[int], Iterable[Any]], *, epochs: int,
        schedule: Schedule | ReduceOnPlateau, key: Array | None = None,
        validate: Callable[[Any], Mapping[str, float]] | None = None, monitor: Monitor | None = None,
        run: RunDirectory | None = None, name: str = "model",
        items: Callable[[Any], int] = leading_extent) -> Generator[Progress, None, Fitted]:
    """Train; yields a Progress after every step and every epoch, and returns the outcome.

    With a run that has a checkpoint, training goes on from there. Checkpoints are written every `CHECKPOINT_SECONDS`,
    at the ends of epochs and when the run is asked to stop; metrics are recorded in the run.

    Parameters
    ----------
    step : jitted ``step(state, rate, batch)``, or ``step(state, rate, key, batch)`` if there is a key, which gives the
        new state and the loss, f32[]; see `gradient_step`
    state : at the start
    batches : trees of arrays for an epoch (0, 1, ...); the same for the same epoch
    schedule : learning rate of a step (0, 1, ...); a `ReduceOnPlateau` watches what the monitor names
    key : u32[2]; every step gets one of its own, made from this one and the number of the step
    validate : metrics of parameters by name, at the end of every epoch
    monitor : chooses the best epoch by a metric of `validate`, else the last one counts
    name : what is trained, where a run trains several models one after the other; a checkpoint of another name is no
        checkpoint of this training
    items : how many items a batch holds, for the speed

    Raises
    ------
    DivergenceError
        If the loss or a parameter is not finite; the last checkpoint before that is kept.
    Stopped
        If the run was asked to stop; the checkpoint is written.
    """
    if monitor is not None and validate is None:
        raise ValueError("a monitor needs a validation")
    if isinstance(schedule, ReduceOnPlateau) and (monitor is None or monitor.mode != "min"):
        raise ValueError("ReduceOnPlateau needs a monitor of a metric that falls")
    position, state, best = _restore(run, state, name)
    training = _Training(step.bind(state, update=True), position, best, epochs, schedule, key, monitor, run, name)
    while not training.is_over():
        yield from training.steps(islice(batches(position.epoch), position.batch, None), items)
        yield training.end_epoch(validate)
    return training.outcome()


def shifted(training: Generator[Progress, None, Any], before: int, epochs: int) -> Generator[Progress, None, Any]:
    """A training whose progress is part of that of several: so many epochs come `before`, of `epochs` in all."""
    while True:
        try:
            progress = next(training)
        except StopIteration as end:
            return end.value
        yield replace(progress, epoch=progress.epoch + before, epochs=epochs)


@dataclass
class _Training:
    """A training under way."""

    program: Program
    position: _Position
    best: Any  # parameters of the best epoch, if there is a monitor
    epochs: int
    schedule: Schedule | ReduceOnPlateau
    key: Array | None
    monitor: Monitor | None
    run: RunDirectory | None
    name: str
    saved_at: float = field(default_factory=time.monotonic)
    speed: float = 0.0
    keys: tuple[int, NDArray[Any]] | None = None  # of a block of steps: its number, and u32[step, 2]

    def __post_init__(self) -> None:
        for value in self.position.history:
            self._observe(value)

    def is_over(self) -> bool:
        position, patience = self.position, self.monitor.patience if self.monitor else None
        tired = patience is not None and position.best_epoch > 0 and position.epoch - position.best_epoch >= patience
        return tired or position.epoch >= self.epochs

    def steps(self, batches: Iterable[Any], items: Callable[[Any], int]) -> Iterator[Progress]:
        """The rest of an epoch."""
        position, done, before, clock = self.position, 0, self.position.seconds, time.monotonic()
        for batch in batches:
            self._stop_if_asked()
            loss = self._step(batch)
            done += items(batch)
            position.seconds += time.monotonic() - clock
            self.speed = done / max(position.seconds - before, 1e-9)
            progress = self._progress(loss, {}, epoch_done=False)
            if position.step % RECORDED_STEPS == 0:
                self._record(progress)
            yield progress
            clock = time.monotonic()
            if clock - self.saved_at > CHECKPOINT_SECONDS:
                self.save()

    def end_epoch(self, validate: Callable[[Any], Mapping[str, float]] | None) -> Progress:
        """Validate, choose the best, record, save."""
        position, clock = self.position, time.monotonic()
        if position.batch == 0:
            raise DataError(f"epoch {position.epoch + 1} has no batches; is the training set empty?")
        parameters = self._finite_state().parameters
        metrics = {name: float(value) for name, value in validate(parameters).items()} if validate else {}
        if self.monitor is None:
            position.metrics = metrics
        else:
            self._compare(_monitored(metrics, self.monitor), metrics, parameters, self.monitor)
        position.batches = position.batch
        position.seconds += time.monotonic() - clock
        progress = self._progress(position.loss_sum / position.batch, metrics, epoch_done=True)
        self._record(progress)
        position.epoch, position.batch, position.loss_sum = position.epoch + 1, 0, 0.0
        if self.is_over() or time.monotonic() - self.saved_at > EPOCH_SECONDS:
            self.save()
        return progress

    def save(self) -> None:
        """Write the checkpoint: state, best parameters, position."""
        if self.run is None:
            return
        arrays = arrays_of(self._finite_state(), "state")
        if self.best is not None:
            arrays |= arrays_of(self.best, "best")
        self.run.save_state(arrays, {"name": self.name, "position": json.dumps(asdict(self.position))})
        self.saved_at = time.monotonic()

    def outcome(self) -> Fitted:
        """The chosen parameters."""
        if self.best is None:
            return Fitted(self.program.value.parameters, self.position.epoch, self.position.metrics)
        return Fitted(self.best, self.position.best_epoch, self.position.metrics)

    def _step(self, batch: Any) -> float:
        position = self.position
        schedule = self.schedule
        position.rate = schedule.rate if isinstance(schedule, ReduceOnPlateau) else float(schedule(position.step))
        key = () if self.key is None else (self._step_key(self.key, position.step),)
        loss = float(self.program(position.rate, *key, batch))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        position.step += 1
        position.batch += 1
        position.loss_sum += loss
        return loss

    def _step_key(self, key: Array, step: int) -> NDArray[np.uint32]:
        """A key u32[2] that depends on the key of the training and the step alone."""
        block, place = divmod(step, KEY_BLOCK)
        if self.keys is None or self.keys[0] != block:
            self.keys = block, random_bits(random.fold_in(key, block), shape=(KEY_BLOCK, 2)).storage
        words: NDArray[np.uint32] = self.keys[1][place]
        return words

    def _compare(self, value: float, metrics: dict[str, float], parameters: Any, monitor: Monitor) -> None:
        position = self.position
        position.history.append(value)
        self._observe(value)
        if monitor.better(value, position.best):
            position.best_epoch, position.best, position.metrics = position.epoch + 1, value, metrics
            self.best = parameters

    def _observe(self, value: float) -> None:
        if isinstance(self.schedule, ReduceOnPlateau):
            self.schedule = self.schedule.observe(value)

    def _stop_if_asked(self) -> None:
        if self.run is not None and self.run.stop_requested:
            self.save()
            raise Stopped(f"stopped after {self.position.step} steps, in epoch {self.position.epoch + 1} of "
                          f"{self.epochs}; --resume goes on from there")

    def _finite_state(self) -> State:
        state: State = self.program.value
        for name, array in arrays_of(state).items():
            if array.dtype.is_float and not np.isfinite(array.numpy()).all():
                raise self._diverged(f"{name} is not finite")
        return state

    def _diverged(self, what: str) -> DivergenceError:
        position = self.position
        saved = self.run.state_path if self.run is not None and self.run.state_path.exists() else None
        return DivergenceError(compose(f"training diverged: {what}", [
            ("where", f"step {position.step + 1}, in epoch {position.epoch + 1} of {self.epochs}"),
            ("rate", f"{position.rate:g}"),
            ("kept", f"the checkpoint in {saved}" if saved else "there was no checkpoint yet"),
            ("hint", "lower the learning rate, clip the gradients, or look for extreme values in the data")]))

    def _progress(self, loss: float, metrics: Mapping[str, float], *, epoch_done: bool) -> Progress:
        position = self.position
        return Progress(position.epoch + 1, self.epochs, position.batch, position.batches, position.step, loss,
                        position.rate, position.seconds, self.speed, metrics, epoch_done)

    def _record(self, progress: Progress) -> None:
        if self.run is not None:
            self.run.append_metrics({"name": self.name, **asdict(progress)})


def _monitored(metrics: Mapping[str, float], monitor: Monitor) -> float:
    if monitor.metric not in metrics:
        raise ConfigError(f"the validation gives no metric {monitor.metric!r} to choose the best epoch by; "
                          f"it gives {', '.join(metrics) or 'none'}")
    return metrics[monitor.metric]


def _restore(run: RunDirectory | None, state: State, name: str) -> tuple[_Position, State, Any]:
    """Position, state and best parameters of the last checkpoint, or those to start with."""
    saved = run.load_state() if run is not None else None
    if run is None or saved is None or saved[1].get("name", name) != name:
        return _Position(), state, None
    arrays, metadata = saved
    source = str(run.state_path)
    try:
        position = _Position(**json.loads(metadata["position"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is not the checkpoint of a training: {error}") from error
    best = None
    if position.best is not None:
        best = tree_of(arrays, state.parameters, "best", source)
    return position, tree_of(arrays, state, "state", source), best
