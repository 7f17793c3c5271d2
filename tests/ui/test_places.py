"""Paths that come from the browser: none leads out of the configured folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.engine.errors import ConfigError, DataError
from ui import places

CLIMBS = ["../", "..//", "./../", "a/../../", "data/../../", "..\\", "....//", "..;/", "%2e%2e/", "%2e%2e%2f", "..%2f",
          "..%252f", "%c0%ae%c0%ae/", "..%c0%af", "．．/", "..／", "..\x00/", "\x00../", "~/../", "$HOME/../", "file:///../",
          "file://localhost/../", "//../", "///../", "\\\\..\\", ".../", "link/", "link/../", "data/link/", "loop/../"]
TARGETS = ["secret.csv", "secret.csv\x00", "secret.csv\x00.csv", "secret.csv/", "SECRET.csv/../secret.csv"]
ABSOLUTE = [
    "/etc/passwd", "/etc/shadow", "//etc/passwd", "/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/zero",
    "/dev/stdin", "file:///etc/passwd", "~/.ssh/id_rsa", "~root/.bashrc", "C:\\Windows\\win.ini", "\\\\host\\share",
    "http://127.0.0.1/x.csv", "|ls", "; ls", "$(ls)", "`ls`", "", ".", "..", "/", "\x00", "\n", "a" * 5000, "a/" * 3000,
    ".hidden.csv", ".config/settings.csv", "data/.hidden/x.csv", "data", "link", "loop", "pipe/../../secret.csv"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with data in it, a secret beside it, and links that lead to the secret."""
    root = tmp_path / "root"
    (root / "data" / ".hidden").mkdir(parents=True)
    (root / ".config").mkdir()
    for path in ("data/fine.csv", ".hidden.csv", ".config/settings.csv", "data/.hidden/x.csv", "../secret.csv"):
        (root / path).write_text("smiles\nC\n")
    (root / "link").symlink_to(tmp_path)
    (root / "data" / "link").symlink_to("/")
    (root / "loop").symlink_to(root / "loop")
    (root / "secret.csv").symlink_to(tmp_path / "secret.csv")
    return root


@pytest.mark.parametrize("text", [climb + target for climb in CLIMBS for target in TARGETS] + ABSOLUTE
                         + [climb * 12 + "etc/passwd" for climb in CLIMBS] + ["secret.csv"])
def test_no_path_leads_out(root: Path, text: str) -> None:
    with pytest.raises(DataError, match="there is no data file"):
        places.inside(text, [root])


def test_the_absolute_path_of_a_secret_is_refused_like_one_that_does_not_exist(root: Path) -> None:
    secret, nothing = root.parent / "secret.csv", root.parent / "absent.csv"
    messages = []
    for path in (secret, nothing):
        with pytest.raises(DataError) as error:
            places.inside(str(path), [root])
        messages.append(str(error.value).replace(path.name, ""))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("text", ["data/fine.csv", "./data/fine.csv", "data/../data/fine.csv", "data//fine.csv"])
def test_paths_inside_are_found(root: Path, text: str) -> None:
    assert places.inside(text, [root.parent / "absent", root]) == (root / "data/fine.csv").resolve()
    assert places.inside(str(root / text), [root]) == (root / "data/fine.csv").resolve()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/tmp/x", "a\\..\\b", ".hidden", "-rf", "a b", "a\x00",
                                  "a\n", "é", "a..b", "x" * 65, "--out", "$(ls)", "~"])
def test_a_run_has_a_plain_name(folders: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name has at most 64"):
        places.new_run(name)


def test_a_taken_name_is_refused(ready: Path) -> None:
    with pytest.raises(ConfigError, match="there is a run named ready already"):
        places.new_run("ready")
    assert places.new_run("ready-2") == ready / "runs" / "ready-2"


@pytest.mark.parametrize("name", ["../../x.csv", "/etc/cron.d/x.csv", "..\\x.csv", "\x00.csv", ".csv",
                                  "a" * 300 + ".csv", "<script>.csv", "x.csv.gz", "X.CSV"])
def test_an_upload_gets_a_harmless_name(folders: Path, name: str) -> None:
    path = places.keep_upload(name, b"smiles\nC\n", (".csv", ".sdf"))
    assert path.parent == folders / "runs" / ".data" and path.read_bytes() == b"smiles\nC\n"
    assert places.inside(str(path), places.data_roots()) == path


@pytest.mark.parametrize(("name", "size", "said"), [
    ("x.exe", 1, "must be one of .csv, .sdf"), ("csv", 1, "must be one of"), ("x.csv.zip", 1, "must be one of"),
    ("x.csv", places.LARGEST_UPLOAD + 1, "the limit is 50 MB")])
def test_other_uploads_are_refused(folders: Path, name: str, size: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        places.keep_upload(name, bytes(size), (".csv", ".sdf"))


def test_the_listing_has_data_files_alone(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = folders.parent / f"{folders.name}-more"
    for path in (folders / "a.csv", folders / "b.txt", folders / "c" / "d.sdf.gz", folders / ".git" / "e.csv",
                 folders / "runs" / "x" / "report" / "f.csv", folders / "1/2/3/4/g.csv", more / "h.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setenv("TILEWORK_DATA", os.pathsep.join([str(more), ""]))
    expected = [folders / "a.csv", folders / "c/d.sdf.gz", more / "h.csv"]
    assert places.data_files((".csv", ".sdf")) == list(map(str, expected))
