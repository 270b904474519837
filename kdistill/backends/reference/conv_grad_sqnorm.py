"""Reference of conv_grad_sqnorm, and the direct form that every backend shares."""

import torch
import torch.nn.functional as F
from torch import Tensor

SCRATCH_NBYTES = 16 << 20  # of intermediate matrices at a time, so that they stay in a cache


def conv_grad_sqnorm(x: Tensor, grad: Tensor, padding: int, gram: bool) -> Tensor:
    """Return ``[N]`` in float64 by the definition; ``gram`` is a matter of cost."""
    return by_products(x, grad, padding)


def by_products(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """Return the squared norms of the weight gradients ``[9*C, K]``, a few at a time."""
    if not x.numel() or not grad.numel():  # no image, or no channel: no gradient
        return x.new_zeros(len(x), dtype=torch.float64)
    rows = grad.flatten(2).transpose(1, 2)  # [N, h*w, K]
    per_image = 9 * x.shape[1] * (rows.shape[1] + rows.shape[2]) * x.element_size()
    squares = [x.new_zeros(0, dtype=torch.float64)]
    for images, out in zip(
        *(t.split(max(1, SCRATCH_NBYTES // per_image)) for t in (x, rows)), strict=True
    ):
        gradients = torch.bmm(F.unfold(images, 3, padding=padding), out)  # [n, 9*C, K]
        squares.append(gradients.double().square().sum((1, 2)))
    return torch.cat(squares)


def grams(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products of all pixels of each, ``[n, H*W, H*W]`` and ``[n, h*w, h*w]``."""
    pixels, outs = (
        t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, grad)
    )  # views where channels are last
    return torch.bmm(pixels, pixels.transpose(1, 2)), torch.bmm(outs, outs.transpose(1, 2))


def gram_chunk(x: Tensor, grad: Tensor) -> int:
    """Return how many images to take at a time in the Gram form."""
    numel = x.shape[2:].numel() ** 2 + grad.shape[2:].numel() ** 2
    return int(max(1, SCRATCH_NBYTES // (numel * x.element_size())))
