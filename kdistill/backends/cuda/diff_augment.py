"""diff_augment through csrc/cuda/diff_augment.cu."""

import torch
from torch import Tensor

from kdistill.backends.cuda import launch

_TILE = 1024  # kTile of the kernel: pixels behind one partial sum of the image mean


def _partials(images: Tensor) -> Tensor:
    n, _, h, w = images.shape
    return images.new_empty((n, -(-(h * w) // _TILE)), dtype=torch.float64)


def diff_augment(
    images: Tensor, params: Tensor, index: Tensor, align_corners: bool, linear: bool
) -> Tensor:
    out = torch.empty_like(images)
    tensors = (images, params, index, out, _partials(images))
    launch("diff_augment", tensors, *images.shape, len(params), align_corners, linear)
    return out


def diff_augment_bwd(grad: Tensor, params: Tensor, index: Tensor, align_corners: bool) -> Tensor:
    out = torch.empty_like(grad)
    tensors = (grad, params, index, out, _partials(grad))
    launch("diff_augment_bwd", tensors, *grad.shape, len(params), align_corners)
    return out
