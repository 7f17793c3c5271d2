"""Errors meant for the person who reads them.

Invariant: whatever a user can cause raises a `TileworkError`; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable


class TileworkError(Exception):
    """Base of all errors that a user can cause; the message says what, where, found, expected and what to do."""


class ShapeError(TileworkError):
    """Shapes or dtypes that an op cannot take."""


class TraceError(TileworkError):
    """A traced value was used where a concrete one is needed, or outside its trace."""


class ConfigError(TileworkError):
    """A setting that does not exist or has an impossible value."""


class DataError(TileworkError):
    """Input that cannot be read or cannot be used."""


class CheckpointError(TileworkError):
    """A run directory or a weight file that is missing, incomplete or made for another model."""


class DeviceError(TileworkError):
    """A backend, chip or kernel that this machine or model cannot use."""


def compose(headline: str, rows: Iterable[tuple[str, str]]) -> str:
    """A message of a headline and aligned rows, as in `ShapeError`.

    Parameters
    ----------
    headline : what went wrong and where
    rows : pairs of a label (operand, ``rule``, ``hint``) and its text
    """
    rows = list(rows)
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join([headline, *(f"  {label:<{width}}  {text}" for label, text in rows)])
