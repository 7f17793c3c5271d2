"""Plans on disk: the same bits and the same report as a plan that was just made; never stale, never damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core.accel import chips, fingerprint, finished, plan, planstore, store
from core.accel.finished import Unnameable
from core.accel.store import Store
from core.engine import dtypes, ops
from core.engine.array import as_array
from core.engine.backends import Executable, Options, backend
from core.engine.graph import Graph, Where
from core.engine.jit import close, jit
from core.engine.testing import random_graph

COUNT, USUAL = 200, 16
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= USUAL else []) for seed in range(COUNT)]
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans_are_made_anew: None) -> Path:
    """A directory for the plans of this test, small ones too; kernels are where they always are."""
    own = Store(tmp_path / "plans")
    monkeypatch.setattr(planstore, "store", SimpleNamespace(default=lambda: own, edited=store.edited))
    monkeypatch.setattr(planstore, "WORTH", 0)
    return own.directory


@pytest.fixture
def no_planner(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, planning is an error."""
    def refuse(*arguments: object) -> None:
        raise AssertionError("planned although a plan was there")

    return lambda: monkeypatch.setattr(plan, "make_plan", refuse)


def traced(function: Callable[..., object], *arguments: object) -> Graph:
    return close(jit(function).trace(*arguments))


def results(executable: Executable, arrays: list[np.ndarray], options: Options) -> list[bytes]:
    """Bits of the results of two calls, and of what is held then."""
    if options.held:
        executable.hold(arrays[:options.held])
    made = [result for _ in range(2) for result in executable(arrays[options.held:])]
    return [array.tobytes() for array in (*made, *executable.held())]


def wave(x: object) -> object:
    return ops.tanh(x) * 2 + 1


# --- the same as before ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("held", [0, 4])
def test_a_plan_that_was_read_is_the_plan_that_was_made(seed, held, plans, no_planner):
    function, arguments = random_graph(seed)
    arrays, options = [array.storage for array in arguments], Options(held)
    made = backend("cpu").compile(traced(function, *arguments), options)
    expected = results(made, arrays, options)
    assert len(list(plans.iterdir())) == 1
    no_planner()
    read = backend("cpu").compile(traced(function, *arguments), options)
    assert results(read, arrays, options) == expected
    assert read.report == made.report


def training(layers: list, x: object) -> tuple:
    """A step that updates what it carries."""
    def loss(layers: list) -> object:
        y = x
        for weight in layers:
            y = ops.tanh(y @ weight)
        return ops.mean(y * y)

    from core.engine.grad import value_and_grad

    value, gradients = value_and_grad(loss)(layers)
    return [weight - gradient * 0.1 for weight, gradient in zip(layers, gradients, strict=True)], value


def test_what_is_carried_moves_alike(no_planner):
    generator = np.random.default_rng(0)
    layers = [as_array(generator.normal(size=(8, 8)), "f32") for _ in range(3)]
    x = as_array(np.ones((4, 8), np.float32))
    arrays, options = [array.storage for array in (*layers, x)], Options(held=3, carried=True)
    expected = results(backend("cpu").compile(traced(training, layers, x), options), arrays, options)
    no_planner()
    assert results(backend("cpu").compile(traced(training, layers, x), options), arrays, options) == expected


@pytest.mark.parametrize("function", [
    lambda x: ops.dynamic_slice(x, as_array(1), as_array(0), sizes=(2, 3)) * 2,
    lambda x: ops.sort(x.astype("i8"), axis=1)[0],
    lambda x: ops.scan(lambda state, row: (ops.tanh(state + row), state), x[0], x)[1],
], ids=["dynamic slice", "sort", "scan"])
def test_steps_on_the_host_and_loops_are_read(function, no_planner):
    x = as_array(np.arange(60, dtype=np.float32).reshape(5, 12) % 7)
    made = backend("cpu").compile(traced(function, x), Options())
    no_planner()
    read = backend("cpu").compile(traced(function, x), Options())
    assert read.report == made.report
    assert results(read, [x.storage], Options()) == results(made, [x.storage], Options())


@pytest.mark.parametrize("value", [3, -0.0, 1e300, True, None, "max", (), (1, (2, 3)), ((0, 1), "f32"), dtypes.bfloat16,
                                   (dtypes.int8, 2)], ids=repr)
def test_parameters_of_ops_survive(value):
    again = finished._restored(json.loads(json.dumps(value, default=finished.plain)))
    assert again == value
    assert repr(again) == repr(value)


def test_constants_of_the_graph_are_not_written(plans, no_planner):
    large = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    x = as_array(np.ones((2, 300), np.float32))
    graph = traced(lambda x: x @ as_array(large) + 3, x)
    expected = results(backend("cpu").compile(graph, Options()), [x.storage], Options())
    entry, = plans.iterdir()
    assert entry.stat().st_size < large.nbytes / 4
    no_planner()
    same = traced(lambda x: x @ as_array(large.copy()) + 3, x)
    assert results(backend("cpu").compile(same, Options()), [x.storage], Options()) == expected


