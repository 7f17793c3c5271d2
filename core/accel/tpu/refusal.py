"""What TPU v1 cannot run, in words.

Invariant: a refusal names the op, the layer and the line, and says what to do.
"""

from __future__ import annotations

from core.engine.errors import DeviceError, compose
from core.engine.graph import Equation


def refused(equation: Equation, found: str, rule: str, hint: str) -> DeviceError:
    """The error of an op that the chip cannot run."""
    at = f" at {equation.where}" if str(equation.where) else ""
    return DeviceError(compose(f"tpu-v1 cannot compute {equation.op.name}{at}", [
        ("found", found), ("rule", rule), ("hint", hint)]))
