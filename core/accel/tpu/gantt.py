"""The Gantt chart of a chip's units over one batch, as SVG.

Invariant: a bar begins and ends where its step does; a row is one unit.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.accel.tpu.steps import Estimate

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 960, 100, 20, 40, 34, 40
UNITS = {"host": "#888", "array": "#2c6fad", "vector unit": "#c0392b"}
_TICKS = 10


@dataclass(frozen=True)
class Bar:
    """Work of a unit, in cycles."""

    unit: str
    begin: float
    end: float
    name: str


def bars(found: Estimate) -> Iterator[Bar]:
    """The work of each unit; an epilogue is drawn from where its product begins."""
    if found.host_input:
        yield Bar("host", 0.0, found.host_input, "input")
    if found.host_output:
        yield Bar("host", found.total - found.host_output, found.total, "output")
    for step in found.steps:
        name = f"{step.layer} {step.name}".strip()
        if step.unit == "array":
            yield Bar("array", step.begin, step.end, name)
        if step.vector:
            yield Bar("vector unit", step.begin, min(step.begin + max(step.vector, step.memory), found.total), name)


def plot(title: str, found: Estimate) -> str:
    """An SVG of the units of a chip over the microseconds of a batch."""
    height = TOP + ROW * len(UNITS) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / max(found.total, 1.0)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
             f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
             f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="15">{html.escape(title)}</text>']
    places = {unit: TOP + ROW * number for number, unit in enumerate(UNITS)}
    for unit, y in places.items():
        parts += [f'<text x="{LEFT - 8}" y="{y + ROW / 2 + 4}" text-anchor="end">{unit}</text>',
                  f'<path d="M{LEFT} {y + ROW}H{WIDTH - RIGHT}" stroke="#ddd"/>']
    for bar in bars(found):
        x, wide = LEFT + bar.begin * scale, max((bar.end - bar.begin) * scale, 0.3)
        micros = (bar.end - bar.begin) / found.machine.clock * 1e6
        parts.append(f'<rect x="{x:.2f}" y="{places[bar.unit] + 5}" width="{wide:.2f}" height="{ROW - 10}" '
                     f'fill="{UNITS[bar.unit]}" stroke="white" stroke-width="0.3">'
                     f'<title>{html.escape(bar.name)}: {micros:.4g} us</title></rect>')
    parts += _axis(found, scale, TOP + ROW * len(UNITS))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(found: Estimate, scale: float, y: float) -> Sequence[str]:
    """Ticks of microseconds."""
    parts = []
    for tick in range(_TICKS + 1):
        cycles = found.total * tick / _TICKS
        x, micros = LEFT + cycles * scale, cycles / found.machine.clock * 1e6
        parts += [f'<path d="M{x:.1f} {y}v5" stroke="#444"/>',
                  f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{micros:.4g}</text>']
    return [*parts, f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{y + 34}" text-anchor="middle">microseconds</text>']
