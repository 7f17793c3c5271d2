"""Kill a training at random moments, resume it each time, and compare with an unbroken one, byte for byte.

    python -m tests.bench.kill CSV --target COLUMN [--kills 20] [--seed 0] [NAME=VALUE ...]

Moments are drawn evenly over the seconds that the unbroken training took, imports and all. Further words are settings.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_intermixed_args()
    options = [word for entry in arguments.settings for word in ("--" + entry.split("=")[0], entry.split("=")[1])]
    command = [sys.executable, "-m", "apps.cli", "molecules", "train", str(arguments.csv), "--target", arguments.target,
               *options, "--out"]
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        begin = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, capture_output=True)
        seconds = time.monotonic() - begin
        draw = random.Random(arguments.seed)
        killed = 0
        while killed < arguments.kills:
            resume = ["--resume"] if (broken / "run.json").exists() else []
            process = subprocess.Popen([*command, str(broken), *resume], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0.1, seconds / 4))
                print(f"finished after {killed} kills")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
        subprocess.run([*command, str(broken), "--resume"], check=True, capture_output=True)
        names = ["model.safetensors", "report/report.json"]
        same = all((whole / name).read_bytes() == (broken / name).read_bytes() for name in names)
        print(f"{killed} kills in a training of {seconds:.1f} s: {'equal, byte for byte' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
