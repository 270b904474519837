"""The cells of an evaluation's tables: one line per row, one line per class, and which class is taken for which."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kdistill.evaluation.significance import binomial_half_width, mean_of, std_of
from kdistill.formatting import byte_count

if TYPE_CHECKING:
    from kdistill.evaluation.result import Evaluation, Row

DAGGER = "†"  # marks a number with a network behind it that did not train
# ratio of test images of the largest and the smallest class from which the mean over classes is
# shown
UNEVEN = 1.5
TINY = 0.06  # uncertainty of an accuracy from the number of test images above which it is said
OPTIONAL = (
    "seconds",
    "size",
    "images",
    "sets × nets",
)  # columns that may be left out where a line is too short

Cells = tuple[list[str], list[list[str]]]


def row_cells(found: "Evaluation") -> Cells:
    """Return headers and one line per row; what every row has in common is left out."""
    columns: dict[str, Callable[[Row], str]] = {"set": lambda row: row.name}
    if len(found.models) > 1:
        columns["network"] = lambda row: row.model
    columns["test %"] = lambda row: percent(row.accuracies) + DAGGER * bool(row.untrained)
    if has_uneven_classes(found):
        columns["balanced %"] = lambda row: percent(row.balanced)
    columns["validation %"] = lambda row: percent(row.validation)
    if any(row.best_on_test for row in found.rows):
        columns["best on test %"] = lambda row: percent(row.best_on_test or ())
    if {row.lr for row in found.rows} != {(found.protocol.lr,)}:
        columns["lr"] = lambda row: ", ".join(f"{lr:g}" for lr in row.lr)
    columns["images"] = lambda row: f"{row.images:,}"
    columns["size"] = lambda row: byte_count(row.nbytes)
    columns["sets × nets"] = lambda row: f"{row.sets} × {len(row.accuracies) // row.sets}"
    columns["seconds"] = lambda row: f"{row.seconds:.1f}"
    return list(columns), [[text(row) for text in columns.values()] for row in found.rows]


def class_cells(found: "Evaluation", model: str) -> Cells | None:
    """Return classes × sets, the share of each class's test images that is recognised; None where no row says."""
    rows = [
        row for row in found.rows if row.model == model and row.per_class and row.kind != "variant"
    ]
    if not rows:
        return None
    names, counts = _classes(found, len(rows[0].per_class))
    lines = [
        [name, count, *(f"{100 * row.per_class[i]:.1f}" for row in rows)]
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    return ["class", "test images", *(row.name for row in rows)], lines


def confusion_cells(found: "Evaluation", row: "Row") -> Cells | None:
    """Return true × predicted classes, in per cent of the test images of the true class; None where the row does not say."""
    if not row.confusion:
        return None
    names, _ = _classes(found, len(row.confusion))
    lines = [
        [name, *(f"{100 * count / max(1, sum(counts)):.0f}" if count else "." for count in counts)]
        for name, counts in zip(names, row.confusion, strict=True)
    ]
    return [f"{row.name}: true \\ predicted", *names], lines


def has_uneven_classes(found: "Evaluation") -> bool:
    """Return whether the test classes differ so much in size that the accuracy is mostly that of the large ones."""
    counts = [count for count in found.data.get("test_per_class", ()) if count]
    return bool(counts) and max(counts) >= UNEVEN * min(counts)


def test_set_notes(found: "Evaluation") -> list[str]:
    """Say what the size of the test set and of its classes means for the numbers, one sentence each."""
    notes, total = [], found.data.get("test")
    if isinstance(total, int) and total > 0:
        half = binomial_half_width(found.small.mean, total)
        if half > TINY:
            notes.append(
                f"{total} test images: they alone leave an accuracy uncertain by ± "
                f"{100 * half:.0f} points (95 %), "
                "whatever the ± between networks says; give more test images"
            )
    counts = list(found.data.get("test_per_class", ()))
    if has_uneven_classes(found):
        notes.append(
            f"test classes have {min(counts):,} to {max(counts):,} images: balanced % is the mean "
            "over classes; every class: "
            "--per-class, print(result.per_class())"
        )
    empty = sum(count == 0 for count in counts)
    if empty:
        notes.append(
            f"{empty} of {len(counts)} classes have no test image: nothing is known about them"
        )
    return notes


def untrained_notes(rows: Sequence["Row"], models: Sequence[str]) -> list[str]:
    """Name the networks that did not train, one sentence per kind of network."""
    notes = []
    for model in models:
        failed = [
            f"{row.untrained} of {len(row.accuracies)} on '{row.name}'"
            for row in rows
            if row.model == model and row.untrained
        ]
        if failed:
            notes.append(
                f"{DAGGER} {model} did not train ({', '.join(failed)}): no better than chance on "
                "its own training images; "
                "its numbers say nothing about the sets. Try another learning rate (lr='auto', "
                "--lr auto) or more epochs"
            )
    return notes


def percent(values: Sequence[float]) -> str:
    """Return ``"93.21 ± 0.34"`` from shares; no ± for a single one, ``"-"`` for none."""
    if not values:
        return "-"
    spread = "" if len(values) < 2 else f" ± {100 * std_of(values):.2f}"
    return f"{100 * mean_of(values):.2f}{spread}"


def _classes(found: "Evaluation", count: int) -> tuple[list[str], list[str]]:
    """Return the names of the classes and how many test images each has, as text."""
    names = [str(name) for name in found.data.get("classes", ())]
    counts = [f"{number:,}" for number in found.data.get("test_per_class", ())]
    return (
        names if len(names) == count else [str(i) for i in range(count)],
        counts if len(counts) == count else ["-"] * count,
    )
