"""step_with_dots in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _step_with_dots_kernel(
    y_ptr, x_ptr, step_ptr, out_ptr, partials_ptr, P, STEP_PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # one program per BLOCK elements of a row; int64 because G*P may pass 2^31
    unit, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(P, BLOCK)
    row, i = unit // blocks, (unit % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    x = tl.load(x_ptr + row * P + i, mask=i < P, other=0.0)
    y = tl.load(y_ptr + row * P + i, mask=i < P, other=0.0)
    step = tl.load(step_ptr + row) if STEP_PER_ROW else tl.load(step_ptr)
    tl.store(out_ptr + row * P + i, y - step * x, mask=i < P)
    wide = x.to(tl.float64)
    tl.store(partials_ptr + 2 * unit, tl.sum(wide * y.to(tl.float64), axis=0))
    tl.store(partials_ptr + 2 * unit + 1, tl.sum(wide * wide, axis=0))


def step_with_dots(y: Tensor, x: Tensor, step: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    g, p = y.shape if y.ndim == 2 else (1, y.shape[0])
    if out is None:
        out = torch.empty_like(y)
    blocks = triton.cdiv(p, _BLOCK)
    partials = y.new_empty((g, blocks, 2), dtype=torch.float64)
    if out.numel():
        _step_with_dots_kernel[(g * blocks,)](
            y, x, step, out, partials, p, step.ndim == 1, BLOCK=_BLOCK
        )
    return out, partials.sum(1).reshape(*y.shape[:-1], 2)
