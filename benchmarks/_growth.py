"""The growth figures of benchmarks/README.md: a table, what the numbers say about linearity, and a picture."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._table import Row

SUFFIX = "_growth"
PICTURE = "growth.svg"
LINEAR_WITHIN = (
    0.10  # of the value: what a measurement of a few rounds on a shared machine can show
)
AXIS_NAMES = {"steps": "steps N", "batch": "batch", "classes": "classes", "ipc": "images per class"}
HELD = {"n": "{} steps", "b": "batch {}", "k": "{} classes", "ipc": "{} per class"}


@dataclass(frozen=True)
class Line:
    """``value = at_zero + per_unit * x`` by least squares, and how far the points are from it.

    Attributes:
        per_unit: Slope.
        at_zero: Intercept.
        exponent: p of ``value ~ x^p``, from the logarithms.
        worst: Largest distance of a point from the line, as a share of the point.
    """

    per_unit: float
    at_zero: float
    exponent: float
    worst: float

    @staticmethod
    def through(xs: Sequence[float], ys: Sequence[float]) -> "Line":
        slope, start = _least_squares(xs, ys)
        exponent, _ = _least_squares([math.log(x) for x in xs], [math.log(y) for y in ys])
        return Line(
            slope,
            start,
            exponent,
            max(abs(start + slope * x - y) / y for x, y in zip(xs, ys, strict=True)),
        )


def _least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept; each point counts by its relative error, or the largest value would decide alone."""
    weights = [1 / y**2 if y else 1.0 for y in ys] if min(ys) > 0 else [1.0] * len(ys)
    total = sum(weights)
    mx, my = (
        sum(w * v for w, v in zip(weights, values, strict=True)) / total for values in (xs, ys)
    )
    over = sum(w * (x - mx) * (y - my) for w, x, y in zip(weights, xs, ys, strict=True))
    slope = over / sum(w * (x - mx) ** 2 for w, x in zip(weights, xs, strict=True))
    return slope, my - slope * mx


@dataclass(frozen=True)
class Series:
    """The rows of one quantity along one axis on one machine."""

    op: str
    where: str
    axis: str
    what: str
    unit: str
    fixed: str
    points: tuple[tuple[float, float], ...]

    @property
    def line(self) -> Line:
        return Line.through(*zip(*self.points, strict=True))

    def sentence(self) -> str:
        """Say whether the numbers lie on a straight line."""
        line = self.line
        verdict = "linear" if line.worst <= LINEAR_WITHIN else "not linear"
        return (
            f"{verdict}: {_short(line.at_zero)} + {_short(line.per_unit)}·x {self.unit}, every "
            "point within "
            f"{100 * line.worst:.0f} %; exponent {line.exponent:.2f}"
        )


def series(rows: Sequence[Row]) -> list[Series]:
    """Return the growth rows in order, grouped."""
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row.op.endswith(SUFFIX) and row.median is not None:
            axis, _, what = row.metric.partition(": ")
            value, _, fixed = row.shape.partition("_")
            number = float(re.sub(r"\D", "", value))
            key = (row.op, f"{row.device}, {row.machine}", axis, what, row.unit, fixed)
            found.setdefault(key, []).append((number, row.median))
    return [Series(*key, tuple(sorted(points))) for key, points in found.items() if len(points) > 2]


def _short(number: float) -> str:
    """Return three digits, and all of those before the point."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def _held(part: str) -> str:
    """Return in words what a shape such as ``b10`` keeps fixed."""
    letters, number = re.fullmatch(r"([a-z]*)(\d*)", part).groups()  # type: ignore[union-attr]
    return HELD.get(letters, letters + "{}").format(number)


def section(rows: Sequence[Row]) -> str:
    """Return the Markdown of all growth rows, or nothing."""
    chosen = series(rows)
    if not chosen:
        return ""
    used = [row for row in rows if row.op.endswith(SUFFIX)]
    made = ", ".join(
        dict.fromkeys(f"commit {row.commit}, {row.machine}, `{row.command}`" for row in used)
    )
    lines = [
        "### Growth\n",
        f"![time and memory over steps, batch, classes and images per class]({PICTURE})\n",
        "Medians; memory is what a fresh process needs for one call beyond what it had. The "
        "straight line is fitted by",
        'relative least squares; "linear" means that no point is farther than '
        f"{100 * LINEAR_WITHIN:.0f} % from it. An exponent",
        "below 1 is the share that does not grow.\n",
        "| benchmark | along | at | values | says |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in chosen:
        values = ", ".join(f"{x:g}: {_short(y)} {one.unit}" for x, y in one.points)
        along = AXIS_NAMES.get(one.axis, one.axis)
        lines.append(
            f"| {one.op.removesuffix(SUFFIX)}, {one.what} | {along} | {_held(one.fixed)} | "
            f"{values} | {one.sentence()} |"
        )
    return "\n".join([*lines, "", made, "", ""])


WIDE, HIGH, LEFT, BOTTOM, COLUMNS = 260, 170, 52, 34, 4


def picture(rows: Sequence[Row]) -> str:
    """Return an SVG with one panel per series: points, fitted line, axes from zero."""
    chosen = series(rows)
    height = HIGH * -(-len(chosen) // COLUMNS)
    panels = [
        _panel(one, WIDE * (i % COLUMNS), HIGH * (i // COLUMNS)) for i, one in enumerate(chosen)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE * COLUMNS}" height="{height}" '
            'font-family="sans-serif" '
            'font-size="10">',
            '<rect width="100%" height="100%" fill="white"/>',
            *panels,
            "</svg>",
            "",
        ]
    )


def _panel(one: Series, left: float, top: float) -> str:
    most_x, most_y = (1.08 * max(values) for values in zip(*one.points, strict=True))
    inner_wide, inner_high = WIDE - LEFT - 12, HIGH - BOTTOM - 24

    def place(x: float, y: float) -> tuple[float, float]:
        return left + LEFT + inner_wide * x / most_x, top + 24 + inner_high * (
            1 - max(y, 0.0) / most_y
        )

    line, title = (
        one.line,
        f"{one.op.removesuffix(SUFFIX)}: {one.what}, {one.unit} ({_held(one.fixed)})",
    )
    (x0, y0), (x1, y1) = (
        place(0, line.at_zero),
        place(most_x, line.at_zero + line.per_unit * most_x),
    )
    (ax, ay), (bx, _), (_, cy) = place(0, 0), place(most_x, 0), place(0, most_y)
    parts = [
        f'<text x="{left + LEFT}" y="{top + 14}">{title}</text>',
        f'<path d="M{ax:.1f} {cy:.1f}V{ay:.1f}H{bx:.1f}" fill="none" stroke="#444"/>',
        f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#c60" stroke-dasharray="4 3"/>',
        f'<text x="{(ax + bx) / 2:.1f}" y="{ay + 26:.1f}" '
        f'text-anchor="middle">{AXIS_NAMES.get(one.axis, one.axis)}</text>',
    ]
    for x, y in one.points:
        px, py = place(x, y)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="#06c"/>')
        parts.append(f'<text x="{px:.1f}" y="{ay + 13:.1f}" text-anchor="middle">{x:g}</text>')
        parts.append(
            f'<text x="{px:.1f}" y="{py - 6:.1f}" text-anchor="middle" '
            f'fill="#06c">{_short(y)}</text>'
        )
    return "\n".join(parts)


def write_picture(rows: Sequence[Row], path: Path) -> None:
    """Write the picture, if there is anything to show."""
    if series(rows):
        path.write_text(picture(rows))
