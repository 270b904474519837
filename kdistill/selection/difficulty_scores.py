"""Difficulty scores of real images over several short training runs.

Sources: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021 (EL2N and GraNd,
    early in training); Toneva et
al., An Empirical Study of Example Forgetting, ICLR 2019 (forgetting); Li et al., PAD, 2024 (what
the scores are for).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdistill.engine import Student, sample_scores, train
from kdistill.engine.sample_scores import METRICS as OF_CHECKPOINTS
from kdistill.engine.students import STUDENTS
from kdistill.errors import ConfigError
from kdistill.keys import make_key
from kdistill.options import COUNT, MOMENTUM, NOT_NEGATIVE, POSITIVE, Unset, Words, check_options
from kdistill.transforms import Transform

METRICS = ("el2n", "grand", "grand_last", "forgetting", "loss", "margin", "entropy")


LOOK_BATCH = 256


@dataclass(frozen=True, eq=False)
class NormalisedImages:
    """Images as networks see them, made batch by batch from images in pixel space, which need not be in memory.

    Attributes:
        images: ``[N, C, S, S]``, pixel space.
        transform: What the networks see of them.
    """

    images: Tensor
    transform: Transform

    @property
    def shape(self) -> torch.Size:
        """N, C, S, S."""
        return self.images.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        """Of the images."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self.transform.apply(self.images[rows])


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What decides the scores, beside the data.

    Attributes:
        metrics: Of ``METRICS`` those to compute.
        runs: Networks; every score is the mean over them.
        epochs: Passes over the data before the checkpoint that is scored.  At 0 epochs GraNd says
            little about training.
        lr: Learning rate of SGD, constant.
        batch_size: Images per step.
        momentum: Of SGD.
        weight_decay: Of SGD.
        student: Name of the network.
        width: Of its first block, or None for its default.
        seed: Of all runs; run g does not depend on ``runs``.

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
    images: Tensor | NormalisedImages,
    labels: Tensor,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Tensor]:
    """Return every score of ``spec.metrics``, ``[N]`` on the CPU; larger is harder.

    Forgetting is the number of epochs after which an image that was right is wrong; one that a run
    never learns counts as ``epochs``, more than any number of events.  All others belong to the
    checkpoints after ``epochs``; see ``sample_scores``.

    Args:
        spec: The recipe.
        student: The network.
        images: As the network sees them, ``[N, C, S, S]``; a tensor, or ``NormalisedImages`` for those that are
            not in memory.
        labels: int64 ``[N]``.
        progress: Callback that is told what is done.

    Cost: ``runs * epochs`` passes of training (and as many forward passes for forgetting), then
        ``sample_scores`` of ``runs`` checkpoints.
    """
    finals, forgotten = [], torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    for run in range(spec.runs):
        memory = _Memory(student, images, labels) if "forgetting" in spec.metrics else None
        finals.append(_train(spec, student, images, labels, run, memory, progress))
        if memory is not None:
            forgotten += memory.events(spec.epochs)
    others = [metric for metric in spec.metrics if metric in OF_CHECKPOINTS]
    progress(f"scoring {len(labels)} images with {spec.runs} networks")
    found = sample_scores(
        student,
        torch.stack(finals),
        images,
        labels,
        others,
        on_batch=lambda done, count: progress(f"scored {done} of {count} images"),
    )
    found["forgetting"] = (forgotten / spec.runs).float()
    return {metric: found[metric].cpu() for metric in spec.metrics}


class _Memory:
    """Counts how often an image that was right becomes wrong."""

    def __init__(self, student: Student, images: Tensor | NormalisedImages, labels: Tensor):
        self.student, self.images, self.labels = student, images, labels
        self.was_right, self.ever = (
            torch.zeros_like(labels, dtype=torch.bool),
            torch.zeros_like(labels, dtype=torch.bool),
        )
        self.count = torch.zeros_like(labels)

    def look(self, theta: Tensor) -> None:
        parts = (
            self.images[start : start + LOOK_BATCH]
            for start in range(0, len(self.labels), LOOK_BATCH)
        )
        right = (
            torch.cat([self.student.infer(theta, part).argmax(1) for part in parts]) == self.labels
        )
        self.count += self.was_right & ~right
        self.was_right, self.ever = right, self.ever | right

    def events(self, epochs: int) -> Tensor:
        return torch.where(self.ever, self.count, torch.full_like(self.count, epochs)).double()


def _train(
    spec: ScoreSpec,
    student: Student,
    images: Tensor | NormalisedImages,
    labels: Tensor,
    run: int,
    memory: _Memory | None,
    progress: Callable[[str], None],
) -> Tensor:
    def after(epoch: int, thetas: Tensor) -> None:
        progress(f"network {run + 1} of {spec.runs}, epoch {epoch} of {spec.epochs}")
        if memory is not None:
            memory.look(thetas[0])

    key = make_key(spec.seed, "score", run)
    options = {"momentum": spec.momentum, "weight_decay": spec.weight_decay}
    return train(
        student, images, labels, epochs=spec.epochs, lr=spec.lr, key=key, batch_size=spec.batch_size, schedule="constant",
        on_epoch=after, **options,
    )[0]  # fmt: skip
