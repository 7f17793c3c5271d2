"""Every Python block of the documentation runs, and the op table it shows is the one there is.

Invariant: the blocks of one file run in order in one namespace, in a directory of their own; a traceback has the line
numbers of the document.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.engine.ops import TABLE

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(text: str) -> str:
    """The lines of all ``python`` blocks at their line numbers, the others blank."""
    kept, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        kept.append(line if inside else "")
    return "\n".join(kept) + "\n"


def documents() -> list[str]:
    """Documents that hold a Python block, as paths from the root."""
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "apps").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths
                  if path.is_file() and python_blocks(path.read_text(encoding="utf-8")).strip())


def run(code: str, directory: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a document in a directory, outside the checkout."""
    script = directory / f"{Path(name).stem}_blocks.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.run([sys.executable, script.name], cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)


@pytest.mark.parametrize("document", documents())
def test_the_blocks_run(document: str, tmp_path: Path) -> None:
    finished = run(python_blocks((ROOT / document).read_text(encoding="utf-8")), tmp_path, document)
    assert finished.returncode == 0, f"{document}\n{finished.stderr}"


def test_blocks_keep_their_lines_and_share_names(tmp_path: Path) -> None:
    text = "# Title\n```python\nx = 1\n```\n```sh\nrm x\n```\n```python\nassert x == 2\n```\n"
    finished = run(python_blocks(text), tmp_path, "title.md")
    assert finished.returncode == 1
    assert "line 9" in finished.stderr and "AssertionError" in finished.stderr


def test_decision_1_shows_the_op_table() -> None:
    text = (ROOT / "docs/design/0001-the-house.md").read_text(encoding="utf-8")
    table = text.partition("| family | ops |")[2].partition("\n\n")[0]
    shown = dict(re.findall(r"^\| (\w+) \| ((?:\w+ )+)\|$", table, re.MULTILINE))
    families: dict[str, set[str]] = {}
    for op in TABLE.values():
        families.setdefault(op.family, set()).add(op.name)
    assert {family: set(names.split()) for family, names in shown.items()} == families
