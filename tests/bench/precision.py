"""What docs/results/precision.md measures beside `quantize`: how ranges are chosen, products of bits, a real network.

    python -m tests.bench.precision ranges RUN...      percentiles of activations instead of least and largest
    python -m tests.bench.precision products           f32, 8-bit, binary and ternary products, in turns
    python -m tests.bench.precision ffn RUN VOLUME.h5  Google's network in 8 bits: logits, and time in turns

Invariant: times are ratios of two programs that take turns in one process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import load_config
from apps.quantizing import speed
from core.engine import random
from core.engine.array import as_array
from core.engine.jit import jit
from core.engine.module import Module, map_modules, static
from core.engine.precision import calibrate, quantise
from core.engine.precision.layered import layered
from core.engine.precision.popcount import binary_product, packed_bits, ternary_product
from core.engine.precision.quantised import quantisable
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

PERCENTILES = (100.0, 99.99, 99.9, 99.0)
FIELDS = 12
"""Origins of objects that `ffn` looks at."""
ROUNDS = 40
PRODUCTS = ((512, 512, 1024), (2048, 512, 4608), (64, 1024, 4096))


class Watched(Module):
    """A layer that keeps what it takes; it runs eagerly."""

    layer: Any
    taken: list = static()

    def __call__(self, x: Any) -> Any:
        self.taken.append(x.numpy().ravel())
        return self.layer(x)


def ranges(paths: list[str]) -> None:
    """RMSE on the held-out rows of runs on molecules, by the share of activations that the range holds."""
    from apps.molecules.config import MoleculesConfig
    from apps.molecules.quantisable import quantisable as subject_of

    for path in paths:
        run = RunDirectory.open(path)
        with tempfile.TemporaryDirectory() as folder, Refusals(Path(folder) / "refused.csv") as refused:
            subject = subject_of(run, load_config(MoleculesConfig, run.config_path), (), refused)
        taken: dict[str, list[np.ndarray]] = {}

        def watched(name: str, layer: Module, taken: dict[str, list[np.ndarray]] = taken) -> Module | None:
            return Watched(layer, taken.setdefault(name, [])) if quantisable(layer) else None

        model = map_modules(watched, layered(subject.model))
        for batch in subject.batches:
            subject.call(model, batch)
        print(f"{path}: f32 {subject.score(subject.model)['rmse']:.4f}", end="")
        for share in PERCENTILES:
            found = {}
            for name, parts in taken.items():
                low, high = np.percentile(np.concatenate(parts), (100 - share, share))
                found[name] = float(low), float(high)
            print(f", {share:g} % {subject.score(quantise(subject.model, found))['rmse']:.4f}", end="", flush=True)
        print()


def products() -> None:
    """Products of m x k by k x n numbers of -1 and 1, by four ways that take turns; the least time of each counts."""
    for m, n, k in PRODUCTS:
        generator = np.random.default_rng(0)
        a, b = (generator.choice(np.array([-1, 1], np.int8), (rows, k)) for rows in (m, n))
        bits_a, bits_b = (packed_bits(as_array(x > 0)) for x in (a, b))

        def binary(b: Any, a: Any, k: int = k) -> Any:
            return binary_product(a, b, k)

        def ternary(b: Any, a: Any) -> Any:
            return ternary_product((a, a), (b, b))

        columns = np.ascontiguousarray(b.T)
        ways = {"f32": (jit(_product).bind(columns.astype(np.float32)), a.astype(np.float32)),
                "8 bits": (jit(_product).bind(columns), a), "binary": (jit(binary).bind(bits_b), bits_a),
                "ternary": (jit(ternary).bind(bits_b), bits_a)}
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, (program, x) in ways.items():
                begin = time.perf_counter()
                program(x)
                least[name] = min(least[name], time.perf_counter() - begin)
        print(f"{m} x {n} x {k}, times as fast as 8 bits: " + ", ".join(
            f"{name} {least['8 bits'] / seconds:.2f}" for name, seconds in least.items() if name != "8 bits"))


def _product(b: Any, a: Any) -> Any:
    return a @ b


def ffn(path: str, volume: str) -> None:
    """Logits of the network in f32 and in 8 bits at the published objects' origins, four looks each."""
    import h5py

    from apps.connectomics.canvas import logit
    from apps.connectomics.config import ConnectomicsConfig
    from apps.connectomics.model import FloodFillingNetwork
    from apps.connectomics.segment import as_network_sees

    run = RunDirectory.open(path)
    config = load_config(ConnectomicsConfig, run.config_path)
    network = run.load_model(FloodFillingNetwork.init(random.key(0), config.depth, config.features))
    looks: list[Any] = []
    exact = jit(lambda network, batch: network(*batch)).bind(network)
    half = [size // 2 for size in config.field_of_view]
    with h5py.File(volume) as file:
        starts = file["google_ffn_origins/start_zyx"][:]
        inside = ((starts >= half) & (starts + half < file["raw"].shape)).all(1)
        for start in starts[inside][:FIELDS]:
            box = tuple(slice(int(c) - h, int(c) + h + 1) for c, h in zip(start, half, strict=True))
            image = as_network_sees(file["raw"][box], config)[None]
            seed = np.full(image.shape, logit(config.pad_value), np.float32)
            seed[(0, *half)] = logit(config.init_activation)
            logits = as_array(seed)
            for _ in range(4):
                looks.append((image, logits))
                logits = exact((image, logits))
    calibrated = len(looks) * 2 // 3
    small = quantise(network, calibrate(lambda network, batch: network(*batch), network, looks[:calibrated]))
    near = jit(lambda network, batch: network(*batch)).bind(small)
    pairs = [(exact(batch).numpy(), near(batch).numpy()) for batch in looks[calibrated:]]
    wanted, found = (np.stack(side) for side in zip(*pairs, strict=True))
    turned = ((wanted > 0) != (found > 0)).mean()
    print(f"{len(pairs)} looks not calibrated on: mean error of a logit {np.abs(wanted - found).mean():.4f} of a "
          f"deviation of {wanted.std():.2f}; voxels on another side of one half {turned:.2%}; "
          f"times faster {speed(lambda network, batch: network(*batch), (network, small), looks[0], 'cpu'):.2f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ranges", *paths] if paths:
            ranges(paths)
        case ["products"]:
            products()
        case ["ffn", path, volume]:
            ffn(path, volume)
        case _:
            sys.exit(__doc__)
