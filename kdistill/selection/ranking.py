"""Subsets of the real images by difficulty, class by class: fixed shares, and PAD's curriculum (FIEX).

A score says how hard an image is (larger = harder, ``kdistill.engine.sample_scores``).  Shares are
quotas of every class, so the balance of the classes stays what it was, whatever their size.

Symbols: N images, K classes, n_c images of class c.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError, ShapeError


def quota(count: int, share: float) -> int:
    """Return ``share`` of ``count`` images, rounded to the nearest whole number (half goes up)."""
    return math.floor(round(count * share, 9) + 0.5)  # 5 * (1 - 0.9) is 0.4999...


def class_name(label: int, classes: Sequence[str]) -> str:
    """Return what messages call a class; ``classes`` are the names of all, or empty."""
    return f"class {label} ('{classes[label]}')" if classes else f"class {label}"


@dataclass(frozen=True, eq=False)
class Ranking:
    """The rows of every class from easy to hard; made by ``rank``.

    Attributes:
        rows: int64 ``[n_c]`` for each class.
        classes: Names for error messages.
    """

    rows: tuple[Tensor, ...]
    classes: tuple[str, ...] = ()

    def keep(self, low: float = 0.0, high: float = 1.0, *, at_least: int = 1) -> Tensor:
        """Return the rows between two shares of every class.

        ``keep(0, 0.8)`` leaves out the hardest fifth.

        Args:
            low: Share of the easiest images of each class that is left out.
            high: Share up to which the others are kept.
            at_least: Images that every class must keep.

        Returns:
            int64, ascending; the whole set for ``keep(0, 1)``.

        Raises:
            ConfigError: Not ``0 <= low < high <= 1``.
            DataError: A class keeps fewer than ``at_least`` images.
        """
        if not 0.0 <= low < high <= 1.0:
            raise ConfigError(
                f"selection: expected shares 0 <= low < high <= 1, got {low:g} and {high:g}; leave "
                "out less"
            )
        kept = []
        for label, rows in enumerate(self.rows):
            part = rows[quota(len(rows), low) : quota(len(rows), high)]
            if len(part) < at_least:
                raise DataError(
                    f"selection: expected at least {at_least} images of "
                    f"{class_name(label, self.classes)} between the shares {low:g} and {high:g} of "
                    f"its difficulty, got {len(part)} of {len(rows)}; leave out less or add images"
                )
            kept.append(part)
        return torch.cat(kept).sort().values


def rank(
    scores: Tensor, labels: Tensor, *, num_classes: int | None = None, classes: Sequence[str] = ()
) -> Ranking:
    """Sort the images of every class from easy to hard; equal scores keep the order of the rows.

    Args:
        scores: ``[N]``, float; larger is harder, and infinity (never learnt) the hardest.
        labels: ``[N]``, int64, 0..K-1.
        num_classes: K; None takes the largest label plus one.
        classes: Names for error messages.

    Raises:
        ShapeError: Not one score per label.
        DataError: A score is NaN.

    Cost: a sort of N numbers.
    """
    if (
        scores.ndim != 1
        or not scores.is_floating_point()
        or labels.shape != scores.shape
        or labels.dtype != torch.int64
    ):
        raise ShapeError(
            f"rank: expected float scores [N] and int64 labels [N], got {scores.dtype} "
            f"{list(scores.shape)} and {labels.dtype} {list(labels.shape)}; give one score per "
            "image"
        )
    if bool(scores.isnan().any()):
        row = int(scores.isnan().nonzero()[0])
        raise DataError(
            f"rank: expected a score for every image, got NaN at row {row}; score the data again"
        )
    order = scores.cpu().argsort(stable=True)
    by_class = order[labels.cpu()[order].argsort(stable=True)]
    counts = torch.bincount(labels.cpu(), minlength=num_classes or 0)
    return Ranking(tuple(by_class.split(counts.tolist())), tuple(classes))


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """PAD's schedule of the experts' data: from easy to all, and later without the easiest.

    With e the number of epochs done before (0 is the first epoch):

        e <= add_until            the easiest  min(1, p + (1 - p) e / add_until),  p = initial_ratio
        add_until < e <= R_1      all
        R_i < e <= R_{i+1}        all but the easiest  q_i

    Attributes:
        initial_ratio: p, share of every class in the first epoch.
        add_until: The first epoch with all images.
        remove_after: R_1 < R_2 < ...
        remove_ratio: q_1, q_2, ...: shares of every class, counted from the easiest.

    Raises:
        ConfigError: A share or an epoch out of range or out of order.

    References: Li et al., Prioritize Alignment in Dataset Distillation, section 3.2 (FIEX), and the
        README of its code.
    """

    initial_ratio: float = 0.75
    add_until: int = 20
    remove_after: tuple[int, ...] = (40, 60)
    remove_ratio: tuple[float, ...] = (0.1, 0.2)

    def __post_init__(self) -> None:
        if not 0.0 < self.initial_ratio <= 1.0 or self.add_until < 0:
            raise ConfigError(
                "curriculum: expected initial_ratio in (0, 1] and add_until of at least 0, got "
                f"{self.initial_ratio:g} and {self.add_until}; 0.75 and 20 are PAD's"
            )
        epochs, shares = self.remove_after, self.remove_ratio
        in_order = (
            list(epochs) == sorted(set(epochs))
            and min(epochs, default=self.add_until) >= self.add_until
        )
        if (
            len(epochs) != len(shares)
            or not in_order
            or not all(0.0 <= share < 1.0 for share in shares)
        ):
            raise ConfigError(
                f"curriculum: expected remove_after to rise from add_until={self.add_until} on, "
                f"with a share in [0, 1) each in remove_ratio, got {list(epochs)} and "
                f"{list(shares)}; [40, 60] and [0.1, 0.2] are PAD's"
            )

    def window(self, epoch: int) -> tuple[float, float]:
        """Return the shares (low, high) of difficulty between which the images of ``epoch`` lie."""
        removed = [
            share
            for after, share in zip(self.remove_after, self.remove_ratio, strict=True)
            if epoch > after
        ]
        if removed:
            return removed[-1], 1.0
        if epoch >= self.add_until:
            return 0.0, 1.0
        return 0.0, min(
            1.0, self.initial_ratio + (1.0 - self.initial_ratio) * epoch / self.add_until
        )

    def rows(self, ranking: Ranking, epoch: int) -> Tensor:
        """Return the images of ``epoch``, int64, ascending."""
        return ranking.keep(*self.window(epoch))

    def check(self, ranking: Ranking, epochs: int) -> None:
        """Raise DataError if a class is empty in one of ``epochs`` epochs."""
        for window in sorted({self.window(epoch) for epoch in range(epochs)}):
            ranking.keep(*window)
