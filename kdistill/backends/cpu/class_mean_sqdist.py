"""class_mean_sqdist through csrc/cpu/class_mean_sqdist.cpp."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.cpu import new_output

supports = partial(_native.refusal, "_cpu")

_STRIP = 1024  # kStrip of the kernel: features behind one partial sum


def class_mean_sqdist(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _run(real, real_labels, syn, syn_labels, num_classes, weights, None)


def class_mean_sqdist_and_grad(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    grad_syn = new_output(syn, syn.shape)
    value, _ = _run(real, real_labels, syn, syn_labels, num_classes, weights, grad_syn)
    return value, grad_syn


def _run(
    real: Tensor, real_labels: Tensor, syn: Tensor, syn_labels: Tensor, num_classes: int, weights: Tensor | None,
    grad_syn: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (n, f), m = real.shape, syn.shape[0]
    value, diff = real.new_empty(()), real.new_empty((num_classes, f))
    lists, partials = (
        real_labels.new_empty(n + m + 2 * num_classes + 2),
        real.new_empty((num_classes, -(-f // _STRIP))),
    )
    run = _native.kernel("_cpu", "class_mean_sqdist", real.dtype)
    run(
        *(real.data_ptr(), real_labels.data_ptr(), syn.data_ptr(), syn_labels.data_ptr()),
        *(0 if weights is None else weights.data_ptr(), value.data_ptr(), diff.data_ptr()),
        *(0 if grad_syn is None else grad_syn.data_ptr(), lists.data_ptr(), partials.data_ptr()),
        *(n, m, f, num_classes, torch.get_num_threads()),
    )
    return value, diff


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    n, (num_classes, f) = labels.numel(), diff.shape
    out = new_output(diff, (n, f))
    counts, table = labels.new_empty(num_classes), torch.empty_like(diff)
    run = _native.kernel("_cpu", "class_mean_sqdist_bwd", diff.dtype)
    run(
        *(
            grad.data_ptr(),
            diff.data_ptr(),
            0 if weights is None else weights.data_ptr(),
            labels.data_ptr(),
            out.data_ptr(),
        ),
        *(counts.data_ptr(), table.data_ptr(), n, f, num_classes, sign, torch.get_num_threads()),
    )
    return out
