"""Layer lists: every provided row, the forms that files have, and rows that are refused."""

from __future__ import annotations

import csv
import json

import pytest

from apps.cli import main
from core.accel.tpu.machine import machine
from core.accel.tpu.systolic import DATAFLOWS, MODES, Product
from core.accel.tpu.topology import count, read
from core.engine.errors import DataError

CONVOLUTION = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


@pytest.mark.parametrize(("network", "topology"), [
    ("alexnet", "conv_nets/alexnet"), ("resnet18", "conv_nets/Resnet18"), ("gnmt", "GEMM_mnk/gnmt")])
def test_every_provided_row_is_equal(realdata, network, topology):
    layers = read(realdata / "accel/scalesim_topologies/topologies" / f"{topology}.csv")
    with open(realdata / "accel/scalesim_cycles" / f"{network}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [layer.name for layer in layers] == [row["layer"] for row in rows]
    for side in (8, 16, 32, 64, 128, 256):
        for dataflow in DATAFLOWS:
            found = count(layers, side, side, dataflow, "stall-free")
            assert [layer.cycles for layer in found] == [int(row[f"{dataflow}_{side}x{side}"]) for row in rows]
            assert [layer.utilisation for layer in found] == pytest.approx(
                [int(row["macs"]) / side**2 / int(row[f"{dataflow}_{side}x{side}"]) for row in rows])


def test_every_provided_topology_runs_in_every_mode(realdata):
    paths = sorted((realdata / "accel/scalesim_topologies").rglob("*.csv"))
    assert len(paths) >= 24
    for path in paths:
        layers = read(path)
        for dataflow in DATAFLOWS:
            whole, pipelined, full = (count(layers, 256, 256, dataflow, mode, machine("tpu-v1")) for mode in MODES)
            assert all(b.cycles <= a.cycles and b.cycles <= c.cycles and 0 < c.utilisation <= b.utilisation <= 1
                       for a, b, c in zip(whole, pipelined, full, strict=True)), path


@pytest.mark.parametrize(("text", "product"), [
    (CONVOLUTION + "a, 7, 9, 3, 3, 4, 5, 2,\n", Product(3 * 4, 36, 5)),
    (CONVOLUTION + "a, 8, 9, 9, 3, 4, 5, 2,\n", Product(1 * 4, 108, 5)),
    (CONVOLUTION + "\n , ,\n a ,7 ,9, 3,3 ,4,5,2, \n\n", Product(3 * 4, 36, 5)),
    ("\ufeff" + CONVOLUTION.replace(",\n", "\r\n") + "a,7,9,3,3,4,5,2\r\n", Product(3 * 4, 36, 5)),
    (CONVOLUTION + "a, 7, 9, 3, 3, 4, 5, 2, 1,\n", Product(3 * 7, 36, 5)),
    (CONVOLUTION + "a, 7, 9, 3, 3, 4, 5, 2, 1\n", Product(3 * 7, 36, 5)),
    (CONVOLUTION.replace("Strides", "Stride height, Stride width") + "a, 7, 9, 3, 3, 4, 5, 2, 1,\n",
     Product(3 * 7, 36, 5)),
    (CONVOLUTION.replace(",\n", ",Eh\n") + "a, 7, 9, 3, 3, 4, 5, 2, 6\n", Product(3 * 4, 36, 5)),
    (CONVOLUTION + "a, 7, 9, 3, 3, 4, 5, 2,#dw\n", Product(3 * 4, 36, 5)),
    (CONVOLUTION.replace(",\n", ",Sparsity,\n") + "a, 7, 9, 3, 3, 4, 5, 2, 1:4,\n", Product(3 * 4, 36, 5)),
    ("Layer, IFMAP Width, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\na,7,9,3,3,4,5,2,\n",
     Product(3 * 4, 36, 5)),
    ("Layer,M,N,K,\na,2,3,4,\n", Product(2, 4, 3)), ("Layer Name, M, K, N\na, 2, 4, 3\n", Product(2, 4, 3))])
def test_forms_of_files(tmp_path, text, product):
    path = tmp_path / "topology.csv"
    path.write_text(text, encoding="utf-8")
    assert [(layer.name, layer.product) for layer in read(path)] == [("a", product)]


@pytest.mark.parametrize(("text", "words"), [
    ("", "is empty"), (CONVOLUTION, "no layers"), ("a,2,3,4,\n", "line 1: the first line has no names"),
    ("Layer,P,Q\na,1,2\n", "line 1: the header Layer, P, Q is of no known form"),
    (CONVOLUTION + "\na, 8, 9, 3, 3, 4, , 2,\n", "line 3, column 7: num filter is missing"),
    (CONVOLUTION + "a, 8, 9, 3, 3, 4\n", "line 2, column 7: num filter is missing"),
    (CONVOLUTION + "a, 8, 9, 3, 3, 4, x, 2,\n", "line 2, column 7: num filter is 'x'"),
    (CONVOLUTION + "a, 8, 9, 3, 3, 4, 5, 0,\n", "line 2, column 8: strides is '0'"),
    (CONVOLUTION + "a, 8, 9, 3, 3, 4, 5, 1, -1,\n", "line 2, column 9: second stride is '-1'"),
    (CONVOLUTION + "a, 8, 9, 9, 3, 4, 5, 1,\n", "line 2, column 4: filter height 9 is larger than IFMAP height 8"),
    ("Layer,M,N,K\na,1,2.5,3\n", "line 2, column 3: N is '2.5'")])
def test_a_row_that_is_no_layer_is_refused_with_its_place(tmp_path, text, words):
    path = tmp_path / "topology.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_the_command_prints_one_object(tmp_path, capsys):
    path = tmp_path / "topology.csv"
    path.write_text("Layer,M,N,K,\nfirst,256,128,256,\nsecond,1,1,1,\n", encoding="utf-8")
    assert main(["accel", "topology", str(path), "--array", "32", "--dataflow", "is", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total_cycles"] == 14207 + 94 and printed["exit_code"] == 0
    assert printed["layers"] == [{"name": "first", "cycles": 14207, "utilisation": 256 * 128 * 256 / 32**2 / 14207},
                                 {"name": "second", "cycles": 94, "utilisation": 1 / 32**2 / 94}]
    assert main(["accel", "topology", str(path), "--array", "32x64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "cycles", "utilisation"] and lines[-1].startswith("total_cycles")


@pytest.mark.parametrize(("options", "code", "words"), [
    (["--array", "0"], 2, "--array"), (["--array", "8x8x8"], 2, "--array"),
    (["--array", "8", "--dataflow", "rs"], 2, "ws, os, is"), (["--array", "8", "--mode", "fast"], 2, "stall-free"),
    (["--array", "8", "--mode", "full", "--chip", "tpu-v9"], 2, "tpu-v1"), (["--array", "8"], 3, "line 2, column 2")])
def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys, options, code, words):
    path = tmp_path / "topology.csv"
    path.write_text(f"Layer,M,N,K,\na,{'x' if code == 3 else 1},2,3,\n", encoding="utf-8")
    assert main(["accel", "topology", str(path), *options]) == code
    assert words in capsys.readouterr().err


def test_a_missing_file_is_refused(capsys):
    assert main(["accel", "topology", "none.csv", "--array", "8"]) == 3
    assert "none.csv" in capsys.readouterr().err
