"""Machine files: totals that are derived from them, and figures that are refused."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest

from core.accel.tpu.machine import changed, machine, names
from core.engine.errors import ConfigError


def text(name):
    return files("core.accel.tpu").joinpath("machines", f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "figure", "expected", "within"), [
    ("tpu-v1", lambda chip: chip.peak / 1e12, 91.75, 1e-4),  # arXiv 1704.04760, Table 2: 92
    ("tpu-v1", lambda chip: chip.knee, 1349, 1e-3),  # section 4: 1350
    ("tpu-v1", lambda chip: chip.tile_bytes, 65536, 0),
    ("tpu-v1", lambda chip: chip.accumulator_rows, 4096, 0),
    ("tpu-v1", lambda chip: chip.buffer.bandwidth / 2**30, 166.9, 1e-3),
    ("tpu-v2", lambda chip: chip.peak / 1e12, 45.9, 1e-3),
    ("tpu-v2", lambda chip: chip.board_peak / 1e12, 180, 0.02),  # Dean's slide: 4 x 45
    ("tpu-v2", lambda chip: chip.board_memory / 2**30, 64, 0),
    ("tpu-v2", lambda chip: chip.pod_peak / 1e15, 11.5, 0.025),  # Dean's slide: 64 x 180
    ("tpu-v2", lambda chip: chip.pod_memory / 2**40, 4, 0),
    ("tpu-v2", lambda chip: 8 * chip.bisection / 1e12, 15.9, 2e-3),
    ("tpu-v3", lambda chip: chip.peak / 1e12, 123, 2e-3),
    ("tpu-v3", lambda chip: chip.pod_peak / 1e15, 126, 2e-3),
    ("tpu-v3", lambda chip: chip.chips, 1024, 0),
])
def test_derived_figures_are_the_published_ones(name, figure, expected, within):
    assert figure(machine(name)) == pytest.approx(expected, rel=within, abs=0)


def test_no_file_holds_a_derived_figure():
    derived = {"peak", "knee", "board_peak", "pod_peak", "pod_memory", "chips", "bisection"}
    for name in names():
        found = tomllib.loads(text(name))
        assert not derived & {key for part in (found, *found.values()) if isinstance(part, dict) for key in part}


@pytest.mark.parametrize("name", names())
def test_a_copy_of_a_file_is_the_same_machine_under_its_own_name(name, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text(name), encoding="utf-8")
    own = machine(path)
    assert own.name == "mine" and changed(own, {"name": name}) == machine(name)


@pytest.mark.parametrize(("old", "new", "words"), [
    ('"700 MHz"', '"-700 MHz"', ["clock", "700 MHz", "above 0"]),
    ('"700 MHz"', "-7e8", ["clock", "-700000000.0", "Hz"]),
    ('"700 MHz"', '"700 GB/s"', ["clock", "Hz"]),
    ('"700 MHz"', "true", ["clock", "Hz"]),
    ('clock = "700 MHz"', "", ["clock is missing", "Hz"]),
    ("rows = 256", "row = 256", ["array.row", "did you mean array.rows"]),
    ("rows = 256", "rows = 256.5", ["array.rows", "whole number"]),
    ("fifo_tiles = 4", "fifo_tiles = 200000", ["memory.fifo_tiles", "131072"]),
    ('"30 GiB/s"', '"40 GiB/s"', ["memory.streaming", "memory.bandwidth"]),
    ('"10 GiB/s"', '"20 GiB/s"', ["host.bandwidth", "host.link"]),
    ("read_only = true", "read_only = 1", ["memory.read_only", "true or false"]),
    ("int8 = 1\n", "int8 = 2\n", ["array.passes", "single pass"]),
    ('"4 MiB"', '"1 kB"', ["accumulators.capacity"]),
    ("boards = 1", "boards = 1\ntorus = [2, 2]", ["system.torus", "links"]),
    ("[vector] ", "[[vector]] ", ["vector", "table"]),
    ("rows = 256", "rows = ", ["not TOML"]),
])
def test_an_impossible_file_is_refused_with_the_name_of_the_figure(old, new, words, tmp_path):
    whole = text("tpu-v1")
    assert old in whole
    path = tmp_path / "mine.toml"
    path.write_text(whole.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        machine(path)
    for word in (*words, str(path)):
        assert word in str(caught.value)


def test_a_torus_must_hold_all_chips():
    with pytest.raises(ConfigError, match=r"system\.torus \[16, 16\] has 256 places for 4 chips .* = 128 chips"):
        changed(machine("tpu-v2"), {"system.boards": 32})


@pytest.mark.parametrize(("name", "words"), [("tpu-v9", "tpu-v1, tpu-v2, tpu-v3"), ("none.toml", "cannot be read")])
def test_an_unknown_machine_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        machine(name)
