"""Progress and log of a command, on stderr: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

Invariant: nothing here writes to stdout, which belongs to the results.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from core.engine.train import Progress

LOGGER = logging.getLogger("tilework")
_LINE_SECONDS = 10.0  # between plain lines inside an epoch
_JSON_SECONDS = 0.5


class Display(Protocol):
    """Where Progress records go."""

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


def display(json_lines: bool) -> Display:
    """The display that suits stderr."""
    if json_lines:
        return JsonLines()
    return Bar() if sys.stderr.isatty() else PlainLines()


class PlainLines:
    """A line an epoch, and one every ten seconds inside long epochs."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.epoch_done or now - self._shown > _LINE_SECONDS:
            print(describe(progress), file=sys.stderr, flush=True)
            self._shown = now

    def close(self) -> None:
        """Nothing is open."""


class JsonLines:
    """One object a line: at the ends of epochs, and twice a second."""

    def __init__(self) -> None:
        self._shown = 0.0

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.epoch_done or now - self._shown > _JSON_SECONDS:
            from core.engine.run import plain

            print(json.dumps({"progress": plain(asdict(progress))}), file=sys.stderr, flush=True)
            self._shown = now

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar that fills over all epochs, with a line an epoch above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
                          TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._task = self._rich.add_task("training", total=None)
        self._rich.start()

    def show(self, progress: Progress) -> None:
        inside = min(progress.batch / progress.batches, 1.0) if progress.batches else 0.0
        done = progress.epoch if progress.epoch_done else progress.epoch - 1 + inside
        self._rich.update(self._task, completed=done, total=progress.epochs,
                          description=f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.4g}")
        if progress.epoch_done:
            self._rich.console.print(describe(progress), highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._rich.stop()


def describe(progress: Progress) -> str:
    """A Progress in one line."""
    metrics = "".join(f"  {name} {value:.4g}" for name, value in progress.metrics.items())
    return (f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}  loss {progress.loss:.4g}{metrics}  "
            f"rate {progress.rate:.3g}  {progress.items_per_second:.0f} items/s  {progress.seconds:.0f} s")


def log_to_stderr(json_lines: bool) -> None:
    """Send the log of this package to stderr, once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json_lines else logging.Formatter("%(message)s"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> Any:
        return json.dumps({"log": record.getMessage(), "level": record.levelname.lower()})
