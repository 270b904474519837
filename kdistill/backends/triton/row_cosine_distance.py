"""row_cosine_distance in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _row_cosine_distance_kernel(
    syn_ptr, real_ptr, rows_ptr, mask_ptr, eps_ptr, grad_ptr, values_ptr, P, R,
    MASKED: tl.constexpr, MASK_PER_GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program per row of a group; int64 because G*P may pass 2^31
    unit = tl.program_id(0).to(tl.int64)
    group, row = unit // R, unit % R
    offset, length = tl.load(rows_ptr + 2 * row), tl.load(rows_ptr + 2 * row + 1)
    start = group * P + offset
    keep_start = start if MASK_PER_GROUP else offset
    dots = tl.zeros((BLOCK,), tl.float64)
    squares_a, squares_b, mask_sums = dots, dots, dots
    for first in range(0, length, BLOCK):
        i = first + tl.arange(0, BLOCK)  # [BLOCK]
        a = tl.load(syn_ptr + start + i, mask=i < length, other=0.0)
        b = tl.load(real_ptr + start + i, mask=i < length, other=0.0)
        if MASKED:
            keep = tl.load(mask_ptr + keep_start + i, mask=i < length, other=0.0)
            a *= keep
            b *= keep
            mask_sums += keep.to(tl.float64)
        wide_a, wide_b = a.to(tl.float64), b.to(tl.float64)
        dots += wide_a * wide_b
        squares_a += wide_a * wide_a
        squares_b += wide_b * wide_b
    dot = tl.sum(dots, axis=0)
    norm_a, norm_b = tl.sqrt(tl.sum(squares_a, axis=0)), tl.sqrt(tl.sum(squares_b, axis=0))
    q = norm_a * norm_b + tl.load(eps_ptr)
    value = 1.0 - dot / q
    if MASKED:
        value = tl.where(tl.sum(mask_sums, axis=0) > 0.0, value, 0.0)
    tl.store(values_ptr + unit, value)
    along_a = tl.where(
        norm_a > 0.0, dot * norm_b / (tl.where(norm_a > 0.0, norm_a, 1.0) * q * q), 0.0
    )
    factor_a, factor_b = (
        along_a.to(grad_ptr.dtype.element_ty),
        (1.0 / q).to(grad_ptr.dtype.element_ty),
    )
    for first in range(0, length, BLOCK):
        i = first + tl.arange(0, BLOCK)
        a = tl.load(syn_ptr + start + i, mask=i < length, other=0.0)
        b = tl.load(real_ptr + start + i, mask=i < length, other=0.0)
        v = factor_a * a - factor_b * b
        if MASKED:
            v *= tl.load(mask_ptr + keep_start + i, mask=i < length, other=0.0)
        tl.store(grad_ptr + start + i, v, mask=i < length)


def row_cosine_distance(
    syn: Tensor, real: Tensor, rows: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    g, p = syn.shape if syn.ndim == 2 else (1, syn.shape[0])
    grad = torch.zeros_like(syn)  # the kernel writes rows only
    values = syn.new_empty((g, len(rows)), dtype=torch.float64)
    if values.numel():
        _row_cosine_distance_kernel[(values.numel(),)](
            *(
                syn,
                real,
                rows,
                syn if mask is None else mask,
                syn.new_full((), eps, dtype=torch.float64),
                grad,
                values,
            ),
            *(p, len(rows), mask is not None, mask is not None and mask.ndim == 2),
            BLOCK=_BLOCK,
        )
    return values.sum(1).reshape(syn.shape[:-1]), grad
