"""Rows of measurements: CSV files, one per machine, and the tables of benchmarks/README.md made from them."""

import csv
import json
import math
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from kdistill.ops import FASTEST, op_of

RESULTS = Path(__file__).parent / "results"
ACCURACY = "accuracy.csv"
README = Path(__file__).parent / "README.md"
BEGIN, END = (
    "<!-- generated from results/*.csv by python -m benchmarks.run -->",
    "<!-- end of the generated part -->",
)
COPY, READ = "copy of the same bytes", "read of the same bytes"
GPU_KERNELS = ("cuda", "triton")
OURS = (
    "cpu",
    "cuda",
    "triton",
)  # first words of contestants that are kernels of this project; all others are peers


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; times are empty unless ``status`` is "ok"."""

    op: str
    backend: str
    shape: str
    dtype: str
    metric: str
    unit: str
    median: float | None
    p20: float | None
    p80: float | None
    n: int
    status: str
    percent_of_copy: float | None
    machine: str
    device: str
    torch: str
    triton: str
    commit: str
    command: str

    @property
    def is_ours(self) -> bool:
        return self.backend.split(" ")[0] in OURS

    @property
    def is_floor(self) -> bool:
        return self.backend in (COPY, READ)

    def group(self) -> tuple[str, ...]:
        """Return what a row shares with the other contestants of its run; with ``backend`` it is the key of a row."""
        return (self.op, self.shape, self.dtype, self.metric, self.device, self.machine)


NUMBERS = {"median", "p20", "p80", "percent_of_copy"}


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = []
        for record in csv.DictReader(file):
            if None in record.values():
                break  # the last line of a run that was killed while it wrote
            values = {
                k: (float(v) if v else None) if k in NUMBERS else v for k, v in record.items()
            }
            rows.append(Row(**{**values, "n": int(record["n"])}))
        return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        for row in [None, *rows]:
            _write_row(file, row)


def _write_row(file: TextIO, row: Row | None) -> None:
    """Write a row, or for None the line of names."""
    writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
    if row is None:
        writer.writeheader()
    else:
        values = asdict(row).items()
        writer.writerow(
            {k: f"{v:.4g}" if isinstance(v, float) else "" if v is None else v for k, v in values}
        )


class Journal:
    """The rows of a run in progress, in a file beside their target: each is on disk before the next is measured.

    ``finish`` moves them into the target.  Those of a run that was cut off are moved when the next
    one begins."""

    def __init__(self, target: Path):
        self.target, self.path = target, target.with_suffix(".partial.csv")
        self.recovered = len(read_rows(self.path))
        self.finish()

    def add(self, row: Row) -> None:
        """Append a row and wait until it is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            if file.tell() == 0:
                _write_row(file, None)
            _write_row(file, row)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Put the rows in the place of older ones of their groups in the target."""
        rows = read_rows(self.path)
        if rows:
            write_rows(self.target, merge(read_rows(self.target), rows))
        self.path.unlink(missing_ok=True)


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """Return the rows with those of a rerun in the place of the old ones, and new ones at the end.

    All contestants of a group are replaced together: ratios are taken inside one run only.
    """
    fresh: dict[tuple[str, ...], list[Row]] = {}
    for row in new:
        fresh.setdefault(row.group(), []).append(row)
    merged = []
    for row in old:
        if row.group() not in {r.group() for r in new}:
            merged.append(row)
        else:
            merged.extend(fresh.pop(row.group(), []))
    return merged + [row for rows in fresh.values() for row in rows]


def results_file(machine: str, device: str) -> Path:
    name = machine if device.startswith("cpu") else f"{device}, {machine}"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def adopt(source: Path, results: Path = RESULTS) -> list[Path]:
    """Merge the rows of a file into the committed ones of their machines; return the files that changed."""
    Journal(source)  # rows of a run that was cut off
    by_file: dict[Path, list[Row]] = {}
    for row in read_rows(source):
        by_file.setdefault(results / results_file(row.machine, row.device).name, []).append(row)
    if not by_file:
        raise SystemExit(
            f"--adopt: expected rows of benchmarks.run, got none in {source}; pass the file of "
            "--output"
        )
    for target, rows in by_file.items():
        write_rows(target, merge(read_rows(target), rows))
    return list(by_file)


def table(rows: list[Row]) -> str:
    """Return one Markdown table per op and device: each contestant with its time, share of bandwidth, and distance to ours."""
    sections = []
    for op, device, machine in dict.fromkeys((r.op, r.device, r.machine) for r in rows):
        chosen = [r for r in rows if (r.op, r.device, r.machine) == (op, device, machine)]
        last = chosen[-1]
        sections.append(
            f"### {op} on {device if device.startswith('cpu') else device + ' beside'} "
            f"({machine})\n\n"
            f"torch {last.torch}, triton {last.triton}, commit "
            f"{', '.join(dict.fromkeys(r.commit for r in chosen))}; "
            f"{', '.join(f'`{c}`' for c in dict.fromkeys(r.command for r in chosen))}\n\n"
            + _op_table(chosen)
        )
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
    found = []
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group(), []).append(row)
    for (op, shape, dtype, metric, device, _), group in groups.items():
        ours = min((r.median for r in group if r.is_ours and r.median), default=None)
        peers = [r for r in group if not r.is_ours and not r.is_floor and r.median]
        best = min(peers, key=lambda r: r.median, default=None)
        if ours and best and best.median < ours:
            found.append(
                f"- {op} {metric} at {shape} {dtype} ({device}): {best.backend} is "
                f"{ours / best.median:.2f}x faster."
            )
    return found


def fastest(rows: list[Row]) -> dict[str, dict[str, str]]:
    """Return, per GPU and op, the kernels that are faster: by the mean ratio of their float32 times in groups that have both."""
    logs: dict[tuple[str, str], list[float]] = {}
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if (
            row.backend in GPU_KERNELS
            and row.median
            and row.dtype == "float32"
            and not row.metric.endswith("_launch")
        ):
            groups.setdefault(row.group(), {})[row.backend] = row.median
    for (op, _, _, _, device, _), times in groups.items():
        if len(times) == len(GPU_KERNELS):
            logs.setdefault((device, op_of(op)), []).append(
                math.log(times["triton"] / times["cuda"])
            )
    found: dict[str, dict[str, str]] = {}
    for (device, op), ratios in sorted(logs.items()):
        found.setdefault(device, {})[op] = "triton" if sum(ratios) < 0 else "cuda"
    return found


def write_fastest(target: Path = FASTEST, results: Path = RESULTS) -> None:
    """Write what ``kdistill.ops`` chooses GPU kernels by."""
    rows = [
        row
        for path in sorted(results.glob("*.csv"))
        if path.name != ACCURACY
        for row in read_rows(path)
    ]
    target.write_text(json.dumps(fastest(rows), indent=2, sort_keys=True) + "\n")


def accuracy_table(path: Path) -> str:
    """Return a Markdown table of the rows of ``python -m benchmarks.accuracy``, or nothing without them."""
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "### Accuracy\n",
        "Test accuracy in percent, mean ± standard deviation over distillation seeds and networks; "
        "settings are chosen on",
        'held out training images; every row is trained by the same recipe. "Gap closed" is the '
        "share of the way from random",
        "selection to the full data.\n",
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
    made = ", ".join(
        dict.fromkeys(
            f"commit {row['commit']}, {row['machine']}, `{row['command']}`" for row in rows
        )
    )
    return "\n".join([*lines, "", made, ""])


def write_readme(readme: Path = README, results: Path = RESULTS) -> None:
    """Replace what stands between the markers by tables of all committed rows."""
    from benchmarks import _growth  # which reads rows

    accuracy = results / ACCURACY
    rows = [
        row for path in sorted(results.glob("*.csv")) if path != accuracy for row in read_rows(path)
    ]
    rest_of_rows = [row for row in rows if not row.op.endswith(_growth.SUFFIX)]
    lost = "\n".join(losses(rows)) or (
        "- nowhere in the rows below." if rows else "- not known: no rows are committed yet."
    )
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"### Where a peer is faster\n\n{lost}\n\n{accuracy_table(accuracy)}\n{_growth.section(rows)}{table(rest_of_rows)}"
    _growth.write_picture(rows, readme.parent / _growth.PICTURE)
    readme.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}")
