"""What a call of a bound program costs beside its kernels, and what planning costs.

    python -m tests.bench.calls [--rounds 2000]

The program is a ten-layer perceptron of width 32 at batch 1; the plan is that of a training step of the molecules app.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from core.engine import random
from core.engine.jit import jit
from core.engine.nn import MLP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    network = MLP.init(random.key(0), (32,) * 11)
    x = np.ones((1, 32), np.float32)
    program = jit(lambda network, x: network(x)).bind(network)
    print(f"bound program, one call     median {1e6 * median(lambda: program(x), rounds):8.1f} us, "
          f"{len(program.report.steps)} steps")
    eager = median(lambda: network(x), rounds // 20)
    print(f"the same op by op in numpy  median {1e6 * eager:8.1f} us")
    plan = median(lambda: jit(lambda network, x: network(x), device="null").report(network, x), 20)
    print(f"trace and plan              median {1e3 * plan:8.1f} ms")


def median(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
