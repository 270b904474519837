"""trajectory_loss in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _trajectory_loss_kernel(
    final_ptr, target_ptr, start_ptr, mask_ptr, grad_ptr, partials_ptr, P,
    MASKED: tl.constexpr, MASK_PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program per BLOCK elements of a row; int64 because G*P may pass 2^31
    unit, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(P, BLOCK)
    row, i = unit // blocks, (unit % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    at = row * P + i
    target = tl.load(target_ptr + at, mask=i < P, other=0.0)
    left = tl.load(final_ptr + at, mask=i < P, other=0.0) - target
    whole = tl.load(start_ptr + at, mask=i < P, other=0.0) - target
    if MASKED:
        keep = tl.load(mask_ptr + (at if MASK_PER_ROW else i), mask=i < P, other=0.0)
        left *= keep
        whole *= keep
    tl.store(grad_ptr + at, left, mask=i < P)
    wide_left, wide_whole = left.to(tl.float64), whole.to(tl.float64)
    tl.store(partials_ptr + 2 * unit, tl.sum(wide_left * wide_left, axis=0))
    tl.store(partials_ptr + 2 * unit + 1, tl.sum(wide_whole * wide_whole, axis=0))


@triton.jit
def _trajectory_loss_scale_kernel(grad_ptr, sums_ptr, P, BLOCK: tl.constexpr):
    unit, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(P, BLOCK)
    row, i = unit // blocks, (unit % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    factor = (2.0 / tl.load(sums_ptr + 2 * row + 1)).to(grad_ptr.dtype.element_ty)
    left = tl.load(grad_ptr + row * P + i, mask=i < P, other=0.0)
    tl.store(grad_ptr + row * P + i, left * factor, mask=i < P)


def trajectory_loss(
    final: Tensor, target: Tensor, start: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    g, p = final.shape if final.ndim == 2 else (1, final.shape[0])
    blocks, grad = triton.cdiv(p, _BLOCK), torch.empty_like(final)
    partials = final.new_empty((g, blocks, 2), dtype=torch.float64)
    if grad.numel():
        _trajectory_loss_kernel[(g * blocks,)](
            *(final, target, start, final if mask is None else mask, grad, partials, p),
            *(mask is not None, mask is not None and mask.ndim == 2),
            BLOCK=_BLOCK,
        )
    sums = partials.sum(1)  # [G, 2]
    if grad.numel():
        _trajectory_loss_scale_kernel[(g * blocks,)](grad, sums, p, BLOCK=_BLOCK)
    left, denominator = (s.reshape(final.shape[:-1]) for s in sums.unbind(1))
    return left / denominator, grad, denominator
