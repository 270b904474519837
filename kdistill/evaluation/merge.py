"""``merge``: one evaluation of several, those of sets that were distilled with different seeds."""

import operator
from collections.abc import Sequence
from dataclasses import replace

from kdistill.errors import ConfigError
from kdistill.evaluation.result import Evaluation
from kdistill.evaluation.rows import Row


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
        sets=sum(row.sets for row in rows),
        untrained=sum(row.untrained for row in rows),
        balanced=sum((row.balanced for row in rows), ()),
        per_class=tuple(sum(map(operator.mul, nets, column)) / sum(nets) for column in shares),
        confusion=tuple(tuple(map(sum, zip(*lines, strict=True))) for lines in counts),
        sources=sum((row.sources for row in rows), ()),
    )
