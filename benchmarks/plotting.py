"""Line charts and bar charts as SVG text: small enough to need no library, plain enough to be read as a diff."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

INK, FAINT, GRID = "#24292f", "#6e7781", "#e5e8eb"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Line:
    """One curve: its name, its colour, whether it is dashed, and its points."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    width: float = 1.6


@dataclass(frozen=True)
class Box:
    """Where a chart is drawn, in pixels: the area inside the axes."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Picture:
    """SVG under construction."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        anchor: str = "start",
        colour: str = INK,
        weight: int = 400,
    ) -> None:
        """Write a line of text."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}">{escape(words)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = ""
    ) -> None:
        """Draw a straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{dashes}/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a filled rectangle."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="1.5" '
            f'fill="{colour}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """Draw a broken line with a dot at every point."""
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round"/>'
        )
        self.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width + 0.4:.1f}" fill="{colour}"/>' for x, y in points]

    def svg(self, title: str) -> str:
        """Return the whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{FONT}" role="img">'
        )
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, f"<title>{escape(title)}</title>", paper, *self.parts, "</svg>"]) + "\n"


def lines(
    picture: Picture,
    box: Box,
    curves: Sequence[Line],
    *,
    low: float,
    high: float,
    ticks: Sequence[tuple[float, str]],
    mark: float | None = None,
    steps: Sequence[int] = (),
) -> None:
    """Draw curves over training steps with a logarithmic height, values outside held at the edge.

    Args:
        picture: What to draw into.
        box: Where.
        curves: The curves; the last is on top.
        low: Value at the lower edge.
        high: Value at the upper edge.
        ticks: Heights with their labels.
        mark: A height to mark with a dashed line.
        steps: Steps to label; the last is the right edge.
    """
    last = max(steps[-1], 1)

    def at(value: float) -> float:
        share = math.log(min(max(value, low), high) / low) / math.log(high / low)
        return box.y + box.height * (1 - share)

    for value, label in ticks:
        picture.line(box.x, at(value), box.x + box.width, at(value), GRID)
        if label:
            picture.text(box.x - 6, at(value) + 3.5, label, size=10, anchor="end", colour=FAINT)
    if mark is not None:
        picture.line(box.x, at(mark), box.x + box.width, at(mark), INK, dash="4 3")
    for step in steps:
        picture.text(
            box.x + box.width * step / last, box.y + box.height + 15, str(step), size=10, anchor="middle", colour=FAINT
        )
    for curve in curves:
        points = [(box.x + box.width * step / last, at(value)) for step, value in curve.points]
        picture.path(points, curve.colour, curve.width)


def bars(picture: Picture, box: Box, entries: Sequence[tuple[str, float, str]], *, high: float, unit: str) -> None:
    """Draw horizontal bars from entries of name, length and colour, with their lengths beside them."""
    pitch = box.height / max(len(entries), 1)
    for index, (name, value, colour) in enumerate(entries):
        y = box.y + index * pitch
        length = box.width * min(value / high, 1.0)
        picture.bar(box.x, y + 0.18 * pitch, length, 0.64 * pitch, colour)
        label = f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
        picture.text(box.x + length + 5, y + 0.5 * pitch + 3.5, label, size=10.5, weight=600)
        if name:
            picture.text(box.x - 8, y + 0.5 * pitch + 3.5, name, size=10.5, anchor="end")
