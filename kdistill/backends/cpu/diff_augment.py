"""diff_augment through csrc/cpu/diff_augment.cpp."""

import torch
from torch import Tensor

from kdistill.backends.cpu import launch


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    out = torch.empty_like(images)
    numbers = (*images.shape, len(params), align_corners, linear)
    launch("diff_augment", (images, params, index, out), *numbers)
    return out


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    out = torch.empty_like(grad)
    numbers = (*grad.shape, len(params), align_corners)
    launch("diff_augment_bwd", (grad, params, index, out), *numbers)
    return out
