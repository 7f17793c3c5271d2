"""The roofline plot (Williams et al., Communications of the ACM 52(4), 2009), as SVG.

Invariant: both axes are logarithmic; a point lies at its own numbers, cut to the frame.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 70, 20, 34, 48
OURS, PEER, ROOF, GRID = "#c0392b", "#2c6fad", "#444", "#ddd"


@dataclass(frozen=True)
class Point:
    """A row: operations a byte, and operations a second of ours and, if there is one, of the best peer."""

    name: str
    intensity: float
    ours: float
    peer: float | None = None


@dataclass(frozen=True)
class Axes:
    """Ranges of the data, and where they lie in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Place of a point, cut to the frame."""
        return (LEFT + _part(x, self.x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - _part(y, self.y)
                * (HEIGHT - TOP - BOTTOM))


def _part(value: float, bounds: tuple[float, float]) -> float:
    low, high = map(math.log10, bounds)
    return min(max((math.log10(value) - low) / (high - low), 0.0), 1.0)


def plot(title: str, found: Sequence[Point], peaks: dict[str, float], bandwidth: float, memory: str = "copy") -> str:
    """An SVG of rows under their roofs.

    Parameters
    ----------
    peaks : operations a second by the name of the precision
    bandwidth : bytes a second of the sloping roof
    memory : what has this bandwidth
    """
    axes = _axes(found, peaks)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
             f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
             _text(WIDTH / 2, 20, title, "middle", size=15), *_grid(axes)]
    for name, peak in peaks.items():
        knee = peak / bandwidth
        parts.append(_path([(axes.x[0], bandwidth * axes.x[0]), (max(knee, axes.x[0]), min(peak, axes.y[1])),
                            (axes.x[1], peak)], axes))
        x, y = axes.at(axes.x[1], peak)
        parts.append(_text(x - 6, y - 5, f"{name} peak {peak / 1e9:,.0f} GFLOP/s", "end"))
    x, y = axes.at(axes.x[0], bandwidth * axes.x[0])
    parts.append(_text(x + 8, y - 12, f"{memory} {bandwidth / 1e9:.0f} GB/s", "start"))
    parts += [part for point in found for part in _marks(point, axes)]
    if any(point.peer is not None for point in found):
        parts += _legend()
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(found: Sequence[Point], peaks: dict[str, float]) -> Axes:
    speeds = [speed for point in found for speed in (point.ours, point.peer) if speed]
    intensities = [point.intensity for point in found]
    return Axes((_below(min(intensities)), _above(max(intensities))),
                (_below(min(speeds)), _above(max([*speeds, *peaks.values()]))))


def _below(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _above(value: float) -> float:
    return 10.0 ** (math.floor(math.log10(value)) + 1)


def _grid(axes: Axes) -> list[str]:
    parts = []
    for exponent in range(round(math.log10(axes.x[0])), round(math.log10(axes.x[1])) + 1):
        x, bottom = axes.at(10.0 ** exponent, axes.y[0])
        parts += [f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" stroke="{GRID}"/>',
                  _text(x, bottom + 18, f"{10.0 ** exponent:g}", "middle")]
    for exponent in range(round(math.log10(axes.y[0])), round(math.log10(axes.y[1])) + 1):
        left, y = axes.at(axes.x[0], 10.0 ** exponent)
        parts += [f'<path d="M{left:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>',
                  _text(left - 8, y + 4, f"{10.0 ** exponent / 1e9:g}", "end")]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "operations per byte of least traffic", "middle"),
            f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">GFLOP/s</text>']


def _path(data: Sequence[tuple[float, float]], axes: Axes) -> str:
    places = [axes.at(x, max(y, axes.y[0])) for x, y in data]
    return (f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" fill="none" stroke="{ROOF}" '
            f'stroke-width="1.5"/>')


def _marks(point: Point, axes: Axes) -> list[str]:
    """Ours filled, the best peer's hollow, a line between."""
    x, ours = axes.at(point.intensity, point.ours)
    name = html.escape(point.name)
    dot = f'<circle cx="{x:.1f}" cy="{ours:.1f}" r="3.5" fill="{OURS}"><title>{name}</title></circle>'
    if point.peer is None:
        return [dot]
    _, peer = axes.at(point.intensity, point.peer)
    return [f'<path d="M{x:.1f} {ours:.1f}V{peer:.1f}" stroke="{OURS if ours <= peer else PEER}" opacity="0.5"/>',
            f'<circle cx="{x:.1f}" cy="{peer:.1f}" r="3.5" fill="white" stroke="{PEER}"><title>{name}</title></circle>',
            dot]


def _legend() -> list[str]:
    y = HEIGHT - BOTTOM - 14
    return [f'<circle cx="{WIDTH - 150}" cy="{y - 16}" r="3.5" fill="{OURS}"/>',
            _text(WIDTH - 140, y - 12, "ours", "start"),
            f'<circle cx="{WIDTH - 150}" cy="{y}" r="3.5" fill="white" stroke="{PEER}"/>',
            _text(WIDTH - 140, y + 4, "best peer", "start")]


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'
