"""What a run of flood filling has so far, in a file beside its output, so that a run that was stopped goes on.

Invariant: the name of the file is a digest of all that the result depends on. What it holds was true between two seeds,
so that a run that goes on from there ends with the same objects.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apps.connectomics.canvas import Canvas, Counters, Origin
from apps.progress import LOGGER
from core.engine.checkpoint import written_whole

_EVERY = 60.0
"""Seconds between two saves."""
_LEAST_APART = 50
"""And at least so many times as long as a save takes."""


@dataclass(frozen=True)
class Standing:
    """How far a run has come.

    Attributes
    ----------
    labels : i32[z, y, x], as `Canvas` has them
    origins : of the objects so far
    next : the number of the seed that comes next
    """

    labels: NDArray[np.int32]
    counters: Counters
    origins: tuple[Origin, ...]
    next: int


class Interim:
    """The file of one run; a context whose end by an error saves what there is.

    Parameters
    ----------
    out : the output, in a folder that exists
    depends_on : arrays, bytes and settings that the result depends on
    """

    def __init__(self, out: Path, depends_on: Sequence[object]) -> None:
        digest = hashlib.sha256()
        for part in depends_on:
            digest.update(part if isinstance(part, bytes) else
                          np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode())
        self.path = out.with_name(f"{out.name}.{digest.hexdigest()[:12]}.interim")
        self._latest: Standing | None = None
        self._due = time.monotonic() + _EVERY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self._latest is not None:
            self._save(self._latest)
            LOGGER.warning("what is done lies in %s; the same command goes on from there", self.path)

    def load(self) -> Standing | None:
        """What an earlier run left, if it can be read."""
        try:
            with np.load(self.path) as file:
                record = json.loads(str(file["record"]))
                origins = tuple(Origin(**origin | {"seed": tuple(origin["seed"])}) for origin in record["origins"])
                return Standing(file["labels"], Counters(**record["counters"]), origins, record["next"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            LOGGER.warning("%s cannot be read (%s); the run begins anew", self.path, error)
            return None

    def note(self, canvas: Canvas, origins: Sequence[Origin], following: int) -> None:
        """Note that all seeds before one are done; saves now and then."""
        self._latest = Standing(canvas.labels, canvas.counters, tuple(origins), following)
        if time.monotonic() >= self._due:
            begin = time.monotonic()
            self._save(self._latest)
            end = time.monotonic()
            self._due = end + max(_EVERY, _LEAST_APART * (end - begin))

    def _save(self, standing: Standing) -> None:
        record: dict[str, Any] = {"counters": asdict(standing.counters), "next": standing.next,
                                  "origins": [asdict(origin) for origin in standing.origins]}
        with written_whole(self.path) as file:
            np.savez(file, labels=standing.labels, record=np.array(json.dumps(record)))
