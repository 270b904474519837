"""What the scores of an evaluation mean, in the sentences of terminal and card."""

from collections.abc import Mapping
from typing import Any

from kdistill.artifacts.contents import lookup

TEACHER = "random, teacher labels"  # the row of random real images with the labels of a network
WARN_POINTS = 0.5  # accuracy lost by an 8-bit export above which the reader is warned

_GLOSSES = {
    "hlr": "hard-label recovery: full data minus the small set with hard labels; smaller is better",
    "ior": "improvement over random: the small set minus '{random}'; larger is better",
    "lrs": "label-robust score: both in one number; larger is better, 26.9 % where both are 0",
    "ars": "augmentation-robust score: over random with and without augmentation; larger is "
    "better, 26.9 % at no difference",
}


def conclusions(scores: Any) -> list[str]:
    """Return what follows from the scores of one network, one sentence each.

    Args:
        scores: ``metrics["evaluation"]["scores"][model]``: ``gap_closed``, ``eight_bit_cost``,
            ``hlr``, ``ior``, ``lrs``, ``ars`` as shares of 1, ``over_random`` by row (``mean``,
            ``low``, ``high``) and ``random_row``, the row that the improvement over random is
            measured against.  Anything may be missing.
    """
    lines = [_over_random(name, difference) for name, difference in _differences(scores).items()]
    gap, cost = lookup(scores, "gap_closed"), lookup(scores, "eight_bit_cost")
    lines += [_gap(gap) if is_number(gap) else "", _eight_bits(cost) if is_number(cost) else ""]
    random = lookup(scores, "random_row")
    random = random if isinstance(random, str) and random else "random"
    for name, gloss in _GLOSSES.items():
        score = lookup(scores, name)
        if is_number(score):
            lines.append(f"{name.upper()} {100 * score:.1f} % ({gloss.format(random=random)})")
    return [line for line in lines if line]


def rows_above(scores: Any) -> list[str]:
    """Return the names of the rows of random images that are better than the set, beyond noise."""
    highs = {name: lookup(gap, "high") for name, gap in _differences(scores).items()}
    return [name for name, high in highs.items() if is_number(high) and high < 0]


def random_images(name: str) -> str:
    """Return what the row of that name was trained on, in words."""
    images = "as many real images chosen at random"
    if name == TEACHER:
        images += " and labelled by a network that was trained on all the data"
    return images


def drawn_note(row: Mapping[str, Any]) -> str:
    """Return what drawing images for a row cost, or nothing for a row of a set of images."""
    drawn, drawing, seconds = (row.get(key) for key in ("drawn", "drawing_seconds", "seconds"))
    if not (is_number(drawn) and is_number(drawing) and is_number(seconds) and drawn > 0):
        return ""
    return (
        f"{row.get('name')} ({row.get('model')}): other images in every epoch, {drawn:,} drawn in "
        f"{drawing:.1f} s of {seconds:.1f} s; images: of one epoch, size: of the generator"
    )


def snapshot_conclusions(curve: Any) -> list[str]:
    """Return which states of a run's set were best, one sentence each.

    Args:
        curve: ``metrics["snapshots"]``: ``rows`` (``iteration``, ``validation`` and ``accuracies``
            as shares of 1), ``best_on_validation``, ``best_on_test`` and ``last``, iterations.
            Anything may be missing.
    """
    rows = {}
    listed = lookup(curve, "rows")
    for row in listed if isinstance(listed, (list, tuple)) else ():
        if isinstance(row, Mapping) and is_number(row.get("iteration")):
            rows[row["iteration"]] = row
    notes = {
        "best_on_validation": ", chosen on images that the run held out",
        "best_on_test": ", chosen on the test images as papers do: compare it with papers only",
        "last": "",
    }
    lines = []
    for name, chosen in notes.items():
        iteration = lookup(curve, name)
        if not is_number(iteration) or iteration not in rows:
            continue
        shares = {"validation": "validation", "test": "accuracies"}
        means = {title: _mean(rows[iteration].get(key)) for title, key in shares.items()}
        said = ", ".join(f"{title} {100 * x:.2f} %" for title, x in means.items() if x is not None)
        lines.append(f"{name.replace('_', ' ')}: iteration {iteration:,} ({said}){chosen}")
    return lines


def _mean(values: Any) -> float | None:
    """Return the mean of a list of numbers, or None where it is none."""
    is_usable = isinstance(values, (list, tuple)) and bool(values) and all(map(is_number, values))
    return sum(values) / len(values) if is_usable else None


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number that can be calculated with; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _differences(scores: Any) -> dict[str, Any]:
    """Return the differences to the rows of random images, by the name of the row."""
    differences = lookup(scores, "over_random")
    items = differences.items() if isinstance(differences, Mapping) else ()
    return {str(name): difference for name, difference in items}


def _over_random(name: str, difference: Any) -> str:
    """Say that the set is worse than a row of random real images, or no better; else nothing."""
    mean, low, high = (lookup(difference, key) for key in ("mean", "low", "high"))
    if not is_number(mean) or mean > 0:
        return ""
    points, images = f"{100 * mean:+.2f} points", random_images(name)
    if not (is_number(low) and is_number(high)):
        return f"not better than '{name}', {images} ({points}; too few networks for an interval)"
    interval = f"{points}, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    if high < 0:
        return f"BELOW '{name}': {images} train better networks than this set ({interval})"
    return f"not better than '{name}', {images} ({interval})"


def _gap(gap: float) -> str:
    between = "of the gap between random selection and full data"
    if gap < 0:
        behind = f"it falls behind random selection by {-100 * gap:.0f} % of that gap"
        return f"closes nothing {between}: {behind}"
    return f"closes {100 * gap:.0f} % {between}{': better than the full data' * (gap > 1)}"


def _eight_bits(cost: float) -> str:
    if cost < 0:
        return f"an 8-bit export gains {-100 * cost:.2f} points of accuracy"
    keep = ": keep the float images, or use npz" if 100 * cost > WARN_POINTS else ""
    return f"an 8-bit export costs {100 * cost:.2f} points of accuracy{keep}"
