"""How much of the time of flood filling goes by outside of the network.

    python -m tests.bench.flood_share DATA/connectomics/fib25_training2.h5:raw RUN [--moves N] [--turns N]

The first moves of the first object, and as many calls of the same bound network by a loop that does nothing else, take
turns in one process. What a whole run adds once, reading the volume and finding its seeds, is measured beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from apps.app import load_config
from apps.connectomics.blocks import triple
from apps.connectomics.canvas import Canvas
from apps.connectomics.config import ConnectomicsConfig, FloodSettings
from apps.connectomics.segment import normalised, options_of, policy_seeds, program_of
from apps.connectomics.volumes import open_volume
from core.engine.driver import Network, call
from core.engine.jit import Program
from core.engine.run import RunDirectory


def repeat(network: Network, count: int) -> None:
    """A driver that calls the network and does nothing else."""
    for _ in range(count):
        call(network)


def flood(canvas: Canvas, seed: tuple[int, int, int], moves: int) -> tuple[float, int]:
    """Seconds of the first moves of an object, at least so many, and how many they were."""
    begin = time.perf_counter()
    for _ in canvas.segment([seed]):
        if canvas.counters.moves >= moves:
            break
    return time.perf_counter() - begin, canvas.counters.moves


def calls(program: Program, field: tuple[int, int, int], count: int) -> float:
    """Seconds of calls of the network alone."""
    seen, found = ([np.zeros((1, *field), np.float32) for _ in range(number)] for number in (2, 1))
    begin = time.perf_counter()
    program.drive(repeat, seen, found, count)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume")
    parser.add_argument("run", type=Path)
    parser.add_argument("--moves", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    run = RunDirectory.open(chosen.run)
    config, settings = load_config(ConnectomicsConfig, run.config_path), FloodSettings()
    begin = time.perf_counter()
    volume = open_volume(chosen.volume)
    image = normalised(volume.read((0, 0, 0), volume.shape), config, chosen.volume)
    seeds = policy_seeds(image, np.zeros(image.shape, np.int32), config, settings)
    once = time.perf_counter() - begin
    program, field = program_of(run, config, "f32"), triple(config.field_of_view)
    z, y, x = map(int, seeds[0])
    with_all, alone = [], []
    for turn in range(chosen.turns + 1):
        canvas = Canvas(image, np.zeros(image.shape, np.int32), program, field, options_of(config, settings))
        seconds, moves = flood(canvas, (z, y, x), chosen.moves)
        network = calls(program, field, moves)
        if turn:  # the first one warms up
            with_all.append(seconds / moves)
            alone.append(network / moves)
    shares = [1 - b / a for a, b in zip(with_all, alone, strict=True)]
    whole, network = statistics.median(with_all), statistics.median(alone)
    print(f"a move {whole * 1e3:.1f} ms, the network alone {network * 1e3:.1f} ms; "
          f"outside {statistics.median(shares):.1%} (median of {len(shares)} turns of {moves} moves)")
    print(f"reading and finding {len(seeds)} seeds, once a run, took as long as {once / whole:.0f} moves")


if __name__ == "__main__":
    main()
