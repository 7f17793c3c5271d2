"""What all tests share: the real data, the browser, and how hypothesis runs.

Invariant: under CI nothing that a machine lacks lets a test pass unnoticed; it fails there and is skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CI = os.environ.get("CI", "").lower() in ("1", "true")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

settings.register_profile("tilework", deadline=None, derandomize=CI, print_blob=True)
settings.load_profile("tilework")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give whoever uses a fixture that a machine may lack the marker of that name."""
    for item in items:
        for name in ("realdata", "browser"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The directory of real data: TILEWORK_DATA, or shared/data beside the checkout."""
    chosen = os.environ.get("TILEWORK_DATA")
    path = Path(chosen) if chosen else SHARED / "data"
    if path.is_dir():
        return path
    if chosen or (CI and SHARED.exists()):
        pytest.fail(f"real data should be in {path}, but there is no such directory")
    pytest.skip("no real data beside the checkout; name its directory in TILEWORK_DATA")


@pytest.fixture(scope="session")
def browser() -> Path:
    """The executable of an installed Chromium."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return Path(found)
    if CI:
        pytest.fail("the browser tests must run here; install chromium")
    pytest.skip("no Chromium on this machine")
