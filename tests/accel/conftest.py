"""What the tests of the machines share: they make every plan anew, since some of them change what shapes a plan.

Invariant: only tests of the plan store read plans from it.
"""

from __future__ import annotations

import sys

import pytest

from core.accel import planstore


@pytest.fixture(autouse=True)
def plans_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planstore, "WORTH", sys.maxsize)
