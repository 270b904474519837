"""The generated part of benchmarks/README.md: tables of all committed rows."""

import csv
from pathlib import Path

from benchmarks import growth_report
from benchmarks.growth_report import paragraph
from benchmarks.result_rows import ACCURACY, READ, RESULTS, Row, all_rows

README = Path(__file__).parent / "README.md"
BEGIN = "<!-- generated from results/*.csv by python -m benchmarks.run -->"
END = "<!-- end of the generated part -->"


def table(rows: list[Row]) -> str:
    """Return one Markdown table per op and device.

    Each contestant is listed with its time, share of bandwidth, and distance to ours.
    """
    sections = []
    for op, device, machine in dict.fromkeys((r.op, r.device, r.machine) for r in rows):
        chosen = [r for r in rows if (r.op, r.device, r.machine) == (op, device, machine)]
        last, where = chosen[-1], device if device.startswith("cpu") else f"{device} beside"
        versions = f"torch {last.torch}, triton {last.triton}, commit "
        commits = ", ".join(dict.fromkeys(r.commit for r in chosen))
        commands = ", ".join(f"`{c}`" for c in dict.fromkeys(r.command for r in chosen))
        heading = f"### {op} on {where} ({machine})"
        origin = paragraph(f"{versions}{commits}; {commands}")
        sections.append(f"{heading}\n\n{origin}\n\n{_op_table(chosen)}")
    return "\n".join(sections)


def _op_table(rows: list[Row]) -> str:
    lines = [
        "| shape | metric | contestant | median (p20 to p80), n | of copy | of read | ours is |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.shape, row.dtype, row.metric), []).append(row)
    for (shape, dtype, metric), group in groups.items():
        read = next((r.median for r in group if r.backend == READ), None)
        ours = min((r.median for r in group if r.is_ours and r.median), default=None)
        for row in group:
            where = f"| {shape} {dtype} | {metric} |" if row is group[0] else "| | |"
            lines.append(
                f"{where} {_contestant(row)} | {_time(row)} | {_bandwidths(row, read)} | "
                f"{_ratio(row, ours)} |"
            )
    return "\n".join(lines) + "\n"


def _contestant(row: Row) -> str:
    return f"**{row.backend}**" if row.is_ours else row.backend


def _time(row: Row) -> str:
    if row.median is None:
        return row.status
    return f"{row.median:.3g} {row.unit} ({row.p20:.3g} to {row.p80:.3g}), {row.n}"


def _bandwidths(row: Row, read: float | None) -> str:
    if row.median is None or row.unit != "ms":
        return " | "
    copy = f"{row.percent_of_copy:.0f} %" if row.percent_of_copy is not None else ""
    return f"{copy} | {f'{100 * read / row.median:.0f} %' if read else ''}"


def _ratio(row: Row, ours: float | None) -> str:
    if row.is_ours or row.is_floor or row.median is None or not ours or row.unit not in ("ms", "s"):
        return ""
    times = row.median / ours
    return f"{times:.1f}x faster" if times >= 1 else f"**{1 / times:.1f}x slower**"


def losses(rows: list[Row]) -> list[str]:
    """Return a sentence for every group in which a peer beats our fastest backend."""
    sentences = []
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group(), []).append(row)
    for (op, shape, dtype, metric, device, _), group in groups.items():
        ours = min((r.median for r in group if r.is_ours and r.median), default=None)
        peers = [r for r in group if not r.is_ours and not r.is_floor and r.median]
        best = min(peers, key=lambda r: r.median, default=None)
        if ours and best and best.median < ours:
            sentences.append(
                f"- {op} {metric} at {shape} {dtype} ({device}): {best.backend} is "
                f"{ours / best.median:.2f}x faster."
            )
    return sentences


def accuracy_table(path: Path) -> str:
    """Return a table of the rows of ``python -m benchmarks.accuracy``, if there are any."""
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "### Accuracy\n",
        paragraph(
            "Test accuracy in percent, mean ± standard deviation over distillation seeds and "
            "networks; settings are chosen on held out training images; every row is trained by "
            'the same recipe. "Gap closed" is the share of the way from random selection to the '
            "full data."
        ),
        "",
        "| data | images per class | set | preset | network, protocol | test % | validation % | "
        "gap closed % | 8 bits | over |",
        "|" + " --- |" * 5 + " ---: |" * 4 + " --- |",
    ]
    for row in rows:
        cells = [
            row["data"],
            row["ipc"],
            row["method"] if row["preset"] == "-" else f"**{row['method']}**",
            " ".join(part for part in (row["preset"], row["options"]) if part),
            f"{row['model']}, {row['protocol']}",
            f"{row['mean']} ± {row['std']}",
            *(row[name] for name in ("validation", "gap_closed", "eight_bit_cost", "seeds")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    origin = ", ".join(
        dict.fromkeys(
            f"commit {row['commit']}, {row['machine']}, `{row['command']}`" for row in rows
        )
    )
    return "\n".join([*lines, "", paragraph(origin), ""])


def write_readme(readme: Path = README, results: Path = RESULTS) -> None:
    """Replace the part between the markers by tables of all committed rows."""
    rows = all_rows(results)
    others = [row for row in rows if not row.op.endswith(growth_report.SUFFIX)]
    lost = "\n".join(paragraph(sentence, indent="  ") for sentence in losses(rows)) or (
        "- nowhere in the rows below." if rows else "- not known: no rows are committed yet."
    )
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    tables = f"{accuracy_table(results / ACCURACY)}\n{growth_report.section(rows)}{table(others)}"
    growth_report.write_picture(rows, readme.parent / growth_report.PICTURE)
    readme.write_text(
        f"{before}{BEGIN}\n\n### Where a peer is faster\n\n{lost}\n\n{tables}\n{END}{after}"
    )
