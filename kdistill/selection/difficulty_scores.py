"""Difficulty of real images: scores over several short training runs, and subsets by score.

A score says how hard an image is (larger is harder).  Shares are quotas of every class, so the
balance of the classes stays what it was, whatever their size; PAD's curriculum (FIEX) is a schedule
of them.

Sources: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021 (EL2N and GraNd,
early in training); Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019 (forgetting);
Li et al., PAD, 2024 (what the scores are for).

Symbols: N images, K classes, n_c images of class c.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdistill.engine import Student, sample_scores, train
from kdistill.engine.students import STUDENTS
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.keys import make_key
from kdistill.options import COUNT, MOMENTUM, NOT_NEGATIVE, POSITIVE, Unset, Words, check_options

METRICS = ("el2n", "grand", "grand_last", "forgetting", "loss", "margin", "entropy")
INFER_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What decides the scores, beside the data.

    Attributes:
        metrics: Scores to compute.
        runs: Number of networks; every score is the mean over them.
        epochs: Passes over the data before the checkpoint that is scored.  At 0 epochs GraNd says
            little about training.
        lr: Learning rate of SGD, constant.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        student: Name of the network.
        width: Width of its first block, or None for its default.
        seed: Seed of all runs; run g does not depend on ``runs``.

    Raises:
        ConfigError: An unknown metric, or a number out of range.
    """

    metrics: Annotated[tuple[str, ...], Words(METRICS)] = METRICS
    runs: Annotated[int, COUNT] = 5
    epochs: Annotated[int, NOT_NEGATIVE] = 5
    lr: Annotated[float, POSITIVE] = 0.01
    batch_size: Annotated[int, COUNT] = 256
    momentum: Annotated[float, MOMENTUM] = 0.9
    weight_decay: Annotated[float, NOT_NEGATIVE] = 5e-4
    student: Annotated[str, Words(STUDENTS)] = "convnet"
    width: Annotated[int | None, COUNT, Unset("its own default")] = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, "score")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(
                f"score: expected metrics, each once, got {list(self.metrics)}; such as el2n"
            )
        if self.epochs == 0 and "forgetting" in self.metrics:
            raise ConfigError(
                "score.epochs: expected at least 1 for forgetting, got 0; raise it or leave "
                "forgetting out of metrics"
            )


def difficulty(
    spec: ScoreSpec,
    student: Student,
    images: Tensor,
    labels: Tensor,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Tensor]:
    """Return the scores ``[N]`` of every metric, on the CPU; larger is harder.

    Forgetting is the number of epochs after which an image that was right is wrong; one that a run
    never learns counts as ``epochs``, more than any number of events.  All others belong to the
    checkpoints after ``epochs``; see ``sample_scores``.

    Args:
        spec: The recipe.
        student: The network.
        images: Normalised images ``[N, C, S, S]``; ``kdistill.data.normalised`` makes them batch by
            batch of images that are not in memory.
        labels: int64 ``[N]``.
        progress: Callback that is told what is done.

    Cost: ``runs * epochs`` passes of training (and as many forward passes for forgetting), then
        ``sample_scores`` of ``runs`` checkpoints.
    """
    finals, forgotten = [], torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    for run in range(spec.runs):
        counter = _Forgetting(student, images, labels) if "forgetting" in spec.metrics else None
        finals.append(_train(spec, student, images, labels, run, counter, progress))
        if counter is not None:
            forgotten += counter.events(spec.epochs)
    others = [metric for metric in spec.metrics if metric != "forgetting"]
    progress(f"scoring {len(labels)} images with {spec.runs} networks")
    scores = sample_scores(
        student,
        torch.stack(finals),
        images,
        labels,
        others,
        on_batch=lambda done, count: progress(f"scored {done} of {count} images"),
    )
    scores["forgetting"] = (forgotten / spec.runs).float()
    return {metric: scores[metric].cpu() for metric in spec.metrics}


class _Forgetting:
    """Counter of how often an image that was right becomes wrong."""

    def __init__(self, student: Student, images: Tensor, labels: Tensor):
        self.student, self.images, self.labels = student, images, labels
        self.was_right = torch.zeros_like(labels, dtype=torch.bool)
        self.was_ever_right = self.was_right
        self.count = torch.zeros_like(labels)

    def update(self, theta: Tensor) -> None:
        starts = range(0, len(self.labels), INFER_BATCH)
        batches = (self.images[start : start + INFER_BATCH] for start in starts)
        predictions = torch.cat([self.student.infer(theta, batch).argmax(1) for batch in batches])
        is_right = predictions == self.labels
        self.count += self.was_right & ~is_right
        self.was_right, self.was_ever_right = is_right, self.was_ever_right | is_right

    def events(self, epochs: int) -> Tensor:
        never = torch.full_like(self.count, epochs)
        return torch.where(self.was_ever_right, self.count, never).double()


def _train(
    spec: ScoreSpec,
    student: Student,
    images: Tensor,
    labels: Tensor,
    run: int,
    forgetting: _Forgetting | None,
    progress: Callable[[str], None],
) -> Tensor:
    def after(epoch: int, thetas: Tensor) -> None:
        progress(f"network {run + 1} of {spec.runs}, epoch {epoch} of {spec.epochs}")
        if forgetting is not None:
            forgetting.update(thetas[0])

    thetas = train(
        student,
        images,
        labels,
        epochs=spec.epochs,
        lr=spec.lr,
        key=make_key(spec.seed, "score", run),
        batch_size=spec.batch_size,
        schedule="constant",
        on_epoch=after,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    return thetas[0]


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
        chosen = []
        for label, rows in enumerate(self.rows):
            part = rows[quota(len(rows), low) : quota(len(rows), high)]
            if len(part) < at_least:
                raise DataError(
                    f"selection: expected at least {at_least} images of "
                    f"{class_name(label, self.classes)} between the shares {low:g} and {high:g} of "
                    f"its difficulty, got {len(part)} of {len(rows)}; leave out less or add images"
                )
            chosen.append(part)
        return torch.cat(chosen).sort().values


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
