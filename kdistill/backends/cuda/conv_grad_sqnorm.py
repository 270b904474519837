"""conv_grad_sqnorm: the library's batched products, and csrc/cuda for the sum over pairs."""

import torch
from torch import Tensor

from kdistill.backends.cuda import launch
from kdistill.backends.reference.conv_grad_sqnorm import by_products, gram_chunk, grams


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    if not gram:
        return by_products(x, grad, padding)
    n, _, H, W = x.shape
    step = gram_chunk(x, grad)
    out = x.new_empty(n, dtype=torch.float64)
    partials = x.new_empty((step, *grad.shape[2:], 2), dtype=torch.float64)
    for images, grads, part in zip(x.split(step), grad.split(step), out.split(step), strict=True):
        tensors = (*grams(images, grads), part, partials)
        launch("conv_grad_sqnorm", tensors, len(images), H, W, padding)
    return out
