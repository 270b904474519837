"""Whether the numbers of a row that was kept can be those of an evaluation."""

import math
from collections.abc import Sequence
from itertools import chain

from kdistill.evaluation.result import Row


def impossible(
    row: Row, nets: int, num_classes: int, tests: Sequence[int], validated: bool
) -> str | None:
    """Return what of a row cannot have been measured, in words, or None.

    Args:
        row: Of one evaluation, not merged.
        nets: Networks of the protocol.
        num_classes: K.
        tests: Test images of every class, ``[K]``.
        validated: Whether images were held out.
    """
    per_net = {
        "accuracies": nets,
        "validation": nets * validated,
        "balanced": nets,
        "per_class": num_classes,
        "lr": 1,
    }
    if row.best_on_test is not None:
        per_net["best_on_test"] = nets
    for name, count in per_net.items():
        values = getattr(row, name)
        if len(values) != count or not all(
            value >= 0.0 and math.isfinite(value) for value in values
        ):
            return (
                f"{name} of {len(values)} numbers"
                if len(values) != count
                else f"{name} below 0 or not finite"
            )
        if name != "lr" and not all(value <= 1.0 for value in values):
            return f"{name} above 1"
    counts = (row.epochs, row.images, row.nbytes, row.sets, row.seconds)
    if min(counts) < 0 or not math.isfinite(row.seconds) or not 0 <= row.untrained <= nets:
        return "sizes that nothing has"
    return _impossible_confusion(row, nets, tests) if row.confusion else None


def _impossible_confusion(row: Row, nets: int, tests: Sequence[int]) -> str | None:
    is_square = len(row.confusion) == len(tests) and all(
        len(line) == len(tests) for line in row.confusion
    )
    if not is_square or min(chain(*row.confusion)) < 0:
        return "a confusion matrix of other classes"
    if any(sum(line) != nets * images for line, images in zip(row.confusion, tests, strict=True)):
        return "a confusion matrix of other test images"
    right = sum(line[number] for number, line in enumerate(row.confusion))
    if not math.isclose(right / sum(tests), sum(row.accuracies), abs_tol=1e-6):
        return "accuracies that disagree with the confusion matrix"
    return None
