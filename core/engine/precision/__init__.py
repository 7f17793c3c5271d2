"""Numbers of few bits: the rules of 8-bit arithmetic, layers that compute in it, and how a model gets there."""

from core.engine.precision.calibrate import calibrate
from core.engine.precision.pooling import ByteAveragePool
from core.engine.precision.quantised import QuantisedConv, QuantisedLinear, as_saved, quantise
from core.engine.precision.tables import TableActivation

__all__ = ["ByteAveragePool", "QuantisedConv", "QuantisedLinear", "TableActivation", "as_saved", "calibrate",
           "quantise"]
