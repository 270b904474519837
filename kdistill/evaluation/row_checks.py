"""Whether the numbers of a cached row can be those of an evaluation."""

import math
from collections.abc import Sequence
from itertools import chain

from kdistill.evaluation.rows import Row


def implausibility(
    row: Row, nets: int, test_counts: Sequence[int], has_validation: bool
) -> str | None:
    """Return what of a row cannot have been measured, in words, or None.

    Args:
        row: Row of one evaluation, not merged.
        nets: Networks of the protocol.
        test_counts: Test images of every class, ``[K]``.
        has_validation: Whether images were held out.
    """
    lengths = {
        "accuracies": nets,
        "validation": nets * has_validation,
        "balanced": nets,
        "per_class": len(test_counts),
        "lr": 1,
    }
    if row.best_on_test is not None:
        lengths["best_on_test"] = nets
    for name, count in lengths.items():
        values = getattr(row, name)
        if len(values) != count:
            return f"{name} of {len(values)} numbers"
        if not all(value >= 0.0 and math.isfinite(value) for value in values):
            return f"{name} below 0 or not finite"
        if name != "lr" and not all(value <= 1.0 for value in values):
            return f"{name} above 1"
    counts = (row.epochs, row.images, row.nbytes, row.sets, row.seconds)
    if min(counts) < 0 or not math.isfinite(row.seconds) or not 0 <= row.untrained <= nets:
        return "sizes that nothing has"
    return _confusion_implausibility(row, nets, test_counts) if row.confusion else None


def _confusion_implausibility(row: Row, nets: int, test_counts: Sequence[int]) -> str | None:
    lengths = [len(row.confusion), *map(len, row.confusion)]
    if set(lengths) != {len(test_counts)} or min(chain(*row.confusion)) < 0:
        return "a confusion matrix of other classes"
    if list(map(sum, row.confusion)) != [nets * images for images in test_counts]:
        return "a confusion matrix of other test images"
    right = sum(line[number] for number, line in enumerate(row.confusion))
    if not math.isclose(right / sum(test_counts), sum(row.accuracies), abs_tol=1e-6):
        return "accuracies that disagree with the confusion matrix"
    return None
