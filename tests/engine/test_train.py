"""The training loop: what it reports, how it chooses, and that stopping anywhere changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.engine import checkpoint, random, train, tree
from core.engine.array import array
from core.engine.errors import CheckpointError, ConfigError, DataError
from core.engine.jit import jit
from core.engine.optim import SGD, Adam
from core.engine.run import RunDirectory, Stopped
from core.engine.schedule import ReduceOnPlateau, constant, cosine
from core.engine.train import DivergenceError, Monitor, Progress, State, fit, gradient_step

EPOCHS, BATCHES = 4, 5
POINTS = np.random.default_rng(1).normal(size=(8 * BATCHES, 3)).astype(np.float32)
LABELS = POINTS @ np.array([[1.0], [-2.0], [0.5]], np.float32)


def batches(epoch: int) -> Iterator[Any]:
    order = random.permutation(random.fold_in(random.key(7), epoch), len(POINTS))
    for chosen in np.split(order, BATCHES):
        yield POINTS[chosen], LABELS[chosen]


def loss(parameters: Any, key: Any, batch: Any) -> Any:
    x, y = batch
    kept = (random.uniform(key, x.shape) < 0.9).astype("f32")  # dropout: the key matters
    error = (x * kept) @ parameters["weight"] + parameters["bias"] - y
    return (error * error).mean()


def validate(parameters: Any) -> dict[str, float]:
    error = POINTS @ parameters["weight"].numpy() + parameters["bias"].numpy() - LABELS
    return {"rmse": float(np.sqrt((error**2).mean()))}


def start(optimiser: Any) -> State:
    parameters = {"weight": array(np.zeros((3, 1), np.float32)), "bias": array(np.zeros(1, np.float32))}
    return State(parameters, optimiser.init(parameters))


def training(run: RunDirectory | None = None, optimiser: Any = None, **changes: Any) -> Any:
    optimiser = optimiser or Adam()
    options = {"epochs": EPOCHS, "schedule": cosine(0.1, 0.01, EPOCHS * BATCHES), "key": random.key(0),
               "validate": validate, "monitor": Monitor("rmse")} | changes
    step = jit(gradient_step(loss, optimiser.update), device="reference")
    return fit(step, start(optimiser), options.pop("batches", batches), run=run, **options)


def outcome(records: Any) -> tuple[list[Progress], Any]:
    found = []
    while True:
        try:
            found.append(next(records))
        except StopIteration as end:
            return found, end.value


def bits(node: Any) -> bytes:
    return b"".join(leaf.storage.tobytes() for leaf in tree.leaves(node))


@pytest.fixture
def create():
    """Makes runs, or resumes them, and gives them back at the end."""
    with contextlib.ExitStack() as stack:
        def make(path: Path) -> RunDirectory:
            run = RunDirectory.resume(path) if (path / "run.json").exists() else \
                RunDirectory.create(path, app="toy", command=[], config={}, config_text="")
            stack.callback(run.close)
            return run
        yield make


@pytest.fixture
def eager(monkeypatch):
    """A checkpoint after every step, and blocks of keys that end inside epochs."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(train, "EPOCH_SECONDS", -1.0)
    monkeypatch.setattr(train, "KEY_BLOCK", 3)


def test_progress_counts_and_the_loss_falls():
    records, fitted = outcome(training())
    steps = [record for record in records if not record.epoch_done]
    ends = [record for record in records if record.epoch_done]
    assert [record.step for record in steps] == list(range(1, EPOCHS * BATCHES + 1))
    assert [record.epoch for record in ends] == [1, 2, 3, 4]
    assert [record.batches for record in ends] == [BATCHES] * 4
    assert ends[1].loss == pytest.approx(np.mean([record.loss for record in steps[5:10]]))
    assert ends[-1].loss < ends[0].loss / 2
    assert steps[0].rate == 0.1
    assert all(record.items_per_second > 0 for record in steps)
    assert fitted.metrics == ends[-1].metrics == {"rmse": validate(fitted.parameters)["rmse"]}


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    first, again, other = (outcome(training(key=random.key(seed)))[1].parameters for seed in (0, 0, 1))
    assert bits(first) == bits(again) != bits(other)


