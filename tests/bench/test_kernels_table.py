"""The table of the kernel benchmark and its report, without measuring and without peers.

Invariant: sizes of the networks are those that their papers and other implementations state.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from core.accel.tpu.architectures import ARCHITECTURES
from tests.bench.kernels import records, report
from tests.bench.kernels.aims import AIMS
from tests.bench.kernels.layers import layers
from tests.bench.kernels.measure import Record
from tests.bench.kernels.rows import processes, rows

EVERY = [*rows(), *processes()]
EXPECTED = Counter(row.family for row in EVERY)


def record(name: str, ratio: float, seconds: float = 1e-3) -> Record:
    row = next(row for row in EVERY if row.name == name)
    times = {"ours": seconds, "peer": seconds * ratio}
    return Record(name, row.family, seconds, {"peer": seconds * ratio}, times, {}, row.flops, row.nbytes, row.count)


def complete(ratio: float) -> dict[str, Record]:
    return {row.name: record(row.name, ratio) for row in EVERY}


@pytest.mark.parametrize(("name", "convolutions", "multiplications"), [
    # Multiply-adds of the convolutions of one item: torchvision's table less the dense layer; for the
    # flood-filling network 637,664 a voxel.
    ("resnet50", 53, 4.087e9), ("inception-v3", 94, 5.711e9), ("ffn", 25, 637_664 * 33 ** 3)])
def test_networks_have_their_published_size(name: str, convolutions: int, multiplications: float) -> None:
    found = layers(ARCHITECTURES[name](), 1)
    assert sum(found.values()) == convolutions
    assert sum(layer.flops * count for layer, count in found.items()) / 2 == pytest.approx(multiplications, rel=1e-3)


def test_work_is_plain_json() -> None:
    assert all(json.loads(json.dumps(row.work)).keys() == row.work.keys() for row in EVERY)


def test_every_family_has_a_title_and_every_aim_has_rows() -> None:
    assert set(report.TITLES) == set(EXPECTED) - {"peak"}
    assert {family for aim in AIMS for family in aim.families} <= set(EXPECTED)


def test_verdicts_follow_the_ratios() -> None:
    ratios = [aim for aim in AIMS if aim.what.startswith("f32 convolution")]
    assert all(aim.judge(complete(1.1), EXPECTED).reached for aim in ratios)
    assert not any(aim.judge(complete(0.9), EXPECTED).reached for aim in ratios)


def test_one_slow_layer_or_one_failure_is_short_and_one_missing_is_open() -> None:
    aim = next(aim for aim in AIMS if aim.what == "f32 convolution")
    name = next(row.name for row in EVERY if row.family == "conv-f32")
    found = complete(2.0)
    assert aim.judge({**found, name: record(name, 0.7)}, EXPECTED).reached is False
    assert aim.judge({**found, name: Record(name, "conv-f32")}, EXPECTED).reached is False
    del found[name]
    assert aim.judge(found, EXPECTED).reached is None


def test_records_survive_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "kernels.jsonl"
    records.append(path, {records.MACHINE: {"threads": 2}})
    for ratio in (1.0, 3.0):
        records.append(path, record("matmul-f32 256x256x256", ratio).plain())
    path.write_text(path.read_text(encoding="utf-8") + '{"name": "matm', encoding="utf-8")
    records.append(path, record("matmul-f32 512x512x512", 2.0).plain())
    found, machine = records.read(path)
    assert machine == {"threads": 2}
    assert [each.ratio for each in found.values()] == [pytest.approx(3.0), pytest.approx(2.0)]


def test_the_page_has_every_row_and_its_plots_are_pictures(tmp_path: Path) -> None:
    found = complete(1.5)
    report.write(found, {"threads": 2, "rounds": 5}, tmp_path / "kernels.md")
    page = (tmp_path / "kernels.md").read_text(encoding="utf-8")
    assert all(row.what in page for row in EVERY if row.family != "peak")
    for family in report.PLOTTED:
        picture = ElementTree.parse(tmp_path / f"kernels-{family}.svg")
        marks = [mark for mark in picture.iter() if mark.tag.endswith("circle") and len(mark)]
        assert len(marks) == 2 * sum(row.family.removesuffix("-small") == family for row in EVERY)
