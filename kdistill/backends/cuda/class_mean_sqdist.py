"""class_mean_sqdist through csrc/cuda/class_mean_sqdist.cu."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.reference.class_mean_sqdist import row_gradient_table

supports = partial(_native.refusal, "_cuda")

_COLS = 32  # kCols of the kernel: features behind one partial sum


def class_lists(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return ``order [N]`` and ``offsets [K + 1]`` without a host synchronisation; a label outside 0..K-1 is in no class."""
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
    real_order, real_offsets = class_lists(real_labels, num_classes)
    syn_order, syn_offsets = class_lists(syn_labels, num_classes)
    f = real.shape[1]
    value, diff = real.new_empty(()), real.new_empty((num_classes, f))
    partials = real.new_empty((num_classes, -(-f // _COLS)))
    run = _native.kernel("_cuda", "class_mean_sqdist", real.dtype, real.device)
    with _native.stream_of(real) as stream:
        run(
            *(real.data_ptr(), real_order.data_ptr(), real_offsets.data_ptr()),
            *(syn.data_ptr(), syn_order.data_ptr(), syn_offsets.data_ptr()),
            *(
                0 if weights is None else weights.data_ptr(),
                value.data_ptr(),
                diff.data_ptr(),
                partials.data_ptr(),
            ),
            *(f, num_classes, stream),
        )
    return value, diff


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    table = row_gradient_table(grad, diff, weights, labels, sign).contiguous()
    n, f = labels.numel(), diff.shape[1]
    out = diff.new_empty((n, f))
    run = _native.kernel("_cuda", "class_mean_sqdist_bwd", diff.dtype, diff.device)
    with _native.stream_of(diff) as stream:
        run(table.data_ptr(), labels.data_ptr(), out.data_ptr(), n, f, diff.shape[0], stream)
    return out


def class_mean_sqdist_and_grad(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    value, diff = class_mean_sqdist(real, real_labels, syn, syn_labels, num_classes, weights)
    return value, class_mean_sqdist_bwd(torch.ones_like(value), diff, weights, syn_labels, -1.0)
