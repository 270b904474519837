"""``Evaluation``: the rows of an evaluation, its tables, and what follows from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdistill.artifacts.conclusions import conclusions
from kdistill.config import from_mapping
from kdistill.errors import ConfigError
from kdistill.evaluation import result_tables
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.row_scores import RowScores
from kdistill.evaluation.rows import Row
from kdistill.evaluation.significance import Difference
from kdistill.formatting import Tabular, TextTable

_RECORDED = ("data", "seconds", "peak_bytes", "environment", "protocol", "seeds", "notes")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Tabular):
    """The rows of one evaluation, or of several distillation seeds merged.

    Attributes:
        rows: Distilled set first, then its variants, then the baselines; per model.
        protocol: How they were trained.
        data: Name, fingerprint and sizes of the real data.
        seeds: Seeds of the evaluations.
        seconds: Wall clock time, without that of cached baselines.
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
        """Names of the networks, in the order of the call."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def small(self) -> Row:
        """The row of the small set under the first model."""
        return self._of(None).small

    def row(self, name: str, model: str | None = None) -> Row:
        """Return the row of that name (first model by default).

        Raises:
            ConfigError: There is none.
        """
        rows = self._of(model).rows
        if name not in rows:
            known = ", ".join(dict.fromkeys(row.name for row in self.rows))
            raise ConfigError(
                f"evaluation: expected one of the rows {known}, got '{name}'; evaluate with that "
                "baseline"
            )
        return rows[name]

    def gap_closed(self, model: str | None = None) -> float | None:
        """Return the share of the gap between random and full data that the small set closes.

        None where a row is missing.
        """
        return self._of(model).gap_closed()

    def eight_bit_cost(self, model: str | None = None) -> float | None:
        """Return the accuracy lost by an 8-bit export, a share (negative if it helped).

        None where it was not measured.
        """
        return self._of(model).eight_bit_cost()

    def scores(self, model: str | None = None) -> dict[str, float]:
        """Return ``hlr``, ``ior``, ``lrs`` and ``ars`` as far as the rows allow.

        ``kdistill.evaluation.metrics`` defines them.  Random images have the kind of labels that
        the small set has: those of the row ``random, teacher labels`` for soft ones.
        """
        return self._of(model).scores()

    def over_random(self, model: str | None = None) -> dict[str, Difference]:
        """Return the accuracy over that of every random row, a share, with its 95 % interval."""
        return self._of(model).over_random()

    def summary(self) -> list[str]:
        """Return what follows from the rows, one sentence each."""
        lines = []
        for model in self.models:
            where = f" ({model})" if len(self.models) > 1 else ""
            lines += [f"{line}{where}" for line in conclusions(self._of(model).to_dict())]
        protocol, lr = self.protocol, "lr chosen on validation images"
        if protocol.lr != "auto":
            lr = f"lr {protocol.lr:g}"
        seeds = [f"{row.name}: {row.seeds}" for row in self.rows if row.kind != "variant"]
        lines += [
            "; ".join(dict.fromkeys(seeds)),
            f"{self.data.get('name', 'data')}, {protocol.title} protocol, {protocol.epochs} "
            f"epochs, {lr}; mean ± sample standard deviation; validation: held out training images",
            f"{self.seconds:.1f} s, peak memory {self.peak_bytes / 2**30:.2f} GiB",
        ]
        if any(row.best_on_test for row in self.rows):
            lines.append(
                "best on test: over the epochs of a network, chosen on the test images; papers "
                "report the best over the iterations of the distillation (evaluate --snapshots)"
            )
        lines += result_tables.untrained_notes(self.rows)
        return [*lines, *result_tables.test_set_notes(self.small.mean, self.data), *self.notes]

    def tables(self) -> list[TextTable]:
        """Return one line per row and, of several networks, sets × networks."""
        rows = result_tables.row_table(self.rows, self.data, self.protocol.lr, self.summary())
        networks = result_tables.network_table(self.rows, self.student)
        return [rows] if networks is None else [rows, networks]

    def per_class(self, model: str | None = None, width: int | None = 80) -> str:
        """Return accuracies per class, and which class is taken for which, as plain text.

        Args:
            model: Name of the network; None is the first.
            width: Characters of a line, into which wide tables are divided; None divides none.

        Raises:
            ConfigError: The record has no accuracy per class: it was made by an older version.
        """
        rows = self._of(model)
        classes = result_tables.class_table(list(rows.rows.values()), self.data)
        if classes is None:
            raise ConfigError(
                "per_class: expected accuracies per class, got a record without them; evaluate "
                "again"
            )
        confusion = result_tables.confusion_table(rows.small, self.data)
        tables = [classes] if confusion is None else [classes, confusion]
        return "\n\n".join(table.plain(width) for table in tables)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain mapping, for ``metrics.json``."""
        return {
            **asdict(self),
            "rows": [row.to_dict() for row in self.rows],
            "scores": {model: self._of(model).to_dict() for model in self.models},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that ``to_dict`` described, as ``metrics["evaluation"]`` has it.

        Raises:
            ConfigError: The description is not one that this version writes.
        """
        try:
            values = {name: content[name] for name in _RECORDED}
            values["student"] = str(content.get("student", ""))
            values["rows"] = tuple(Row.from_dict(row) for row in content["rows"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"evaluation: expected a record made by to_dict, got one without {error}; evaluate "
                "again"
            ) from error
        evaluation = from_mapping(cls, values, where="evaluation")
        distilled = {row.model for row in evaluation.rows if row.kind == "distilled"}
        alone = [model for model in evaluation.models if model not in distilled]
        if alone or not evaluation.rows or not evaluation.seeds:
            lacking = f"no row of the small set for {alone[0]}" if alone else "no row or no seed"
            raise ConfigError(
                f"evaluation: expected rows of the small set and a seed, got {lacking}; evaluate "
                "again"
            )
        return evaluation

    def _of(self, model: str | None) -> RowScores:
        """Return the rows of one network; None is the first."""
        model = model or self.models[0]
        return RowScores(row for row in self.rows if row.model == model)
