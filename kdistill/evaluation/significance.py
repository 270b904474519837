"""Is a difference between two rows more than luck?  Intervals from a few distillation seeds.

One number per distillation seed (the mean over its networks): networks that were trained on one set
share that set's luck, so counting each of them would make an interval too narrow.  Student's t,
because the spread is estimated from a few seeds too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A difference of means with its interval.

    Attributes:
        mean: First minus second.
        low: Lower end; NaN where there are too few seeds for an interval.
        high: Upper end; NaN likewise.
        test: ``"paired t"``, ``"Welch t"`` or ``"none"``.
        seeds: Number of seeds behind the first and the second mean; equal for a paired test.
    """

    mean: float
    low: float
    high: float
    test: str
    seeds: tuple[int, int]

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


def difference(
    first: Mapping[int, float], second: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> Difference:
    """Return ``mean(first) - mean(second)`` with its two-sided t interval.

    Args:
        first: One number per seed.
        second: The same of another row.  With the very same seeds, two or more, the differences of
            equal seeds are tested (they share networks' starts and real batches); else both spreads
            are estimated apart (Welch, with the degrees of freedom of Satterthwaite).
        confidence: Probability that the interval holds the true difference.

    Returns:
        The difference; ``low`` and ``high`` are NaN and ``test`` is ``"none"`` if a side has one
        seed only.
    """
    seeds = (len(first), len(second))
    if set(first) == set(second) and len(first) > 1:
        pairs = [first[seed] - second[seed] for seed in sorted(first)]
        mean = mean_of(pairs)
        half = t_quantile(confidence, len(pairs) - 1) * std_of(pairs) / math.sqrt(len(pairs))
        return Difference(mean, mean - half, mean + half, "paired t", seeds)
    values = [list(side.values()) for side in (first, second)]
    mean = mean_of(values[0]) - mean_of(values[1])
    if min(seeds) < 2:
        return Difference(mean, math.nan, math.nan, "none", seeds)
    a, b = (std_of(side) ** 2 / len(side) for side in values)  # variances of the two means
    if a + b == 0.0:
        return Difference(mean, mean, mean, "Welch t", seeds)
    freedom = (a + b) ** 2 / (a**2 / (seeds[0] - 1) + b**2 / (seeds[1] - 1))
    half = t_quantile(confidence, freedom) * math.sqrt(a + b)
    return Difference(mean, mean - half, mean + half, "Welch t", seeds)


@lru_cache(maxsize=256)
def t_quantile(confidence: float, freedom: float) -> float:
    """Return t with ``P(|T| < t) = confidence`` for Student's distribution.

    It has ``freedom >= 1`` degrees of freedom.  ``P(|T| < t)`` is the integral of ``cos(u)^(freedom
    - 1)`` from 0 to ``atan(t / sqrt(freedom))``, over that to π/2: by Gauss and Legendre, inverted
    by bisection in the angle.
    """
    log_beta = 0.5 * math.log(math.pi) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    whole = math.exp(log_beta) / 2
    nodes, weights = np.polynomial.legendre.leggauss(96)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        angles = middle * (nodes + 1) / 2
        inside = float((np.cos(angles) ** (freedom - 1) * weights).sum()) * middle / 2
        low, high = (middle, high) if inside < confidence * whole else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def binomial_half_width(share: float, count: int) -> float:
    """Return half the 95 % interval of a share measured on ``count`` images (Agresti and Coull)."""
    centre, total = (share * count + 2.0) / (count + 4.0), count + 4.0
    return 1.96 * math.sqrt(centre * (1.0 - centre) / total)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    # not statistics.fmean, whose last bit differs: records of earlier versions stay comparable
    return sum(values) / len(values) if values else math.nan


def std_of(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = mean_of(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def or_none(value: float) -> float | None:
    """Return the value, or None for NaN: JSON has no such number."""
    return None if math.isnan(value) else value
