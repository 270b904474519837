"""What the rows of one network say about the small set: the scores of ``kdistill.evaluation.metrics``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdistill.artifacts.conclusions import TEACHER
from kdistill.evaluation import metrics
from kdistill.evaluation.significance import Difference, difference, mean_of, or_none

if TYPE_CHECKING:
    from kdistill.evaluation.result import Row

RANDOM = (
    "random"  # the row of random real images with their own labels; TEACHER has those of a network
)


def scores(small: "Row", rows: Mapping[str, "Row"]) -> dict[str, float]:
    """Return ``hlr``, ``ior``, ``lrs`` and ``ars`` as far as the rows of one network allow.

    Args:
        small: The row of the small set.
        rows: All rows of the network, by name.
    """
    full, random = rows.get("full"), rows.get(random_row(small))
    hard = rows.get(f"{small.name}, hard labels", small)
    found: dict[str, float] = {}
    if full is not None:
        found["hlr"] = metrics.hlr(full.mean, hard.mean)
    if random is not None:
        found["ior"] = metrics.ior(small.mean, random.mean)
    if len(found) == 2:
        found["lrs"] = metrics.lrs(found["hlr"], found["ior"])
    plain, random_plain = (
        rows.get(f"{name}, no augmentation") for name in (small.name, random_row(small))
    )
    if random is not None and plain is not None and random_plain is not None:
        found["ars"] = metrics.ars(small.mean, random.mean, plain.mean, random_plain.mean)
    return found


def random_row(small: "Row") -> str:
    """Return the name of the random row with the kind of labels that the small set has: like is compared with like."""
    return TEACHER if small.soft else RANDOM


def over_random(small: "Row", rows: Mapping[str, "Row"]) -> dict[str, Difference]:
    """Return the difference of the small set to every row of random images, with its 95 % interval.

    Of one small set, the networks are the sample: network i of every row starts from the same
    weights, so their differences are paired.  Of several sets, the sets are the sample.
    """
    return {name: _difference(small, rows[name]) for name in (RANDOM, TEACHER) if name in rows}


def to_dict(small: "Row", rows: Mapping[str, "Row"]) -> dict[str, Any]:
    """Return the scores and the differences to random images as plain mappings; terminal and card are written from them."""
    found: dict[str, Any] = dict(scores(small, rows))
    if "ior" in found:
        found["random_row"] = random_row(small)
    gaps = over_random(small, rows)
    plain = {
        name: {
            "mean": gap.mean,
            "low": or_none(gap.low),
            "high": or_none(gap.high),
            "test": gap.test,
        }
        for name, gap in gaps.items()
    }
    return {**found, "over_random": plain} if plain else found


def _difference(small: "Row", random: "Row") -> Difference:
    ours, theirs = _sample(small), _sample(random)
    paired = small.sets == 1 and len(ours) == len(theirs)
    # numbers that no network of ours has keep `difference` from pairing what does not belong
    # together
    return difference(dict(enumerate(ours)), dict(enumerate(theirs, 0 if paired else len(ours))))


def _sample(row: "Row") -> Sequence[float]:
    """Return one accuracy per set, or per network of a single set."""
    nets = len(row.accuracies) // row.sets
    if row.sets == 1:
        return row.accuracies
    return [mean_of(row.accuracies[i * nets : (i + 1) * nets]) for i in range(row.sets)]
