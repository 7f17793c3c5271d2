"""The rules of the house, held on the syntax tree: who imports whom, what nobody calls, how files look.

Invariant: a rule's exceptions stand in this file, each with its reason.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "apps", "ui")
LONGEST_FILE = 500
"""Lines of a Python file."""

ENGINE_FOR_ACCEL = {f"core.engine.{name}" for name in (
    "array", "backends", "dtypes", "errors", "graph", "ops", "trace")}
"""What of the engine the machines may know: the graph and what it is made of."""

ONLY_IN_ACCEL = {"numba", "llvmlite"}
NEVER_IMPORTED = {
    "torch", "jax", "tensorflow",  # what we measure ourselves against
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",  # run what they read
}
ALLOWED_CALLS = {
    ("core/accel/objects.py", "exec"),  # the text of a kernel, which core.accel wrote; no user input is part of one
}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}

TEXT_SUFFIXES = {".py", ".md", ".toml", ".cff", ".lock", ".txt", ".json", ".yaml", ".yml", ".html", ".js", ".css"}
INDEX_HOST = re.compile(r"pypi\.org|pythonhosted\.org|anaconda\.org")
MACHINE_PATH = re.compile(r"(?<![\w.:/*-])/(?:home|work|root|Users|mnt|opt|scratch)/\w")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> Iterator[Path]:
    """Every file of the project that is written by hand, and the lock."""
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name == "Makefile"):
            yield path
    for folder in (*PACKAGES, "tests", "docs", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and (path.suffix in TEXT_SUFFIXES or folder == ".ci"):
                yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, also within functions."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if exists(f"{base}.{alias.name}") else base


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def may_import(importer: str, imported: str) -> bool:
    """Whether the directions of travel, ``ui -> apps -> core.engine`` and ``core.accel`` beside it, allow an import."""
    if within(importer, "core.engine"):
        return within(imported, "core.engine")
    if within(importer, "core.accel"):
        return imported == "core" or within(imported, "core.accel") or any(
            within(imported, known) for known in ENGINE_FOR_ACCEL)
    if within(importer, "apps"):
        return within(imported, "core.engine") or (
            within(imported, "apps") and not between_apps(importer, imported))
    return importer != "core" and within(importer, "ui") and not within(imported, "core.accel")


def app_of(module: str) -> str | None:
    """The app that a module belongs to; modules directly in ``apps`` belong to none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "apps" / parts[1]).is_dir() else None


