"""Inception-v3 on the emulated TPU v2 beside the same network on the cpu backend, in one process, in turns.

    python -m tests.bench.emulation [--batch N] [--turns N] [--devices NAME ...]

Prints the median and the least time of a call by device, what that is of the cpu's, the difference of the results,
relative to the root mean square of the cpu's, and whether the same classes come first.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from core.accel import chips, threads
from core.accel.tpu.architectures import inception_v3
from core.engine.array import as_array
from core.engine.jit import jit
from tests.bench.kernels.workers.ours_networks import network

DEVICES = ("cpu", "tpu-v2", "tpu-v2:3", "tpu-v2:6")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=["cpu", "tpu-v2"])
    given = parser.parse_args()
    architecture = inception_v3()
    model = network(architecture, given.batch)
    x = as_array(np.random.default_rng(0).normal(size=(given.batch, *architecture.item)).astype(np.float32))
    programs = {device: jit(lambda model, x: model(x), device=device).bind(model) for device in given.devices}
    results = {device: program(x).numpy() for device, program in programs.items()}
    times: dict[str, list[float]] = {device: [] for device in programs}
    for _ in range(given.turns):
        for device, program in programs.items():
            begin = time.perf_counter()
            program(x)
            times[device].append(time.perf_counter() - begin)
    unit = chips.unit_for(chips.host(), "bf16")
    print(f"{chips.host().name}, bf16 by {unit}, {threads.pool().threads} threads, batch {given.batch}")
    exact, median, least = results["cpu"], statistics.median(times["cpu"]), min(times["cpu"])
    for device, found in results.items():
        error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
        same = np.mean(found.argmax(1) == exact.argmax(1))
        print(f"{device:<9} {statistics.median(times[device]) * 1e3:8.1f} ms, "
              f"{statistics.median(times[device]) / median:.2f} of the cpu's (least {min(times[device]) / least:.2f}); "
              f"results differ by {error:.1e}, same class {same:.0%}")


if __name__ == "__main__":
    main()
