"""A tiny app for the tests of the command line: a straight line through the points of a CSV file."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.app import App, Command, Report, TrainingConfig, setting


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    device: str = setting("reference", "backend that trains: cpu or reference")
    epochs: int = setting(3, "passes over the data", low=1, high=1000)
    rate: float = setting(0.05, "learning rate", low=0, high=1e30, unit="per step")
    batch_size: int = setting(8, "points of a batch", low=1)
    model: str = setting("line", "what to fit", choices=("line", "parabola"))
    targets: tuple[str, ...] = setting(("y",), "column to fit", option="target")
    sizes: tuple[int, ...] = setting((1,), "numbers of nothing", low=1)
    smiles: str | None = setting(None, "column that is left alone")
    shuffle: bool = setting(True, "another order in every epoch")
    pause: float = setting(0.0, "waiting time of a batch", low=0, unit="s")
    fail: str = setting("", "how to fail", choices=("", "bug", "memory", "disk", "missing"))


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    scale: float = setting(1.0, "factor of the predictions", low=0)


APP = App(
    name="toy", title="Toy", summary="a line through points", config="tests.apps.toy:Config",
    train=Command("tests.apps.toy:train", "Fit a line."),
    dry_run="tests.apps.toy:dry_run",
    evaluate=Command("tests.apps.toy:evaluate", "Measure the error."),
    predict=Command("tests.apps.toy:predict", "Predict y.", "tests.apps.toy:PredictSettings"),
    sample=Command("tests.apps.toy:sample", "Write some points."),
    extra={"import-line": Command("tests.apps.toy:import_line", "Read a line.")})


def read(data: tuple[Path, ...], refused: Any = None) -> Any:
    """f32[point, 2] of x and y; lines that are not two numbers are refused."""
    import numpy as np

    from core.engine.errors import DataError

    points = []
    for path in data:
        for number, line in enumerate(path.read_text().splitlines()[1:], 2):
            try:
                x, y = map(float, line.split(","))
            except ValueError:
                if refused is not None:
                    refused.add(number, "not two numbers", line)
                continue
            points.append((x, y))
    if not points:
        raise DataError(f"{data[0]} has no points")
    return np.array(points, np.float32)


def train(data: tuple[Path, ...], config: Config, run: Any, refused: Any) -> Generator[Any, None, Report]:
    import errno
    import time

    import numpy as np

    from core.engine import random
    from core.engine.array import as_array
    from core.engine.jit import jit
    from core.engine.optim import Adam
    from core.engine.train import Monitor, State, fit, gradient_step

    match config.fail:
        case "bug":
            raise RuntimeError("a bug")
        case "memory":
            raise MemoryError("unable to allocate 3 TiB")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "missing":
            Path("/nonexistent/file").read_text()
    points = read(data, refused)
    key = random.key(config.seed)

    def batches(epoch: int) -> Iterator[Any]:
        mixed = random.permutation(random.fold_in(key, epoch), len(points))
        order = mixed if config.shuffle else np.arange(len(points))
        for first in range(0, len(points) - config.batch_size + 1, config.batch_size):
            time.sleep(config.pause)
            chosen = points[order[first:first + config.batch_size]]
            yield chosen[:, :1], chosen[:, 1:]

    def loss(parameters: Any, noise: Any, batch: Any) -> Any:
        x, y = batch
        error = x @ parameters["weight"] + parameters["bias"] + random.normal(noise, x.shape) * 0.01 - y
        return (error * error).mean()

    def validate(parameters: Any) -> dict[str, float]:
        guess = points[:, :1] @ parameters["weight"].numpy() + parameters["bias"].numpy()
        return {"rmse": float(np.sqrt(np.mean((guess - points[:, 1:]) ** 2)))}

    start = {"weight": random.normal(key, (1, 1)), "bias": as_array(np.zeros(1, np.float32))}
    adam = Adam()
    fitted = yield from fit(jit(gradient_step(loss, adam.update), device=config.device), State(start, adam.init(start)),
                            batches, epochs=config.epochs, schedule=lambda step: config.rate, key=key,
                            validate=validate, monitor=Monitor("rmse"), run=run)
    run.save_model(fitted.parameters, {"target": config.targets[0]})
    return Report(dict(fitted.metrics), tables={"epochs": [{"epoch": fitted.epoch}]})


def dry_run(data: tuple[Path, ...], config: Config) -> dict[str, str]:
    return {"points": f"f32[{len(read(data))}, 2]"}


def line(run: Any) -> Any:
    import numpy as np

    return run.load_model({"weight": np.zeros((1, 1), np.float32), "bias": np.zeros(1, np.float32)})


def evaluate(run: Any, config: Config, data: tuple[Path, ...], out: Path, refused: Any) -> Report:
    points, fitted = read(data, refused), line(run)
    error = points[:, :1] @ fitted["weight"].numpy() + fitted["bias"].numpy() - points[:, 1:]
    return Report({"mean error": float(error.mean())}, arrays={"error": error})


def predict(run: Any, config: Config, input: Path, out: Path, refused: Any, settings: PredictSettings) -> Report:
    points, fitted = read((input,), refused), line(run)
    guesses = (points[:, :1] @ fitted["weight"].numpy() + fitted["bias"].numpy()) * settings.scale
    out.write_text("".join(f"{guess:.6f}\n" for guess in guesses[:, 0]))
    return Report({"predicted": len(guesses)})


def sample(out: Path) -> Report:
    out.mkdir(parents=True)
    (out / "points.csv").write_text("x,y\n" + "".join(f"{x / 40},{x / 20 + 1}\n" for x in range(40)))
    return Report({"points": 40})


def import_line(input: Path, out: Path, refused: Any) -> Report:
    out.write_text(input.read_text())
    return Report({"lines": 1})
