"""The table of ``kdistill.api.compare``: its lines, and how it is shown and written."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from kdistill.artifacts.tensors import to_json
from kdistill.errors import ConfigError
from kdistill.evaluation.columns import DAGGER
from kdistill.evaluation.significance import Difference, mean_of, or_none, std_of
from kdistill.files import write_atomic
from kdistill.formatting import duration, markdown_table, plain_table, rich_table

__all__ = ["Comparison", "Entry"]

TEXT_COLUMNS = ("data", "network", "protocol", "set", "test")
OPTIONAL = (
    "memory",
    "time",
    "test",
    "val. %",
)  # columns that may be left out where a line is too short
FORMATS = (".md", ".csv", ".json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the table: the runs of one variant, or one baseline, on one data set at one number of images per class.

    Attributes:
        data: Name of the data set.
        ipc: Images per class.
        model: Network.
        protocol: Of the evaluation.
        name: Of the variant or baseline.
        kind: ``"distilled"`` or ``"baseline"``.
        accuracies: Test accuracy per seed, the mean over its networks; in [0, 1].
        validation: The same on held out training images.
        nets: Test accuracies of all networks.
        seconds: Mean time of distillation; None for a baseline.
        peak_bytes: Largest peak memory of a distillation; None for a baseline.
        against: Difference to the reference line of the same data, images per class and network;
            None for that line itself.
        untrained: Networks that did not train.
    """

    data: str
    ipc: int
    model: str
    protocol: str
    name: str
    kind: str
    accuracies: Mapping[int, float]
    validation: Mapping[int, float]
    nets: tuple[float, ...]
    seconds: float | None = None
    peak_bytes: int | None = None
    against: Difference | None = None
    untrained: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean_of(list(self.accuracies.values()))

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds (n - 1); NaN for one seed."""
        return std_of(list(self.accuracies.values()))

    @property
    def seeds(self) -> str:
        """Such as ``"3 × 5"``: seeds × networks of each."""
        return f"{len(self.accuracies)} × {len(self.nets) // len(self.accuracies)}"


@dataclass(frozen=True)
class Comparison:
    """The lines of a comparison; ``print`` shows the table.

    Attributes:
        entries: Grouped by data, images per class and network; the reference first in each group.
        notes: What a reader should know, one sentence each.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def table(self, width: int | None = None) -> Group:
        """Return the table for a terminal of that many characters; columns that do not fit are left out and named."""
        return rich_table(
            *self._cells(),
            self.notes,
            TEXT_COLUMNS,
            width=width,
            optional=OPTIONAL,
            naming=("ipc",),
        )

    def __str__(self) -> str:
        """Return the table as plain text of 80 columns."""
        return self.to_text(80)

    def to_text(self, width: int | None = None) -> str:
        """Return the same table as plain text; None leaves no column out, for files and pipes."""
        return plain_table(
            *self._cells(),
            self.notes,
            TEXT_COLUMNS,
            width=width,
            optional=OPTIONAL,
            naming=("ipc",),
        )

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        return markdown_table(*self._cells(), self.notes, TEXT_COLUMNS)

    def to_csv(self) -> str:
        """Return one line per entry, accuracies in per cent with all digits."""
        text = io.StringIO()
        rows = [self._plain(entry) for entry in self.entries]
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: "" if value is None else value for key, value in row.items()} for row in rows
        )
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain mapping; numbers per seed and network included."""
        rows = []
        for entry in self.entries:
            seeds = {str(seed): value for seed, value in entry.accuracies.items()}
            rows.append(
                {**self._plain(entry), "test_of_seed": seeds, "test_of_net": list(entry.nets)}
            )
        return {"entries": rows, "notes": list(self.notes)}

    def save(self, path: str | Path) -> Path:
        """Write the table to a ``.md``, ``.csv`` or ``.json`` file.

        Raises:
            ConfigError: Another ending.
            DataError: The place cannot be written.
        """
        path = Path(path)
        if path.suffix not in FORMATS:
            raise ConfigError(
                f"compare: expected a file that ends in {', '.join(FORMATS)}, got {path.name}; "
                "name one of these"
            )
        if path.suffix == ".json":
            write_atomic(path, to_json(self.to_dict()), follow=True)
        else:
            write_atomic(
                path,
                (self.to_markdown() if path.suffix == ".md" else self.to_csv()).encode(),
                follow=True,
            )
        return path

    def _plain(self, entry: Entry) -> dict[str, Any]:
        gap = entry.against
        return {
            "data": entry.data,
            "ipc": entry.ipc,
            "network": entry.model,
            "protocol": entry.protocol,
            "set": entry.name,
            "kind": entry.kind,
            "test_percent": 100 * entry.mean,
            "std_over_seeds": or_none(100 * entry.std),
            "std_over_nets": or_none(100 * std_of(entry.nets)),
            "validation_percent": or_none(100 * mean_of(list(entry.validation.values()))),
            "seeds": len(entry.accuracies),
            "nets_per_seed": len(entry.nets) // len(entry.accuracies),
            "difference": None if gap is None else 100 * gap.mean,
            "low": None if gap is None else or_none(100 * gap.low),
            "high": None if gap is None else or_none(100 * gap.high),
            "test": None if gap is None else gap.test,
            "seconds": entry.seconds,
            "peak_bytes": entry.peak_bytes,
            "untrained_nets": entry.untrained,
        }

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows of text; what all lines have in common is left out."""
        columns: dict[str, Callable[[Entry], str]] = {
            "data": lambda e: e.data,
            "ipc": lambda e: str(e.ipc),
            "network": lambda e: e.model,
            "protocol": lambda e: e.protocol,
        }
        shown = {
            name: cell
            for name, cell in columns.items()
            if len({cell(entry) for entry in self.entries}) > 1
        }
        shown["set"] = lambda e: e.name
        shown["test %"] = lambda e: (
            f"{100 * e.mean:.2f}"
            + ("" if math.isnan(e.std) else f" ± {100 * e.std:.2f}")
            + DAGGER * bool(e.untrained)
        )
        shown["val. %"] = lambda e: (
            f"{100 * mean_of(list(e.validation.values())):.2f}" if e.validation else "-"
        )
        if len({entry.seeds for entry in self.entries}) > 1:
            shown["seeds × nets"] = lambda e: e.seeds
        gaps = [entry.against for entry in self.entries if entry.against is not None]
        if gaps:
            shown["difference"] = lambda e: _difference_text(e.against)
        if len({gap.test for gap in gaps}) > 1:
            shown["test"] = lambda e: "" if e.against is None else e.against.test
        shown["time"] = lambda e: "" if e.seconds is None else _time_text(e.seconds)
        shown["memory"] = lambda e: (
            "" if e.peak_bytes is None else f"{e.peak_bytes / 2**30:.2f} GiB"
        )
        return list(shown), [[cell(entry) for cell in shown.values()] for entry in self.entries]


def _difference_text(gap: Difference | None) -> str:
    if gap is None:
        return ""
    text = f"{100 * gap.mean:+.2f}"
    if math.isnan(gap.low):
        return text
    return f"{text} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]{'*' if gap.is_clear else ''}"


def _time_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
