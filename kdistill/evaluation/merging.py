"""Several evaluations put together: those of sets that were distilled with different seeds."""

from collections.abc import Sequence
from dataclasses import replace

from kdistill.errors import ConfigError
from kdistill.evaluation.result import Evaluation, Row


def merge(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Put evaluations of several distillation seeds together: rows of the same name and network become one row.

    A row that came from the same measurement in several evaluations (a baseline that was kept)
    counts once.

    Raises:
        ConfigError: None given, or they differ in protocol or data, or a row in its number of
            images.
    """
    if not evaluations:
        raise ConfigError("merge: expected at least one evaluation, got none; evaluate first")
    first = evaluations[0]
    for other in evaluations[1:]:
        for what in ("protocol", "data"):
            if getattr(other, what) != getattr(first, what):
                raise ConfigError(
                    f"merge: expected evaluations of one {what}, got two; merge them separately"
                )
    groups: dict[tuple[str, str], list[Row]] = {}
    for model in dict.fromkeys(model for evaluation in evaluations for model in evaluation.models):
        for evaluation in evaluations:
            for row in evaluation.rows:
                if row.model == model:
                    groups.setdefault((row.name, row.model), []).append(row)
    return replace(
        first,
        rows=tuple(_merge_rows(rows) for rows in groups.values()),
        seeds=tuple(dict.fromkeys(seed for evaluation in evaluations for seed in evaluation.seeds)),
        seconds=sum(evaluation.seconds for evaluation in evaluations),
        peak_bytes=max(evaluation.peak_bytes for evaluation in evaluations),
        notes=tuple(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes)),
        student=first.student
        if all(other.student == first.student for other in evaluations)
        else "",
    )


def _merge_rows(rows: list[Row]) -> Row:
    kept: list[Row] = []
    for row in rows:
        if not any(set(row.sources) & set(other.sources) for other in kept):
            kept.append(row)
    first = kept[0]
    if any(row.images != first.images for row in kept):
        raise ConfigError(
            f"merge: expected '{first.name}' with one number of images, got "
            f"{sorted({row.images for row in kept})}; "
            "merge sets of the same size"
        )
    best = [row.best_on_test for row in kept if row.best_on_test is not None]
    return replace(
        first,
        accuracies=sum((row.accuracies for row in kept), ()),
        validation=sum((row.validation for row in kept), ()),
        best_on_test=sum(best, ()) if len(best) == len(kept) else None,
        lr=tuple(sorted({lr for row in kept for lr in row.lr})),
        seconds=sum(row.seconds for row in kept),
        sets=sum(row.sets for row in kept),
        untrained=sum(row.untrained for row in kept),
        balanced=sum((row.balanced for row in kept), ()),
        per_class=_pooled_per_class(kept),
        confusion=_pooled_confusion(kept),
        sources=sum((row.sources for row in kept), ()),
    )


def _pooled_per_class(rows: Sequence[Row]) -> tuple[float, ...]:
    """Return the mean over all networks, class by class; nothing where a row does not say."""
    if not all(row.per_class for row in rows):
        return ()
    weights = [len(row.accuracies) for row in rows]
    columns = zip(*(row.per_class for row in rows), strict=True)
    return tuple(
        sum(w * share for w, share in zip(weights, column, strict=True)) / sum(weights)
        for column in columns
    )


def _pooled_confusion(rows: Sequence[Row]) -> tuple[tuple[int, ...], ...]:
    if not all(row.confusion for row in rows):
        return ()
    lines = zip(*(row.confusion for row in rows), strict=True)
    return tuple(tuple(map(sum, zip(*line, strict=True))) for line in lines)
