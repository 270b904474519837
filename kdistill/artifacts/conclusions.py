"""What the scores of an evaluation mean, in sentences: the same ones in a terminal and on a card."""

from collections.abc import Mapping
from typing import Any

TEACHER = "random, teacher labels"  # the row of random real images with the labels of a network
WARN_POINTS = 0.5  # accuracy lost by an 8-bit export above which the reader is warned

_GLOSSES = {
    "hlr": "hard-label recovery: full data minus the small set with hard labels; smaller is better",
    "ior": "improvement over random: the small set minus {random}; larger is better",
    "lrs": "label-robust score: both in one number; larger is better, 26.9 % where both are 0",
    "ars": "augmentation-robust score: over random with and without augmentation; larger is better, 26.9 % at no difference",
}


def conclusions(scores: Any) -> list[str]:
    """Return what follows from the scores of one network, one sentence each.

    Args:
        scores: ``metrics["evaluation"]["scores"][model]``: ``gap_closed``, ``eight_bit_cost``,
            ``hlr``, ``ior``, ``lrs``, ``ars`` as shares of 1, ``over_random`` by row (``mean``,
            ``low``, ``high``) and ``random_row``, the row that the improvement over random is
            measured against.  Anything may be missing.
    """
    scores = scores if isinstance(scores, Mapping) else {}
    against = scores.get("over_random")
    against = against if isinstance(against, Mapping) else {}
    lines = [
        line
        for name, difference in against.items()
        if (line := _over_random(str(name), difference))
    ]
    if is_number(scores.get("gap_closed")):
        lines.append(_gap(scores["gap_closed"]))
    if is_number(scores.get("eight_bit_cost")):
        lines.append(_eight_bits(scores["eight_bit_cost"]))
    random = scores.get("random_row")
    for name, gloss in _GLOSSES.items():
        if is_number(scores.get(name)):
            meaning = gloss.format(
                random=f"'{random}'" if isinstance(random, str) and random else "'random'"
            )
            lines.append(f"{name.upper()} {100 * scores[name]:.1f} % ({meaning})")
    return lines


def rows_above(scores: Any) -> list[str]:
    """Return the names of the rows of random images that the set of these scores stands below, beyond noise."""
    against = scores.get("over_random") if isinstance(scores, Mapping) else None
    ends = {
        str(name): difference.get("high")
        for name, difference in (against.items() if isinstance(against, Mapping) else ())
        if isinstance(difference, Mapping)
    }
    return [name for name, high in ends.items() if is_number(high) and high < 0]


def random_images(name: str) -> str:
    """Return what stands behind a row of random images, in words."""
    images = "as many real images chosen at random"
    return (
        f"{images} and labelled by a network that was trained on all the data"
        if name == TEACHER
        else images
    )


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number that can be calculated with; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _over_random(name: str, difference: Any) -> str | None:
    """Say that the set stands below a row of random real images, or is no better; None where it is better."""
    if (
        not isinstance(difference, Mapping)
        or not is_number(mean := difference.get("mean"))
        or mean > 0
    ):
        return None
    low, high = difference.get("low"), difference.get("high")
    points = f"{100 * mean:+.2f} points"
    if not (is_number(low) and is_number(high)):
        return f"not better than '{name}', {random_images(name)} ({points}; too few networks for an interval)"
    interval = f"{points}, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    if high < 0:
        return f"BELOW '{name}': {random_images(name)} train better networks than this set ({interval})"
    return f"not better than '{name}', {random_images(name)} ({interval})"


def _gap(gap: float) -> str:
    between = "of the gap between random selection and full data"
    if gap < 0:
        return f"closes nothing {between}: it falls behind random selection by {-100 * gap:.0f} % of that gap"
    return f"closes {100 * gap:.0f} % {between}" + (
        ": better than the full data" if gap > 1 else ""
    )


def _eight_bits(cost: float) -> str:
    points = 100 * cost
    if points < 0:
        return f"an 8-bit export gains {-points:.2f} points of accuracy"
    keep = ": keep the float images, or use npz" if points > WARN_POINTS else ""
    return f"an 8-bit export costs {points:.2f} points of accuracy{keep}"
