"""Quantising a flood-filling network: it segments like any other run."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from core.engine.checkpoint import load
from core.engine.run import RunDirectory
from tests.apps.connectomics.test_train import SMALL, ConnectomicsConfig, run_of, trained, tubes  # noqa: F401


def connectomics(*words: object) -> tuple[int, str, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["connectomics", *map(str, words)])
    return int(code), out.getvalue(), err.getvalue()


def test_a_quantised_network_segments_as_well(tubes: Path, tmp_path: Path) -> None:  # noqa: F811
    config = ConnectomicsConfig(**SMALL, epochs=3, steps=60)
    run = run_of(tmp_path / "run", config, tubes)
    trained(run, config, tubes)
    code, out, err = connectomics("quantize", run.path, tubes, "--out", tmp_path / "small", "--json")
    assert code == 0, err
    numbers = json.loads(out)["numbers"]
    names = [name.removesuffix(" before") for name in numbers if name.endswith(" before") and name != "bytes before"]
    assert names
    for name in names:
        assert numbers[f"{name} after"] == pytest.approx(numbers[f"{name} before"], abs=0.05), name
    arrays, _ = load(tmp_path / "small" / "model.safetensors")
    assert arrays["first_a.kernel"].dtype.short == "f32"
    assert arrays["blocks.0.a.weight"].dtype.short == "i8"
    code, _, err = connectomics("evaluate", tmp_path / "small", tubes, "--out", tmp_path / "report")
    assert code == 0, err


def test_a_network_of_one_bit_is_trained_on(tubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """On what the run was trained on, with masks that it grows itself, and on to the same bits if it is stopped."""
    run = tmp_path / "run"
    settings = [word for name, value in SMALL.items() for word in (
        f"--{name.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, tuple) else value)]
    assert connectomics("train", tubes, "--out", run, "--epochs", 1, "--steps", 60, *settings)[0] == 0
    command = ("quantize", run, tubes, "--bits", 1, "--epochs", 2, "--json", "--out")
    code, out, err = connectomics(*command, tmp_path / "whole")
    assert code == 0, err
    numbers = json.loads(out)["numbers"]
    name = "voi (labelled in both)"
    assert numbers[f"{name} rounded"] is None and "cannot be measured: there is nothing to compare" in err
    assert numbers[f"{name} after"] < 0.5
    append = RunDirectory.append_metrics

    def stopping(run: RunDirectory, values: Mapping[str, Any]) -> None:
        append(run, values)
        if values["step"] == 80:
            run.request_stop()

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "append_metrics", stopping)
        assert connectomics(*command, tmp_path / "cut")[0] == 6
    assert connectomics(*command, tmp_path / "cut", "--resume")[0] == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_it_needs_volumes_to_measure_on(tubes: Path, tmp_path: Path) -> None:  # noqa: F811
    config = ConnectomicsConfig(**SMALL, epochs=1, steps=1)
    run = run_of(tmp_path / "run", config, tubes)
    trained(run, config, tubes)
    code, _, err = connectomics("quantize", run.path, "--out", tmp_path / "small")
    assert (code, "give labelled volumes to measure on" in err) == (2, True)
    assert not (tmp_path / "small").exists()
