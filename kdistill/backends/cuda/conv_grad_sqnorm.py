"""conv_grad_sqnorm: the library's batched products, and csrc/cuda/conv_grad_sqnorm.cu for the sum over pairs."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.reference.conv_grad_sqnorm import by_products, gram_chunk, grams

supports = partial(_native.refusal, "_cuda")


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    if not gram:
        return by_products(x, grad, padding)
    n, _, H, W = x.shape
    step = gram_chunk(x, grad)
    out, partials = (
        x.new_empty(n, dtype=torch.float64),
        x.new_empty((step, *grad.shape[2:], 2), dtype=torch.float64),
    )
    run = _native.kernel("_cuda", "conv_grad_sqnorm", x.dtype, x.device)
    with _native.stream_of(x) as stream:
        for images, grads, found in zip(
            x.split(step), grad.split(step), out.split(step), strict=True
        ):
            gx, gg = grams(images, grads)
            run(
                *(t.data_ptr() for t in (gx, gg, found, partials)),
                len(images),
                H,
                W,
                padding,
                stream,
            )
    return out
