"""Scores against the golden values of their definitions."""

import pytest

from kdistill.errors import ConfigError
from kdistill.evaluation import metrics


@pytest.mark.parametrize(
    ("full", "hard", "own", "random", "golden"),
    [
        (0.85, 0.65, 0.70, 0.40, {"hlr": 0.20, "ior": 0.30, "lrs": 0.2908}),
        (0.80, 0.50, 0.60, 0.40, {"hlr": 0.30, "ior": 0.20, "lrs": 0.2482}),
    ],
)
def test_golden_values(full, hard, own, random, golden):
    hlr, ior = metrics.hlr(full, hard), metrics.ior(own, random)
    got = {"hlr": hlr, "ior": ior, "lrs": metrics.lrs(hlr, ior)}
    assert got == pytest.approx(golden, abs=5e-5)  # the golden values have four digits


def test_anchors():
    assert metrics.lrs(0.0, 0.0) == pytest.approx(0.2689, abs=5e-5)
    assert metrics.lrs(1.0, -1.0) == pytest.approx(0.0)
    assert metrics.lrs(-1.0, 1.0) == pytest.approx(1.0)
    assert metrics.ars(0.5, 0.5, 0.3, 0.3) == pytest.approx(0.2689, abs=5e-5)
    assert metrics.ars(1.0, 0.0, 1.0, 0.0) == pytest.approx(1.0)


def test_weights_choose_their_term():
    assert metrics.lrs(0.4, 0.2, weight=1.0) == metrics.lrs(-0.2, 0.2, weight=0.5)
    assert metrics.ars(0.9, 0.5, 0.1, 0.8, weight=1.0) == metrics.ars(0.9, 0.5, 0.9, 0.5)
    assert metrics.ars(0.9, 0.5, 0.1, 0.8, weight=0.0) < metrics.ars(0.9, 0.5, 0.1, 0.8, weight=1.0)


def test_gap_closed():
    assert metrics.gap_closed(0.968, 0.928, 0.977) == pytest.approx(40 / 49)
    assert metrics.gap_closed(0.5, 0.6, 0.7) == pytest.approx(-1.0)
    assert metrics.gap_closed(0.5, 0.6, 0.6) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.hlr(85.0, 0.65),
        lambda: metrics.ior(0.7, 40.0),
        lambda: metrics.lrs(20.0, 0.3),
        lambda: metrics.ars(0.7, 0.4, 70.0, 0.4),
        lambda: metrics.gap_closed(0.7, float("nan"), 0.9),
    ],
)
def test_per_cent_are_refused(call):
    with pytest.raises(ConfigError, match="divide per cent by 100"):
        call()
