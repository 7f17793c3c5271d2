"""One step of the flood-filling network, ours beside PyTorch's, in float32 and bfloat16, in one run.

    .venv-bench/bin/python -m tests.bench.ffn_step [--turns N]

Both run in one process on two threads, in turns with pauses between them, so that waiting threads of one do not disturb
the other. Prints the median time of a step and the ratio of PyTorch's best variant to ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from apps.connectomics.model import FloodFillingNetwork
from core.accel import threads
from core.engine import random, tree
from core.engine.array import as_array
from core.engine.jit import jit

THREADS, FIELD, PAUSE, CALLS = 2, 33, 0.3, 3
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Residual(torch.nn.Module):
    """As `apps.connectomics.model.Residual`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Conv3d(features, features, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(torch.relu(x))))


class Network(torch.nn.Module):
    """As `apps.connectomics.model.FloodFillingNetwork`, with 12 pairs of convolutions of 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = torch.nn.Sequential(
            torch.nn.Conv3d(2, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(32, 32, 3, padding=1),
            *(Residual(32) for _ in range(11)), torch.nn.ReLU(), torch.nn.Conv3d(32, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:] + self.stack(x)


def ours(precision: str) -> Callable[[], object]:
    """A step of ours."""
    network = tree.map(lambda leaf: leaf.astype(precision), FloodFillingNetwork.init(random.key(0), 12, 32))
    program = jit(lambda network, image, logits: network(image, logits)).bind(network)
    image, logits = (as_array(np.ones((1, FIELD, FIELD, FIELD), np.float32)) for _ in range(2))
    return lambda: program(image, logits)


def theirs(precision: str) -> dict[str, Callable[[], object]]:
    """Steps of PyTorch's, by variant."""
    network = Network().to(DTYPES[precision]).eval()
    plain = torch.ones(1, 2, FIELD, FIELD, FIELD, dtype=DTYPES[precision])
    last = plain.to(memory_format=torch.channels_last_3d)
    lasting = Network().to(DTYPES[precision]).eval().to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(lasting)
    return {"eager": lambda: network(plain), "channels-last": lambda: lasting(last), "compiled": lambda: compiled(last)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    threads.set_threads(THREADS)
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        for precision in DTYPES:
            calls = {"ours": ours(precision), **theirs(precision)}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(turns + 1):
                for name, call in calls.items():
                    time.sleep(PAUSE)
                    call()
                    begin = time.perf_counter()
                    for _ in range(CALLS):
                        call()
                    if turn:  # the first one warms up
                        times[name].append((time.perf_counter() - begin) / CALLS)
            medians = {name: statistics.median(found) for name, found in times.items()}
            least = {name: min(found) for name, found in times.items()}
            best = min((name for name in medians if name != "ours"), key=medians.__getitem__)
            fastest = min(value for name, value in least.items() if name != "ours")
            print(precision, ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in medians.items()))
            print(f"  {best} over ours {medians[best] / medians['ours']:.2f}, fastest {fastest / least['ours']:.2f}")


if __name__ == "__main__":
    main()
