"""Warming: every installed app rehearses once, and again only when its code, the machine or the store has changed."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from apps.app import apps, load
from core.accel import fingerprint, store, warm
from core.accel.store import Store

REHEARSED: list[int] = []
KERNEL = "def kernel(p, d, begin, end):\n    d[0] = {number}\n"
ENTRY = EntryPoint("small", f"{__name__}:rehearse", warm.GROUP)


def rehearse() -> None:
    """What an app of two kernels offers."""
    REHEARSED.append(1)
    for number in (101, 102):
        store.address(KERNEL.format(number=number))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    REHEARSED.clear()
    own = Store(tmp_path)
    monkeypatch.setattr(store, "_default", own)
    monkeypatch.setattr(warm, "entry_points", lambda group: [ENTRY] if group == warm.GROUP else [])
    return own


def count(entry: EntryPoint = ENTRY) -> int:
    return warm.rehearse(entry)[0]


def test_a_second_time_does_nothing() -> None:
    assert (count(), count(), len(REHEARSED)) == (2, 0, 1)


def test_a_removed_kernel_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count() == 2
    next(tmp_path.glob("*.kernel")).unlink()
    monkeypatch.setattr(store, "_default", Store(tmp_path))  # as in another process
    assert (count(), len(REHEARSED)) == (1, 2)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": 1, "entries": 2}'])
def test_a_damaged_record_counts_for_nothing(tmp_path: Path, content: str) -> None:
    count()
    (tmp_path / "small.rehearsal").write_text(content, encoding="utf-8")
    assert (count(), len(REHEARSED)) == (0, 2)


def test_another_machine_rehearses_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    count()
    monkeypatch.setattr(fingerprint, "machine", lambda: "another one")
    count()
    assert len(REHEARSED) == 2


def test_an_edited_app_rehearses_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "small_app"
    package.mkdir()
    (package / "__init__.py").write_text(f"from {__name__} import rehearse\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("small", "small_app:rehearse", warm.GROUP)
    count(entry)
    count(entry)
    (package / "model.py").write_text("DEPTH = 3\n", encoding="utf-8")
    count(entry)
    assert len(REHEARSED) == 2


def test_the_record_names_the_entries(tmp_path: Path) -> None:
    count()
    assert set(json.loads((tmp_path / "small.rehearsal").read_text())["entries"]) == store.default().entries()


def test_the_command_says_what_it_compiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert warm.main([]) == 0
    assert warm.main(["small"]) == 0
    first, where, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("small: 2 kernels compiled, ")
    assert second.startswith("small: 0 kernels compiled, 0.")
    assert where == f"the store is {tmp_path}"


def test_an_unknown_app_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        warm.main(["large"])
    assert "no such app: large; installed are small" in capsys.readouterr().err


def test_every_app_rehearses() -> None:
    """What the project declares is what its apps offer."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"][warm.GROUP]
    assert declared.keys() == {app.name for app in apps()}
    assert all(callable(load(path)) for path in declared.values())
