"""Memory of a blocked run: that of its blocks, however large the volume is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from apps.connectomics.volumes import create_volume
from tests.apps.connectomics.bright import write_run, write_tubes

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
import resource, sys
from apps.cli import main
assert main(["connectomics", "segment", *sys.argv[1:]], ("apps.connectomics.app:APP",)) == 0
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):  # of its workers the largest
    print("peak", resource.getrusage(who).ru_maxrss // 1024)
"""
CORNER = (100, 40, 100)
"""Of the tubes: they cross the face between two blocks of 128."""


def peaks(folder: Path, side: int, block: int, run: Path) -> tuple[int, int]:
    """MB of the command and of its worker, for a volume that is empty but for three tubes."""
    labels = write_tubes(folder / "tubes.h5")
    volume = create_volume(f"{folder}/{side}.zarr", (side,) * 3, "uint8", (10, 10, 10))
    volume.write(CORNER, np.where(labels > 0, 150, 0).astype(np.uint8))
    out = folder / f"{side}.h5"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, f"{folder}/{side}.zarr", "--model", str(run), "--out", str(out), "--block",
         f"{block},{block},{block}", "--overlap", "32,32,32", "--min-segment-size", "50"],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with h5py.File(out) as file:
        assert file["segmentation"].shape == (side,) * 3
        box = tuple(slice(first, first + size) for first, size in zip(CORNER, labels.shape, strict=True))
        found = file["segmentation"][box]
        assert len(np.unique(found)) == 4
        assert not found[labels == 0].any() and np.count_nonzero(found) > 0.8 * np.count_nonzero(labels)
    command, worker = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    return command, worker


def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    small, large = (peaks(tmp_path, side, 128, run) for side in (384, 512))
    # Both have blocks of the same sizes; the larger volume has 78 MB of voxels more, and 310 MB of labels.
    assert all(more - less < 40 for less, more in zip(small, large, strict=True)), (small, large)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_volume_of_8_gigabytes_in_4(tmp_path: Path) -> None:
    measured = peaks(tmp_path, 2048, 256, write_run(tmp_path / "run"))
    print(f"{measured[0]} MB and {measured[1]} MB in its worker")
    assert sum(measured) < 4096
