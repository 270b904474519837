"""class_mean_sqdist through csrc/cpu/class_mean_sqdist.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.reference.class_mean_sqdist import row_gradient_table

supports = partial(_native.refusal, "_cpu")

_STRIP = 1024  # kStrip of the kernel: features behind one partial sum


def class_lists(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return ``order [N]`` and ``offsets [K + 1]``: the rows of class c are ``order[offsets[c]:offsets[c + 1]]``."""
    order, offsets = torch.empty_like(labels), labels.new_empty(num_classes + 1)
    run = _native.function("_cpu", "class_lists")
    run(labels.data_ptr(), order.data_ptr(), offsets.data_ptr(), labels.numel(), num_classes)
    return order, offsets


def class_mean_sqdist(
    real: Tensor, real_labels: Tensor, syn: Tensor, syn_labels: Tensor, num_classes: int, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    real_order, real_offsets = class_lists(real_labels, num_classes)
    syn_order, syn_offsets = class_lists(syn_labels, num_classes)
    f = real.shape[1]
    value, diff = real.new_empty(()), real.new_empty((num_classes, f))
    partials = real.new_empty((num_classes, -(-f // _STRIP)))
    run = _native.kernel("_cpu", "class_mean_sqdist", real.dtype)
    run(
        *(real.data_ptr(), real_order.data_ptr(), real_offsets.data_ptr()),
        *(syn.data_ptr(), syn_order.data_ptr(), syn_offsets.data_ptr()),
        *(0 if weights is None else weights.data_ptr(), value.data_ptr(), diff.data_ptr(), partials.data_ptr()),
        *(f, num_classes, torch.get_num_threads()),
    )
    return value, diff


def class_mean_sqdist_bwd(grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float) -> Tensor:
    table = row_gradient_table(grad, diff, weights, labels, sign).contiguous()
    n, f = labels.numel(), diff.shape[1]
    out = diff.new_empty((n, f))
    run = _native.kernel("_cpu", "class_mean_sqdist_bwd", diff.dtype)
    run(table.data_ptr(), labels.data_ptr(), out.data_ptr(), n, f, torch.get_num_threads())
    return out
