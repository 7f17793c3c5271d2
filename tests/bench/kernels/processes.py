"""Processes of workers, as the one that asks sees them.

Invariant: every worker has the same cores and the same number of threads; one that dies says so in its answer, and is
started anew for the next request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
OURS = "ours"
PEERS = ("torch", "onnxruntime", "openvino", "jax")


@dataclass(frozen=True)
class Setting:
    """What the workers run on.

    Attributes
    ----------
    peers : the interpreter of the peers' environment
    threads : of each worker, on as many cores
    environment : more variables, such as the place of our compiled kernels
    """

    peers: Path
    threads: int = 2
    environment: Mapping[str, str] | None = None

    def command(self, name: str) -> list[str]:
        """The command line of a worker."""
        python = sys.executable if name == OURS else str(self.peers)
        return [python, "-m", f"tests.bench.kernels.workers.{name}"]

    def variables(self) -> dict[str, str]:
        """The environment of a worker."""
        count = str(self.threads)
        return {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_THREADS": count, "OMP_NUM_THREADS": count,
                "MKL_NUM_THREADS": count, "TILEWORK_THREADS": count, "JAX_PLATFORMS": "cpu",
                **(self.environment or {})}


class WorkerProcess:
    """A worker of one framework; see `worker`."""

    def __init__(self, name: str, setting: Setting, log: Path) -> None:
        self.name = name
        self._setting = setting
        self._log = log.open("ab")
        self._process: subprocess.Popen[str] | None = None

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request; ``{"failed": why}`` if the worker died of it."""
        process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps({"operation": operation, **arguments}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._process = None
            return {"failed": f"the worker ended with code {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
        self._log.close()

    def _started(self) -> subprocess.Popen[str]:
        cores = sorted(os.sched_getaffinity(0))[:self._setting.threads]
        process = subprocess.Popen(self._setting.command(self.name), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=self._log, text=True, cwd=ROOT, env=self._setting.variables())
        os.sched_setaffinity(process.pid, cores)
        return process
