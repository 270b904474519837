"""Scores of a small set (``kdistill.evaluation.metrics``) from the rows of one network."""

from collections.abc import Iterable, Sequence
from typing import Any

from kdistill.artifacts.conclusions import TEACHER
from kdistill.evaluation import metrics
from kdistill.evaluation.rows import Row
from kdistill.evaluation.significance import Difference, difference, mean_of, or_none

RANDOM = "random"  # the row of random real images with their own labels; TEACHER has a network's


class RowScores:
    """Scores of the small set under one network.

    Args:
        rows: All rows of the network, that of the small set among them.
    """

    def __init__(self, rows: Iterable[Row]):
        self.rows = {row.name: row for row in rows}

    @property
    def small(self) -> Row:
        """The row of the small set."""
        return next(row for row in self.rows.values() if row.kind == "distilled")

    @property
    def random_row(self) -> str:
        """Name of the random row whose labels are of the same kind as those of the small set."""
        return TEACHER if self.small.soft else RANDOM

    def gap_closed(self) -> float | None:
        """Return the share of the gap between random and full data that the small set closes.

        None where a row is missing.
        """
        random, full = self.rows.get(RANDOM), self.rows.get("full")
        if random is None or full is None:
            return None
        return metrics.gap_closed(self.small.mean, random.mean, full.mean)

    def eight_bit_cost(self) -> float | None:
        """Return the accuracy lost by an 8-bit export, a share (negative if it helped).

        None where it was not measured.
        """
        rounded = self.rows.get(f"{self.small.name}, 8 bits")
        return None if rounded is None else self.small.mean - rounded.mean

    def scores(self) -> dict[str, float]:
        """Return ``hlr``, ``ior``, ``lrs`` and ``ars`` as far as the rows allow."""
        small, random = self.small, self.rows.get(self.random_row)
        full, hard = self.rows.get("full"), self.rows.get(f"{small.name}, hard labels", small)
        scores = {}
        if full is not None:
            scores["hlr"] = metrics.hlr(full.mean, hard.mean)
        if random is not None:
            scores["ior"] = metrics.ior(small.mean, random.mean)
        if len(scores) == 2:
            scores["lrs"] = metrics.lrs(scores["hlr"], scores["ior"])
        plain, random_plain = (
            self.rows.get(f"{name}, no augmentation") for name in (small.name, self.random_row)
        )
        if random is not None and plain is not None and random_plain is not None:
            means = (row.mean for row in (small, random, plain, random_plain))
            scores["ars"] = metrics.ars(*means)
        return scores

    def over_random(self) -> dict[str, Difference]:
        """Return the difference to every row of random images, with its 95 % interval.

        Of one small set, the networks are the sample: network i of every row starts from the same
        weights, so their differences are paired.  Of several sets, the sets are the sample.
        """
        names = [name for name in (RANDOM, TEACHER) if name in self.rows]
        return {name: _difference(self.small, self.rows[name]) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as a plain mapping; terminal and card are written from it."""
        content: dict[str, Any] = {
            "gap_closed": self.gap_closed(),
            "eight_bit_cost": self.eight_bit_cost(),
            **self.scores(),
        }
        if "ior" in content:
            content["random_row"] = self.random_row
        over_random = {
            name: {
                "mean": gap.mean,
                "low": or_none(gap.low),
                "high": or_none(gap.high),
                "test": gap.test,
            }
            for name, gap in self.over_random().items()
        }
        return {**content, "over_random": over_random} if over_random else content


def _difference(small: Row, random: Row) -> Difference:
    ours, theirs = _sample(small), _sample(random)
    is_paired = small.sets == 1 and len(ours) == len(theirs)
    # numbers that no network of ours has keep `difference` from pairing what does not belong
    # together
    return difference(dict(enumerate(ours)), dict(enumerate(theirs, 0 if is_paired else len(ours))))


def _sample(row: Row) -> Sequence[float]:
    """Return one accuracy per set, or per network of a single set."""
    if row.sets == 1:
        return row.accuracies
    return [mean_of(row.accuracies[i * row.nets : (i + 1) * row.nets]) for i in range(row.sets)]
