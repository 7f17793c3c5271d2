"""Metrics of a trained run on emulated chips beside those on the cpu, on data that it did not see.

    python -m tests.bench.chips RUN [DATA ...] [--devices cpu tpu-v2]

Without data the held-out part of the run's own is used. A run of few bits runs on tpu-v1, too.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from apps.app import apps, load, load_config
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--devices", nargs="+", default=["cpu", "tpu-v2"])
    given = parser.parse_args()
    run = RunDirectory.open(given.run)
    app = next(app for app in apps() if app.name == run.record["app"])
    config = load_config(load(app.config), run.config_path)
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Refusals(Path(folder) / "refused.csv") as refused:
        for device in given.devices:
            subject = load(app.quantisable)(run=run, config=replace(config, device=device), data=tuple(given.data),
                                            refused=refused)
            found = subject.score(subject.model)
            first = first or dict(found)
            for name, value in found.items():
                print(f"{device:<9} {name:<24} {value:.6f}  {value / first[name] - 1:+.3%}")


if __name__ == "__main__":
    main()