def between_apps(importer: str, imported: str) -> bool:
    return None not in (app_of(importer), app_of(imported)) and app_of(importer) != app_of(imported)


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every forbidden call."""
    for node in ast.walk(syntax(path)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("eval", "exec"):
            yield node.lineno, function.id
        if isinstance(function, ast.Attribute) and function.attr in ("extractall", "unpack_archive"):
            yield node.lineno, function.attr
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "os" \
                and function.attr in ("system", "popen"):
            yield node.lineno, f"os.{function.attr}"
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                yield node.lineno, f"{keyword.arg}=True"


def test_imports_run_one_way() -> None:
    wrong = [f"{relative(path)}:{line} imports {imported}" for path in python_files(*PACKAGES)
             for line, imported in imports(path)
             if imported.split(".")[0] in (*PACKAGES, "tests") and not may_import(module_name(path), imported)]
    assert not wrong, "\n".join(wrong)


def test_the_engine_names_the_machines_in_one_file() -> None:
    named = set()
    for path in python_files("core/engine"):
        documentation = {id(node.value) for node in ast.walk(syntax(path)) if isinstance(node, ast.Expr)}
        named |= {relative(path) for node in ast.walk(syntax(path))
                  if isinstance(node, ast.Constant) and id(node) not in documentation
                  and isinstance(node.value, str) and node.value.startswith("core.accel")}
    assert named == {"core/engine/backends.py"}


def test_nobody_imports_what_we_do_without() -> None:
    wrong = []
    for path in python_files(*PACKAGES):
        forbidden = NEVER_IMPORTED if within(module_name(path), "core.accel") else NEVER_IMPORTED | ONLY_IN_ACCEL
        wrong += [f"{relative(path)}:{line} imports {name}" for line, name in imports(path)
                  if name.split(".")[0] in forbidden]
    assert not wrong, "\n".join(wrong)


def test_nothing_runs_what_it_reads() -> None:
    found = {(relative(path), name, line) for path in python_files(*PACKAGES, "tests") for line, name in calls(path)}
    wrong = [f"{path}:{line} calls {name}" for path, name, line in sorted(found) if (path, name) not in ALLOWED_CALLS]
    assert not wrong, "\n".join(wrong)
    assert sorted((path, name) for path, name, _ in found) == sorted(ALLOWED_CALLS), "an exception that nobody needs"


@pytest.mark.parametrize(("code", "name"), [
    ("eval('1')", "eval"), ("archive.extractall()", "extractall"), ("os.system('ls')", "os.system"),
    ("run('ls', shell=True)", "shell=True"), ("np.load(f, allow_pickle=flag)", "allow_pickle=True")])
def test_a_forbidden_call_is_seen(tmp_path: Path, code: str, name: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def function():\n    return {code}\n", encoding="utf-8")
    assert list(calls(path)) == [(2, name)]


@pytest.mark.parametrize(("importer", "imported", "allowed"), [
    ("core.engine.graph", "core.engine.dtypes", True), ("core.engine.graph", "core.accel.store", False),
    ("core.engine.graph", "apps.molecules.batches", False), ("core.accel.emit", "core.engine.ops.table", True),
    ("core.accel.emit", "core.engine.run", False), ("core.accel.emit", "apps.molecules.batches", False),
    ("apps.molecules.model", "core.engine.nn.linear", True), ("apps.molecules.model", "core.accel.store", False),
    ("apps.molecules.model", "ui.main", False), ("ui.main", "apps.molecules.batches", True),
    ("ui.main", "core.accel.store", False)])
def test_the_directions(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines())
               for path in python_files(*PACKAGES, "tests")}
    assert not {path: length for path, length in lengths.items() if length > LONGEST_FILE}


def test_every_module_says_what_it_is() -> None:
    assert not [relative(path) for path in python_files(*PACKAGES, "tests") if not ast.get_docstring(syntax(path))]


def test_every_name_is_a_noun_of_the_field() -> None:
    assert not [relative(path) for folder in (*PACKAGES, "tests", "docs") for path in (ROOT / folder).rglob("*")
                if path.stem.lower() in VAGUE_NAMES]


def test_no_file_names_an_index_or_a_machine() -> None:
    wrong = [f"{relative(path)}:{number} {found.group()}" for path in text_files()
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
             if (found := INDEX_HOST.search(line) or MACHINE_PATH.search(line))]
    assert not wrong, "\n".join(wrong)


@functools.cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_lock_has_every_requirement_with_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, version in (line.split()[0].split("==") for line in lines)}
    assert not [line.split()[0] for line in lines if "--hash=sha256:" not in line]
    assert "://" not in text
    for text in [*project()["dependencies"], *project()["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
    assert not {"torch", "jax", "tensorflow"} & locked.keys()


def test_the_citation_has_the_version() -> None:
    assert f"\nversion: {project()['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def readme_commands() -> list[tuple[str, ...]]:
    """The commands of the README's shell lines: program and sub-commands, without options and operands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    plain = re.compile("[a-z]+").fullmatch
    return sorted({tuple(itertools.takewhile(plain, line)) for line in lines if line[:1] in (["make"], ["tilework"])})


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_the_commands_of_the_readme_exist(command: tuple[str, ...]) -> None:
    program, *words = command
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert words and set(words) <= targets
        return
    finished = subprocess.run([sys.executable, "-c", "from apps.cli import main; main()", *words, "--help"], cwd=ROOT,
                              capture_output=True, text=True)
    assert re.search(r"Usage: \S+ " + " ".join(words), finished.stdout), finished.stdout + finished.stderr


def test_the_ci_script_is_executable_bash() -> None:
    bash = shutil.which("bash")
    assert bash and (ROOT / ".ci/run").stat().st_mode & 0o100
    subprocess.run([bash, "-n", ROOT / ".ci/run"], check=True)
