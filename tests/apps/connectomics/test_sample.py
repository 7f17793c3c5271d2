"""`tilework connectomics sample`: a volume that is like electron microscopy where it matters, and says what it is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from skimage import measure, segmentation

from apps.connectomics.sample import MEAN, SHAPE, sample, synthetic_volume
from apps.connectomics.volumes import open_volume


@pytest.mark.parametrize("shape", [(64, 64, 64), (40, 56, 72), (20, 32, 44)])
@pytest.mark.parametrize("seed", [0, 7])
def test_bodies_fill_space_and_membranes_are_dark(shape: tuple[int, int, int], seed: int) -> None:
    image, labels = synthetic_volume(shape, seed)
    assert (image.dtype, image.shape, labels.dtype, labels.shape) == (np.uint8, shape, np.uint16, shape)
    assert abs(image.mean() - MEAN) < 2 and abs(image.std() - 33) < 3
    assert sorted(np.unique(labels)) == list(range(1, labels.max() + 1)) and labels.max() >= 2
    assert measure.label(labels, connectivity=1).max() == labels.max()  # each body is in one piece
    border = segmentation.find_boundaries(labels)
    assert image[~border].mean() - image[border].mean() > 30


def test_bodies_are_long() -> None:
    """Neurites cross the volume: the box of a body is far longer than a ball of as many voxels."""
    _, labels = synthetic_volume((96, 96, 96), 1)
    bodies = measure.regionprops(labels)
    longest = [max(np.subtract(body.bbox[3:], body.bbox[:3])) / (6 * body.area / np.pi) ** (1 / 3) for body in bodies]
    assert len(bodies) > 15 and np.median(longest) > 1.3


def test_a_seed_is_a_volume() -> None:
    first, again, other = (synthetic_volume((32, 32, 32), seed) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[0] != other[0]).mean() > 0.5


def test_the_sample_is_a_volume_that_says_it_is_synthetic(tmp_path: Path) -> None:
    report = sample(tmp_path / "data")
    path = tmp_path / "data" / "synthetic.h5"
    assert report.numbers["file"] == str(path) and str(report.numbers["synthetic"]).startswith("yes")
    for name, dtype in (("raw", np.uint8), ("labels", np.uint16)):
        volume = open_volume(f"{path}:{name}")
        assert (volume.shape, volume.dtype, volume.voxel_size) == (SHAPE, dtype, (10, 10, 10))
        with h5py.File(path) as file:
            assert file[name].attrs["synthetic"]
    labels = open_volume(str(report.numbers["labels"])).read((0, 0, 0), SHAPE)
    assert labels.max() == report.numbers["bodies"] > 50
    assert [item.name for item in path.parent.iterdir()] == [path.name]
