"""The table of ``kdistill.compare``: its lines, and how it is shown and written."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill.artifacts.tensors import to_json
from kdistill.errors import ConfigError
from kdistill.evaluation.result_tables import DAGGER, percent
from kdistill.evaluation.significance import Difference, mean_of, or_none, std_of
from kdistill.files import write_atomic
from kdistill.formatting import Tabular, TextTable, cells_of, duration

__all__ = ["Comparison", "Entry"]


# one line of a table: every field is a column
@dataclass(frozen=True, kw_only=True)
class Entry:
    """The runs of one variant, or one baseline, on one data set at one number of images per class.

    Attributes:
        data: Name of the data set.
        ipc: Images per class.
        model: Network.
        protocol: Protocol of the evaluation.
        name: Name of the variant or baseline.
        kind: ``"distilled"`` or ``"baseline"``.
        accuracies: Test accuracy per seed, the mean over its networks; in [0, 1].
        validation: The same on held out training images.
        nets: Test accuracies of all networks.
        seconds: Mean time of distillation; None for a baseline.
        peak_bytes: Largest peak memory of a distillation; None for a baseline.
        against: Difference to the reference line of the same data, images per class and network;
            None for that line itself.
        untrained: Number of networks that did not train.
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
        """Seeds × networks of each, such as ``"3 × 5"``."""
        return f"{len(self.accuracies)} × {self.nets_per_seed}"

    @property
    def nets_per_seed(self) -> int:
        """Networks of each seed."""
        return len(self.nets) // len(self.accuracies)


@dataclass(frozen=True)
class Comparison(Tabular):
    """The lines of a comparison; ``print`` shows the table.

    Attributes:
        entries: Grouped by data, images per class and network; the reference first in each group.
        notes: What a reader should know, one sentence each.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def tables(self) -> list[TextTable]:
        """Return the table; what all lines have in common is left out."""
        shared: dict[str, Callable[[Entry], str]] = {
            "data": lambda entry: entry.data,
            "ipc": lambda entry: str(entry.ipc),
            "network": lambda entry: entry.model,
            "protocol": lambda entry: entry.protocol,
        }
        columns = {
            name: text for name, text in shared.items() if len(set(map(text, self.entries))) > 1
        }
        columns |= {
            "set": lambda entry: entry.name,
            "test %": lambda entry: (
                percent(list(entry.accuracies.values())) + DAGGER * bool(entry.untrained)
            ),
            "val. %": lambda entry: (
                percent([mean_of(list(entry.validation.values()))]) if entry.validation else "-"
            ),
        }
        if len({entry.seeds for entry in self.entries}) > 1:
            columns["seeds × nets"] = lambda entry: entry.seeds
        tests = {entry.against.test for entry in self.entries if entry.against is not None}
        if tests:
            columns["difference"] = lambda entry: _difference_text(entry.against)
        if len(tests) > 1:
            columns["test"] = lambda entry: "" if entry.against is None else entry.against.test
        columns |= {"time": _time_text, "memory": _memory_text}
        return [
            TextTable(
                columns=list(columns),
                rows=cells_of(self.entries, columns),
                notes=self.notes,
                left=("data", "network", "protocol", "set", "test"),
                optional=("memory", "time", "test", "val. %"),
                naming=("ipc",),
            )
        ]

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        return self.tables()[0].markdown()

    def to_csv(self) -> str:
        """Return one line per entry, accuracies in per cent with all digits."""
        text = io.StringIO()
        rows = [_plain(entry) for entry in self.entries]
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain mapping; numbers per seed and network included."""
        rows = [
            {
                **_plain(entry),
                "test_of_seed": {str(seed): value for seed, value in entry.accuracies.items()},
                "test_of_net": list(entry.nets),
            }
            for entry in self.entries
        ]
        return {"entries": rows, "notes": list(self.notes)}

    def save(self, path: str | Path) -> Path:
        """Write the table to a ``.md``, ``.csv`` or ``.json`` file.

        Raises:
            ConfigError: Another ending.
            DataError: The place cannot be written.
        """
        path = Path(path)
        writers: dict[str, Callable[[], bytes]] = {
            ".md": lambda: self.to_markdown().encode(),
            ".csv": lambda: self.to_csv().encode(),
            ".json": lambda: to_json(self.to_dict()),
        }
        if path.suffix not in writers:
            raise ConfigError(
                f"compare: expected a file that ends in {', '.join(writers)}, got {path.name}; "
                "name one of these"
            )
        write_atomic(path, writers[path.suffix](), follow=True)
        return path


def _plain(entry: Entry) -> dict[str, Any]:
    """Return the numbers of a line, accuracies in per cent."""
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
        "nets_per_seed": entry.nets_per_seed,
        "difference": None if gap is None else 100 * gap.mean,
        "low": None if gap is None else or_none(100 * gap.low),
        "high": None if gap is None else or_none(100 * gap.high),
        "test": None if gap is None else gap.test,
        "seconds": entry.seconds,
        "peak_bytes": entry.peak_bytes,
        "untrained_nets": entry.untrained,
    }


def _difference_text(gap: Difference | None) -> str:
    if gap is None:
        return ""
    text = f"{100 * gap.mean:+.2f}"
    if math.isnan(gap.low):
        return text
    return f"{text} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]{'*' if gap.is_clear else ''}"


def _time_text(entry: Entry) -> str:
    if entry.seconds is None:
        return ""
    return f"{entry.seconds:.1f} s" if entry.seconds < 60 else duration(entry.seconds)


def _memory_text(entry: Entry) -> str:
    return "" if entry.peak_bytes is None else f"{entry.peak_bytes / 2**30:.2f} GiB"