@pytest.mark.parametrize("stop_after", range(0, 2 * EPOCHS * BATCHES, 3))
def test_abandoning_a_training_anywhere_changes_nothing(tmp_path, create, eager, stop_after):
    """The generator is dropped as a kill would drop it: between two records, twice."""
    for _ in range(2):
        run = create(tmp_path / "run")
        records = training(run)
        for _ in range(stop_after):
            if next(records, None) is None:
                break
        run.close()
    run = create(tmp_path / "run")
    resumed = outcome(training(run))[1]
    reference = create(tmp_path / "reference")
    whole = outcome(training(reference))[1]
    assert bits(resumed.parameters) == bits(whole.parameters)
    assert (resumed.epoch, resumed.metrics) == (whole.epoch, whole.metrics)
    timeless = [[{name: line[name] for name in ("epoch", "step", "loss", "rate", "metrics", "epoch_done")}
                 for line in each.metrics()] for each in (run, reference)]
    assert timeless[0] == timeless[1]
    arrays = [each.load_state()[0] for each in (run, reference)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(arrays[0][name].storage.tobytes() == arrays[1][name].storage.tobytes() for name in arrays[0])


def test_a_request_to_stop_leaves_a_checkpoint_and_the_same_bits(tmp_path, create):
    run = create(tmp_path)
    records = training(run)
    for _ in range(7):
        next(records)
    run.request_stop()
    with pytest.raises(Stopped, match="stopped after 6 steps, in epoch 2 of 4; --resume"):
        next(records)
    run.close()
    resumed = create(tmp_path)
    records, fitted = outcome(training(resumed))
    assert records[0].step == 7
    assert bits(fitted.parameters) == bits(outcome(training())[1].parameters)


def test_models_trained_one_after_the_other_keep_apart(tmp_path, create):
    """The second model is killed after a step, before it has a checkpoint; it does not take the first one's."""
    run = create(tmp_path)
    first = outcome(training(run, name="first"))[1]
    records = training(run, name="second", key=random.key(5))
    next(records)
    run.close()
    run = create(tmp_path)
    records, second = outcome(training(run, name="second", key=random.key(5)))
    assert records[0].step == 1
    assert bits(second.parameters) == bits(outcome(training(key=random.key(5)))[1].parameters) != bits(first.parameters)
    assert {line["name"] for line in run.metrics()} == {"first", "second"}


def test_a_finished_training_gives_its_outcome_again(tmp_path, create):
    run = create(tmp_path)
    first = outcome(training(run))[1]
    run.close()
    records, again = outcome(training(create(tmp_path)))
    assert records == []
    assert bits(first.parameters) == bits(again.parameters)


def test_the_best_epoch_wins_and_patience_ends_training():
    values = iter([3.0, 1.0, 2.0, math.nan, 5.0])
    seen = []

    def scripted(parameters: Any) -> dict[str, float]:
        seen.append(bits(parameters))
        return {"rmse": next(values)}

    records, fitted = outcome(training(validate=scripted, monitor=Monitor("rmse", patience=2), epochs=9))
    assert [record.epoch for record in records if record.epoch_done] == [1, 2, 3, 4]
    assert (fitted.epoch, fitted.metrics) == (2, {"rmse": 1.0})
    assert bits(fitted.parameters) == seen[1] != seen[3]


@pytest.mark.parametrize(("mode", "values", "best"), [
    ("min", [3, 1, 2], 2), ("max", [1, 3, 2], 2), ("max", [1, 1, 1], 1)])
def test_modes_of_the_monitor(mode, values, best):
    given = iter(values)
    fitted = outcome(training(validate=lambda _: {"auc": next(given)}, monitor=Monitor("auc", mode), epochs=3))[1]
    assert fitted.epoch == best


def test_without_a_monitor_the_last_epoch_counts():
    records, fitted = outcome(training(monitor=None, validate=None))
    assert fitted.epoch == EPOCHS
    assert records[-1].metrics == {}


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_plateau_lowers_the_rate_also_after_resuming(tmp_path, create, eager, stop_after):
    def rates(run: RunDirectory, epochs: int) -> list[float]:
        records, _ = outcome(training(run, epochs=epochs, schedule=ReduceOnPlateau(0.1, patience=0),
                                      validate=lambda _: {"rmse": 1.0}))
        run.close()
        return [record.rate for record in records if record.epoch_done]

    first = rates(create(tmp_path), stop_after)
    assert first + rates(create(tmp_path), EPOCHS) == [0.1, 0.1, 0.05, 0.025]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, create, eager):
    run = create(tmp_path)

    def poisoned(epoch: int) -> Iterator[Any]:
        for number, (x, y) in enumerate(batches(epoch)):
            yield (x, y * np.float32("inf")) if (epoch, number) == (1, 2) else (x, y)

    records = training(run, batches=poisoned)
    with pytest.raises(DivergenceError, match="training diverged: the loss is inf") as caught:
        list(records)
    for words in ("step 8, in epoch 2 of 4", "rate", "state.safetensors", "lower the learning rate"):
        assert words in str(caught.value)
    kept = run.load_state()[0]
    assert all(np.isfinite(array.numpy()).all() for array in kept.values())
    assert kept["state.optimiser.step"].item() == 7


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, create, eager):
    run = create(tmp_path)
    with pytest.raises(DivergenceError, match=r"parameters.weight is not finite") as caught, np.errstate(all="ignore"):
        list(training(run, SGD(), schedule=constant(3e38)))
    assert "no checkpoint" in str(caught.value)
    assert run.load_state() is None


def test_a_training_set_without_batches_is_told():
    with pytest.raises(DataError, match="epoch 1 has no batches"):
        list(training(batches=lambda epoch: iter(())))


def test_an_unknown_metric_is_told():
    with pytest.raises(ConfigError, match=r"no metric 'auc' .* it gives rmse"):
        list(training(monitor=Monitor("auc")))


def test_a_checkpoint_of_another_model_is_told(tmp_path, create):
    run = create(tmp_path)
    outcome(training(run))
    run.close()
    with pytest.raises(CheckpointError, match=r"state.safetensors was made for another model"):
        list(training(create(tmp_path), SGD()))


def test_a_state_file_without_a_position_is_told(tmp_path, create):
    run = create(tmp_path)
    checkpoint.save(run.state_path, {}, {})
    with pytest.raises(CheckpointError, match="not the checkpoint of a training"):
        list(training(run))
