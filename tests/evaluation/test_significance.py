"""Intervals against known numbers and against chance."""

import math
import random

import pytest

from kdistill.evaluation.significance import difference, t_quantile

# two-sided 95 %, from printed tables of Student's distribution
TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 10: 2.2281, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom):
    assert round(t_quantile(0.95, freedom), 4) == TABLE[freedom]


def test_quantiles_between_whole_degrees_of_freedom_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for confidence in (0.5, 0.95, 0.999):
        for freedom in (1.0, 1.1, 2.7, 8.3):
            assert t_quantile(confidence, freedom) == pytest.approx(
                stats.t.ppf(0.5 + confidence / 2, freedom), rel=1e-8
            )


def test_equal_seeds_are_paired():
    gap = difference({0: 0.9, 1: 0.8, 2: 0.7}, {2: 0.6, 1: 0.7, 0: 0.8})
    assert gap.test == "paired t" and gap.seeds == (3, 3)
    assert gap.mean == pytest.approx(0.1)
    assert gap.high - gap.low == pytest.approx(0.0, abs=1e-12)
    assert gap.is_clear


def test_other_seeds_are_welch():
    stats = pytest.importorskip("scipy.stats")
    first, second = {0: 0.91, 1: 0.85, 2: 0.88, 3: 0.93}, {7: 0.80, 8: 0.86}
    gap = difference(first, second)
    truth = stats.ttest_ind(
        list(first.values()), list(second.values()), equal_var=False
    ).confidence_interval(0.95)
    assert gap.test == "Welch t" and gap.seeds == (4, 2)
    assert (gap.low, gap.high) == pytest.approx((truth.low, truth.high), rel=1e-9)
    assert not gap.is_clear


def test_one_seed_has_no_interval():
    for first in ({0: 0.9}, {0: 0.9, 1: 0.8}):
        gap = difference(first, {0: 0.5})
        assert gap.test == "none" and math.isnan(gap.low)
        assert not gap.is_clear


def test_spreads_of_zero():
    gap = difference({0: 0.5, 1: 0.5}, {2: 0.25, 3: 0.25})
    assert (gap.mean, gap.low, gap.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_three_seeds_cover_the_truth_as_often_as_they_say(paired):
    drawn, hits = random.Random(0), 0
    for _ in range(400):
        first = {seed: drawn.gauss(0.5, 0.1) for seed in range(3)}
        second = {seed + (0 if paired else 10): drawn.gauss(0.4, 0.1) for seed in range(3)}
        gap = difference(first, second)
        hits += gap.low <= 0.1 <= gap.high
    assert 0.92 <= hits / 400 <= 0.99
