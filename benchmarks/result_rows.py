"""Rows of measurements: CSV files, one per machine."""

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
# rows of accuracy; the other files hold times
ACCURACY, GENERATIVE, PRESETS = "accuracy.csv", "generative.csv", "presets.csv"
PUBLISHED = "published.csv"
COPY, READ = "copy of the same bytes", "read of the same bytes"
GPU_KERNELS = ("cuda", "triton")
# first words of contestants that are kernels of this project; all others are peers
OURS = ("cpu", "cuda", "triton")


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
        """Return what a row shares with the other contestants of its run.

        With ``backend`` it is the key of a row.
        """
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


def all_rows(results: Path = RESULTS) -> list[Row]:
    """Return the rows of all machines."""
    paths = sorted(
        path
        for path in results.glob("*.csv")
        if path.name not in (ACCURACY, GENERATIVE, PRESETS, PUBLISHED)
    )
    return [row for path in paths for row in read_rows(path)]


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
    """The rows of a run in progress, in a file beside their target.

    Each row is on disk before the next is measured.  ``finish`` moves them into the target; those
    of a run that was cut off are moved when the next one begins.
    """

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
    """Merge the rows of a file into those of their machines; return the files that changed."""
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


def fastest(rows: list[Row]) -> dict[str, dict[str, str]]:
    """Return, per GPU and op, the kernels that are faster.

    What counts is the mean ratio of their float32 times in groups that have both.
    """
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
    winners: dict[str, dict[str, str]] = {}
    for (device, op), ratios in sorted(logs.items()):
        winners.setdefault(device, {})[op] = "triton" if sum(ratios) < 0 else "cuda"
    return winners


def write_fastest(target: Path = FASTEST, results: Path = RESULTS) -> None:
    """Write the table by which ``kdistill.ops`` chooses GPU kernels."""
    target.write_text(json.dumps(fastest(all_rows(results)), indent=2, sort_keys=True) + "\n")
