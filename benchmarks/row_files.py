"""CSV files of rows that are measured one after another, in calls that may end at any time."""

import csv
import io
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Protocol, TypeVar

import torch

from benchmarks import provenance
from kdistill.files import write_atomic

CALL_AGAIN = 75  # EX_TEMPFAIL: exit status of a call that ended before everything was measured
# two-sided 95 % points of Student's t by degrees of freedom; beyond them the last one
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class KeyedRow(Protocol):
    """A dataclass whose fields are text, the columns of a file."""

    @property
    def key(self) -> tuple[str, ...]:
        """What a new measurement replaces."""


R = TypeVar("R", bound=KeyedRow)


def read_rows(kind: type[R], path: Path) -> list[R]:
    """Return the rows of a file, none where there is none; a column that it lacks is empty."""
    if not path.exists():
        return []
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    with path.open(newline="") as file:
        return [
            kind(**{name: line.get(name) or "" for name in names}) for line in csv.DictReader(file)
        ]


def write_rows(kind: type[R], path: Path, rows: Iterable[R]) -> None:
    """Put rows into the file in the place of earlier ones, sorted, so that diffs are small."""
    by_key = {row.key: row for row in [*read_rows(kind, path), *rows]}
    text = io.StringIO()
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(by_key[key]) for key in sorted(by_key))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())


def filled(kind: type[R], columns: Mapping[str, Any]) -> R:
    """Return a row with these columns as text, and empty ones."""
    empty = {entry.name: "" for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**empty, **{name: str(value) for name, value in columns.items()}})


def conditions() -> dict[str, str]:
    """Return what every row says of the machine and the code that measured it."""
    return {
        "machine": provenance.machine(),
        "threads": str(torch.get_num_threads()),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "commit": provenance.commit(),
    }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t; None of fewer than two values."""
    if len(values) < 2:
        return None
    t = T_95[min(len(values) - 1, len(T_95)) - 1]
    half = t * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half
