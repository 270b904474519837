"""Reference of winograd_conv: the plain sums.  Any dtype and device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def winograd_conv(
    x: Tensor, weight: Tensor, padding: int, turned: bool, x1: Tensor | None, weight1: Tensor | None
) -> Tensor:
    if x1 is not None and weight1 is not None:
        x, weight = torch.cat([x, x1], 1), torch.cat([weight, weight1], 0 if turned else 1)
    weight = weight.flip(2, 3).transpose(0, 1) if turned else weight
    return F.conv2d(x, weight, padding=padding).contiguous(memory_format=torch.channels_last)


def winograd_conv_weight_grad(
    x: Tensor, grad: Tensor, padding: int, x1: Tensor | None, grad1: Tensor | None
) -> Tensor:
    if x1 is not None and grad1 is not None:
        x, grad = torch.cat([x, x1]), torch.cat([grad, grad1])
    return torch.nn.grad.conv2d_weight(x, [grad.shape[1], x.shape[1], 3, 3], grad, padding=padding)
