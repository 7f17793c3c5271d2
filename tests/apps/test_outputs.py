"""Outputs: what no command writes over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apps.cli import main
from apps.outputs import check_output, files_of
from core.engine.checkpoint import written_whole
from core.engine.errors import ConfigError


def test_nothing_takes_the_place_of_an_input(tmp_path: Path) -> None:
    given, link = tmp_path / "in.csv", tmp_path / "link.csv"
    given.write_text("smiles\nC\n")
    link.symlink_to(given)
    for place in (given, link, tmp_path / "." / "in.csv"):
        with pytest.raises(ConfigError, match="is the input, which would be lost"):
            check_output(place, files_of(str(given)))
    with pytest.raises(ConfigError, match="is the input"):
        check_output(given, files_of(f"{given}:volume"))
    check_output(tmp_path / "out.csv", [given, tmp_path / "missing.csv"])


def test_nothing_takes_the_place_of_a_part_of_a_run(tmp_path: Path) -> None:
    for name in ("run.json", "model.safetensors", "predictions.csv"):
        (tmp_path / name).touch()
    check_output(tmp_path / "predictions.csv", [])
    with pytest.raises(ConfigError, match="is a part of the run"):
        check_output(tmp_path / "model.safetensors", [])


def test_nothing_takes_the_place_of_a_pipe_or_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        check_output(tmp_path / "pipe", [])
    with pytest.raises(ConfigError, match="is a folder; name a file in it"), written_whole(tmp_path, "w"):
        pass


def test_nothing_takes_the_place_of_what_a_setting_names(tmp_path: Path) -> None:
    assert main(["connectomics", "sample", "--out", str(tmp_path)]) == 0
    volume, other = tmp_path / "synthetic.h5", tmp_path / "other.h5"
    other.write_bytes(volume.read_bytes())
    words = ["connectomics", "expand", f"{volume}:labels", "--parts", f"{other}:labels", "--out", str(other)]
    assert main(words) == 2 and other.read_bytes() == volume.read_bytes()
