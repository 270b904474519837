"""conv_grad_sqnorm: the library's batched products, and csrc/cpu/conv_grad_sqnorm.cpp for the sum over pairs."""

from functools import partial

import torch
from torch import Tensor

from kdistill import _native
from kdistill.backends.reference.conv_grad_sqnorm import by_products, gram_chunk, grams

supports = partial(_native.refusal, "_cpu")

_STACK = 4096  # kStack of the kernel


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    n, _, H, W = x.shape
    h, step = grad.shape[2], gram_chunk(x, grad)
    if not gram or h * W > _STACK:
        return by_products(x, grad, padding)
    out, partials = x.new_empty(n, dtype=torch.float64), x.new_empty((step, h), dtype=torch.float64)
    run = _native.kernel("_cpu", "conv_grad_sqnorm", x.dtype)
    for images, grads, found in zip(x.split(step), grad.split(step), out.split(step), strict=True):
        gx, gg = grams(images, grads)
        addresses = (t.data_ptr() for t in (gx, gg, found, partials))
        run(*addresses, len(images), H, W, padding, torch.get_num_threads())
    return out
