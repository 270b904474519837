"""conv_grad_sqnorm in Triton: batched products of the library, a kernel for the sum over pairs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdistill.backends.reference.conv_grad_sqnorm import by_products, gram_chunk, grams

_BLOCK = 256


@triton.jit
def _conv_grad_sqnorm_kernel(
    gx_ptr, gg_ptr, partials_ptr, H, W, h, w, padding, BLOCK: tl.constexpr
):
    # one program per (image, output pixel i), over all output pixels j
    unit = tl.program_id(0).to(tl.int64)
    outs, pixels = h * w, H * W
    image, i = (
        unit // outs,
        unit % outs + tl.zeros((BLOCK,), tl.int64),
    )  # a block, so that every mask is one
    iy, ix = i // w - padding, i % w - padding
    sums = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, outs, BLOCK):
        j = start + tl.arange(0, BLOCK)  # [BLOCK]
        jy, jx = j // w - padding, j % w - padding
        taps = tl.zeros((BLOCK,), gx_ptr.dtype.element_ty)
        for tap in tl.static_range(9):
            ay, ax, by, bx = iy + tap // 3, ix + tap % 3, jy + tap // 3, jx + tap % 3
            row = (ay >= 0) & (ay < H) & (by >= 0) & (by < H)
            column = (ax >= 0) & (ax < W) & (bx >= 0) & (bx < W)
            inside = (j < outs) & row & column
            at = image * pixels * pixels + (ay * W + ax) * pixels + by * W + bx
            taps += tl.load(gx_ptr + at, mask=inside, other=0.0)
        gg = tl.load(gg_ptr + unit * outs + j, mask=j < outs, other=0.0)
        sums += taps.to(tl.float64) * gg.to(tl.float64)
    tl.store(partials_ptr + unit, tl.sum(sums, axis=0))


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    if not gram:
        return by_products(x, grad, padding)
    (H, W), (h, w), sums = x.shape[2:], grad.shape[2:], [x.new_zeros(0, dtype=torch.float64)]
    step = gram_chunk(x, grad)
    for images, grads in zip(x.split(step), grad.split(step), strict=True):
        if len(images):
            gx, gg = grams(images, grads)
            partials = x.new_empty((len(images), h * w), dtype=torch.float64)
            _conv_grad_sqnorm_kernel[(partials.numel(),)](
                gx, gg, partials, H, W, h, w, padding, BLOCK=_BLOCK
            )
            sums.append(partials.sum(1))
    return torch.cat(sums)
