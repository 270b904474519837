"""class_mean_sqdist through csrc/cpu/class_mean_sqdist.cpp."""

from typing import Any

import torch
from torch import Tensor

from kdistill.backends.cpu import launch, new_output

_STRIP = 1024  # kStrip of the kernel: features behind one partial sum


def class_mean_sqdist(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _run(None, *inputs)


def class_mean_sqdist_and_grad(
    real: Tensor, real_labels: Tensor, syn: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    grad_syn = new_output(syn, syn.shape)
    value, _ = _run(grad_syn, real, real_labels, syn, *others)
    return value, grad_syn


def _run(
    grad_syn: Tensor | None,
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (n, f), m = real.shape, syn.shape[0]
    value, diff = real.new_empty(()), real.new_empty((num_classes, f))
    lists = real_labels.new_empty(n + m + 2 * num_classes + 2)
    partials = real.new_empty((num_classes, -(-f // _STRIP)))
    rows = (real, real_labels, syn, syn_labels, weights, value, diff, grad_syn, lists, partials)
    launch("class_mean_sqdist", rows, n, m, f, num_classes)
    return value, diff


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    n, (num_classes, f) = labels.numel(), diff.shape
    out = new_output(diff, (n, f))
    counts, table = labels.new_empty(num_classes), torch.empty_like(diff)
    tensors = (grad, diff, weights, labels, out, counts, table)
    launch("class_mean_sqdist_bwd", tensors, n, f, num_classes, sign)
    return out
