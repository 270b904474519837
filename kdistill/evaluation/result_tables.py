"""The tables of an evaluation, and the notes below them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdistill.evaluation.rows import Row
from kdistill.evaluation.significance import binomial_half_width, mean_of, std_of
from kdistill.formatting import TextTable, byte_count, cells_of

DAGGER = "†"  # marks a number with a network behind it that did not train
# ratio of test images of the largest and the smallest class from which the mean over classes is
# shown
UNEVEN = 1.5
UNCERTAIN = 0.06  # half width of the interval of an accuracy above which a note warns


def row_table(
    rows: Sequence[Row], data: Mapping[str, Any], lr: float | str, notes: Sequence[str]
) -> TextTable:
    """Return one line per row; what every row has in common is left out.

    Args:
        rows: Rows of all networks.
        data: Sizes of the real data, as an ``Evaluation`` has them.
        lr: Learning rate of the protocol.
        notes: Sentences below the table.
    """
    columns: dict[str, Callable[[Row], str]] = {"set": lambda row: row.name}
    if len({row.model for row in rows}) > 1:
        columns["network"] = lambda row: row.model
    columns["test %"] = lambda row: percent(row.accuracies) + DAGGER * bool(row.untrained)
    if _has_uneven_classes(data):
        columns["balanced %"] = lambda row: percent(row.balanced)
    columns["validation %"] = lambda row: percent(row.validation)
    if any(row.best_on_test for row in rows):
        columns["best on test %"] = lambda row: percent(row.best_on_test or ())
    if {row.lr for row in rows} != {(lr,)}:
        columns["lr"] = lambda row: ", ".join(f"{lr:g}" for lr in row.lr)
    columns |= {
        "images": lambda row: f"{row.images:,}",
        "size": lambda row: byte_count(row.nbytes),
        "sets × nets": lambda row: f"{row.sets} × {row.nets}",
        "seconds": lambda row: f"{row.seconds:.1f}",
    }
    return TextTable(
        columns=list(columns),
        rows=cells_of(rows, columns),
        notes=notes,
        left=("set", "network"),
        bold=[number for number, row in enumerate(rows) if row.kind == "distilled"],
        optional=("seconds", "size", "images", "sets × nets"),
    )


def network_table(rows: Sequence[Row], student: str) -> TextTable | None:
    """Return sets × networks: does a set that was made with one network serve others?

    Cells are test accuracies in per cent.  The network that the set was made with comes first
    ("same"); "others" is the mean over the other networks.  Variants of a set are left out.

    Args:
        rows: Rows of all networks.
        student: Network that the set was made with, or empty.

    Returns:
        None unless there are two networks or more.
    """
    shown = [row for row in rows if row.kind != "variant"]
    models = sorted(
        dict.fromkeys(row.model for row in shown), key=lambda model: model != student
    )  # stable: same first
    if len(models) < 2:
        return None
    failed = sorted({row.model for row in shown if row.untrained})
    others = [model for model in models if model != student and model not in failed]
    lines = []
    for name in dict.fromkeys(row.name for row in shown):
        by_model = {row.model: row for row in shown if row.name == name}
        cells = [
            percent(row.accuracies, 1) + DAGGER * bool(row.untrained) if row else "-"
            for row in map(by_model.get, models)
        ]
        means = [by_model[model].mean for model in others if model in by_model]
        lines.append([name, *cells, percent(means, 1)])
    which = ""
    if student:
        which = f" other than {student}" if student in models else ", which did not make the set"
    notes = [
        "test %, mean ± sample standard deviation over networks of one kind; others: over the "
        f"kinds{which}"
    ]
    if failed:
        notes.append(
            f"{DAGGER} did not train somewhere, so left out of the last column in every row: "
            f"{', '.join(failed)}"
        )
    if not student:
        notes.append(
            "the set does not say which network it was made with: no column is marked as the same"
        )
    headers = [f"{model} (same)" if model == student else model for model in models]
    columns = ["set", *headers, "others" if student else "all"]
    return TextTable(columns=columns, rows=lines, notes=notes, left=("set",))


def class_table(rows: Sequence[Row], data: Mapping[str, Any]) -> TextTable | None:
    """Return classes × sets: the share of each class's test images that is recognised.

    Args:
        rows: Rows of one network.
        data: Classes of the real data, as an ``Evaluation`` has them.

    Returns:
        None where no row says.
    """
    rows = [row for row in rows if row.per_class and row.kind != "variant"]
    if not rows:
        return None
    count = len(rows[0].per_class)
    images = [f"{number:,}" for number in data.get("test_per_class", ())]
    images = images if len(images) == count else ["-"] * count
    lines = [
        [name, images[i], *(f"{100 * row.per_class[i]:.1f}" for row in rows)]
        for i, name in enumerate(_class_names(data, count))
    ]
    note = f"test images of each class that are recognised, %; mean over networks ({rows[0].model})"
    columns = ["class", "test images", *(row.name for row in rows)]
    return TextTable(columns=columns, rows=lines, notes=[note], left=("class",))


def confusion_table(row: Row, data: Mapping[str, Any]) -> TextTable | None:
    """Return true × predicted classes, or None where the row does not say."""
    if not row.confusion:
        return None
    names = _class_names(data, len(row.confusion))
    lines = [
        [name, *(f"{100 * count / max(1, sum(counts)):.0f}" if count else "." for count in counts)]
        for name, counts in zip(names, row.confusion, strict=True)
    ]
    corner = f"{row.name}: true \\ predicted"
    note = "% of the test images of the true class (. is none)"
    return TextTable(columns=[corner, *names], rows=lines, notes=[note], left=(corner,))


def test_set_notes(accuracy: float, data: Mapping[str, Any]) -> list[str]:
    """Say what the sizes of the test set and its classes mean for the numbers, one sentence each.

    Args:
        accuracy: Test accuracy of the small set.
        data: Sizes of the real data, as an ``Evaluation`` has them.
    """
    notes, total, counts = [], data.get("test"), list(data.get("test_per_class", ()))
    if isinstance(total, int) and total > 0:
        half = binomial_half_width(accuracy, total)
        if half > UNCERTAIN:
            notes.append(
                f"{total} test images: they alone leave an accuracy uncertain by ± "
                f"{100 * half:.0f} points (95 %), whatever the ± between networks says; give more "
                "test images"
            )
    if _has_uneven_classes(data):
        notes.append(
            f"test classes have {min(counts):,} to {max(counts):,} images: balanced % is the mean "
            "over classes; every class: --per-class, print(result.per_class())"
        )
    empty = counts.count(0)
    if empty:
        notes.append(
            f"{empty} of {len(counts)} classes have no test image: nothing is known about them"
        )
    return notes


def untrained_notes(rows: Sequence[Row]) -> list[str]:
    """Name the networks that did not train, one sentence per kind of network."""
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row.untrained:
            text = f"{row.untrained} of {len(row.accuracies)} on '{row.name}'"
            failed.setdefault(row.model, []).append(text)
    return [
        f"{DAGGER} {model} did not train ({', '.join(texts)}): no better than chance on its own "
        "training images; its numbers say nothing about the sets. Try another learning rate "
        "(lr='auto', --lr auto) or more epochs"
        for model, texts in failed.items()
    ]


def percent(values: Sequence[float], digits: int = 2) -> str:
    """Return ``"93.21 ± 0.34"`` from shares; no ± for a single one, ``"-"`` for none."""
    if not values:
        return "-"
    spread = "" if len(values) < 2 else f" ± {100 * std_of(values):.{digits}f}"
    return f"{100 * mean_of(values):.{digits}f}{spread}"


def _has_uneven_classes(data: Mapping[str, Any]) -> bool:
    """Return whether the accuracy is mostly that of large classes of the test set."""
    counts = [count for count in data.get("test_per_class", ()) if count]
    return bool(counts) and max(counts) >= UNEVEN * min(counts)


def _class_names(data: Mapping[str, Any], count: int) -> list[str]:
    names = [str(name) for name in data.get("classes", ())]
    return names if len(names) == count else list(map(str, range(count)))
