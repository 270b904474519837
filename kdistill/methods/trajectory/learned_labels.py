"""Soft labels that are learned: where they begin, and how right they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdistill.errors import ConfigError


def first_logits(votes: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return for every image the mean of the logits that are right about it, or of all of them.

    Args:
        votes: Logits ``[M, K]`` of every expert.
        labels: int64 ``[M]``.

    Returns:
        ``[M, K]``, finite: the published code divides 0 by 0 for an image that no expert classifies
        correctly.
    """
    if not votes:
        raise ConfigError(
            "first_logits: expected at least one expert, got none; train experts first"
        )
    zeros = torch.zeros_like(votes[0])
    is_right = [(logits.argmax(1) == labels).to(logits)[:, None] for logits in votes]
    right, hits = sum(map(torch.mul, is_right, votes), zeros), sum(is_right, zeros)
    return torch.where(hits > 0, right / hits.clamp(min=1.0), sum(votes, zeros) / len(votes))


def label_metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return how right learned labels are, for the log of a run.

    Args:
        logits: Logits ``[M, K]`` of the labels.
        labels: Classes of their images, int64 ``[M]``.

    Returns:
        ``label_p_true``, the mean probability of the class of the image, and ``label_agreement``,
        the share of labels that are largest there.
    """
    of_class = logits.softmax(1).gather(1, labels[:, None])
    is_right = logits.argmax(1) == labels
    return {"label_p_true": of_class.mean(), "label_agreement": is_right.to(logits).mean()}