def test_an_emulated_chip_reads_its_plan(no_planner):
    x = as_array(np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32))
    made = backend("tpu-v3").compile(traced(lambda x: x @ x, x), Options())
    no_planner()
    read = backend("tpu-v3").compile(traced(lambda x: x @ x, x), Options())
    assert (read.report.backend, read.report.steps) == ("tpu-v3", made.report.steps)
    assert results(read, [x.storage], Options()) == results(made, [x.storage], Options())


PROGRAM = """
import numpy as np
from core.accel import plan, planstore
from core.engine.array import as_array
from core.engine.jit import jit
from tests.accel.test_planstore import training
planstore.WORTH = 8
planned, make_plan = [], plan.make_plan
plan.make_plan = lambda *arguments: planned.append(arguments) or make_plan(*arguments)
layers = [as_array(np.full((8, 8), number / 9, np.float32)) for number in (1, 2, 3)]
program = jit(training).bind(layers, update=True)
losses = [program(np.ones((4, 8), np.float32)).item() for _ in range(3)]
print(bool(planned), losses, [array.numpy().tobytes().hex() for array in program.value])
"""


def test_processes_share_plans(tmp_path):
    """Two that begin at once, of which the first to look plans, perhaps both, and one that comes later and does not."""
    def started(seed: str) -> subprocess.Popen[str]:  # of hashes: sets have another order in each process
        return subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, stdout=subprocess.PIPE, cwd=ROOT,
                                env={**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": seed,
                                     "TILEWORK_CACHE": str(tmp_path / "store")})

    early = [process.communicate()[0] for process in [started("1"), started("2")]]
    planned, found = zip(*[text.split(" ", 1) for text in (*early, started("3").communicate()[0])], strict=True)
    assert "True" in planned[:2] and planned[2] == "False"
    assert len(set(found)) == 1
    assert len(list((tmp_path / "store").glob("*.plan"))) == 1
    assert not list((tmp_path / "store").glob("*.part"))


# --- keys ------------------------------------------------------------------------------------------------------------

def small(x: object, y: object) -> object:
    return ops.sum(ops.tanh(x) * 2, 0) + y


X, Y = as_array(np.ones((3, 4), np.float32)), as_array(np.ones(4, np.float32))
VARIANTS = {
    "same": (small, X, Y),
    "other op": (lambda x, y: ops.sum(ops.sin(x) * 2, 0) + y, X, Y),
    "other constant": (lambda x, y: ops.sum(ops.tanh(x) * 3, 0) + y, X, Y),
    "other parameter": (lambda x, y: ops.amax(ops.tanh(x) * 2, 0) + y, X, Y),
    "other order of operands": (lambda x, y: y + ops.sum(ops.tanh(x) * 2, 0), X, Y),
    "other value twice": (lambda x, y: ops.sum(ops.tanh(x) * 2, 0) + ops.sum(ops.tanh(x) * 2, 0), X, Y),
    "other shape": (small, as_array(np.ones((5, 4), np.float32)), Y),
    "other dtype": (small, as_array(np.ones((3, 4))), as_array(np.ones(4))),
    "more outputs": (lambda x, y: (small(x, y), y), X, Y),
    "other order of outputs": (lambda x, y: (y, small(x, y)), X, Y),
    "more inputs": (lambda x, y, z: small(x, y), X, Y, Y),
    "order of inputs": (lambda y, x: small(x, y), Y, X),
    "within a call": (lambda x, y: jit(small)(x, y), X, Y),
    "another call": (lambda x, y: jit(lambda x, y: small(x, y) * 2)(x, y), X, Y),
    "scan": (lambda x, y: ops.scan(lambda carry, row: (carry + row, carry), y, x), X, Y),
    "scan of another body": (lambda x, y: ops.scan(lambda carry, row: (carry * row, carry), y, x), X, Y),
    "scan in reverse": (lambda x, y: ops.scan(lambda carry, row: (carry + row, carry), y, x, reverse=True), X, Y),
}


def test_graphs_and_options_have_their_own_keys():
    keys = {name: planstore.key(traced(*variant), Options()) for name, variant in VARIANTS.items()}
    keys |= {repr(options): planstore.key(traced(*VARIANTS["same"]), options)
             for options in (Options(1), Options(2), Options(1, True))}
    assert len(set(keys.values())) == len(keys)


def test_a_layer_has_its_own_key():
    graph = traced(small, X, Y)
    before = planstore.key(graph, Options())
    graph.equations[0] = replace(graph.equations[0], where=Where("encoder"))
    assert planstore.key(graph, Options()) != before


