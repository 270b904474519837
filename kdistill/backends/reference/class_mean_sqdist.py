"""Reference of class_mean_sqdist: any dtype and device, twice differentiable."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


def class_counts(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Return the number of rows of each class, ``[num_classes]`` in the dtype of ``like``."""
    return (
        (labels[:, None] == torch.arange(num_classes, device=labels.device)).sum(0).to(like.dtype)
    )


def _means(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    counts = class_counts(labels, num_classes, rows)
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add(0, labels, rows)
    return sums / counts.clamp(min=1)[:, None], counts


def class_mean_sqdist(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    real_mean, real_counts = _means(real, real_labels, num_classes)
    syn_mean, syn_counts = _means(syn, syn_labels, num_classes)
    present = ((real_counts > 0) & (syn_counts > 0))[:, None]
    diff = torch.where(present, real_mean - syn_mean, torch.zeros_like(real_mean))  # [K, F]
    scaled = diff if weights is None else weights * diff
    return scaled.square().sum(), diff


def row_gradient_table(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    """Return d value / d row by class, ``[K, F]``: ``sign * 2 * grad * w^2 * diff / count``."""
    counts = class_counts(labels, diff.shape[0], diff).clamp(min=1)
    squared = diff if weights is None else weights.square() * diff
    return (sign * 2.0 * grad) * squared / counts[:, None]


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    return row_gradient_table(grad, diff, weights, labels, sign)[labels]  # [N, F]


def value_and_grad(
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., Tensor],
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient in ``syn`` by the two passes of a backend."""
    value, diff = forward(real, real_labels, syn, syn_labels, num_classes, weights)
    return value, backward(torch.ones_like(value), diff, weights, syn_labels, -1.0)


class_mean_sqdist_and_grad = partial(value_and_grad, class_mean_sqdist, class_mean_sqdist_bwd)
