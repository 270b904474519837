"""``Evaluation``: the rows of an evaluation or of several, their tables, and what follows."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdistill.artifacts.conclusions import TEACHER, conclusions, drawn_note
from kdistill.config import from_mapping
from kdistill.errors import ConfigError
from kdistill.evaluation import metrics, result_tables
from kdistill.evaluation.protocols import Protocol
from kdistill.evaluation.rows import Row
from kdistill.evaluation.significance import Difference, difference, mean_of, or_none
from kdistill.formatting import Tabular, TextTable

RANDOM = "random"  # the row of random real images with their own labels; TEACHER has a network's
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
        return _distilled(self._rows(None))

    def row(self, name: str, model: str | None = None) -> Row:
        """Return the row of that name (first model by default).

        Raises:
            ConfigError: There is none.
        """
        rows = self._rows(model)
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
        rows = self._rows(model)
        random, full = rows.get(RANDOM), rows.get("full")
        if random is None or full is None:
            return None
        return metrics.gap_closed(_distilled(rows).mean, random.mean, full.mean)

    def eight_bit_cost(self, model: str | None = None) -> float | None:
        """Return the accuracy lost by an 8-bit export, a share (negative if it helped).

        None where it was not measured.
        """
        rows = self._rows(model)
        small = _distilled(rows)
        rounded = rows.get(f"{small.name}, 8 bits")
        return None if rounded is None else small.mean - rounded.mean

    def scores(self, model: str | None = None) -> dict[str, float]:
        """Return ``hlr``, ``ior``, ``lrs`` and ``ars`` as far as the rows allow.

        ``kdistill.evaluation.metrics`` defines them.  Random images have the kind of labels that
        the small set has: those of the row ``random, teacher labels`` for soft ones.
        """
        rows = self._rows(model)
        small, full = _distilled(rows), rows.get("full")
        random, hard = rows.get(_random_row(small)), rows.get(f"{small.name}, hard labels", small)
        scores = {}
        if full is not None:
            scores["hlr"] = metrics.hlr(full.mean, hard.mean)
        if random is not None:
            scores["ior"] = metrics.ior(small.mean, random.mean)
            if full is not None:
                scores["lrs"] = metrics.lrs(scores["hlr"], scores["ior"])
            plain, random_plain = (
                rows.get(f"{row.name}, no augmentation") for row in (small, random)
            )
            if plain is not None and random_plain is not None:
                means = (row.mean for row in (small, random, plain, random_plain))
                scores["ars"] = metrics.ars(*means)
        return scores

    def over_random(self, model: str | None = None) -> dict[str, Difference]:
        """Return the accuracy over that of every random row, a share, with its 95 % interval.

        Of one small set, the networks are the sample: network i of every row starts from the same
        weights, so their differences are paired.  Of several sets, the sets are the sample.
        """
        rows = self._rows(model)
        small = _distilled(rows)
        return {name: _difference(small, rows[name]) for name in (RANDOM, TEACHER) if name in rows}

    def summary(self) -> list[str]:
        """Return what follows from the rows, one sentence each."""
        lines = []
        for model in self.models:
            where = f" ({model})" if len(self.models) > 1 else ""
            lines += [f"{line}{where}" for line in conclusions(self._all_scores(model))]
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
        lines += [note for row in self.rows if (note := drawn_note(asdict(row)))]
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
        rows = self._rows(model)
        classes = result_tables.class_table(list(rows.values()), self.data)
        if classes is None:
            raise ConfigError(
                "per_class: expected accuracies per class, got a record without them; evaluate "
                "again"
            )
        confusion = result_tables.confusion_table(_distilled(rows), self.data)
        tables = [classes] if confusion is None else [classes, confusion]
        return "\n\n".join(table.plain(width) for table in tables)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain mapping, for ``metrics.json``."""
        return {
            **asdict(self),
            "rows": [row.to_dict() for row in self.rows],
            "scores": {model: self._all_scores(model) for model in self.models},
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

    def _all_scores(self, model: str) -> dict[str, Any]:
        """Return all scores of one network as a plain mapping; terminal and card show it."""
        content: dict[str, Any] = {
            "gap_closed": self.gap_closed(model),
            "eight_bit_cost": self.eight_bit_cost(model),
            **self.scores(model),
        }
        if "ior" in content:
            content["random_row"] = _random_row(_distilled(self._rows(model)))
        over_random = {
            name: {
                "mean": gap.mean,
                "low": or_none(gap.low),
                "high": or_none(gap.high),
                "test": gap.test,
            }
            for name, gap in self.over_random(model).items()
        }
        return {**content, "over_random": over_random} if over_random else content

    def _rows(self, model: str | None) -> dict[str, Row]:
        """Return the rows of one network by name; None is the first network."""
        model = model or self.models[0]
        return {row.name: row for row in self.rows if row.model == model}


def merge(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Put evaluations of several distillation seeds together.

    Rows of the same name and network become one row.  A row that came from the same measurement in
    several evaluations (a cached baseline) counts once.

    Raises:
        ConfigError: There is none, or they differ in protocol or data, or a row in its number of
            images.
    """
    if not evaluations:
        raise ConfigError("merge: expected at least one evaluation, got none; evaluate first")
    first = evaluations[0]
    for what in ("protocol", "data"):
        if any(getattr(other, what) != getattr(first, what) for other in evaluations):
            raise ConfigError(
                f"merge: expected evaluations of one {what}, got two; merge them separately"
            )
    groups: dict[tuple[str, str], list[Row]] = {}
    for model in dict.fromkeys(model for each in evaluations for model in each.models):
        for row in (row for each in evaluations for row in each.rows if row.model == model):
            groups.setdefault((row.name, row.model), []).append(row)
    return replace(
        first,
        rows=tuple(map(_merge_rows, groups.values())),
        seeds=tuple(dict.fromkeys(seed for each in evaluations for seed in each.seeds)),
        seconds=sum(each.seconds for each in evaluations),
        peak_bytes=max(each.peak_bytes for each in evaluations),
        notes=tuple(dict.fromkeys(note for each in evaluations for note in each.notes)),
        student=first.student if len({each.student for each in evaluations}) == 1 else "",
    )


def _merge_rows(candidates: Sequence[Row]) -> Row:
    rows: list[Row] = []
    for row in candidates:
        if not any(set(row.sources) & set(other.sources) for other in rows):
            rows.append(row)
    first = rows[0]
    if any(row.images != first.images for row in rows):
        raise ConfigError(
            f"merge: expected '{first.name}' with one number of images, got "
            f"{sorted({row.images for row in rows})}; merge sets of the same size"
        )
    best = [row.best_on_test for row in rows if row.best_on_test is not None]
    has_classes, has_confusion = (
        all(getattr(row, name) for row in rows) for name in ("per_class", "confusion")
    )
    nets = [len(row.accuracies) for row in rows]
    shares = zip(*(row.per_class for row in rows), strict=True) if has_classes else ()
    counts = zip(*(row.confusion for row in rows), strict=True) if has_confusion else ()
    return replace(
        first,
        accuracies=sum((row.accuracies for row in rows), ()),
        validation=sum((row.validation for row in rows), ()),
        best_on_test=sum(best, ()) if len(best) == len(rows) else None,
        lr=tuple(sorted({lr for row in rows for lr in row.lr})),
        seconds=sum(row.seconds for row in rows),
        drawn=sum(row.drawn for row in rows),
        drawing_seconds=sum(row.drawing_seconds for row in rows),
        sets=sum(row.sets for row in rows),
        untrained=sum(row.untrained for row in rows),
        balanced=sum((row.balanced for row in rows), ()),
        per_class=tuple(sum(map(operator.mul, nets, column)) / sum(nets) for column in shares),
        confusion=tuple(tuple(map(sum, zip(*lines, strict=True))) for lines in counts),
        sources=sum((row.sources for row in rows), ()),
    )


def _distilled(rows: Mapping[str, Row]) -> Row:
    """Return the row of the small set."""
    return next(row for row in rows.values() if row.kind == "distilled")


def _random_row(small: Row) -> str:
    """Return the name of the random row whose labels are of the same kind as the small set's."""
    return TEACHER if small.soft else RANDOM


def _difference(small: Row, random: Row) -> Difference:
    ours, theirs = _sample(small), _sample(random)
    is_paired = small.sets == 1 and len(ours) == len(theirs)
    # numbers that no network of ours has keep `difference` from pairing what does not belong
    # together
    return difference(dict(enumerate(ours)), dict(enumerate(theirs, 0 if is_paired else len(ours))))


def _sample(row: Row) -> Sequence[float]:
    """Return one accuracy per set, or per network of a single set."""
    if row.sets == 1:
        return row.accuracies
    return [mean_of(row.accuracies[i * row.nets : (i + 1) * row.nets]) for i in range(row.sets)]