@pytest.mark.parametrize("name", VARIANTS)
def test_a_key_does_not_depend_on_the_process(name):
    function, *arguments = VARIANTS[name]
    first = planstore.key(traced(function, *arguments), Options())
    assert planstore.key(traced(function, *[as_array(array.numpy().copy()) for array in arguments]), Options()) == first


@pytest.mark.parametrize(("module", "name"), [(fingerprint, "machine"), (chips, "description"), (planstore, "_code")])
def test_machines_and_programs_have_their_own_keys(module, name, monkeypatch):
    graph = traced(small, X, Y)
    before = planstore.key(graph, Options())
    monkeypatch.setattr(module, name, lambda: "another one")
    assert planstore.key(graph, Options()) != before


@pytest.mark.parametrize("name", [chip.name for chip in chips.CHIPS if chip.features <= chips._features()])
def test_a_description_names_the_chip(name, monkeypatch):
    monkeypatch.setenv("TILEWORK_CPU", name)
    chips.host.cache_clear()
    description = chips.description()
    monkeypatch.undo()
    chips.host.cache_clear()
    assert f"name={name!r}" in description


def test_every_source_counts(tmp_path):
    names = {path.relative_to(ROOT).as_posix() for path in planstore._sources()}
    assert {"core/accel/lower.py", "core/accel/passes/fuse.py", "core/accel/kernels/gemm.py", "core/accel/native.py",
            "core/engine/ops/shape.py", "core/engine/trace.py"} <= names
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 2\n")
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    digests = {fingerprint.of_files(paths), fingerprint.of_files(paths[:1]), fingerprint.of_files(paths[::-1])}
    (tmp_path / "b.py").write_text("x = 3\n")
    assert len(digests | {fingerprint.of_files(paths)}) == 4


# --- what is kept ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[:len(content) // 2],
    lambda content: content[:-1],
    lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    lambda content: content[:80] + b"x" + content[81:],
], ids=["empty", "half", "cut", "one bit", "text"])
def test_a_damaged_plan_is_replaced(damage, plans, no_planner):
    made = backend("cpu").compile(traced(wave, X), Options())
    entry, = plans.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    again = backend("cpu").compile(traced(wave, X), Options())
    assert entry.read_bytes() == whole
    no_planner()
    read = backend("cpu").compile(traced(wave, X), Options())
    expected = results(made, [X.storage], Options())
    assert results(again, [X.storage], Options()) == results(read, [X.storage], Options()) == expected


def doubled(x: np.ndarray) -> np.ndarray:
    return x * 2


@pytest.mark.parametrize("function", [
    lambda x: ops.custom_call(x, function=doubled, avals=(x.aval,))[0] + 1,
    lambda x: ops.all_reduce(x, group=doubled)[0] + 1,
    lambda x: jit(lambda x: ops.custom_call(x, function=doubled, avals=(x.aval,))[0])(x) + 1,
], ids=["custom call", "all reduce", "within a call"])
def test_a_graph_with_a_function_of_the_host_is_planned_each_time(function, plans):
    graph = traced(function, X)
    with pytest.raises(Unnameable, match="doubled"):
        planstore.key(graph, Options())
    for _ in range(2):
        result, = backend("cpu").compile(graph, Options())([X.storage])
        assert (result == 3).all()
    assert not list(plans.iterdir())


def test_an_op_that_is_not_in_the_table_has_no_name():
    graph = traced(wave, X)
    graph.equations[0] = replace(graph.equations[0], op=replace(graph.equations[0].op, doc="another one"))
    with pytest.raises(Unnameable, match="tanh is no op of the table"):
        planstore.key(graph, Options())


def test_a_process_older_than_its_sources_does_without(plans, monkeypatch, no_planner):
    backend("cpu").compile(traced(wave, X), Options())
    entry, = plans.iterdir()
    monkeypatch.setattr(store, "STARTED", 0.0)
    backend("cpu").compile(traced(small, X, Y), Options())
    assert list(plans.iterdir()) == [entry]
    no_planner()
    with pytest.raises(AssertionError, match="planned although"):
        backend("cpu").compile(traced(wave, X), Options())


def test_a_small_graph_is_not_worth_an_entry(plans, monkeypatch):
    graph = traced(lambda x: jit(wave)(x), X)
    size = len(graph.equations) + len(traced(wave, X).equations)
    for worth, kept in ((size + 1, 0), (size, 1)):
        monkeypatch.setattr(planstore, "WORTH", worth)
        backend("cpu").compile(graph, Options())
        assert len(list(plans.iterdir())) == kept


def test_plans_are_pruned_with_kernels(plans):
    for factor in range(3):
        backend("cpu").compile(traced(lambda x, factor=factor: x * (factor + 2.0), X), Options())
    first, second, third = sorted(plans.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    Store(plans, capacity=2 * first.stat().st_size).keep("new.plan", b"content", [])
    assert {path.name for path in plans.iterdir()} <= {second.name, third.name, "new.plan"}
