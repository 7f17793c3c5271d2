"""The command line: exit codes, streams, settings, and a training that survives being killed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.app import APPS, Report, TrainingConfig, config_values, dump_config, load_config, setting, settings, validate
from apps.cli import main
from core.engine.checkpoint import load
from core.engine.errors import ConfigError
from core.engine.run import RunDirectory
from tests.apps.toy import Config

ROOT = Path(__file__).parents[2]
TOY = ("tests.apps.toy:APP",)
PROGRAM = "import sys; from apps.cli import main; sys.exit(main(paths=('tests.apps.toy:APP',)))"


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y\n" + "".join(f"{x / 40},{x / 20 + 1}\n" for x in range(40)))
    return path


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; gives the exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words], TOY)
        return code, *capsys.readouterr()

    return call


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_command_of_an_app(run, tmp_path):
    assert run("toy", "sample", "--out", tmp_path / "data")[0] == 0
    data, trained = tmp_path / "data" / "points.csv", tmp_path / "run"
    code, out, err = run("toy", "train", data, "--out", trained, "--epochs", "2", "--seed", "5")
    assert (code, "rmse" in out, "epoch 2/2" in err) == (0, True, True)
    assert files(trained) == {".lock", "run.json", "config.toml", "metrics.jsonl", "model.safetensors",
                              "state.safetensors", "report/report.json", "report/epochs.csv"}
    record = RunDirectory.open(trained).record
    assert record["status"] == "finished"
    assert record["config"]["seed"] == 5
    assert record["command"][:3] == ["tilework", "toy", "train"]
    assert run("toy", "evaluate", trained, data, "--out", tmp_path / "report")[0] == 0
    assert files(tmp_path / "report") == {"report.json", "arrays.safetensors"}
    assert run("toy", "predict", trained, data, "--out", tmp_path / "plain.txt")[0] == 0
    assert run("toy", "predict", trained, data, "--out", tmp_path / "twice.txt", "--scale", "2")[0] == 0
    first, second = (float((tmp_path / name).read_text().split()[7]) for name in ("plain.txt", "twice.txt"))
    assert second == pytest.approx(2 * first, abs=1e-5)
    assert run("toy", "import-line", data, "--out", tmp_path / "line")[0] == 0


@pytest.mark.parametrize(("words", "code", "says"), [
    ("", 0, "Usage"),
    ("toy", 0, "train"),
    ("--version", 0, ""),
    ("toy train {data} --out {new}", 0, "rmse"),
    ("toy train {data} --out {new} --fail bug", 1, "RuntimeError: a bug"),
    ("toy import-line {data} --out {new}/deep/line", 0, ""),
    ("toy import-line {data} --out {data}/line", 2, "a file, not a folder"),
    ("nonsense", 2, 'Unknown command "nonsense"'),
    ("toy trian", 2, 'Did you mean "train"'),
    ("toy train --out {new}", 2, "DATA"),
    ("toy train {data}", 2, "--out is missing"),
    ("toy train {data} --out {new} --epoch 3", 2, "Did you mean --epochs"),
    ("toy train {data} --out {new} --epochs three", 2, "--epochs"),
    ("toy train {data} --out {new} --epochs 0", 2, "epochs cannot be 0"),
    ("toy train {data} --out {new} --rate nan", 2, "rate cannot be nan"),
    ("toy train {data} --out {new} --model lime", 2, "did you mean line?"),
    ("toy train {data} --out {new} --device gpu", 2, "no device 'gpu'"),
    ("toy train {data} --out {new} --config {new}", 2, "cannot be read"),
    ("toy train {data} --out {folder}", 2, "is not empty"),
    ("toy predict {new} {data}", 2, "--out"),
    ("toy train {folder}/nothing.csv --out {new}", 3, "there is no file or folder"),
    ("toy train {empty} --out {new}", 3, "has no points"),
    ("toy train {data} --out {new} --resume", 3, "there is no run"),
    ("toy train {data} --out {new} --fail missing", 3, "/nonexistent/file: No such file"),
    ("toy train {data} --out {new} --rate 1e30", 3, "training diverged"),
    ("toy evaluate {folder} {data}", 3, "there is no run"),
    ("toy train {dirty} --out {new}", 4, "2 items were refused"),
    ("toy train {data} --out {new} --fail memory", 5, "out of memory: unable to allocate 3 TiB"),
    ("toy train {data} --out {new} --fail disk", 5, "the disk is full"),
])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_exit_codes_and_messages(run, tmp_path, points, words, code, says, as_json):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "empty.csv").write_text("x,y\n")
    (folder / "dirty.csv").write_text(points.read_text() + "1,two\nthree\n")
    words = words.format(data=points, new=tmp_path / "new", folder=folder, empty=folder / "empty.csv",
                         dirty=folder / "dirty.csv").split()
    if as_json and (code == 0 and not {"train", "import-line"} & set(words)):
        pytest.skip("help and version are text")
    found, out, err = run(*words, *["--json"] * as_json)
    assert found == code
    assert says in out + err
    assert ("Traceback" in err) == (code == 1)
    if as_json:
        assert json.loads(out)["exit_code"] == code
        assert out.count("\n") == 1
    elif code:
        assert says in err


def test_refused_items_are_listed(run, tmp_path, points):
    points.write_text(points.read_text() + "1,two\n")
    code, out, _ = run("toy", "train", points, "--out", tmp_path / "run", "--json")
    assert (code, json.loads(out)["refused"]) == (4, 1)
    listed = (tmp_path / "run" / "refused.csv").read_text().splitlines()
    assert listed == ["row,reason,text", '42,not two numbers,"1,two"']
    run("toy", "predict", tmp_path / "run", points, "--out", tmp_path / "guess.csv")
    assert (tmp_path / "refused.csv").read_text().splitlines() == listed
    run("toy", "predict", tmp_path / "run", points, "--out", tmp_path / "run" / "guess.csv")
    assert (tmp_path / "run" / "guess.refused.csv").read_text().splitlines() == listed
    code, _, err = run("toy", "predict", tmp_path / "run", points, "--out", tmp_path / "refused.csv")
    assert (code, "is the name of the list of refused items" in err) == (2, True)


def test_progress_for_programs_is_json_on_stderr(run, tmp_path, points):
    _, out, err = run("toy", "train", points, "--out", tmp_path / "run", "--json")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["progress"]["epoch"] for line in lines if line["progress"]["epoch_done"]] == [1, 2, 3]
    assert set(json.loads(out)["numbers"]) == {"rmse"}


def test_a_dry_run_writes_nothing(run, tmp_path, points):
    before = files(tmp_path)
    code, out, _ = run("toy", "train", points, "--out", tmp_path / "run", "--dry-run")
    assert (code, out.split()) == (0, ["points", "f32[40,", "2]"])
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()
    assert run("toy", "train", points, "--dry-run", "--epochs", "0")[0] == 2


def test_settings_come_from_defaults_then_the_file_then_options(run, tmp_path, points):
    config = tmp_path / "config.toml"
    config.write_text('epochs = 2\nrate = 1\ntargets = ["a", "b"]\n')
    run("toy", "train", points, "--out", tmp_path / "run", "--config", config, "--epochs", "4", "--sizes", "1,2",
        "--sizes", "3", "--no-shuffle", "--target", "y, in mol/L", "--target", "z")
    values = RunDirectory.open(tmp_path / "run").record["config"]
    assert (values["epochs"], values["rate"], values["batch_size"]) == (4, 1.0, 8)
    assert (values["targets"], values["sizes"]) == (["y, in mol/L", "z"], [1, 2, 3])
    assert values["shuffle"] is False


def test_the_config_of_a_run_makes_the_same_run(run, tmp_path, points):
    run("toy", "train", points, "--out", tmp_path / "a", "--seed", "9", "--rate", "0.01")
    run("toy", "train", points, "--out", tmp_path / "b", "--config", tmp_path / "a" / "config.toml")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_resuming_refuses_other_settings_and_other_data(run, tmp_path, points):
    command = ["toy", "train", points, "--out", tmp_path / "run"]
    run(*command)
    code, _, err = run(*command, "--resume", "--epochs", "9")
    assert (code, "epochs" in err, "9 is asked for, the run began with 3" in err) == (2, True, True)
    code, out, _ = run(*command, "--resume", "--epochs", "3", "--json")
    assert (code, list(json.loads(out)["numbers"])) == (0, ["rmse"])
    points.write_text("x,y\n1,2\n")
    assert run(*command, "--resume")[0] == 3


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
configs = st.builds(
    Config, seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 1000), rate=st.floats(0, 1e30),
    model=st.sampled_from(["line", "parabola"]), targets=st.lists(texts, max_size=3).map(tuple), shuffle=st.booleans(),
    sizes=st.lists(st.integers(1, 9), max_size=3).map(tuple), smiles=st.none() | texts)


@given(config=configs)
def test_a_config_survives_its_toml_file(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(Config, path) == config


@pytest.mark.parametrize(("name", "value", "says"), [
    ("epochs", 0, ["epochs cannot be 0", "1..1000", "--epochs: passes over the data"]),
    ("epochs", 2.0, ["epochs cannot be 2.0"]),
    ("epochs", True, ["epochs cannot be true"]),
    ("rate", math.nan, ["rate cannot be nan", "per step"]),
    ("rate", "fast", ['rate cannot be "fast"']),
    ("model", "lin", ["line or parabola", "did you mean line?"]),
    ("targets", "y", ['targets cannot be "y"', "a list"]),
    ("targets", ("y", 1), ['targets cannot be ["y", 1]', "--target:"]),
    ("sizes", (0,), ["sizes cannot be [0]", "at least 1"]),
    ("smiles", "\udcff", ["smiles cannot be"]),
    ("shuffle", 1, ["shuffle cannot be 1", "true or false"]),
])
def test_impossible_values_are_told(name, value, says):
    with pytest.raises(ConfigError) as caught:
        load_config(Config, None, {name: value})
    assert all(words in str(caught.value) for words in says)
    with pytest.raises(ConfigError, match=f"^{name} cannot be"):
        validate(Config(**{name: value}))


@pytest.mark.parametrize(("text", "says"), [
    ("epoch = 3", "did you mean epochs?"), ("[section]\nepochs = 3", "no setting 'section'"),
    ("epochs = ", "is not TOML")])
def test_a_bad_config_file_is_told(tmp_path, text, says):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.toml") as caught:
        load_config(Config, tmp_path / "config.toml")
    assert says in str(caught.value)


def test_a_setting_without_default_must_be_given():
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Needy(TrainingConfig):
        target: str = setting(help="what to fit")

    Needy.__annotations__["target"] = str
    with pytest.raises(ConfigError, match="--target is missing: what to fit"):
        load_config(Needy)
    assert config_values(load_config(Needy, None, {"target": "y"}))["target"] == "y"


@pytest.mark.parametrize("hint", [dict, tuple[int, int], list[int], int | str | None, tuple[bool, ...]])
def test_a_setting_of_another_type_is_a_mistake_of_ours(hint):
    from dataclasses import make_dataclass

    with pytest.raises(TypeError, match="the setting odd is of the type"):
        settings(make_dataclass("Odd", [("odd", hint, setting(None))]))


def start(*words: object, before: str = "", **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", before + PROGRAM, *map(str, words)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_devices_tell_what_runs_here(run):
    code, out, _ = run("devices", "--json")
    found = json.loads(out)["numbers"]
    assert code == 0
    assert "cpu" in found["backends"].split(", ")
    assert found["cores"] >= found["threads"] >= 1 or "TILEWORK_THREADS" in os.environ
    assert found["kernels"].split(",")[0] in {"amx", "avx512", "avx2", "neon", "generic"}


def test_a_benchmark_of_nothing_is_an_error_of_usage(run):
    assert run("bench", "nothing-has-this-name")[0] == 2


def test_the_demo_is_loaded_when_it_runs(run, tmp_path, monkeypatch):
    demo = types.ModuleType("apps.demo")
    demo.main = lambda out: Report({"folder": out.name})
    monkeypatch.setitem(sys.modules, "apps.demo", demo)
    assert run("demo", "--out", tmp_path / "demo", "--json")[:2] == (0, json.dumps(
        {"exit_code": 0, "numbers": {"folder": "demo"}, "written": str(tmp_path / "demo"), "refused": 0,
         "refusals": None}) + "\n")


def test_the_web_app_serves_this_machine_alone(run, monkeypatch):
    started = []
    server = types.SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", lambda command: started.append(command) or server)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=f"{name}.py"))
    assert run("ui", "--port", "9000")[0] == 0
    options = dict(itertools.pairwise(started[0]))
    assert options["run"] == "ui.main.py"
    assert options["--server.address"] == "127.0.0.1"
    assert options["--server.port"] == "9000"
    assert options["--browser.gatherUsageStats"] == "false"


def test_without_the_web_app_the_message_says_so(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run("ui")
    assert (code, "needs streamlit" in err) == (2, True)


def test_help_loads_no_heavy_library():
    heavy = {"numba", "numpy", "llvmlite", "rdkit", "streamlit", "safetensors"}
    for words in (["--help"], ["toy", "--help"], ["toy", "train", "--help"]):
        code = f"import sys; from apps.cli import main\nassert main({words}, {TOY}) == 0\n" \
               f"assert not {heavy} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    for shown in ("--batch-size", "(1..1000)", "per step", "[default: 3]", "--target", "--no-shuffle"):
        assert shown in done.stdout


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_gone_is_no_error(tmp_path, buffered, more):
    readable, writable = os.pipe()
    os.close(readable)
    done = subprocess.run([sys.executable, "-c", PROGRAM, "toy", "sample", "--out", tmp_path / "data", *more], cwd=ROOT,
                          env={**os.environ, "PYTHONUNBUFFERED": buffered}, stdout=writable, stderr=subprocess.PIPE,
                          check=False)
    os.close(writable)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_training_with_a_checkpoint(tmp_path, points, number):
    command = ["toy", "train", points, "--out", tmp_path / "run", "--epochs", "500", "--pause", "0.01"]
    with start(*command) as process:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "--resume goes on from there" in err
    assert RunDirectory.open(tmp_path / "run").status == "stopped"
    assert (tmp_path / "run" / "state.safetensors").exists()


EAGER = "import core.engine.train as t; t.CHECKPOINT_SECONDS = t.EPOCH_SECONDS = -1.0\n"
KILLER = """
import itertools, os, signal
calls = itertools.count(1)
def deadly(function, fatal):
    def call(*arguments):
        if next(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
os.fsync, os.replace = (deadly(function, {fatal}) for function in (os.fsync, os.replace))
"""


def trained_bits(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    state = load(folder / "state.safetensors")[0]
    return (folder / "model.safetensors").read_bytes(), {name: array.storage.tobytes() for name, array in state.items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main(["toy", "sample", "--out", str(folder / "data")], TOY) == 0
    data = folder / "data" / "points.csv"
    assert main(["toy", "train", str(data), "--out", str(folder / "run"), "--epochs", "4"], TOY) == 0
    return data, trained_bits(folder / "run")


def finish(data: Path, folder: Path) -> None:
    resume = ["--resume"] if (folder / "run.json").exists() else []
    assert main(["toy", "train", str(data), "--out", str(folder), "--epochs", "4", *resume], TOY) == 0


@pytest.mark.parametrize("fatal", [1, 2, 4, 7, 15, 20, 30, 61, 62, 80])
def test_a_kill_while_saving_changes_nothing(tmp_path, uninterrupted, fatal):
    """The process dies before its n-th flush to disk or renaming, of about 80 in all."""
    data, bits = uninterrupted
    command = ["toy", "train", data, "--out", tmp_path / "run", "--epochs", "4"]
    with start(*command, before=EAGER + KILLER.format(fatal=fatal)) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finish(data, tmp_path / "run")
    assert trained_bits(tmp_path / "run") == bits
    assert not list((tmp_path / "run").rglob("*.part"))


def test_kills_at_random_moments_change_nothing(tmp_path, uninterrupted):
    data, bits = uninterrupted
    moments = random.Random(20)
    for _ in range(6):
        resume = ["--resume"] if (tmp_path / "run" / "run.json").exists() else []
        with start("toy", "train", data, "--out", tmp_path / "run", "--epochs", "4", *resume, before=EAGER) as process:
            time.sleep(moments.uniform(0.3, 1.0))
            process.kill()
    finish(data, tmp_path / "run")
    assert trained_bits(tmp_path / "run") == bits


def test_the_apps_of_the_program_are_named_once():
    assert len(set(APPS)) == len(APPS)
