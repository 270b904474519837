"""conv_grad_sqnorm: the library's batched products, and csrc/cpu for the sum over pairs."""

import torch
from torch import Tensor

from kdistill.backends.cpu import launch
from kdistill.backends.reference.conv_grad_sqnorm import by_products, gram_chunk, grams

_STACK = 4096  # kStack of the kernel


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    n, _, H, W = x.shape
    h = grad.shape[2]
    if not gram or h * W > _STACK:
        return by_products(x, grad, padding)
    step = gram_chunk(x, grad)
    out, partials = x.new_empty(n, dtype=torch.float64), x.new_empty((step, h), dtype=torch.float64)
    for images, grads, part in zip(x.split(step), grad.split(step), out.split(step), strict=True):
        tensors = (*grams(images, grads), part, partials)
        launch("conv_grad_sqnorm", tensors, len(images), H, W, padding)
    return out
