"""class_mean_sqdist in Triton."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.cuda.class_mean_sqdist import class_lists
from kdistill.backends.reference.class_mean_sqdist import row_gradient_table, value_and_grad

_BLOCK_F = 64  # features of a program


@triton.jit
def _class_mean(
    x_ptr, order_ptr, first, last, cols, F, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):
    acc = tl.zeros((BLOCK_N, BLOCK_F), dtype=x_ptr.dtype.element_ty)
    for start in range(first, last, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        rows = tl.load(order_ptr + i, mask=i < last, other=0)
        acc += tl.load(
            x_ptr + rows[:, None] * F + cols[None, :],
            mask=(i < last)[:, None] & (cols < F)[None, :],
            other=0.0,
        )
    return tl.sum(acc, axis=0) / (last - first).to(x_ptr.dtype.element_ty)  # [BLOCK_F]


@triton.jit
def _class_mean_sqdist_fwd_kernel(
    real_ptr, real_order_ptr, real_offsets_ptr, syn_ptr, syn_order_ptr, syn_offsets_ptr,
    weights_ptr, diff_ptr, partials_ptr, F, HAS_WEIGHTS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    # one program per class and BLOCK_F features: every row is read once
    c = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)  # [BLOCK_F]
    r0, r1 = tl.load(real_offsets_ptr + c), tl.load(real_offsets_ptr + c + 1)
    s0, s1 = tl.load(syn_offsets_ptr + c), tl.load(syn_offsets_ptr + c + 1)
    d = tl.zeros((BLOCK_F,), dtype=real_ptr.dtype.element_ty)
    if (r1 > r0) & (s1 > s0):
        d = _class_mean(real_ptr, real_order_ptr, r0, r1, cols, F, BLOCK_N, BLOCK_F)
        d -= _class_mean(syn_ptr, syn_order_ptr, s0, s1, cols, F, BLOCK_N, BLOCK_F)
    tl.store(diff_ptr + c * F + cols, d, mask=cols < F)
    if HAS_WEIGHTS:
        d *= tl.load(weights_ptr + c * F + cols, mask=cols < F, other=0.0)
    square = tl.where(cols < F, d * d, 0.0)
    tl.store(partials_ptr + c * tl.num_programs(0) + tl.program_id(0), tl.sum(square, axis=0))


@triton.jit
def _class_mean_sqdist_bwd_kernel(table_ptr, labels_ptr, out_ptr, F, K, BLOCK_F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    label = tl.load(labels_ptr + row)
    # a label outside 0..K-1 has no row: zeros
    inside = tl.where((label >= 0) & (label < K), cols < F, False)
    rows = tl.load(table_ptr + label * F + cols, mask=inside, other=0.0)
    tl.store(out_ptr + row * F + cols, rows, mask=cols < F)


def class_mean_sqdist(
    real: Tensor,
    real_labels: Tensor,
    syn: Tensor,
    syn_labels: Tensor,
    num_classes: int,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    f, blocks = real.shape[1], triton.cdiv(real.shape[1], _BLOCK_F)
    rows = (
        real,
        *class_lists(real_labels, num_classes),
        syn,
        *class_lists(syn_labels, num_classes),
    )
    diff, partials = real.new_empty((num_classes, f)), real.new_empty((num_classes, blocks))
    if diff.numel():
        tensors = (*rows, real if weights is None else weights, diff, partials)
        _class_mean_sqdist_fwd_kernel[(blocks, num_classes)](
            *tensors, f, weights is not None, BLOCK_N=16, BLOCK_F=_BLOCK_F
        )
    return partials.sum(dtype=torch.float64).to(real.dtype), diff


def class_mean_sqdist_bwd(
    grad: Tensor, diff: Tensor, weights: Tensor | None, labels: Tensor, sign: float
) -> Tensor:
    table = row_gradient_table(grad, diff, weights, labels, sign).contiguous()
    n, f = labels.numel(), diff.shape[1]
    out = diff.new_empty((n, f))
    if out.numel():
        _class_mean_sqdist_bwd_kernel[(n, triton.cdiv(f, 1024))](
            table, labels, out, f, diff.shape[0], BLOCK_F=1024
        )
    return out


class_mean_sqdist_and_grad = partial(value_and_grad, class_mean_sqdist, class_mean_sqdist_bwd)
