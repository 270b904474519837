"""Scores of accuracies: how far a small set is from full data, and how far above a random one.

Every accuracy is a share in [0, 1].  Per cent would go straight into an exponential below, and
scores would leave [0, 1]: that is what the published implementation does, so values outside [0, 1]
are refused here.

References:
    DD-Ranking 0.2 (definitions of HLR, IOR, LRS and ARS), with accuracies in [0, 1] instead of per
    cent.
"""

import math

from kdistill.errors import ConfigError


def hlr(full: float, synthetic_hard: float) -> float:
    """Return the hard-label recovery ``full - synthetic_hard``: what is missing, so less is better.

    Args:
        full: Accuracy after training on all real data with hard labels.
        synthetic_hard: Accuracy after training on the small set with hard labels.

    Raises:
        ConfigError: An accuracy is not in [0, 1].
    """
    _check("hlr", full=full, synthetic_hard=synthetic_hard)
    return full - synthetic_hard


def ior(synthetic: float, random: float) -> float:
    """Return the improvement over random ``synthetic - random``; larger is better.

    Args:
        synthetic: Accuracy of the small set with its own labels, hard or soft.
        random: Accuracy of a random real subset of the same size by the same recipe.

    Raises:
        ConfigError: An accuracy is not in [0, 1].
    """
    _check("ior", synthetic=synthetic, random=random)
    return synthetic - random


def lrs(
    hard_label_recovery: float, improvement_over_random: float, *, weight: float = 0.5
) -> float:
    """Return the label-robust score in [0, 1].

    0.2689 means "as good as random and as full data at once": ``(e^α - e^-1) / (e - e^-1)`` with
    ``α = weight·IOR - (1 - weight)·HLR``.

    Args:
        hard_label_recovery: From ``hlr``, in [-1, 1].
        improvement_over_random: From ``ior``, in [-1, 1].
        weight: Weight of the improvement over random, in [0, 1].

    Raises:
        ConfigError: An argument is out of its range, which is what per cent look like.
    """
    _check(
        "lrs",
        low=-1.0,
        hard_label_recovery=hard_label_recovery,
        improvement_over_random=improvement_over_random,
    )
    _check("lrs", weight=weight)
    return _squash(weight * improvement_over_random - (1.0 - weight) * hard_label_recovery)


def ars(
    synthetic_augmented: float,
    random_augmented: float,
    synthetic_plain: float,
    random_plain: float,
    *,
    weight: float = 0.5,
) -> float:
    """Return the augmentation-robust score in [0, 1].

    ``(e^β - e^-1) / (e - e^-1)`` with ``β = weight·(synthetic - random with augmentation) + (1 -
    weight)·(the same without)``.

    Args:
        synthetic_augmented: Accuracy of the small set, trained with augmentation.
        random_augmented: The same for a random real subset.
        synthetic_plain: Accuracy of the small set, trained without augmentation.
        random_plain: The same for a random real subset.
        weight: Weight of the augmented pair, in [0, 1].

    Raises:
        ConfigError: An argument is not in [0, 1].
    """
    _check("ars", synthetic_augmented=synthetic_augmented, random_augmented=random_augmented)
    _check("ars", synthetic_plain=synthetic_plain, random_plain=random_plain, weight=weight)
    return _squash(
        weight * (synthetic_augmented - random_augmented)
        + (1.0 - weight) * (synthetic_plain - random_plain)
    )


def gap_closed(synthetic: float, random: float, full: float) -> float | None:
    """Return the share of the gap between random selection and full data that the small set closes.

    1 is as good as full data, 0 as good as random, negative is worse than random; None where full
    data is not better than random.

    Raises:
        ConfigError: An accuracy is not in [0, 1].
    """
    _check("gap_closed", synthetic=synthetic, random=random, full=full)
    return (synthetic - random) / (full - random) if full > random else None


def _squash(exponent: float) -> float:
    return (math.exp(exponent) - math.exp(-1.0)) / (math.e - math.exp(-1.0))


def _check(where: str, *, low: float = 0.0, **values: float) -> None:
    for name, value in values.items():
        if not low <= value <= 1.0:
            raise ConfigError(
                f"{where}: expected {name} in [{low:g}, 1], got {value:g}; divide per cent by 100"
            )
