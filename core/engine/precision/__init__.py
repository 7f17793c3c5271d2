"""Numbers of few bits: the rules of 8-bit arithmetic, layers that compute in it, and how a model gets there."""

from core.engine.precision.calibrate import calibrate
from core.engine.precision.quantised import QuantisedConv, QuantisedLinear, as_saved, quantise

__all__ = ["QuantisedConv", "QuantisedLinear", "as_saved", "calibrate", "quantise"]
