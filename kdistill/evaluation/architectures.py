"""The cross-architecture table: does a set that was made with one network serve others?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdistill.evaluation.columns import DAGGER
from kdistill.evaluation.significance import mean_of, std_of

if TYPE_CHECKING:
    from kdistill.evaluation.result import Row

TEXT_COLUMNS = ("set",)


def cells(
    rows: Sequence["Row"], student: str
) -> tuple[list[str], list[list[str]], list[str]] | None:
    """Return headers, rows and notes: sets × networks, test accuracy in per cent.

    The network that the set was made with comes first ("same"); "others" is the mean over the other
    networks.  Variants of a set are left out.

    Args:
        rows: Of an evaluation.
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
    headers = [f"{model} (same)" if model == student else model for model in models]
    table = []
    for name in dict.fromkeys(row.name for row in shown):
        found = {row.model: row for row in shown if row.name == name}
        line = [
            _percent(found[model].accuracies) + DAGGER * bool(found[model].untrained)
            if model in found
            else "-"
            for model in models
        ]
        means = [mean_of(found[model].accuracies) for model in others if model in found]
        table.append([name, *line, _percent(means)])
    notes = [
        "test %, mean ± sample standard deviation over networks of one kind; others: over the kinds"
        + (
            f" other than {student}"
            if student in models
            else ", which did not make the set"
            if student
            else ""
        )
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
    return ["set", *headers, "others" if student else "all"], table, notes


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{100 * mean_of(values):.1f}" + (
        "" if len(values) < 2 else f" ± {100 * std_of(values):.1f}"
    )
