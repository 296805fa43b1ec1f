"""Line and point charts as inline SVG. Knows shapes and scales, nothing of routing; colours are the page's CSS.

Every chart carries a title and a description for those who do not see it, and tells its series apart by the shape of
the marks and the dashes of the lines, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Shape = Literal["square", "circle", "triangle", "diamond", "cross"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 12.0, 42.0
_LETTER = 7.2  # width of a letter of a label, about
_LINE = 14.0  # its height


@dataclass(frozen=True, slots=True)
class Mark:
    """A point, with a label beside it unless that is empty. style: a CSS class; span: ends of a vertical interval."""

    x: float
    y: float
    shape: Shape = "circle"
    style: str = ""
    label: str = ""
    span: tuple[float, float] | None = None
    size: float = 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """A broken line through points; style: a CSS class."""

    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What is counted, the range shown, and how a tick is written."""

    name: str
    low: float
    high: float
    write: Callable[[float], str]

    def ticks(self) -> list[float]:
        """About five round values within the range."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def around(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range that shows the values with some air, at least `least` wide."""
    low, high = min(values), max(values)
    air = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - air, high + air


def chart(
    name: str,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    *,
    lines: Sequence[Line] = (),
    marks: Sequence[Mark] = (),
    width: float = 440,
    height: float = 320,
) -> str:
    """One SVG element. name: unique on the page; what lies outside the axes' ranges is cut off."""
    plane = _Plane(x, y, width, height)
    body = [_axes(plane)]
    body += [_line(plane, line) for line in lines]
    body += [_mark(plane, mark) for mark in marks]
    body += _labels(plane, marks)
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-t {name}-d" '
        f'style="max-width:{1.35 * width:.0f}px"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>'
        f'<clipPath id="{name}-c"><rect x="{_LEFT - 7:g}" y="{_TOP - 7:g}" width="{plane.width + 14:g}" '
        f'height="{plane.height + 14:g}"/></clipPath>'
        f'{body[0]}<g clip-path="url(#{name}-c)">{"".join(body[1:])}</g></svg>'
    )


def key(shape: Shape | Literal["line"], style: str) -> str:
    """A mark or a piece of line to stand beside its name in a legend."""
    drawn = f'<path class="line {style}" d="M1 8H23"/>' if shape == "line" else _shape(shape, 12.0, 8.0, 5.0, style)
    return f'<svg class="key" viewBox="0 0 24 16" aria-hidden="true">{drawn}</svg>'


class _Plane:
    """From values to positions in the picture."""

    def __init__(self, x: Axis, y: Axis, width: float, height: float) -> None:
        self.x_axis, self.y_axis = x, y
        self.width, self.height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + self.width * (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low)

    def y(self, value: float) -> float:
        return _TOP + self.height * (self.y_axis.high - value) / (self.y_axis.high - self.y_axis.low)


def _axes(plane: _Plane) -> str:
    right, bottom = _LEFT + plane.width, _TOP + plane.height
    parts = []
    for tick in plane.y_axis.ticks():
        at = plane.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT:g} {at:.1f}H{right:.1f}"/>')
        parts.append(
            f'<text class="tick end" x="{_LEFT - 6:g}" y="{at + 4:.1f}">{escape(plane.y_axis.write(tick))}</text>'
        )
    for tick in plane.x_axis.ticks():
        at = plane.x(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP:g}V{bottom:.1f}"/>')
        parts.append(
            f'<text class="tick mid" x="{at:.1f}" y="{bottom + 15:.1f}">{escape(plane.x_axis.write(tick))}</text>'
        )
    middle = _LEFT + plane.width / 2
    parts.append(f'<text class="axis mid" x="{middle:.1f}" y="{bottom + 34:.1f}">{escape(plane.x_axis.name)}</text>')
    up = _TOP + plane.height / 2
    parts.append(
        f'<text class="axis mid" transform="translate(13 {up:.1f}) rotate(-90)">{escape(plane.y_axis.name)}</text>'
    )
    return "".join(parts)


def _line(plane: _Plane, line: Line) -> str:
    points = "L".join(f"{plane.x(x):.1f} {plane.y(y):.1f}" for x, y in line.points)
    return f'<path class="line {line.style}" d="M{points}"/>'


def _mark(plane: _Plane, mark: Mark) -> str:
    x, y = plane.x(mark.x), plane.y(mark.y)
    whisker = ""
    if mark.span:
        low, high = map(plane.y, mark.span)
        whisker = f'<path class="whisker {mark.style}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    return whisker + _shape(mark.shape, x, y, mark.size, mark.style)


def _shape(shape: Shape, x: float, y: float, r: float, style: str) -> str:
    if shape == "circle":
        return f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    corners = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
        "triangle": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}z",
        "diamond": f"M{x:.1f} {y - 1.35 * r:.1f}l{1.35 * r:.1f} {1.35 * r:.1f}l{-1.35 * r:.1f} {1.35 * r:.1f}"
        f"l{-1.35 * r:.1f} {-1.35 * r:.1f}z",
        "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}",
    }
    return f'<path class="mark {style}" d="{corners[shape]}"/>'


def _labels(plane: _Plane, marks: Sequence[Mark]) -> list[str]:
    """Labels beside their marks, each at the first of some places where it covers neither mark nor label, or where it
    covers the least."""
    taken = [(plane.x(m.x) - 5, plane.y(m.y) - 5, plane.x(m.x) + 5, plane.y(m.y) + 5) for m in marks]
    right, bottom = _LEFT + plane.width, _TOP + plane.height
    drawn = []
    for mark in marks:
        if not mark.label:
            continue
        x, y, wide = plane.x(mark.x), plane.y(mark.y), _LETTER * len(mark.label)
        above = max(_LEFT, min(x - wide / 2, right - wide))  # or below, and not beyond the edges
        places = [
            (left, top, left + wide, top + _LINE)
            for reach in (0.0, 14.0, 28.0, 42.0)
            for left, top in (
                (x + 9, y - 7 - reach),
                (x - 9 - wide, y - 7 - reach),
                (x + 9, y - 6 + reach),
                (x - 9 - wide, y - 6 + reach),
                (above, y - 22 - reach),
                (above, y + 8 + reach),
            )
        ]
        within = [p for p in places if p[0] >= _LEFT and p[2] <= right and p[1] >= _TOP - 6 and p[3] <= bottom]
        place = min(within or places, key=lambda p: sum(_shared(p, other) for other in taken))
        taken.append(place)
        drawn.append(
            f'<text class="label {mark.style}" x="{place[0]:.1f}" y="{place[3] - 3:.1f}">{escape(mark.label)}</text>'
        )
    return drawn


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
