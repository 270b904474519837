"""class_mean_sqdist through csrc/cuda/class_mean_sqdist.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill.backends.cuda import launch
from kdistill.backends.reference.class_mean_sqdist import row_gradient_table, value_and_grad

_COLS = 32  # kCols of the kernel: features behind one partial sum


def class_lists(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return ``order [N]`` and ``offsets [K + 1]``; a label outside 0..K-1 is in no class.

    Nothing waits for the device.
    """
    ordered, order = labels.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(num_classes + 1, device=labels.device))


def class_mean_sqdist(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows = (
        real,
        *class_lists(real_labels, num_classes),
        syn,
        *class_lists(syn_labels, num_classes),
    )
    f = real.shape[1]
    value, diff = real.new_empty(()), real.new_empty((num_classes, f))
    partials = real.new_empty((num_classes, -(-f // _COLS)))
    launch("class_mean_sqdist", (*rows, weights, value, diff, partials), f, num_classes)
    return value, diff


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    table = row_gradient_table(grad, diff, weights, labels, sign).contiguous()
    n, (num_classes, f) = labels.numel(), diff.shape
    out = diff.new_empty((n, f))
    launch("class_mean_sqdist_bwd", (table, labels, out), n, f, num_classes)
    return out


class_mean_sqdist_and_grad = partial(value_and_grad, class_mean_sqdist, class_mean_sqdist_bwd)
