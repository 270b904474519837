"""Difficulty scores of real images over several short training runs.

Sources: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021 (EL2N and GraNd,
early in training); Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019 (forgetting);
Li et al., PAD, 2024 (what the scores are for).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdistill.engine import Student, sample_scores, train
from kdistill.engine.students import STUDENTS
from kdistill.errors import ConfigError
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
