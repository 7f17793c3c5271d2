"""Checkpoints: what goes in comes out, damage is told, and a crash leaves the old file or the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine import dtypes
from core.engine.array import array
from core.engine.checkpoint import arrays_of, load, load_tree, save, save_tree, written_whole
from core.engine.errors import CheckpointError
from core.engine.module import Module

ROOT = Path(__file__).parents[2]


class Linear(Module):
    weight: object
    bias: object

    def __call__(self, x: object) -> object:
        return x @ self.weight + self.bias


def linear(inputs: int = 3, outputs: int = 2) -> Linear:
    return Linear(array(np.arange(inputs * outputs, dtype=np.float32).reshape(inputs, outputs)),
                  array(np.ones(outputs, np.float32)))


@given(dtype=st.sampled_from(dtypes.ALL), shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
       seed=st.integers(0, 2**32 - 1), note=st.text(max_size=20))
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path_factory, dtype, shape, seed, note):
    path = tmp_path_factory.getbasetemp() / "arrays.safetensors"
    storage = np.random.default_rng(seed).integers(0, 2, (*shape, dtype.itemsize), np.uint8).view(dtype.storage)[..., 0]
    value = array(np.ones(shape, np.float32), dtype) if dtype is dtypes.bfloat16 else array(storage)
    save(path, {"a.b": value}, {"note": note})
    arrays, metadata = load(path)
    assert arrays["a.b"].aval == value.aval
    assert arrays["a.b"].storage.tobytes() == value.storage.tobytes()
    assert metadata == {"note": note}


def test_views_are_written_as_they_look(tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    save(tmp_path / "a", {"turned": matrix.T, "every other": matrix[:, ::2], "number": np.float64(3)})
    arrays, _ = load(tmp_path / "a")
    assert np.array_equal(arrays["turned"].numpy(), matrix.T)
    assert np.array_equal(arrays["every other"].numpy(), matrix[:, ::2])
    assert arrays["number"].shape == ()


def test_an_empty_file_comes_back(tmp_path):
    save(tmp_path / "a", {}, {})
    assert load(tmp_path / "a") == ({}, {})


def test_a_tree_comes_back(tmp_path):
    save_tree(tmp_path / "model", {"layers": [linear(), linear(2, 1)], "none": None})
    found = load_tree(tmp_path / "model", {"layers": [linear(), linear(2, 1)], "none": None})
    assert set(load(tmp_path / "model")[0]) == {f"layers.{n}.{name}" for n in (0, 1) for name in ("weight", "bias")}
    assert np.array_equal(found["layers"][0].weight.numpy(), linear().weight.numpy())


@pytest.mark.parametrize(("like", "says"), [
    (lambda: {"a": linear(), "b": linear()}, ["missing", "b.bias, b.weight"]),
    (lambda: {}, ["left over", "a.bias, a.weight"]),
    (lambda: {"a": linear(4)}, ["different", "a.weight is f32[3, 2], expected f32[4, 2]"]),
    (lambda: {"a": Linear(linear().weight.astype("bf16"), linear().bias)}, ["f32[3, 2], expected bf16[3, 2]"]),
])
def test_a_file_of_another_model_is_refused(tmp_path, like, says):
    save_tree(tmp_path / "model", {"a": linear()})
    with pytest.raises(CheckpointError, match="made for another model") as caught:
        load_tree(tmp_path / "model", like())
    assert all(words in str(caught.value) for words in says)
    assert str(tmp_path / "model") in str(caught.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:20], lambda c: c[:3], lambda c: b"",
                                    lambda c: b"\xff" * len(c), lambda c: c + b"more"])
def test_damage_is_told(tmp_path, damage):
    path = tmp_path / "model"
    save_tree(path, linear())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there is no weight file"):
        load(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(path) as file:
        file.write(b"new")
        raise OSError("full")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from core.engine import checkpoint
path, moment = Path(sys.argv[1]), sys.argv[2]
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "rename":
    os.replace = die
elif moment == "renamed":
    checkpoint.sync_folder = die
else:
    os.fsync = die
checkpoint.save(path, {"a": np.full(1000, 2.0)})
"""


@pytest.mark.parametrize(("moment", "value"), [("flush", 1.0), ("rename", 1.0), ("renamed", 2.0)])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, moment, value):
    path = tmp_path / "a"
    save(path, {"a": np.full(1000, 1.0)})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert np.array_equal(load(path)[0]["a"].numpy(), np.full(1000, value))


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(CheckpointError, match="have the path '1'"):
        arrays_of({1: array(1.0), "1": array(2.0)})
