"""The rehearsal runs what the app runs, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from apps.connectomics.rehearsal import rehearse


def test_the_rehearsal_ends_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rehearse()
    assert not list(tmp_path.iterdir())
