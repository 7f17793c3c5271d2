"""Time from the first import to the first trained step, in a fresh process with kernels in the store.

    python -m tests.bench.startup [--rounds 5]

The model is the default directed network of the molecules app on 64 molecules that come with rdkit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CHILD = """
import time
begin = time.monotonic()
from itertools import islice
import numpy as np
from apps.molecules import sample
from apps.molecules.batches import Sample, collate
from apps.molecules.features import featurise
from apps.molecules.data import Features
from apps.molecules.readers import parse_smiles
from apps.molecules.train import loss
from apps.molecules.trained import Architecture
from core.engine import random
from core.engine.jit import jit
from core.engine.optim import AdamW
from core.engine.train import State, gradient_step
imported = time.monotonic()
rows = list(islice(sample.rows(), 64))
batch = collate([Sample(featurise(parse_smiles(text)), np.array([float(value) / 40 - 1], np.float32),
                        np.zeros(0, np.float32)) for text, value in rows], 64)
network = Architecture("dmpnn", 300, 3, (300,)).build(random.key(0), Features(), 1)
optimiser = AdamW()
step = jit(gradient_step(lambda parameters, batch: loss(parameters, batch, (False,)), optimiser.update))
program = step.bind(State(network, optimiser.init(network)), update=True)
ready = time.monotonic()
float(program(1e-3, batch))
print(imported - begin, ready - imported, time.monotonic() - ready)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times = []
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True)
        times.append([float(word) for word in done.stdout.split()])
    names = ("imports", "features and parameters", "trace, plan, load kernels, first step", "total")
    columns = [*zip(*times[1:], strict=True), [sum(row) for row in times[1:]]]
    for name, column in zip(names, columns, strict=True):
        print(f"{name:<40} median {statistics.median(column):.3f} s   best {min(column):.3f} s")


if __name__ == "__main__":
    main()
