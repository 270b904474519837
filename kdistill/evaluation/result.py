"""What an evaluation says: rows, a table, what follows from them, and how several distillation seeds are put together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Group

from kdistill.artifacts.conclusions import conclusions
from kdistill.config import from_mapping
from kdistill.errors import ConfigError
from kdistill.evaluation import architectures, columns, metrics
from kdistill.evaluation import scores as scoring
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.significance import Difference, mean_of, or_none, std_of
from kdistill.formatting import plain_table, rich_table

TEXT_COLUMNS = ("set", "network")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Networks of one kind, trained on one set by the protocol's recipe.

    Attributes:
        name: ``"random"``, ``"full"``, the method of the small set, ...
        model: Name of the network.
        kind: ``"distilled"``, ``"variant"`` (of the small or random set: 8 bits, hard labels, no
            augmentation) or ``"baseline"``.
        accuracies: On the test images, in [0, 1], one per network, after the last epoch.
        validation: The same on the held out training images.
        best_on_test: Largest test accuracy over epochs, one per network: chosen by looking at the
            test set.  None unless asked.
        lr: Learning rates of the networks; several only where merged evaluations chose different
            ones.
        epochs: Passes over the set.
        images: Number of images in the set.
        nbytes: Of images and labels as the networks were given them (float32 pixels, int64 labels
            or float32 label logits).
        seconds: Spent on training and testing; of the original training if the row was kept from an
            earlier evaluation.
        unit: What ``sets`` counts: ``"distillation seed"``, ``"subset"``, or nothing for the full
            data.
        sets: How many sets stand behind the row.
        sources: What the numbers were made from, one digest per evaluation; equal sources are the
            same measurement.
        soft: Whether the labels were soft.
        untrained: Networks that did not train: no better than chance on their own training images.
        balanced: Mean over classes of the share of its test images that is recognised, one per
            network.
        per_class: Share of each class's test images that is recognised, the mean over networks.
        confusion: Test images of a true class (outer) taken for a class (inner), summed over
            networks; empty for variants and for many classes.
    """

    name: str
    model: str
    kind: str
    accuracies: tuple[float, ...]
    validation: tuple[float, ...]
    best_on_test: tuple[float, ...] | None = None
    lr: tuple[float, ...]
    epochs: int
    images: int
    nbytes: int
    seconds: float
    unit: str = ""
    sets: int = 1
    sources: tuple[str, ...] = ()
    soft: bool = False
    untrained: int = 0
    balanced: tuple[float, ...] = ()
    per_class: tuple[float, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def mean(self) -> float:
        """Mean test accuracy."""
        return mean_of(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation of the test accuracies (n - 1); NaN for one network."""
        return std_of(self.accuracies)

    @property
    def seeds(self) -> str:
        """What the spread is over, e.g. ``"3 distillation seeds × 5 nets"``."""
        nets = (
            _count(len(self.accuracies) // self.sets, "net")
            if self.unit
            else _count(len(self.accuracies), "net")
        )
        return f"{_count(self.sets, self.unit)} × {nets}" if self.unit else nets

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain mapping, with mean, std and seeds."""
        summary = {"mean": self.mean, "std": or_none(self.std), "seeds": self.seeds}
        return {**asdict(self), **summary, "validation_mean": or_none(mean_of(self.validation))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Row":
        """Return the row that ``to_dict`` (or ``dataclasses.asdict``) described, as it comes back from JSON."""
        known = {entry.name for entry in fields(cls)}
        row = from_mapping(
            cls,
            {key: value for key, value in content.items() if key in known},
            where="evaluation.rows",
        )
        if not row.accuracies or not 1 <= row.sets <= len(row.accuracies):
            raise ConfigError(
                f"evaluation.rows: expected accuracies of {row.sets} sets, got "
                f"{len(row.accuracies)}; evaluate again"
            )
        return row


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of one evaluation, or of several distillation seeds merged.

    Attributes:
        rows: Distilled set first, then its variants, then the baselines; per model.
        protocol: How they were trained.
        data: Name, fingerprint and sizes of the real data.
        seeds: Of the evaluations.
        seconds: Wall clock, without what was kept from earlier evaluations.
        peak_bytes: Peak resident memory of the process.
        environment: Versions, threads and instruction set that the numbers belong to.
        notes: What a reader should know, one sentence each.
        student: Network that the small set was made with; empty where it does not say.
    """

    rows: tuple[Row, ...]
    protocol: Protocol
    data: Mapping[str, Any]
    seeds: tuple[int, ...] = (0,)
    seconds: float = 0.0
    peak_bytes: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    student: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the networks, in the order they were given."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def small(self) -> Row:
        """The row of the small set under the first model."""
        return self._distilled(None)

    def row(self, name: str, model: str | None = None) -> Row:
        """Return the row of that name (first model by default).

        Raises:
            ConfigError: There is none.
        """
        found = self._find(name, model)
        if found is None:
            known = ", ".join(dict.fromkeys(row.name for row in self.rows))
            raise ConfigError(
                f"evaluation: expected one of the rows {known}, got '{name}'; evaluate with that "
                "baseline"
            )
        return found

    def gap_closed(self, model: str | None = None) -> float | None:
        """Return the share of the gap between random and full data that the small set closes; None if a row is missing."""
        random, full = self._find("random", model), self._find("full", model)
        if random is None or full is None:
            return None
        return metrics.gap_closed(self._distilled(model).mean, random.mean, full.mean)

    def eight_bit_cost(self, model: str | None = None) -> float | None:
        """Return the accuracy lost by an 8-bit export, a share (negative if it helped); None if it was not measured."""
        small = self._distilled(model)
        rounded = self._find(f"{small.name}, 8 bits", model)
        return None if rounded is None else small.mean - rounded.mean

    def scores(self, model: str | None = None) -> dict[str, float]:
        """Return ``hlr``, ``ior``, ``lrs`` and ``ars`` as far as the rows allow (see ``kdistill.evaluation.metrics``).

        Random images have the kind of labels that the small set has: those of the row ``random,
        teacher labels`` for soft ones.
        """
        return scoring.scores(self._distilled(model), self._by_name(model))

    def over_random(self, model: str | None = None) -> dict[str, Difference]:
        """Return the accuracy of the small set over that of every random row, a share, with its 95 % interval."""
        return scoring.over_random(self._distilled(model), self._by_name(model))

    def summary(self) -> list[str]:
        """Return what follows from the rows, one sentence each."""
        lines = []
        for model in self.models:
            where = f" ({model})" if len(self.models) > 1 else ""
            lines += [f"{line}{where}" for line in conclusions(self._derived(model))]
        step = (
            "lr chosen on validation images"
            if self.protocol.lr == "auto"
            else f"lr {self.protocol.lr:g}"
        )
        lines.append(
            "; ".join(
                dict.fromkeys(
                    f"{row.name}: {row.seeds}" for row in self.rows if row.kind != "variant"
                )
            )
        )
        lines.append(
            f"{self.data.get('name', 'data')}, {self.protocol.title} protocol, "
            f"{self.protocol.epochs} epochs, {step}; "
            "mean ± sample standard deviation; validation: held out training images"
        )
        lines.append(f"{self.seconds:.1f} s, peak memory {self.peak_bytes / 2**30:.2f} GiB")
        warnings = columns.untrained_notes(self.rows, self.models) + columns.test_set_notes(self)
        if any(row.best_on_test for row in self.rows):
            lines.append(
                "best on test: over the epochs of a network, chosen on the test images; papers "
                "report the best over the "
                "iterations of the distillation (evaluate --snapshots)"
            )
        return [*lines, *warnings, *self.notes]

    def table(self, width: int | None = None) -> Group:
        """Return the tables for a terminal of that many characters; columns that do not fit are left out and named."""
        bold = [number for number, row in enumerate(self.rows) if row.kind == "distilled"]
        cells = columns.row_cells(self)
        table = rich_table(
            *cells, self.summary(), TEXT_COLUMNS, bold, width=width, optional=columns.OPTIONAL
        )
        across = self.across(width)
        return table if across is None else Group(table, "", across)

    def across(self, width: int | None = None) -> Group | None:
        """Return sets × networks, for a terminal; None for one network."""
        cells = architectures.cells(self.rows, self.student)
        return (
            None if cells is None else rich_table(*cells, architectures.TEXT_COLUMNS, width=width)
        )

    def per_class(self, model: str | None = None, width: int | None = 80) -> str:
        """Return two tables as plain text: the accuracy of every class in every row, and which class is taken for which.

        Args:
            model: Name of the network; None is the first.
            width: Characters of a line, into which wide tables are divided; None divides none.

        Raises:
            ConfigError: The record has no accuracy per class: it was made by an older version.
        """
        model = model or self.models[0]
        cells = columns.class_cells(self, model)
        if cells is None:
            raise ConfigError(
                "per_class: expected accuracies per class, got a record without them; evaluate "
                "again"
            )
        note = f"test images of each class that are recognised, %; mean over networks ({model})"
        text = plain_table(*cells, [note], ("class",), width=width)
        taken = columns.confusion_cells(self, self._distilled(model))
        if taken is None:
            return text
        unit = "% of the test images of the true class (. is none)"
        return f"{text}\n\n{plain_table(*taken, [unit], taken[0][:1], width=width)}"

    def __str__(self) -> str:
        """Return the tables as plain text of 80 columns."""
        return self.to_text(80)

    def to_text(self, width: int | None = None) -> str:
        """Return the same tables as plain text; None leaves no column out and divides no table, for files and pipes."""
        cells, across = columns.row_cells(self), architectures.cells(self.rows, self.student)
        text = plain_table(
            *cells, self.summary(), TEXT_COLUMNS, width=width, optional=columns.OPTIONAL
        )
        return (
            text
            if across is None
            else f"{text}\n\n{plain_table(*across, architectures.TEXT_COLUMNS, width=width)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain mapping, for ``metrics.json``."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "scores": {model: self._derived(model) for model in self.models},
            "protocol": asdict(self.protocol),
            "data": dict(self.data),
            "seeds": list(self.seeds),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "environment": dict(self.environment),
            "notes": list(self.notes),
            "student": self.student,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that ``to_dict`` described, e.g. ``metrics["evaluation"]`` of a saved set.

        Raises:
            ConfigError: The description is not one that this version writes.
        """
        try:
            named = ("data", "seconds", "peak_bytes", "environment", "protocol", "seeds", "notes")
            given = {name: content[name] for name in named} | {
                "student": str(content.get("student", ""))
            }
            rows = tuple(Row.from_dict(row) for row in content["rows"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"evaluation: expected a record made by to_dict, got one without {error}; evaluate "
                "again"
            ) from error
        found = from_mapping(cls, {**given, "rows": rows}, where="evaluation")
        alone = [
            name
            for name in found.models
            if not any(row.kind == "distilled" and row.model == name for row in rows)
        ]
        if alone or not rows or not found.seeds:
            lacking = f"no row of the small set for {alone[0]}" if alone else "no row or no seed"
            raise ConfigError(
                f"evaluation: expected rows of the small set and a seed, got {lacking}; evaluate "
                "again"
            )
        return found

    def _derived(self, model: str) -> dict[str, Any]:
        found = {"gap_closed": self.gap_closed(model), "eight_bit_cost": self.eight_bit_cost(model)}
        return {**found, **scoring.to_dict(self._distilled(model), self._by_name(model))}

    def _by_name(self, model: str | None) -> dict[str, Row]:
        model = model or self.models[0]
        return {row.name: row for row in self.rows if row.model == model}

    def _find(self, name: str, model: str | None) -> Row | None:
        model = model or self.models[0]
        return next((row for row in self.rows if row.name == name and row.model == model), None)

    def _distilled(self, model: str | None) -> Row:
        model = model or self.models[0]
        return next(row for row in self.rows if row.kind == "distilled" and row.model == model)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
