"""Norms of per-sample gradients for any student: one image at a time, and the last layer in closed form.

Symbols: B images, N classes, F features, P parameters; l_i the cross-entropy of image i alone, p
    its softmax, t its target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdistill.engine import layers
from kdistill.errors import ConfigError

if TYPE_CHECKING:
    from kdistill.engine.students.base import Student

SAMPLE_GRADS = ("all", "last")


@dataclass(frozen=True)
class SampleGrads:
    """Logits of a batch and squared norms of the gradient of every image's own loss.

    Attributes:
        logits: ``[B, N]``.
        all: ``|dl_i/dtheta|^2 [B]`` in float64, or None if it was not asked for.
        last: The same over weight and bias of the last layer, ``|p - t|^2 (1 + |h|^2)`` for
            features h.
    """

    logits: Tensor
    all: Tensor | None
    last: Tensor | None


def of(
    student: "Student", theta: Tensor, images: Tensor, labels: Tensor, want: Sequence[str]
) -> SampleGrads:
    """Return what ``Student.sample_grads`` promises.

    Raises:
        ConfigError: ``want`` is unknown; or ``"all"`` under batch statistics, where no image has a
            gradient of its own.
    """
    if not set(want) <= set(SAMPLE_GRADS):
        raise ConfigError(
            f"sample_grads: expected want among {SAMPLE_GRADS}, got {tuple(want)}; leave the "
            "others out"
        )
    if "all" not in want:
        return last_only(student, theta, images, labels, "last" in want)
    if student.is_joint:
        raise ConfigError(
            "sample_grads: expected a student whose images do not depend on each other, got "
            f"{student.name} with the statistics "
            "of the batch; use norm='instance', frozen statistics (with_statistics), or the last "
            "layer's gradient"
        )
    return student._sample_grads(theta, images, labels, "last" in want)


def last_layer(grad_logits: Tensor, features: Tensor, has_bias: bool) -> Tensor:
    """Return ``|g|^2 (1 + |h|^2) [B]`` in float64 for ``grad_logits [B, N]`` of single losses and ``features [B, F]``."""
    inputs = features.double().square().sum(1)
    return grad_logits.double().square().sum(1) * (inputs + 1.0 if has_bias else inputs)


def last_only(
    student: "Student", theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
) -> SampleGrads:
    """Return the logits, and the last layer's squared norms if they are wanted, from a forward pass."""
    if not want_last:
        return SampleGrads(student._infer_logits(theta, images), None, None)
    features, logits, has_bias = student._features_and_logits(theta, images)
    _, grad = layers.softmax_cross_entropy(logits, labels, 1)
    return SampleGrads(logits, None, last_layer(grad, features, has_bias))


def by_loop(
    student: "Student", theta: Tensor, images: Tensor, labels: Tensor, want_last: bool
) -> SampleGrads:
    """Return what ``Student.sample_grads`` promises from one backward pass per image; memory of one gradient."""
    found = last_only(student, theta, images, labels, want_last)
    squares = theta.new_empty(len(images), dtype=torch.float64)
    for i in range(len(images)):
        _, grad = student._loss_and_grad(theta, images[i : i + 1], labels[i : i + 1])
        squares[i] = grad.double().square().sum()
    return SampleGrads(found.logits, squares, found.last)
