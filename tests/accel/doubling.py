"""A driver for the tests: feeds results back until one is large enough."""

from __future__ import annotations

from core.engine.driver import F32, I64, Network, call

LIMIT = 100.0


def grow(network: Network, given: F32, found: F32, history: F32, counts: I64, most: int, factor: float) -> None:
    """Run the network on `factor` times its own result, at most `most` times, until its first element is large."""
    for step in range(most):
        call(network)
        counts[0] += 1
        history[step] = found[0]
        if is_large(found):
            counts[1] = 1
            return
        for k in range(counts[2]):
            given[k] = found[k] * factor


def is_large(found: F32) -> bool:
    """Whether the first element is above the limit."""
    return found[0] > LIMIT
