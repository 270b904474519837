"""Growth in benchmarks/README.md: a table, what the numbers say about linearity, and a picture."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.result_rows import Row

SUFFIX = "_growth"
PICTURE = "growth.svg"
COLUMNS = 4  # panels of the picture side by side
# share of the value: what a measurement of a few rounds on a shared machine can show
LINEAR_WITHIN = 0.10
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
        worst = max(abs(start + slope * x - y) / y for x, y in zip(xs, ys, strict=True))
        return Line(slope, start, exponent, worst)


def _least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept.

    Each point counts by its relative error, or the largest value would decide alone.
    """
    weights = [1 / y for y in ys] if min(ys) > 0 else None
    slope, intercept = np.polyfit(xs, ys, 1, w=weights)
    return float(slope), float(intercept)


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
            f"point within {100 * line.worst:.0f} %; exponent {line.exponent:.2f}"
        )


def series(rows: Sequence[Row]) -> list[Series]:
    """Return the growth rows in order, grouped."""
    points: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row.op.endswith(SUFFIX) and row.median is not None:
            axis, _, what = row.metric.partition(": ")
            value, _, fixed = row.shape.partition("_")
            number = float(re.sub(r"\D", "", value))
            key = (row.op, f"{row.device}, {row.machine}", axis, what, row.unit, fixed)
            points.setdefault(key, []).append((number, row.median))
    return [Series(*key, tuple(sorted(xy))) for key, xy in points.items() if len(xy) > 2]


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
    origin = ", ".join(
        dict.fromkeys(f"commit {row.commit}, {row.machine}, `{row.command}`" for row in used)
    )
    lines = [
        "### Growth\n",
        f"![time and memory over steps, batch, classes and images per class]({PICTURE})\n",
        paragraph(
            "Medians; memory is what a fresh process needs for one call beyond what it had. The "
            'straight line is fitted by relative least squares; "linear" means that no point is '
            f"farther than {100 * LINEAR_WITHIN:.0f} % from it. An exponent below 1 is the share "
            "that does not grow."
        ),
        "",
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
    return "\n".join([*lines, "", paragraph(origin), "", ""])


def paragraph(text: str, indent: str = "") -> str:
    """Return ``text`` in lines of at most 100 columns; ``indent`` begins all but the first."""
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def write_picture(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel per series, if there are any: points, fitted line, axes from zero."""
    chosen = series(rows)
    if not chosen:
        return
    import matplotlib  # of the extra ``report``; measuring needs it not
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.6 * -(-len(chosen) // COLUMNS)), layout="constrained")
    panels = figure.subplots(-(-len(chosen) // COLUMNS), COLUMNS, squeeze=False).flat
    for one, axes in zip(chosen, panels, strict=False):
        xs, ys = zip(*one.points, strict=True)
        axes.axline((0, one.line.at_zero), slope=one.line.per_unit, color="C1", linestyle="--")
        axes.plot(xs, ys, "o", color="C0")
        axes.set(xlim=(0, 1.08 * max(xs)), ylim=(0, 1.15 * max(ys)), xticks=xs)
        axes.set_xlabel(AXIS_NAMES.get(one.axis, one.axis))
        axes.set_title(
            f"{one.op.removesuffix(SUFFIX)}: {one.what}, {one.unit} ({_held(one.fixed)})"
        )
        axes.title.set_fontsize(8)
    for axes in panels:  # the rest of the last row
        axes.set_axis_off()
    # the same rows give the same file
    with matplotlib.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
