"""What the kernels aim at, and whether records reach it.

Invariant: an aim is judged only when every row it speaks of has a record; until then its verdict is open. A row that
fails is a row that falls short.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.bench.kernels.measure import Record

Records = Mapping[str, Record]


@dataclass(frozen=True)
class Verdict:
    """The measured figure as text, and whether it is enough; None where there is nothing to judge yet."""

    figure: str
    reached: bool | None


OPEN = Verdict("not measured", None)


@dataclass(frozen=True)
class Aim:
    """One line of the table of aims; `families` are those whose rows it speaks of."""

    what: str
    wanted: str
    families: tuple[str, ...]
    rule: Callable[[Records], Verdict]

    def judge(self, records: Records, expected: Mapping[str, int]) -> Verdict:
        """The verdict, open while records of a family are fewer than are expected."""
        verdict = self.rule(records)
        missing = sum(expected[family] - len(_families(records, family)) for family in self.families)
        return Verdict(f"{verdict.figure}; {missing} rows to come", None) if missing else verdict


def mean_ratio(records: Iterable[Record]) -> float:
    """The geometric mean of the ratios, each layer as often as the networks have it."""
    pairs = [(record.ratio, record.count) for record in records if record.ratio]
    return math.exp(sum(count * math.log(ratio) for ratio, count in pairs) / sum(count for _, count in pairs))


def peak(records: Records, element: str) -> float | None:
    """Operations a second that the registers reach: the fastest call, because a roof is what was ever reached."""
    record = records.get(f"peak {element}")
    return record.flops / record.least["ours"] if record and record.ours else None


def _families(records: Records, *families: str) -> list[Record]:
    return [record for record in records.values() if record.family in families]


def _compared(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.ratio]


def _ratios(what: str, mean: float, least: float, *families: str) -> Aim:
    """Aim at a mean ratio and a least one, against the best peer of each row."""
    wanted = f"mean ≥ {mean:g}" + (f", none < {least:g}" if least else "") if mean else f"none < {least:g}"

    def rule(records: Records) -> Verdict:
        every = _families(records, *families)
        found, failed = _compared(every), [record for record in every if record.ours is None]
        if not found:
            return OPEN
        average, lowest = mean_ratio(found), min(found, key=lambda record: record.ratio or 0)
        ratio = lowest.ratio or 0
        return Verdict(f"mean {average:.2f}, least {ratio:.2f} ({lowest.name}), {len(found)} rows"
                       + (f", {len(failed)} failed" if failed else ""),
                       average >= mean and ratio >= least and not failed)

    return Aim(what, wanted, families, rule)


def _gain(element: str, beside: str, factor: float, kind: str) -> Aim:
    """Aim at a gain over our own kernels of another precision, row by row."""
    def rule(records: Records) -> Verdict:
        gains = []
        for record in _families(records, f"{kind}-{element}"):
            other = records.get(record.name.replace(f"{kind}-{element}", f"{kind}-{beside}", 1))
            if other is not None and other.ours and record.ours:
                gains.append((math.log(other.ours / record.ours), record.count))
        if not gains:
            return OPEN
        mean = math.exp(sum(gain * count for gain, count in gains) / sum(count for _, count in gains))
        return Verdict(f"mean {mean:.2f}, {len(gains)} rows", mean >= factor)

    return Aim(f"{kind}, {element} over our own {beside}", f"mean ≥ {factor:g}",
               (f"{kind}-{element}", f"{kind}-{beside}"), rule)


_THREE_BY_THREE = re.compile(r"x(\d+) (?:3x)+(\d+)$")


def _share(element: str, share: float) -> Aim:
    """Aim at a share of the peak in convolutions of size 3 with as many inputs as outputs, 64 to 256."""
    def rule(records: Records) -> Verdict:
        roof = peak(records, element)
        if roof is None:
            return OPEN
        shares = {}
        for record in _families(records, f"conv-{element}"):
            found = _THREE_BY_THREE.search(record.name)
            if found and found[1] == found[2] and 64 <= int(found[1]) <= 256 and record.ours:
                shares[record.name] = record.flops / record.ours / roof
        if not shares:
            return OPEN
        lowest = min(shares, key=shares.__getitem__)
        mean = sum(shares.values()) / len(shares)
        return Verdict(f"mean {mean:.0%}, least {shares[lowest]:.0%} ({lowest})", shares[lowest] >= share)

    return Aim(f"share of the measured {element} peak, convolution 3x3, 64 to 256 channels", f"≥ {share:.0%}",
               (f"conv-{element}",), rule)


def _against(row: str, peer: str, factor: float) -> Aim:
    def rule(records: Records) -> Verdict:
        record = records.get(row)
        if record is None or not record.ours or peer not in record.peers:
            return OPEN
        ratio = record.peers[peer] / record.ours
        return Verdict(f"{ratio:.2f}", ratio >= factor)

    return Aim(f"{row}, against {peer}", f"≥ {factor:g}", ("mlp",), rule)


def _seconds(family: str, what: str, limit: float) -> Aim:
    def rule(records: Records) -> Verdict:
        found = [record.ours for record in _families(records, family) if record.ours is not None]
        return Verdict(f"{found[0]:.2f} s", found[0] <= limit) if found else OPEN

    return Aim(what, f"≤ {limit:g} s", (family,), rule)


AIMS = (
    _ratios("f32 convolution", 1.0, 0.8, "conv-f32"),
    _ratios("f32 convolution, input gradient", 1.0, 0.7, "conv-f32-dx"),
    _ratios("f32 convolution, weight gradient", 1.0, 0.7, "conv-f32-dw"),
    _ratios("f32 product", 0, 0.95, "matmul-f32"),
    _ratios("f32 product, all extents below 128", 0, 1.5, "matmul-f32-small"),
    _ratios("bf16 convolution", 1.0, 0, "conv-bf16"), _gain("bf16", "f32", 5, "conv"),
    _ratios("bf16 product", 1.0, 0, "matmul-bf16"), _gain("bf16", "f32", 5, "matmul"),
    _ratios("int8 convolution", 1.0, 0, "conv-int8"), _gain("int8", "bf16", 1.5, "conv"),
    _ratios("int8 product", 1.0, 0, "matmul-int8"), _gain("int8", "bf16", 1.5, "matmul"),
    _ratios("softmax, layer norm, GELU chain, bias + norm + ReLU, Adam step", 0, 1.5, "rows"),
    _ratios("segment sum and gather of molecular batches", 0, 2.0, "segment"),
    _ratios("LSTM, forward and training step", 0, 1.0, "lstm"),
    _against("mlp 10 layers of 32, batch 1", "torch eager", 10),
    _against("mlp 10 layers of 32, batch 1", "onnxruntime session", 3),
    _ratios("whole networks, inference", 1.2, 0.9, "inference"),
    _ratios("whole networks, training step", 1.2, 0.9, "training"),
    _ratios("peak memory of the Inception-v3 training step, batch 8", 0, 1.0, "memory"),
    _share("f32", 0.85), _share("bf16", 0.5),
    _seconds("cold", "every kernel of Inception-v3 training compiled from nothing", 30),
    _seconds("warm", "warm start of the same", 0.5),
)
